//! The director: ramps up, starts and stops traffic, samples the gateway, and at the end balances the ledgers.
//!
//! It runs on the calling thread, on the harness's CPUs, and sees no packet.

mod site;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};
use tollgate::gateway::Status;

use super::crowd::{CrowdCounts, CrowdReport, NearGroup, Order};
use super::far_end::FarTotals;
use super::ledger::{Accounts, Ends};
use super::verdict::{self, Effort};
use super::wire::FarCounts;
use crate::deployment::faults::{FaultPlan, RelayCounts};
use crate::deployment::{Contender, GatewaySample, KernelDrops};
use crate::progress::Progress;
use crate::results::{
    Churn, FlowFigures, GroupResult, Ledger, LimitedBy, LoadResult, Ramp, Sample, ShardFigures, Usage,
};
use crate::scenario::Scenario;
use crate::units::{bits_per_second, count};
use site::Site;

/// How often the ramp and the end are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How often the gateway is sampled, at most.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// The most samples of a run.
pub const SAMPLES_MAX: u32 = 3600;
/// When by then no handshake was completed, nobody answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// When by then no handshake was completed and one was refused, others will be too.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(3);
/// When nothing changed for so long, nothing is under way.
const QUIET: Duration = Duration::from_millis(300);
/// How long it may take until nothing is under way...
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// ...and so much longer for each client, all of whose flows are asked for their counts.
const SETTLE_TIMEOUT_PER_CLIENT: Duration = Duration::from_millis(2);
/// How long a gateway of ours may take to notice that clients have gone.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

/// What sees the result as it grows: with every sample, whatever there is so far. Ledgers, groups and verdicts come at the end only.
pub type Observer<'a> = dyn FnMut(&LoadResult) -> Result<()> + 'a;

/// Runs `scenario` against `gateway`, or against the one that the scenario names.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own, for a gateway that
/// is to be started. Nothing is left behind, whatever happens.
///
/// # Errors
///
/// What kept it from running, in a line. What was found wrong is no error: see [`LoadResult::failures`].
pub fn run(scenario: &Scenario, gateway: &Contender, progress: &mut Progress) -> Result<LoadResult> {
    run_observed(scenario, gateway, progress, &mut |_| Ok(()))
}

/// As [`run`], with an observer.
///
/// # Errors
///
/// As [`run`], and when the observer fails.
pub fn run_observed(
    scenario: &Scenario,
    gateway: &Contender,
    progress: &mut Progress,
    observe: &mut Observer<'_>,
) -> Result<LoadResult> {
    let site = Site::start(scenario, gateway, false, progress)?;
    Director::new(scenario, gateway, site, progress).run(observe)
}

/// As [`run`], behind a relay that commits faults while traffic runs: for tests that they are found. Returns what the relay did as well.
///
/// # Errors
///
/// As [`run`]; also when the scenario names a gateway, whose network is not ours.
pub fn run_with_faults(
    scenario: &Scenario,
    gateway: &Contender,
    faults: FaultPlan,
    progress: &mut Progress,
) -> Result<(LoadResult, RelayCounts)> {
    let site = Site::start(scenario, gateway, true, progress)?;
    let mut director = Director::new(scenario, gateway, site, progress);
    let mut counts = RelayCounts::default();
    director.faults = Some((faults, &mut counts));
    let result = director.run(&mut |_| Ok(()))?;
    Ok((result, counts))
}

struct Director<'a> {
    scenario: &'a Scenario,
    site: Site,
    progress: &'a mut Progress,
    /// Faults while traffic runs, and where to say how many there were.
    faults: Option<(FaultPlan, &'a mut RelayCounts)>,
    result: LoadResult,
}

/// How everything stands at one moment.
struct Moment {
    at: Instant,
    counts: CrowdCounts,
    /// CPU time of each crowd's thread, in nanoseconds.
    crowd_cpu_ns: Vec<u64>,
    far: FarTotals,
    gateway: Option<GatewaySample>,
    harness_cpu_seconds: f64,
}

