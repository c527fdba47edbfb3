//! Reading a scenario file: every mistake with its place, what is wrong and what would be right, all of them at once.
//!
//! All bounds of scenarios are checked here and nowhere else. Whether files and CPUs exist, and anybody listens, is for the run to find out.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tollgate_config::reading::{self, RATE, Report, Table, rate};
use tollgate_config::{CPUS_MAX, ConfigError, MTU_BYTES_MAX, MTU_BYTES_MIN, SHARDS_MAX};

use super::traffic::{self, TrafficBounds};
use super::{Demands, GatewayPlan, HarnessPlan, NamedGateway, Scenario, Sources, StartedGateway, Trouble, UserPlan};
use crate::identities::USERS_MAX;
use crate::load::far_end::LIFETIME_MAX;

/// Longest scenario file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most connections of a scenario.
pub const CONNECTIONS_MAX: u32 = 60_000;
/// Most connections that each have an address of their own: the network of their addresses has room for these and for rebinding.
pub const ADDRESSES_MAX: u32 = 16_000;
/// How long traffic runs: at most a day less than the far end's flows live, for what comes before and after.
pub const DURATION: RangeInclusive<Duration> = Duration::from_secs(1)..=LIFETIME_MAX.saturating_sub(DAY);

const DAY: Duration = Duration::from_secs(86_400);

const ABSENT_MAX: u64 = 200_000;
const THREADS_MAX: u64 = 64;
const HANDSHAKES_MAX: u64 = 4096;
const LOSS_MAX: f64 = 0.5;
/// Of whatever happens so often a second.
const PER_SECOND: RangeInclusive<f64> = 0.001..=100_000.0;
const SILENCE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

const DURATION_EXPECTED: &str = "write a number and ms, s, min, h or d, for example \"20 s\"";
const CPU_EXPECTED: &str = "the number of a CPU, for example [0, 1]";

/// Reads the scenario in the file `path`.
///
/// # Errors
///
/// Every mistake in it, in a line each.
pub(super) fn read(path: &Path) -> Result<Scenario, ConfigError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // No variables of the environment: what a file says is what runs.
    let none = std::iter::empty();
    let (scenario, _) = reading::load(path, FILE_BYTES_MAX, none, |root, report| Some(root_table(name, root, report)))?;
    Ok(scenario)
}

/// Reads the whole file. After a mistake, what it gives is not the scenario that was meant, but is never used.
fn root_table(name: String, mut root: Table<'_>, report: &mut Report<'_>) -> Scenario {
    root.require(report, "duration", "say how long traffic shall run: duration = \"20 s\"");
    let duration = span(&mut root, report, "duration", DURATION).unwrap_or(*DURATION.start());
    let gateway = gateway(root.table(report, "gateway"), report);
    let is_named = matches!(gateway, GatewayPlan::Named(_));
    let mtu_bytes = match &gateway {
        GatewayPlan::Started(gateway) => gateway.mtu_bytes,
        GatewayPlan::Named(gateway) => gateway.mtu_bytes,
    };
    let mut users = users(root.table(report, "users"), &gateway, report);
    ramp(root.table(report, "ramp"), &mut users, report);
    let connections = users.count * u32::from(users.connections);
    let harness = harness(root.table(report, "harness"), connections, is_named, report);
    let trouble = trouble(root.table(report, "trouble"), report);
    let bounds = TrafficBounds { connections, mtu_bytes };
    let traffic = traffic::read(root.array(report, "traffic"), bounds, report);
    let demands = demands(root.table(report, "demand"), &users, &trouble, report);
    root.finish(report);
    Scenario { name, duration, gateway, users, harness, trouble, traffic, demands }
}

fn gateway(mut table: Table<'_>, report: &mut Report<'_>) -> GatewayPlan {
    let mtu = u64::from(MTU_BYTES_MIN)..=u64::from(MTU_BYTES_MAX);
    let mtu_bytes = table.integer(report, "mtu", mtu, "bytes").map(|mtu| mtu as u16);
    let plan = if table.is_set(report, "address") {
        GatewayPlan::Named(named_gateway(&mut table, mtu_bytes, report))
    } else {
        GatewayPlan::Started(started_gateway(&mut table, mtu_bytes, report))
    };
    table.finish(report);
    plan
}

