//! What the benchmarks that are made of loads have in common: a series of loads against several gateways, their progress, what went wrong,
//! and the end of it all.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tollgate::lab;

use crate::contenders;
use crate::deployment::{Contender, Kind};
use crate::load;
use crate::progress::Progress;
use crate::record::{Output, Recording, print};
use crate::results::{Direction, Finding, LimitedBy, LoadResult};
use crate::scenario::{Demands, Scenario, Sizes, TrafficKind, TrafficPlan};

/// A benchmark that is made of loads.
pub struct Experiment {
    recording: Recording,
    progress: Progress,
    loads: usize,
    /// Which of them the harness limited.
    limited: Vec<String>,
    failures: Vec<String>,
    remarks: Vec<String>,
}

impl Experiment {
    /// The benchmark begins: prints what takes part.
    ///
    /// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
    ///
    /// # Errors
    ///
    /// What is missing, in one line.
    pub fn start(output: &Output, gateways: &[Contender]) -> Result<Self> {
        let versions: Vec<String> = gateways.iter().map(contenders::version).collect::<Result<_>>()?;
        let recording = output.start(versions)?;
        lab::prepare()?;
        lab::require_tun()?;
        print(&recording.heading())?;
        Ok(Experiment {
            recording,
            progress: Progress::new(),
            loads: 0,
            limited: Vec::new(),
            failures: Vec::new(),
            remarks: Vec::new(),
        })
    }

    /// Runs one load; `place` says in a few words which one.
    ///
    /// What is wrong with its figures fails the benchmark at its end, if the gateway is ours. A peer counts no drops, so not all its packets
    /// can be accounted for: what is wrong there is a remark.
    ///
    /// # Errors
    ///
    /// When the load could not be run.
    pub fn load(&mut self, place: &str, scenario: &Scenario, gateway: &Contender) -> Result<LoadResult> {
        self.observed_load(place, scenario, gateway, &mut |_, _| Ok(()))
    }

    /// As [`Experiment::load`]; `observe` sees what there is so far with every sample, and may write it.
    ///
    /// # Errors
    ///
    /// When the load could not be run, or `observe` fails.
    pub fn observed_load(
        &mut self,
        place: &str,
        scenario: &Scenario,
        gateway: &Contender,
        observe: &mut dyn FnMut(&Recording, &LoadResult) -> Result<()>,
    ) -> Result<LoadResult> {
        let place = format!("{place}, {}", gateway.name);
        self.progress.step(&place);
        let recording = &self.recording;
        let mut observe = |so_far: &LoadResult| observe(recording, so_far);
        let result = load::run_observed(scenario, gateway, &mut self.progress, &mut observe);
        self.progress.clear();
        let result = result.with_context(|| place.clone())?;
        self.loads += 1;
        if result.limited_by == LimitedBy::Harness {
            self.limited.push(place.clone());
        }
        let wrong = result.failures.iter().map(|failure| format!("{place}: {failure}"));
        match gateway.kind {
            Kind::Tollgate => self.failures.extend(wrong),
            Kind::Quincy => self.remarks.extend(wrong),
        }
        Ok(result)
    }

    /// The line that tells how far things are.
    pub fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// Notes something that is wrong with a figure of ours.
    pub fn fail(&mut self, failure: String) {
        self.failures.push(failure);
    }

    /// The end: prints `table`, whether the harness was the limit, what a peer had wrong, and what ours had; writes the JSON file.
    ///
    /// # Errors
    ///
    /// When anything of ours was wrong, after everything is printed and written.
    pub fn finish(mut self, table: &str, finding: Finding) -> Result<()> {
        self.progress.clear();
        print(&format!("\n{table}"))?;
        if let Some(first) = self.limited.first() {
            let (number, all) = (self.limited.len(), self.loads);
            print(&format!(
                "remark: the harness was at its limit, or late, in {number} of {all} loads (first: {first}); the gateway may be able to do more\n"
            ))?;
        }
        for remark in &self.remarks {
            print(&format!("remark: {remark}\n"))?;
        }
        for failure in &self.failures {
            print(&format!("WRONG: {failure}\n"))?;
        }
        self.recording.write(finding)?;
        if self.failures.is_empty() {
            return Ok(());
        }
        let number = self.failures.len();
        bail!("{number} figure{} wrong: see above", if number == 1 { " is" } else { "s are" })
    }
}

