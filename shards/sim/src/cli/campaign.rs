//! Hours of seeds that nobody has run before. Progress is kept in a file, and a campaign that was interrupted goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tollgate_sim::{Cut, Facts, Tally};

use super::arguments::Arguments;
use super::failure::Failure;
use super::seeds::{on_all_cores, tell_failure, tell_hits};

/// How often progress is written and told.
const KEPT_EVERY: Duration = Duration::from_secs(10);
/// Failures that are kept in the file; further ones are counted.
const FAILURES_MAX: usize = 100;
/// No campaign runs more seeds in a second, so campaigns that begin at different seconds share none.
const SEEDS_OF_A_SECOND: u64 = 10_000;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Campaign {
    /// The arguments that make its plans.
    plans: String,
    first: u64,
    /// Every seed from the first one to before this one has been run.
    next: u64,
    /// Seeds beyond that have been run.
    ahead: BTreeSet<u64>,
    /// How long it has run, over all its starts.
    milliseconds: u64,
    seeds: u64,
    failed: u64,
    failures: Vec<String>,
    packets: u64,
    simulated_seconds: f64,
    passed: u64,
    hits: BTreeMap<String, (u64, u64)>,
}

impl Campaign {
    /// The one in `file`, or a new one.
    fn open(arguments: &Arguments, file: &Path) -> Result<Self> {
        let plans = arguments.of_plan(&Cut::default());
        if !file.exists() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let first = now.as_secs() * SEEDS_OF_A_SECOND;
            return Ok(Campaign { plans, first, next: first, ..Campaign::default() });
        }
        let text = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let found: Campaign =
            serde_json::from_slice(&text).with_context(|| format!("{} is not a campaign", file.display()))?;
        ensure!(
            found.plans == plans,
            "{} is a campaign with {}: go on with the same, or name another file",
            file.display(),
            found.plans
        );
        Ok(found)
    }

    fn add(&mut self, seed: u64, result: &Result<Facts, Failure>, tally: &mut Tally) {
        self.ahead.insert(seed);
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
        self.seeds += 1;
        if let Ok(facts) = result {
            self.packets += facts.packets_sent;
            self.simulated_seconds += facts.simulated.as_secs_f64();
            tally.add(&facts.hits);
        }
    }

    /// Writes `file` so that it is always whole.
    fn keep(&mut self, tally: &Tally, file: &Path) -> Result<()> {
        (self.passed, self.hits) = (tally.runs, tally.by_name());
        let beside = file.with_extension("new");
        let text = serde_json::to_vec_pretty(self).context("a campaign has no form in JSON")?;
        fs::write(&beside, text).with_context(|| format!("{} cannot be written", beside.display()))?;
        fs::rename(&beside, file).with_context(|| format!("{} cannot be replaced", file.display()))
    }
}

struct Progress {
    campaign: Campaign,
    tally: Tally,
    /// The next seed to give out.
    given: u64,
    counted_at: Instant,
    kept_at: Instant,
    error: Option<anyhow::Error>,
}

impl Progress {
    fn count_time(&mut self) {
        self.campaign.milliseconds += self.counted_at.elapsed().as_millis() as u64;
        self.counted_at = Instant::now();
    }

    fn is_over(&mut self, arguments: &Arguments) -> bool {
        self.count_time();
        let Campaign { milliseconds, failed, .. } = self.campaign;
        milliseconds >= arguments.seconds * 1000 || failed >= arguments.failures || self.error.is_some()
    }
}

/// Runs a campaign, or what is left of it. Returns whether all is well.
pub fn run(arguments: &Arguments, file: &Path) -> Result<bool> {
    let mut campaign = Campaign::open(arguments, file)?;
    let tally = Tally::of_names(campaign.passed, &campaign.hits);
    campaign.keep(&tally, file)?;
    let (now, given) = (Instant::now(), campaign.next);
    let progress = Mutex::new(Progress { campaign, tally, given, counted_at: now, kept_at: now, error: None });
    let locked = || progress.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || {
        let mut progress = locked();
        if progress.is_over(arguments) {
            return None;
        }
        while progress.campaign.ahead.contains(&progress.given) {
            progress.given += 1;
        }
        progress.given += 1;
        Some(progress.given - 1)
    };
    on_all_cores(arguments, next, |seed, result| {
        // Shrinking takes its time: others go on meanwhile.
        let told = result.as_ref().err().map(|failure| {
            let failed = locked().campaign.failed;
            tell_failure(arguments, seed, failure, failed)
        });
        let mut progress = locked();
        let Progress { campaign, tally, .. } = &mut *progress;
        campaign.failed += u64::from(told.is_some());
        campaign.failures.extend(told.filter(|_| campaign.failures.len() < FAILURES_MAX));
        campaign.add(seed, &result, tally);
        if progress.kept_at.elapsed() >= KEPT_EVERY {
            progress.kept_at = Instant::now();
            progress.count_time();
            let Progress { campaign, tally, error, .. } = &mut *progress;
            *error = campaign.keep(tally, file).err();
            eprintln!("{}", statement(campaign));
        }
    });
    let mut progress = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = progress.error {
        return Err(error);
    }
    progress.campaign.keep(&progress.tally, file)?;
    let nothing_is_missing = tell_hits(arguments, &progress.tally);
    progress.campaign.failures.iter().for_each(|told| println!("{told}"));
    println!("{}", statement(&progress.campaign));
    Ok(progress.campaign.failed == 0 && nothing_is_missing)
}

fn statement(campaign: &Campaign) -> String {
    let Campaign { first, seeds, failed, packets, simulated_seconds, milliseconds, .. } = campaign;
    format!(
        "{seeds} seeds from {first} on, {failed} failed, {packets} packets, {:.1} h simulated, {} s",
        simulated_seconds / 3600.0,
        milliseconds / 1000
    )
}