fn started_gateway(table: &mut Table<'_>, mtu_bytes: Option<u16>, report: &mut Report<'_>) -> StartedGateway {
    for key in ["server_name", "trusted", "identities", "far_end"] {
        let what = "is of a gateway that runs already, but none is named";
        table.refuse(report, key, what, "remove it, or name the gateway: address = \"ADDRESS:PORT\"");
    }
    let default = StartedGateway::default();
    let shards = table.integer(report, "shards", 1..=SHARDS_MAX, "shards").map(|shards| shards as u16);
    StartedGateway {
        shards: shards.or(default.shards),
        cpus: cpus(table, report),
        mtu_bytes: mtu_bytes.unwrap_or(default.mtu_bytes),
        idle_timeout: span(table, report, "idle_timeout", SILENCE).unwrap_or(default.idle_timeout),
        log: file(table, report, "log"),
    }
}

fn named_gateway(table: &mut Table<'_>, mtu_bytes: Option<u16>, report: &mut Report<'_>) -> NamedGateway {
    for key in ["shards", "cpus", "idle_timeout", "log"] {
        let what = "is of a gateway that is started, but `address` names one that runs already";
        table.refuse(report, key, what, "remove it, or remove `address`");
    }
    let required = [
        ("trusted", "name the PEM file with the certificate to trust"),
        ("identities", "name the folder that `tollgate-bench identities` wrote"),
        ("far_end", "say where `tollgate-bench far-end` listens behind the gateway: far_end = \"ADDRESS:PORT\""),
    ];
    for (key, remedy) in required {
        table.require(report, key, remedy);
    }
    let address = socket_address(table, report, "address").unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
    let expected = "write a DNS name or an IP address, as the gateway's certificate has it";
    let server_name = table.parsed(report, "server_name", expected, |text| match text.trim() {
        "" => Err("which is no name".to_owned()),
        name => Ok(name.to_owned()),
    });
    NamedGateway {
        address,
        server_name: server_name.unwrap_or_else(|| address.ip().to_string()),
        trusted_certificates: file(table, report, "trusted").unwrap_or_default(),
        identities: file(table, report, "identities").unwrap_or_default(),
        far_end: far_end(table, report).unwrap_or(address),
        mtu_bytes: mtu_bytes.unwrap_or(StartedGateway::default().mtu_bytes),
    }
}

fn users(mut table: Table<'_>, gateway: &GatewayPlan, report: &mut Report<'_>) -> UserPlan {
    let default = UserPlan::default();
    table.require(report, "count", "say how many users connect: [users] count = 100");
    let place = table.place_of("count");
    let count = table.integer(report, "count", 1..=u64::from(USERS_MAX), "users");
    let of_each = table.integer(report, "connections", 1..=u64::from(u16::MAX), "connections of each user");
    let total = count.unwrap_or(1) * of_each.unwrap_or(1);
    let is_bounded = total <= u64::from(CONNECTIONS_MAX);
    if !is_bounded {
        let what = format!("times `users.connections` is {total} connections");
        report.wrong(place, "users.count", what, format!("at most {CONNECTIONS_MAX} are possible"));
    }
    // After a mistake as many as everything else in the file may need, so that it is the only one told.
    let (count, connections) = match count {
        Some(count) if is_bounded => (count, of_each.unwrap_or(1)),
        _ => (u64::from(ADDRESSES_MAX), 1),
    };
    if matches!(gateway, GatewayPlan::Named(_)) {
        let what = "cannot be set of a gateway that runs already, whose users file is written already";
        table.refuse(report, "absent", what, "remove it");
    }
    let absent = table.integer(report, "absent", 0..=ABSENT_MAX, "users who never connect");
    let limit = table.parsed(report, "limit", RATE, |text| rate(text).map(|_| text.to_owned()));
    let place = table.place_of("keep_alive");
    let keep_alive = span(&mut table, report, "keep_alive", SILENCE).unwrap_or(default.keep_alive);
    if let GatewayPlan::Started(StartedGateway { idle_timeout, .. }) = gateway
        && keep_alive >= *idle_timeout
    {
        let what = format!(
            "is {}, but the gateway gives a connection up after {} of silence",
            shown_span(keep_alive),
            shown_span(*idle_timeout)
        );
        report.wrong(place, "users.keep_alive", what, "make it shorter than `gateway.idle_timeout`");
    }
    table.finish(report);
    UserPlan {
        count: count as u32,
        connections: connections as u16,
        absent: absent.map_or(default.absent, |absent| absent as u32),
        limit,
        keep_alive,
        ..default
    }
}

