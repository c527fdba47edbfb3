//! What the experiments that are made of loads have in common: a series of loads against several gateways, their progress, what went wrong,
//! and the end of it all.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::controller;
use super::result::{LimitedBy, LoadResult};
use super::scenario::{Direction, Scenario, TrafficKind, TrafficPlan};
use crate::measure::progress::Progress;
use crate::measure::record::{Output, Recording};
use crate::programs::{Gateway, Kind};

/// An experiment that is made of loads.
pub struct Experiment {
    pub recording: Recording,
    pub progress: Progress,
    /// Loads that the harness limited.
    limited: Vec<String>,
    /// What is wrong with a figure of ours.
    pub failures: Vec<String>,
    remarks: Vec<String>,
}

impl Experiment {
    /// The experiment begins: prints what takes part, and `plan`.
    ///
    /// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
    pub fn start(output: &Output, gateways: &[Gateway], plan: &str) -> Result<Self> {
        let versions: Vec<String> = gateways.iter().map(Gateway::version).collect::<Result<_>>()?;
        tollgate_testkit::prepare()?;
        tollgate_testkit::require_tun()?;
        let mut recording = output.start(versions)?;
        recording.print(&plan)?;
        let (limited, failures, remarks) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Experiment { recording, progress: Progress::new(), limited, failures, remarks })
    }

    /// Runs one load; `place` says in a few words which one.
    ///
    /// What is wrong with its figures fails the experiment at its end, if the gateway is ours. A peer counts no drops, so not all its packets
    /// can be accounted for: what is wrong there is a remark.
    pub fn load(&mut self, place: &str, scenario: &Scenario, gateway: &Gateway) -> Result<LoadResult> {
        self.observed_load(place, scenario, gateway, &mut |_, _| Ok(()))
    }

    /// As [`Experiment::load`]; `observe` sees what there is so far with every sample, and may write it.
    pub fn observed_load(
        &mut self,
        place: &str,
        scenario: &Scenario,
        gateway: &Gateway,
        observe: &mut dyn FnMut(&Recording, &LoadResult) -> Result<()>,
    ) -> Result<LoadResult> {
        let place = format!("{place}, {}", gateway.name);
        self.progress.step(&place);
        let recording = &self.recording;
        let mut observe = |so_far: &LoadResult| observe(recording, so_far);
        let result = controller::run(scenario, gateway, &mut self.progress, &mut observe);
        self.progress.clear();
        let result = result.with_context(|| place.clone())?;
        if result.limited_by == LimitedBy::Harness {
            self.limited.push(place.clone());
        }
        let wrong = result.failures.iter().map(|failure| format!("{place}: {failure}"));
        match gateway.kind {
            Kind::Tollgate => self.failures.extend(wrong),
            _ => self.remarks.extend(wrong),
        }
        Ok(result)
    }

    /// Each gateway's results under `scenario`, in turn, round after round: by gateway, then by round.
    pub fn rounds(
        &mut self,
        place: &str,
        rounds: u32,
        scenario: &Scenario,
        gateways: &[Gateway],
    ) -> Result<Vec<Vec<LoadResult>>> {
        let mut results: Vec<Vec<LoadResult>> = gateways.iter().map(|_| Vec::new()).collect();
        for round in 1..=rounds {
            for (gateway, results) in gateways.iter().zip(&mut results) {
                results.push(self.load(&format!("{place}, round {round} of {rounds}"), scenario, gateway)?);
            }
        }
        Ok(results)
    }

    /// The end: prints `table`, whether the harness was the limit, what a peer had wrong, and what ours had; writes the files. Fails when
    /// anything of ours was wrong.
    pub fn finish(mut self, name: &str, table: &impl Display, result: &impl Serialize) -> Result<()> {
        self.progress.clear();
        self.recording.print(table)?;
        if let Some(first) = self.limited.first() {
            let number = self.limited.len();
            let remark = format!(
                "remark: the harness was at its limit, or late, in {number} loads (first: {first}); the gateway may be able to do more"
            );
            self.recording.print(&remark)?;
        }
        let remarks = self.remarks.iter().map(|remark| format!("remark: {remark}"));
        for line in remarks.chain(self.failures.iter().map(|failure| format!("WRONG: {failure}"))) {
            self.recording.print(&line)?;
        }
        self.recording.write(name, result)?;
        match self.failures.len() {
            0 => Ok(()),
            number => bail!("{number} figure(s) are wrong: see above"),
        }
    }
}

/// A scenario of `users` with one connection each, in which losses are counted and not forbidden.
pub fn scenario(name: &str, users: u32, duration: Duration) -> Scenario {
    let mut scenario = Scenario::new(name, users, duration);
    scenario.demand.loss_max = Some(1.0);
    scenario
}

/// Full packets of a train of bulk work: 45 kB, somewhat less than what bulk TCP hands over in one piece.
pub const BULK_TRAIN_PACKETS: u16 = 32;

/// A group of connections with one flow each, of full packets both ways.
pub fn traffic(scenario: &Scenario, name: &str, connections: u32, kind: TrafficKind) -> TrafficPlan {
    let (direction, sizes) = (Direction::Both, vec![(scenario.mtu_bytes(), 1)]);
    TrafficPlan { name: name.to_owned(), connections, flows: 1, kind, direction, sizes }
}

/// The even rate at which `connections`, each both ways, offer `bits_per_second` in all with full packets, in trains of `train_packets`.
pub fn constant(scenario: &Scenario, connections: u32, bits_per_second: f64, train_packets: u16) -> TrafficKind {
    let packet_bits = f64::from(scenario.mtu_bytes()) * 8.0;
    let packets_per_second = bits_per_second / packet_bits / (2.0 * f64::from(connections));
    TrafficKind::Constant { packets_per_second, train_packets }
}

/// Results for tests of what is made of them.
#[cfg(test)]
pub mod fixture {
    use crate::load::result::{
        Account, Churn, FlowFigures, GroupResult, LimitedBy, LoadResult, Ramp, ShardFigures, Usage,
    };

    /// A load of ten seconds that carried so much each way, at the cost of 5 CPU seconds of the gateway.
    pub fn load_result(bits_per_second: f64) -> LoadResult {
        let figures = FlowFigures { bits_per_second, ..FlowFigures::default() };
        let name = "load".to_owned();
        LoadResult {
            scenario: "test".to_owned(),
            gateway: "tollgate".to_owned(),
            users: 1,
            ramp: Ramp { wanted: 1, connected: 1, seconds: 1.0, gateway_cpu_seconds: 0.1 },
            churn: Churn::default(),
            seconds: 10.0,
            groups: vec![GroupResult { name, connections: 1, up: figures, down: figures, round_trip: None }],
            up: Account::default(),
            down: Account::default(),
            gateway_usage: Usage { cpu_seconds: 5.0, cpu_share: 0.5, ..Usage::default() },
            harness_usage: Usage { cpu_seconds: 2.0, cpu_share: 0.2, ..Usage::default() },
            responder_cpu_seconds: 0.5,
            gateway_cpus_busy: 0.6,
            batch: None,
            limited_by: LimitedBy::Scenario,
            shards: Some(ShardFigures { shards: 1, crossed: 25, arrived: 100, ..ShardFigures::default() }),
            samples: Vec::new(),
            failures: Vec::new(),
        }
    }
}