/// A scenario of `users` with one connection each, in which losses are counted and not forbidden.
pub fn scenario(name: &str, users: u32, duration: Duration) -> Scenario {
    let mut scenario = Scenario { name: name.to_owned(), duration, ..Scenario::default() };
    scenario.users.count = users;
    scenario.demands = Demands { loss_max: None, ..Demands::default() };
    scenario
}

/// Full packets of a train of bulk work: 45 kB, somewhat less than what bulk TCP hands over in one piece.
pub const BULK_TRAIN_PACKETS: u16 = 32;

/// A group of connections with one flow each, of full packets both ways.
pub fn traffic(scenario: &Scenario, name: &str, connections: u32, kind: TrafficKind) -> TrafficPlan {
    TrafficPlan {
        name: name.to_owned(),
        connections,
        flows: 1,
        kind,
        direction: Direction::Both,
        sizes: Sizes::fixed(scenario.mtu_bytes()),
    }
}

/// The even rate at which `connections`, each both ways, offer `bits_per_second` in all with full packets, in trains of `train_packets`.
pub fn constant(scenario: &Scenario, connections: u32, bits_per_second: f64, train_packets: u16) -> TrafficKind {
    let packet_bits = f64::from(scenario.mtu_bytes()) * 8.0;
    let packets_per_second = bits_per_second / packet_bits / (2.0 * f64::from(connections));
    TrafficKind::Constant { packets_per_second, train_packets }
}

/// Results for tests of what is made of them.
#[cfg(test)]
pub(crate) mod fixture {
    use crate::results::{Churn, FlowFigures, GroupResult, Ledger, LimitedBy, LoadResult, Ramp, ShardFigures, Usage};

    /// A load of ten seconds that carried so much each way, at the cost of 5 CPU seconds of the gateway.
    pub(crate) fn load_result(bits_per_second_each_way: f64) -> LoadResult {
        let figures = FlowFigures { bits_per_second: bits_per_second_each_way, ..FlowFigures::default() };
        let group =
            GroupResult { name: "load".to_owned(), connections: 1, up: figures, down: figures, round_trip: None };
        LoadResult {
            scenario: "test".to_owned(),
            gateway: "tollgate".to_owned(),
            users: 1,
            ramp: Ramp { wanted: 1, connected: 1, seconds: 1.0, gateway_cpu_seconds: Some(0.1) },
            churn: Churn::default(),
            seconds: 10.0,
            groups: vec![group],
            up: Ledger::default(),
            down: Ledger::default(),
            gateway_usage: Some(Usage { cpu_seconds: 5.0, cpu_share: 0.5, ..Usage::default() }),
            harness_usage: Usage { cpu_seconds: 2.0, cpu_share: 0.2, ..Usage::default() },
            far_end_cpu_seconds: 0.5,
            limited_by: LimitedBy::Scenario,
            shards: Some(ShardFigures { shards: 1, crossed: 25, arrived: 100, ..ShardFigures::default() }),
            samples: Vec::new(),
            failures: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_the_offered_rate_both_ways() {
        let scenario = scenario("x", 10, Duration::from_secs(1));
        let bits = f64::from(scenario.mtu_bytes()) * 8.0;
        let kind = constant(&scenario, 10, bits * 2_000.0, 8);
        assert_eq!(kind, TrafficKind::Constant { packets_per_second: 100.0, train_packets: 8 });
        assert_eq!(scenario.demands.loss_max, None);
    }
}