fn ramp(mut table: Table<'_>, users: &mut UserPlan, report: &mut Report<'_>) {
    users.ramp_per_second = table.number(report, "per_second", PER_SECOND, "new connections a second");
    if let Some(most) = table.integer(report, "handshakes_max", 1..=HANDSHAKES_MAX, "handshakes in progress at once") {
        users.handshakes_max = most as u32;
    }
    table.finish(report);
}

fn harness(mut table: Table<'_>, connections: u32, is_named: bool, report: &mut Report<'_>) -> HarnessPlan {
    let default = HarnessPlan::default();
    let place = table.place_of("threads");
    let threads = table.integer(report, "threads", 1..=THREADS_MAX, "threads").map(|threads| threads as u16);
    if threads.is_some_and(|threads| u32::from(threads) > connections) {
        let what = format!("are more threads than the {connections} connections");
        report.wrong(place, "harness.threads", what, "give each thread a connection at least");
    }
    let place = table.place_of("sources");
    let expected = "write \"addresses\" (one each, of a gateway that is started) or \"ports\" (one socket each)";
    let sources = table.parsed(report, "sources", expected, |text| match text {
        "addresses" => Ok(Sources::Addresses),
        "ports" => Ok(Sources::Ports),
        _ => Err("which is neither".to_owned()),
    });
    let wrong = match sources.unwrap_or(if is_named { Sources::Ports } else { default.sources }) {
        Sources::Addresses if is_named => {
            Some(("is \"addresses\", but those exist only in namespaces made for the run".to_owned(), "use \"ports\""))
        }
        Sources::Addresses if connections > ADDRESSES_MAX => Some((
            format!("is \"addresses\", of which there are {ADDRESSES_MAX}, but there are {connections} connections"),
            "have fewer connections, or use \"ports\"",
        )),
        _ => None,
    };
    if let Some((what, remedy)) = wrong {
        report.wrong(place, "harness.sources", what, remedy);
    }
    let seed = table.integer(report, "seed", 0..=i64::MAX as u64, "a seed");
    let plan = HarnessPlan {
        threads: threads.unwrap_or(default.threads),
        cpus: cpus(&mut table, report),
        sources: sources.unwrap_or(if is_named { Sources::Ports } else { default.sources }),
        seed: seed.unwrap_or(default.seed),
    };
    table.finish(report);
    plan
}

fn trouble(mut table: Table<'_>, report: &mut Report<'_>) -> Trouble {
    let mut rate = |key, unit| table.number(report, key, 0.0..=*PER_SECOND.end(), unit).unwrap_or(0.0);
    let churn_per_second = rate("churn_per_second", "connections a second that end and are made anew");
    let rebinds_per_second = rate("rebinds_per_second", "changes of address a second");
    let loss = table.number(report, "loss", 0.0..=LOSS_MAX, "lost datagrams for each one").unwrap_or(0.0);
    let churn_idle_only = table.boolean(report, "churn_idle_only").unwrap_or(false);
    table.finish(report);
    Trouble { churn_per_second, churn_idle_only, loss, rebinds_per_second }
}

