//! Many seeds, on all cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tollgate_sim::{Cut, Facts, Tally};

use super::arguments::Arguments;
use super::failure::Failure;

/// How often progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Failing seeds that are made smaller: many fail for one reason.
const SHRUNK_MAX: u64 = 3;

/// Gives `done` what becomes of the seeds that `next` gives, on as many threads as there are cores.
pub fn on_all_cores(
    arguments: &Arguments,
    next: impl Fn() -> Option<u64> + Sync,
    done: impl Fn(u64, Result<Facts, Failure>) + Sync,
) {
    std::thread::scope(|scope| {
        for _ in 0..jobs(arguments) {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    done(seed, arguments.run(seed));
                }
            });
        }
    });
}

pub fn jobs(arguments: &Arguments) -> usize {
    let jobs = arguments.jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from));
    jobs.unwrap_or(1).max(1)
}

/// Tells of a failing seed, and returns what was told. The first few are made smaller, `failed` have been before.
pub fn tell_failure(arguments: &Arguments, seed: u64, failure: &Failure, failed: u64) -> String {
    let mut told = format!("seed {seed} FAILS: {failure}\n  again: {}", arguments.again(seed, &Cut::default()));
    if arguments.shrinks() && failed < SHRUNK_MAX {
        told = format!("{told}\n{}", arguments.shrunk(seed, failure));
    }
    println!("{told}");
    told
}

/// Prints where the runs have been, as far as it is asked for. Returns whether nothing is missing.
pub fn tell_hits(arguments: &Arguments, tally: &Tally) -> bool {
    if arguments.hits || arguments.campaign.is_some() {
        print!("{tally}");
    }
    let complaints = if arguments.require_hits { tally.complaints() } else { Vec::new() };
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    complaints.is_empty()
}

#[derive(Default)]
struct Totals {
    runs: u64,
    packets: u64,
    tally: Tally,
    lines: BTreeMap<u64, String>,
    told_at: Option<Instant>,
}

/// Runs `seeds`. Returns whether all is well.
pub fn run(arguments: &Arguments, seeds: Range<u64>) -> bool {
    let (next, failed) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let totals = Mutex::new(Totals::default());
    let started = Instant::now();
    let next_seed = || {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        (seed < seeds.end && failed.load(Ordering::Relaxed) < arguments.failures).then_some(seed)
    };
    on_all_cores(arguments, next_seed, |seed, result| {
        if let Err(failure) = &result {
            tell_failure(arguments, seed, failure, failed.fetch_add(1, Ordering::Relaxed));
        }
        let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.runs += 1;
        if let Ok(facts) = result {
            totals.packets += facts.packets_sent;
            totals.tally.add(&facts.hits);
            totals.lines.insert(seed, facts.line(seed));
        }
        if totals.told_at.unwrap_or(started).elapsed() >= TOLD_EVERY {
            totals.told_at = Some(Instant::now());
            let failed = failed.load(Ordering::Relaxed);
            eprintln!("{} of {} seeds, {failed} failed", totals.runs, seeds.end - seeds.start);
        }
    });
    let Totals { runs, packets, tally, lines, .. } = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    if arguments.facts {
        lines.values().for_each(|line| println!("{line}"));
    }
    let nothing_is_missing = tell_hits(arguments, &tally);
    let (failed, seconds) = (failed.into_inner(), started.elapsed().as_secs_f64());
    println!("{runs} seeds, {failed} failed, {packets} packets, {seconds:.1} s with {} jobs", jobs(arguments));
    failed == 0 && nothing_is_missing
}
