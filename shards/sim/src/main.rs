//! `tollgate-sim`: runs seeds, and says which fail.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "out here time is real, and runs share the cores"
)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use tollgate_sim::{Facts, Feature, Features, Options, Plan, Planted, revocation, run};

/// Simulates the gateway, its clients and the networks between, and checks what must hold. The same seed gives the same run.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
struct Arguments {
    /// One seed: prints what the run amounted to, and the hash of its trace.
    #[arg(long, value_name = "SEED", conflicts_with = "seeds", required_unless_present = "seeds")]
    seed: Option<u64>,
    /// Many seeds, the second one not included: prints those that fail, and how to repeat them.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_range)]
    seeds: Option<Range<u64>>,
    /// Seeds run at once; by default as many as there are cores.
    #[arg(long, value_name = "COUNT")]
    jobs: Option<usize>,
    /// How long faults go on, in simulated seconds. Calm comes on top.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    simulated_seconds: u64,
    /// Features that are not to happen, whatever the seed says.
    #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
    without: Vec<Feature>,
    /// The only features that may happen, if the seed says so.
    #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
    only: Option<Vec<Feature>>,
    /// Stop after so many failures.
    #[arg(long, value_name = "COUNT", default_value_t = u64::MAX, hide_default_value = true)]
    failures: u64,
    /// Break something of the simulator's own, to see it found.
    #[arg(long, value_name = "FAULT")]
    plant: Option<Planted>,
    /// Instead of a minute of a gateway's life, each seed stands for some combinations of the delays of orders and messages between shards, under
    /// which a user is sent away. From 0 to 108 are all of them.
    #[arg(long, conflicts_with_all = ["without", "only", "simulated_seconds"])]
    revocations: bool,
    /// Print the facts of each seed that passes, in the order of seeds: what `tests/facts.txt` holds.
    #[arg(long, requires = "seeds")]
    facts: bool,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
}

impl Arguments {
    fn plan(&self, seed: u64) -> Plan {
        let allowed = self.only.as_deref().map_or(Features::ALL, Features::of).without(&self.without);
        Plan::new(seed, allowed, Duration::from_secs(self.simulated_seconds))
    }

    /// The command that runs one seed again.
    fn again(&self, seed: u64) -> String {
        if self.revocations {
            return format!("tollgate-sim --revocations --seed {seed}");
        }
        let names = |features: &[Feature]| features.iter().map(|feature| feature.name()).collect::<Vec<_>>().join(",");
        let mut command = format!("tollgate-sim --seed {seed} --simulated-seconds {}", self.simulated_seconds);
        if !self.without.is_empty() {
            command += &format!(" --without {}", names(&self.without));
        }
        if let Some(only) = &self.only {
            command += &format!(" --only {}", names(only));
        }
        command
    }

    /// Runs one seed. A panic is a failure like any other.
    fn run(&self, seed: u64) -> Result<Facts, String> {
        let options = Options { print: self.trace, planted: self.plant };
        let run = || if self.revocations { revocation::run(seed, options) } else { run(self.plan(seed), options) };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(result) => result.map_err(|violation| violation.to_string()),
            Err(panic) => Err(format!("panic: {}", words_of(&*panic))),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return run_one(&arguments, seed);
    }
    std::panic::set_hook(Box::new(|_| {}));
    let seeds = arguments.seeds.clone().unwrap_or(0..0);
    if run_many(&arguments, seeds) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_one(arguments: &Arguments, seed: u64) -> ExitCode {
    if !arguments.revocations {
        let plan = arguments.plan(seed);
        println!(
            "seed {seed}: {} shards, {} users, {} devices, {} flows, {}: {}",
            plan.shards,
            plan.users.len(),
            plan.devices.len(),
            plan.flows.len(),
            plan.tunnel,
            plan.features.names().join(", ")
        );
    }
    match arguments.run(seed) {
        Ok(facts) => {
            println!(
                "seed {seed}: {} packets sent, {} delivered, {} datagrams, {} handshakes, {} messages, {} orders, {} restarts, {:.3} s \
                 simulated, trace {:016x} of {} events",
                facts.packets_sent,
                facts.packets_delivered,
                facts.datagrams,
                facts.handshakes,
                facts.messages,
                facts.orders,
                facts.restarts,
                facts.simulated.as_secs_f64(),
                facts.trace_hash,
                facts.events
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("seed {seed} FAILS: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs `seeds` on several threads. Returns how many failed.
fn run_many(arguments: &Arguments, seeds: Range<u64>) -> u64 {
    let jobs = arguments.jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let (next, failed, packets) = (AtomicU64::new(seeds.start), AtomicU64::new(0), AtomicU64::new(0));
    let told = Mutex::new(Instant::now());
    let lines = Mutex::new(BTreeMap::new());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || failed.load(Ordering::Relaxed) >= arguments.failures {
                        return;
                    }
                    match arguments.run(seed) {
                        Ok(facts) => {
                            packets.fetch_add(facts.packets_sent, Ordering::Relaxed);
                            lines.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, facts.line(seed));
                        }
                        Err(failure) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            println!("seed {seed} FAILS: {failure}\n  again: {}", arguments.again(seed));
                        }
                    }
                    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                    if told.elapsed() >= Duration::from_secs(10) {
                        *told = Instant::now();
                        let failed = failed.load(Ordering::Relaxed);
                        eprintln!("{} of {} seeds, {failed} failed", seed + 1 - seeds.start, seeds.end - seeds.start);
                    }
                }
            });
        }
    });
    if arguments.facts {
        let lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
        lines.values().for_each(|line| println!("{line}"));
    }
    let failed = failed.into_inner();
    let run = next.into_inner().min(seeds.end).saturating_sub(seeds.start);
    let seconds = started.elapsed().as_secs_f64();
    println!("{run} seeds, {failed} failed, {} packets, {seconds:.1} s with {jobs} jobs", packets.into_inner());
    failed
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no words".to_owned())
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.filter(|range| range.start < range.end).ok_or_else(|| "two numbers, like 0..1000".to_owned())
}