/// Nothing may be lost where nothing is said, unless the scenario itself makes packets get lost.
fn demands(mut table: Table<'_>, users: &UserPlan, trouble: &Trouble, report: &mut Report<'_>) -> Demands {
    let loses = users.limit.is_some() || *trouble != Trouble::default();
    let default = Demands { loss_max: (!loses).then_some(0.0), ..Demands::default() };
    let loss_max = table.number(report, "loss_max", 0.0..=1.0, "lost packets for each one");
    let growth = table.number(
        report,
        "bytes_per_churned_connection_max",
        0.0..=1e9,
        "bytes for each connection that came and went",
    );
    let demands = Demands {
        loss_max: loss_max.or(default.loss_max),
        bytes_per_churned_connection_max: growth,
        all_connected: table.boolean(report, "all_connected").unwrap_or(default.all_connected),
    };
    table.finish(report);
    demands
}

/// A length of time within `range`.
fn span(
    table: &mut Table<'_>,
    report: &mut Report<'_>,
    key: &str,
    range: RangeInclusive<Duration>,
) -> Option<Duration> {
    let expected = format!("{DURATION_EXPECTED}, from {} to {}", shown_span(*range.start()), shown_span(*range.end()));
    table.parsed(report, key, &expected, |text| {
        let duration = parse_duration(text)?;
        if range.contains(&duration) { Ok(duration) } else { Err("which is out of range".to_owned()) }
    })
}

/// A length of time as scenarios have it: a number, possibly with a fraction, and a unit.
///
/// # Errors
///
/// What is wrong with it, as the end of a sentence.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let Some(unit_at) = text.find(|c: char| c.is_ascii_alphabetic()) else {
        return Err("which has no unit".to_owned());
    };
    let (number, unit) = text.split_at(unit_at);
    let unit_seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(format!("whose unit {unit:?} is unknown")),
    };
    let number: f64 = number.trim().parse().map_err(|_| "which does not start with a number".to_owned())?;
    Duration::try_from_secs_f64(number * unit_seconds).map_err(|_| "which is no length of time".to_owned())
}

/// As a file has it.
fn shown_span(span: Duration) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")];
    let ms = span.as_millis();
    let whole = units.into_iter().find(|(unit_ms, _)| ms.is_multiple_of(*unit_ms));
    let (unit_ms, unit) = whole.unwrap_or((1, "ms"));
    format!("{} {unit}", ms / unit_ms)
}

fn cpus(table: &mut Table<'_>, report: &mut Report<'_>) -> Vec<usize> {
    let Some(setting) = table.take(report, "cpus") else { return Vec::new() };
    let (place, path) = (setting.place.clone(), setting.path.clone());
    let elements = setting.elements(report, CPU_EXPECTED).unwrap_or_default();
    let cpus: Vec<usize> = elements
        .into_iter()
        .filter_map(|cpu| cpu.integer(report, 0..=CPUS_MAX - 1, "a CPU"))
        .map(|cpu| cpu as usize)
        .collect();
    if let Some((_, cpu)) = cpus.iter().enumerate().find(|&(at, cpu)| cpus[..at].contains(cpu)) {
        report.wrong(place, &path, format!("names CPU {cpu} twice"), "name each CPU once");
    }
    cpus
}

fn file(table: &mut Table<'_>, report: &mut Report<'_>, key: &str) -> Option<PathBuf> {
    table.parsed(report, key, "write a path", |text| match text {
        "" => Err("which is no path".to_owned()),
        _ => Ok(PathBuf::from(text)),
    })
}

fn socket_address(table: &mut Table<'_>, report: &mut Report<'_>, key: &str) -> Option<SocketAddr> {
    let expected = "write an IP address and a port, for example \"192.0.2.1:55555\" or \"[2001:db8::1]:55555\"";
    table.parsed(report, key, expected, |text| match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => Err("which has port 0".to_owned()),
        Ok(address) if address.ip().is_unspecified() => Err("which is nobody's address".to_owned()),
        Ok(address) => Ok(address),
        Err(_) => Err("which is no IP address with a port".to_owned()),
    })
}

/// Inner traffic is IPv4.
fn far_end(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<SocketAddr> {
    let place = table.place_of("far_end");
    let address = socket_address(table, report, "far_end")?;
    if let IpAddr::V6(ip) = address.ip() {
        let what = format!("is {ip}, but traffic inside the tunnel is IPv4");
        report.wrong(place, "gateway.far_end", what, "write an IPv4 address that the gateway routes to");
        return None;
    }
    Some(address)
}
