//! The arguments, the plans that they stand for, and the command that repeats a run.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, value_parser};
use tollgate_sim::{Cut, Facts, Feature, Features, Options, Plan, Planted, Violation, revocation, run, shrink};

use super::failure::Failure;

/// How long one failing seed is made smaller.
const SHRINK_MAX: Duration = Duration::from_secs(60);

/// Simulates the gateway, its clients and the networks between, and checks what must hold. The same seed gives the same run.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
pub struct Arguments {
    /// One seed: prints what the run amounted to, and the hash of its trace.
    #[arg(long, value_name = "SEED", required_unless_present_any = ["seeds", "bytes", "campaign"])]
    pub seed: Option<u64>,
    /// Many seeds, the second one not included: prints those that fail, and how to repeat them.
    #[arg(long, value_name = "FROM..TO", value_parser = parse_range, conflicts_with = "seed")]
    pub seeds: Option<Range<u64>>,
    /// Seeds that nobody has run, until the time is over. Progress is kept in this file, and another start goes on from there.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds", "revocations"])]
    pub campaign: Option<PathBuf>,
    /// How long a campaign goes on, over all its starts.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, requires = "campaign")]
    pub seconds: u64,
    /// A file of bytes that stand for a plan, as a fuzzer writes them.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds", "campaign", "without", "only", "always", "simulated_seconds"])]
    pub bytes: Option<PathBuf>,
    /// Seeds run at once; by default as many as there are cores.
    #[arg(long, value_name = "COUNT")]
    pub jobs: Option<usize>,
    /// How long faults go on, in simulated seconds. Calm comes on top.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub simulated_seconds: u64,
    /// Features that are not to happen, whatever the seed says.
    #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
    pub without: Vec<Feature>,
    /// The only features that may happen, if the seed says so.
    #[arg(long, value_name = "FEATURES", value_delimiter = ',', num_args = 0..)]
    pub only: Option<Vec<Feature>>,
    /// Features that happen whatever the seed says.
    #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
    pub always: Vec<Feature>,
    /// Of the seed's devices, only those of these numbers.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', num_args = 0.., requires = "seed")]
    devices: Option<Vec<usize>>,
    /// Of the seed's flows, only those of these numbers.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', num_args = 0.., requires = "seed")]
    flows: Option<Vec<usize>>,
    /// No more shards than that.
    #[arg(long, value_name = "COUNT", requires = "seed", value_parser = value_parser!(u16).range(1..))]
    shards: Option<u16>,
    /// Calm comes at this second of the run; until then it is the same.
    #[arg(long, value_name = "SECONDS", requires = "seed", value_parser = parse_seconds)]
    faults_end: Option<Duration>,
    /// Leave a failing seed as it is. Otherwise as much of it is left out as its failure does not need.
    #[arg(long)]
    no_shrink: bool,
    /// Stop after so many failures.
    #[arg(long, value_name = "COUNT", default_value_t = u64::MAX, hide_default_value = true)]
    pub failures: u64,
    /// Print how often each drop reason, message, event, close cause and state was seen.
    #[arg(long, conflicts_with_all = ["seed", "bytes"])]
    pub hits: bool,
    /// Fail where something was never seen that can be, or something that cannot be.
    #[arg(long, conflicts_with_all = ["seed", "bytes", "revocations", "without", "only", "always"])]
    pub require_hits: bool,
    /// Break something of the simulator's own, to see it found.
    #[arg(long, value_name = "FAULT")]
    pub plant: Option<Planted>,
    /// Instead of a minute of a gateway's life, each seed stands for some combinations of the delays of orders and messages between shards, under
    /// which a user is sent away. From 0 to 108 are all of them.
    #[arg(long, conflicts_with_all = ["without", "only", "always", "simulated_seconds", "devices", "flows", "shards", "faults_end"])]
    pub revocations: bool,
    /// Print the facts of each seed that passes, in the order of seeds, with no features but those of `tests/facts.txt`, which holds such lines.
    #[arg(long, requires = "seeds")]
    pub facts: bool,
    /// Print everything that happens.
    #[arg(long, conflicts_with = "campaign")]
    pub trace: bool,
}

impl Arguments {
    /// What the arguments themselves leave of a seed's plan.
    pub fn cut(&self) -> Cut {
        let Arguments { devices, flows, shards, faults_end, .. } = self;
        Cut { features: None, devices: devices.clone(), flows: flows.clone(), shards: *shards, faults_end: *faults_end }
    }