impl<'a> Director<'a> {
    fn new(scenario: &'a Scenario, gateway: &Contender, site: Site, progress: &'a mut Progress) -> Self {
        let result = LoadResult {
            scenario: scenario.name.clone(),
            gateway: site.gateway_name(gateway),
            users: scenario.users.count,
            ramp: Ramp { wanted: scenario.connections(), connected: 0, seconds: 0.0, gateway_cpu_seconds: None },
            churn: Churn::default(),
            seconds: 0.0,
            groups: Vec::new(),
            up: Ledger::default(),
            down: Ledger::default(),
            gateway_usage: None,
            harness_usage: Usage::default(),
            far_end_cpu_seconds: 0.0,
            limited_by: LimitedBy::Window,
            shards: None,
            samples: Vec::new(),
            failures: Vec::new(),
        };
        Director { scenario, site, progress, faults: None, result }
    }

    fn run(mut self, observe: &mut Observer<'_>) -> Result<LoadResult> {
        self.ramp()?;
        let effort = self.traffic(observe)?;
        self.settle("waiting for packets on the way")?;
        self.order(Order::AskReports)?;
        self.settle("comparing counts")?;
        self.result.shards = self.shard_figures()?;
        self.order(Order::Close)?;
        self.settle("closing connections")?;
        self.wait_for_gateway()?;
        let status = self.gateway_sample()?.and_then(|sample| sample.status);
        let kernel = self.site.kernel_drops()?;
        if let Some((_, counts)) = &mut self.faults {
            **counts = self.site.relay_counts();
        }
        let Director { scenario, site, progress, mut result, .. } = self;
        progress.clear();
        let (report, far) = site.stop()?;
        result.groups = groups(scenario, &report.groups, result.seconds);
        (result.up, result.down) = ledgers(scenario, &report, far.as_ref(), status.as_ref(), kernel.as_ref());
        let lost = result.groups.iter().map(|group| group.up.lost_packets + group.down.lost_packets).sum();
        result.limited_by = verdict::limited_by(scenario, &effort, lost);
        result.failures = verdict::failures(scenario, &result, &report.counts)?;
        let reasons = report.failures.iter().map(|(reason, times)| format!("{reason} ({})", count(*times)));
        if !result.failures.is_empty() {
            result.failures.extend(reasons.map(|reason| format!("connections or flows failed: {reason}")));
        }
        Ok(result)
    }

    /// Brings all clients up, as far as they come.
    fn ramp(&mut self) -> Result<()> {
        let cpu_before = self.gateway_cpu_seconds()?;
        let started = Instant::now();
        let mut looked_at_gateway = started;
        self.order(Order::Connect)?;
        let wanted = u64::from(self.result.ramp.wanted);
        let counts = loop {
            thread::sleep(LOOK_INTERVAL);
            let counts = self.site.counts();
            if counts.connecting == 0 && counts.connected + counts.failed + counts.lost >= wanted {
                break counts;
            }
            self.require_answers(&counts, started.elapsed())?;
            if looked_at_gateway.elapsed() >= SAMPLE_INTERVAL {
                looked_at_gateway = Instant::now();
                self.site.require_all()?;
            }
            self.progress.update(|| format!("{} of {} connections", count(counts.connected), count(wanted)));
        };
        self.require_answers(&counts, ANSWER_TIMEOUT)?;
        let cpu = self.gateway_cpu_seconds()?;
        self.result.ramp = Ramp {
            connected: counts.connected as u32,
            seconds: started.elapsed().as_secs_f64(),
            gateway_cpu_seconds: cpu.zip(cpu_before).map(|(after, before)| after - before),
            ..self.result.ramp
        };
        Ok(())
    }

