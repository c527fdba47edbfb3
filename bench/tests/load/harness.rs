//! What tests of whole loads have in common: the machine to themselves, and gateways to load.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tollgate::lab;
use tollgate_bench::deployment::Contender;
use tollgate_bench::peers::Places;
use tollgate_bench::progress::Progress;
use tollgate_bench::results::{Direction, LoadResult};
use tollgate_bench::scenario::{GatewayPlan, Scenario, Sizes, StartedGateway, TrafficKind, TrafficPlan};

/// One load at a time: two would be each other's trouble.
static MACHINE: Mutex<()> = Mutex::new(());

/// Waits for the machine. Without the right to make namespaces there is nothing to test: `None`, and a line says why.
///
/// # Panics
///
/// If something is missing where nothing may be skipped: in CI, or with `TOLLGATE_REQUIRE_PEERS=1`.
pub fn machine() -> Option<MutexGuard<'static, ()>> {
    if let Err(missing) = lab::privileges().and_then(|()| lab::require_tun()) {
        skip(&missing.to_string());
        return None;
    }
    // A test that failed has left nothing half done.
    Some(MACHINE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Tollgate as these sources have it.
pub fn tollgate() -> Contender {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| built(&["--package", "tollgate", "--bin", "tollgate"], "tollgate"));
    Contender::tollgate(program.clone())
}

/// Tollgate with the faults that `arguments` ask for, if any.
pub fn faulty_gateway(arguments: &[&str]) -> Contender {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || built(&["--package", "tollgate-bench", "--example", "faulty_gateway"], "examples/faulty_gateway");
    let arguments = arguments.iter().map(ToString::to_string).collect();
    Contender { arguments, ..Contender::tollgate(PROGRAM.get_or_init(build).clone()) }
}

/// Quincy's server, where it is installed.
///
/// # Panics
///
/// As [`machine`].
pub fn quincy() -> Option<Contender> {
    match Places::of_this_process().find("quincy-server", None, "$TOLLGATE_PEERS") {
        Ok(program) => Some(Contender::quincy(program)),
        Err(missing) => {
            skip(&missing.to_string());
            None
        }
    }
}

/// A scenario of `users`, one connection each, for `seconds`.
pub fn scenario(users: u32, seconds: u64) -> Scenario {
    let mut scenario = Scenario { duration: Duration::from_secs(seconds), ..Scenario::default() };
    scenario.users.count = users;
    scenario
}

/// The part of a scenario that says how its gateway is started.
pub fn started(scenario: &mut Scenario) -> &mut StartedGateway {
    match &mut scenario.gateway {
        GatewayPlan::Started(plan) => plan,
        GatewayPlan::Named(_) => panic!("nobody starts a named gateway"),
    }
}

/// A group of connections with one flow each, at `packets_per_second` each way that it goes.
pub fn constant(connections: u32, direction: Direction, packets_per_second: f64, sizes: Sizes) -> TrafficPlan {
    let kind = TrafficKind::Constant { packets_per_second, train_packets: 1 };
    TrafficPlan { name: "constant".to_owned(), connections, flows: 1, kind, direction, sizes }
}

/// Runs a load, which must be possible.
pub fn run(scenario: &Scenario, gateway: &Contender) -> LoadResult {
    let result = tollgate_bench::load::run(scenario, gateway, &mut Progress::new());
    result.unwrap_or_else(|error| panic!("{error:#}"))
}

/// All of a result but the many numbers of its distributions and samples.
pub fn shown(result: &LoadResult) -> String {
    let mut result = result.clone();
    for round_trip in result.groups.iter_mut().filter_map(|group| group.round_trip.as_mut()) {
        round_trip.quantiles.clear();
    }
    result.samples.clear();
    format!("{result:#?}")
}

/// Builds a program with the profile that this test was built with, in the same folder; nothing is done where it is up to date.
fn built(target: &[&str], path: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this test's program");
    // PROFILE/deps/TEST
    let folder = own.parent().and_then(Path::parent).expect("the folder of the profile");
    let profile = folder.file_name().and_then(|name| name.to_str()).expect("a profile");
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--profile", if profile == "debug" { "dev" } else { profile }]).args(target);
    command
        .arg("--target-dir")
        .arg(folder.parent().expect("the target folder"))
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = command.status().expect("cargo runs");
    assert!(status.success(), "{command:?} failed");
    folder.join(path)
}

/// Says on standard error what is missing, past the test runner, which keeps what passing tests print to itself.
fn skip(missing: &str) {
    let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let is_required = set("CI", "true") || set("TOLLGATE_REQUIRE_PEERS", "1");
    assert!(!is_required, "nothing may be skipped here: {missing}");
    let _ = writeln!(std::io::stderr(), "skipped: {missing}");
}