    pub fn plan(&self, seed: u64, cut: &Cut) -> Plan {
        let all = if self.facts { Features::RECORDED } else { Features::ALL };
        let mut allowed = self.only.as_deref().map_or(all, Features::of).without(&self.without);
        if let Some(features) = &cut.features {
            allowed = allowed.and(Features::of(features));
        }
        let always = Features::of(&self.always_of(cut));
        let mut plan = Plan::with(seed, (allowed, always), Duration::from_secs(self.simulated_seconds));
        cut.apply(&mut plan);
        plan
    }

    /// What is always to happen, as far as a cut leaves it.
    fn always_of(&self, cut: &Cut) -> Vec<Feature> {
        let is_left = |feature: &&Feature| cut.features.as_ref().is_none_or(|kept| kept.contains(feature));
        self.always.iter().filter(is_left).copied().collect()
    }

    /// The arguments that make a plan of a seed.
    pub fn of_plan(&self, cut: &Cut) -> String {
        let names = |features: &[Feature]| features.iter().map(|feature| feature.name()).collect::<Vec<_>>();
        let numbers = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>();
        let mut words = vec![format!("--simulated-seconds {}", self.simulated_seconds)];
        let mut add = |name: &str, values: Option<Vec<String>>| {
            words.extend(values.map(|values| format!("{name} {}", values.join(",")).trim_end().to_owned()));
        };
        match &cut.features {
            Some(features) => add("--only", Some(names(features))),
            None => {
                add("--without", Some(names(&self.without)).filter(|names| !names.is_empty()));
                add("--only", self.only.as_deref().map(names));
            }
        }
        add("--always", Some(names(&self.always_of(cut))).filter(|names| !names.is_empty()));
        add("--devices", cut.devices.as_deref().map(numbers));
        add("--flows", cut.flows.as_deref().map(numbers));
        add("--shards", cut.shards.map(|shards| vec![shards.to_string()]));
        add("--faults-end", cut.faults_end.map(|end| vec![end.as_secs_f64().to_string()]));
        words.join(" ")
    }

    /// The command that runs one seed again.
    pub fn again(&self, seed: u64, cut: &Cut) -> String {
        if self.revocations {
            return format!("tollgate-sim --revocations --seed {seed}");
        }
        let planted = self.plant.map(|fault| format!(" --plant {}", fault.name()));
        format!("tollgate-sim --seed {seed} {}{}", self.of_plan(cut), planted.unwrap_or_default())
    }

    pub fn run(&self, seed: u64) -> Result<Facts, Failure> {
        if self.revocations {
            return self.caught(self.trace, |options| revocation::run(seed, options));
        }
        self.run_plan(self.plan(seed, &self.cut()), self.trace)
    }

    pub fn run_plan(&self, plan: Plan, print: bool) -> Result<Facts, Failure> {
        self.caught(print, |options| run(plan, options))
    }

    /// A panic is a failure like any other.
    fn caught(&self, print: bool, run: impl FnOnce(Options) -> Result<Facts, Violation>) -> Result<Facts, Failure> {
        match catch_unwind(AssertUnwindSafe(|| run(Options { print, planted: self.plant }))) {
            Ok(result) => result.map_err(Failure::from),
            Err(panic) => Err(Failure::panic(&*panic)),
        }
    }

    /// Whether a failing seed is to be made smaller: one that was is not again.
    pub fn shrinks(&self) -> bool {
        !self.no_shrink && !self.trace && !self.revocations && self.cut() == Cut::default()
    }

    /// The smallest part of a failing seed's plan that is found to fail in the same way, in words.
    pub fn shrunk(&self, seed: u64, failure: &Failure) -> String {
        let began = Instant::now();
        let whole = self.plan(seed, &Cut::default());
        let mut runs = 0;
        let cut = shrink(&whole, failure.at.unwrap_or(whole.safety), |cut| {
            if began.elapsed() > SHRINK_MAX {
                return None;
            }
            runs += 1;
            let other = self.run_plan(self.plan(seed, cut), false).err()?;
            other.is_like(failure).then(|| other.at.unwrap_or(whole.safety))
        });
        let plan = self.plan(seed, &cut);
        format!(
            "  shrunk to {} of {} features, {} of {} devices, {} of {} flows, {} of {} shards in {runs} runs: {}",
            plan.features.names().len(),
            whole.features.names().len(),
            plan.devices.iter().filter(|device| !device.is_left_out).count(),
            whole.devices.len(),
            plan.flows.len(),
            whole.flows.len(),
            plan.shards,
            whole.shards,
            self.again(seed, &cut)
        )
    }
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    range.filter(|range| range.start < range.end).ok_or_else(|| "two numbers, like 0..1000".to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "a number of seconds, like 2.5".to_owned())
}