    /// Fails when it is certain that no connection will come up.
    fn require_answers(&self, counts: &CrowdCounts, elapsed: Duration) -> Result<()> {
        let is_refused = counts.failed_handshakes > 0 && elapsed >= REFUSAL_TIMEOUT;
        if counts.handshakes > 0 || !(is_refused || elapsed >= ANSWER_TIMEOUT) {
            return Ok(());
        }
        let report = self.site.report()?;
        let reasons: Vec<&str> = report.failures.keys().map(String::as_str).collect();
        let reason = if reasons.is_empty() { "it does not answer".to_owned() } else { reasons.join("; ") };
        bail!(
            "no connection to the gateway at {} came up in {:.0} s: {reason}",
            self.site.remote(),
            elapsed.as_secs_f64()
        )
    }

    /// Runs traffic, and samples. Returns how hard all worked.
    fn traffic(&mut self, observe: &mut Observer<'_>) -> Result<Effort> {
        let before = self.moment()?;
        let started = Instant::now();
        self.order(Order::StartTraffic)?;
        if let Some((faults, _)) = &self.faults {
            self.site.plan_faults(Some(*faults));
        }
        let duration = self.scenario.duration;
        let interval = SAMPLE_INTERVAL.max(duration / SAMPLES_MAX);
        let mut next_sample = started + interval;
        let mut last = (before.at, received_bytes(&before.counts, &before.far));
        while started.elapsed() < duration {
            let left = (started + duration).saturating_duration_since(Instant::now());
            thread::sleep(next_sample.saturating_duration_since(Instant::now()).min(left));
            if Instant::now() < next_sample {
                continue;
            }
            let now = self.moment()?;
            last = self.sample(started, &now, last);
            next_sample += interval;
            observe(&self.result)?;
        }
        let after = self.moment()?;
        self.order(Order::StopTraffic)?;
        self.result.seconds = (after.at - started).as_secs_f64();
        self.result.gateway_usage = self.gateway_usage(&before, &after);
        self.result.harness_usage = self.harness_usage(&before, &after)?;
        self.result.far_end_cpu_seconds = (after.far.cpu_ns - before.far.cpu_ns) as f64 / 1e9;
        Ok(self.effort(&before, &after))
    }

    /// Adds a sample. `last` is when the one before was taken, and how many bytes had been received then; returns the same of this one.
    fn sample(&mut self, started: Instant, now: &Moment, last: (Instant, u64)) -> (Instant, u64) {
        let bytes = received_bytes(&now.counts, &now.far);
        let seconds = (now.at - last.0).as_secs_f64();
        let gateway = now.gateway.as_ref();
        let sample = Sample {
            seconds: now.at.saturating_duration_since(started).as_secs_f64(),
            handshakes: now.counts.handshakes,
            connections: now.counts.connected,
            received_packets: now.counts.received_packets + now.far.received_messages,
            gateway_cpu_seconds: gateway.map_or(0.0, |gateway| gateway.cpu_seconds),
            gateway_memory_bytes: gateway.map_or(0, |gateway| gateway.memory_bytes),
            gateway_descriptors: gateway.map_or(0, |gateway| gateway.descriptors),
            addresses_held: gateway.and_then(|gateway| gateway.status.as_ref()).map_or(0, addresses_held),
            bits_per_second: if seconds > 0.0 { bytes.saturating_sub(last.1) as f64 * 8.0 / seconds } else { 0.0 },
        };
        self.result.seconds = sample.seconds;
        self.result.churn = churn(&now.counts);
        self.result.samples.push(sample);
        let total = self.scenario.duration.as_secs_f64();
        self.progress.update(|| {
            let rate = bits_per_second(sample.bits_per_second);
            format!("{:.0} of {total:.0} s: {} connections, {rate}", sample.seconds, count(sample.connections))
        });
        (now.at, bytes)
    }

    /// Waits until nothing is under way. What never ends is left alone after a while; the ledgers will tell.
    fn settle(&mut self, doing: &str) -> Result<()> {
        let timeout = SETTLE_TIMEOUT + SETTLE_TIMEOUT_PER_CLIENT * self.result.ramp.wanted;
        let started = Instant::now();
        let mut last = (self.moving(), Instant::now());
        while started.elapsed() < timeout {
            thread::sleep(LOOK_INTERVAL);
            let moving = self.moving();
            if moving != last.0 {
                last = (moving, Instant::now());
            }
            let counts = self.site.counts();
            if counts.is_settled() && last.1.elapsed() >= QUIET {
                return Ok(());
            }
            self.site.require_all()?;
            let pending = counts.questions_pending + counts.closing;
            self.progress.update(|| format!("{doing}: {}", count(pending)));
        }
        Ok(())
    }

    /// What changes as long as packets move.
    fn moving(&self) -> [u64; 4] {
        let (counts, far) = (self.site.counts(), self.site.far_totals());
        [counts.sent_packets, counts.received_packets, far.received_messages, far.sent_messages]
    }

    /// Waits until a gateway of ours has no connection any more: only then has it counted all that it dropped with them.
    fn wait_for_gateway(&mut self) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < FAREWELL_TIMEOUT {
            let Some(status) = self.gateway_sample()?.and_then(|sample| sample.status) else { break };
            if status.shards.iter().all(|shard| shard.owned_connections == 0) {
                break;
            }
            thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    fn order(&mut self, order: Order) -> Result<()> {
        self.site.order(order)
    }

    fn moment(&mut self) -> Result<Moment> {
        self.site.require_all()?;
        Ok(Moment {
            gateway: self.gateway_sample()?,
            at: Instant::now(),
            counts: self.site.counts(),
            crowd_cpu_ns: self.site.counts_of_each().iter().map(|counts| counts.cpu_ns).collect(),
            far: self.site.far_totals(),
            harness_cpu_seconds: process_cpu_seconds(),
        })
    }

    fn gateway_sample(&mut self) -> Result<Option<GatewaySample>> {
        self.site.gateway().map(|gateway| gateway.sample()).transpose()
    }

    fn gateway_cpu_seconds(&mut self) -> Result<Option<f64>> {
        self.site.gateway().map(|gateway| gateway.cpu_seconds()).transpose()
    }

    fn gateway_usage(&mut self, before: &Moment, after: &Moment) -> Option<Usage> {
        let cpus = self.site.gateway()?.cpus();
        let (first, last) = (before.gateway.as_ref()?, after.gateway.as_ref()?);
        let cpu_seconds = last.cpu_seconds - first.cpu_seconds;
        let seconds = (after.at - before.at).as_secs_f64();
        Some(Usage {
            cpu_seconds,
            cpu_share: cpu_seconds / (seconds * cpus.max(1) as f64),
            memory_bytes: last.memory_bytes,
            descriptors: last.descriptors,
        })
    }

    fn harness_usage(&self, before: &Moment, after: &Moment) -> Result<Usage> {
        let cpu_seconds = after.harness_cpu_seconds - before.harness_cpu_seconds;
        let seconds = (after.at - before.at).as_secs_f64();
        let (memory_bytes, descriptors) = site::own_memory_and_descriptors()?;
        let cpu_share = cpu_seconds / (seconds * self.site.harness_cpus() as f64);
        Ok(Usage { cpu_seconds, cpu_share, memory_bytes, descriptors })
    }

    fn effort(&self, before: &Moment, after: &Moment) -> Effort {
        let seconds = (after.at - before.at).as_secs_f64();
        let share = |before_ns: u64, after_ns: u64| (after_ns - before_ns) as f64 / 1e9 / seconds;
        let crowds = before.crowd_cpu_ns.iter().zip(&after.crowd_cpu_ns).map(|(before, after)| share(*before, *after));
        let far_end = share(before.far.cpu_ns, after.far.cpu_ns) / self.site.far_threads().max(1) as f64;
        Effort {
            gateway_share: self.result.gateway_usage.map(|usage| usage.cpu_share),
            thread_share_max: crowds.fold(far_end, f64::max),
            scheduled_packets: after.counts.scheduled_packets - before.counts.scheduled_packets,
            late_packets: after.counts.late_packets - before.counts.late_packets,
        }
    }

    fn shard_figures(&mut self) -> Result<Option<ShardFigures>> {
        let Some(status) = self.gateway_sample()?.and_then(|sample| sample.status) else { return Ok(None) };
        Ok(Some(shard_figures(&status)))
    }
}

fn shard_figures(status: &Status) -> ShardFigures {
    let mut figures = ShardFigures {
        shards: status.shards.len() as u16,
        addresses_held: addresses_held(status),
        ..ShardFigures::default()
    };
    for shard in &status.shards {
        let (counters, traffic) = (&shard.counters, &shard.traffic);
        figures.crossed += counters.misrouted_frames + counters.misrouted_datagrams;
        figures.arrived += traffic.tun_reads + traffic.udp_received_datagrams;
        figures.messages += counters.messages;
        figures.sessions += counters.users;
        figures.connections += shard.owned_connections as u64;
    }
    figures
}

fn addresses_held(status: &Status) -> u64 {
    status.shards.iter().filter_map(|shard| shard.addresses_held).sum()
}

fn received_bytes(counts: &CrowdCounts, far: &FarTotals) -> u64 {
    counts.received_bytes + far.received_bytes
}

fn churn(counts: &CrowdCounts) -> Churn {
    Churn {
        connected: counts.handshakes,
        closed: counts.closed,
        failed: counts.failed_handshakes,
        lost: counts.lost,
        rebound: counts.rebound,
    }
}

/// CPU time of this process so far, in seconds.
fn process_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn groups(scenario: &Scenario, near: &[NearGroup], seconds: f64) -> Vec<GroupResult> {
    let figures = |sent: &FarCounts, received: &FarCounts, peak_bytes: u64| FlowFigures {
        sent_packets: sent.sent_packets,
        received_packets: received.received_packets,
        received_bytes: received.received_bytes,
        lost_packets: sent.sent_packets.saturating_sub(received.received_packets),
        reordered_packets: received.reordered_packets,
        duplicated_packets: received.duplicated_packets,
        corrupted_packets: received.corrupted_packets,
        bits_per_second: if seconds > 0.0 { received.received_bytes as f64 * 8.0 / seconds } else { 0.0 },
        user_peak_bits_per_second: peak_bytes as f64 * 8.0,
    };
    let result = scenario.traffic.iter().zip(near).map(|(plan, group)| GroupResult {
        name: plan.name.clone(),
        connections: plan.connections,
        up: figures(&group.near, &group.far, group.user_peak_up_bytes),
        down: figures(&group.far, &group.near, group.user_peak_down_bytes),
        round_trip: group.round_trips.latencies(),
    });
    result.collect()
}

/// The ledgers. Of a far end elsewhere only the payload is known.
fn ledgers(
    scenario: &Scenario,
    report: &CrowdReport,
    far: Option<&FarTotals>,
    gateway: Option<&Status>,
    kernel: Option<&KernelDrops>,
) -> (Ledger, Ledger) {
    let sum = |count: fn(&NearGroup) -> u64| report.groups.iter().map(count).sum();
    let ends = match far {
        Some(far) => Ends {
            up_sent: report.counts.sent_packets,
            up_received: far.received_messages,
            down_sent: far.sent_messages,
            down_received: report.counts.received_packets,
        },
        None => Ends {
            up_sent: sum(|group| group.near.sent_packets),
            up_received: sum(|group| group.far.received_packets + group.far.duplicated_packets),
            down_sent: sum(|group| group.far.sent_packets),
            down_received: sum(|group| group.near.received_packets + group.near.duplicated_packets),
        },
    };
    let (tunnels, crowds) = (&report.counters, &report.counts);
    Accounts { ends, tunnels, crowds, gateway, kernel, mtu_bytes: scenario.mtu_bytes() }.ledgers()
}
