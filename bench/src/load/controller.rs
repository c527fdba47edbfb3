//! The controller: ramps up, starts and stops traffic, samples the gateway, and at the end balances the accounts.
//!
//! It runs on the calling thread, on the harness's CPUs, and sees no packet.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use tollgate::gateway::Status;

use super::accounting::{self, Accounts, Effort, Ends};
use super::flow::wire::FlowCounts;
use super::generator::{GeneratorCounts, GroupCounts, Order};
use super::responder::ResponderTotals;
use super::result::{
    Account, Churn, FlowFigures, GroupResult, LimitedBy, LoadResult, Ramp, Sample, ShardFigures, Usage,
};
use super::scenario::Scenario;
use super::testbed::Testbed;
use crate::deploy::{GatewaySample, SERVICE};
use crate::measure::progress::Progress;
use crate::measure::units::{bits_per_second, count};
use crate::programs::Gateway;

/// How often the ramp and the end are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How often the gateway is sampled, at most.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
const SAMPLES_MAX: u32 = 3600;
/// When by then no handshake was completed, nobody answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// When nothing changed for so long, nothing is under way.
const QUIET: Duration = Duration::from_millis(300);
/// How long it may take until nothing is under way...
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// ...and so much longer for each client, all of whose flows are asked for their counts.
const SETTLE_TIMEOUT_PER_CLIENT: Duration = Duration::from_millis(2);
/// How long a gateway of ours may take to notice that clients have gone.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
/// What the kernel counts CPU time of a CPU in (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// What sees the result as it grows: with every sample, whatever there is so far. Accounts, groups and verdicts come at the end only.
pub type Observer<'a> = dyn FnMut(&LoadResult) -> Result<()> + 'a;

/// Runs `scenario` against `gateway`. Nothing is left behind, whatever happens.
///
/// # Errors
///
/// What kept it from running. What was found wrong is no error: see [`LoadResult::failures`].
pub fn run(
    scenario: &Scenario,
    gateway: &Gateway,
    progress: &mut Progress,
    observe: &mut Observer<'_>,
) -> Result<LoadResult> {
    let testbed = Testbed::start(scenario, gateway, progress)?;
    let result = LoadResult {
        scenario: scenario.name.clone(),
        gateway: gateway.name.to_owned(),
        users: scenario.users.count,
        ramp: Ramp { wanted: scenario.connections(), ..Ramp::default() },
        churn: Churn::default(),
        seconds: 0.0,
        groups: Vec::new(),
        up: Account::default(),
        down: Account::default(),
        gateway_usage: Usage::default(),
        harness_usage: Usage::default(),
        responder_cpu_seconds: 0.0,
        gateway_cpus_busy: 0.0,
        batch: None,
        limited_by: LimitedBy::default(),
        shards: None,
        samples: Vec::new(),
        failures: Vec::new(),
    };
    Controller { scenario, testbed, progress, result }.run(observe)
}

struct Controller<'a> {
    scenario: &'a Scenario,
    testbed: Testbed,
    progress: &'a mut Progress,
    result: LoadResult,
}

/// How everything stands at one moment.
struct Moment {
    at: Instant,
    counts: GeneratorCounts,
    /// CPU time of each generator's thread, in nanoseconds.
    generators_cpu_ns: Vec<u64>,
    responder: ResponderTotals,
    gateway: GatewaySample,
    /// What the gateway's CPUs did for anybody, in seconds.
    busy_seconds: f64,
    harness_cpu_seconds: f64,
}

impl Controller<'_> {
    fn run(mut self, observe: &mut Observer<'_>) -> Result<LoadResult> {
        self.ramp()?;
        let effort = self.traffic(observe)?;
        self.settle("waiting for packets on the way")?;
        self.testbed.order(Order::AskReports)?;
        self.settle("comparing counts")?;
        self.result.shards = self.testbed.gateway.sample()?.status.as_ref().map(shard_figures);
        self.testbed.order(Order::Close)?;
        self.settle("closing connections")?;
        self.wait_for_gateway()?;
        let status = self.testbed.gateway.sample()?.status;
        let kernel = self.testbed.kernel_drops()?;
        let Controller { scenario, testbed, progress, mut result } = self;
        progress.clear();
        let (report, responder) = testbed.stop()?;
        result.groups = groups(scenario, &report.groups, result.seconds);
        let accounts = Accounts {
            ends: Ends {
                up_sent: report.counts.sent_packets,
                up_received: responder.received_messages,
                down_sent: responder.sent_messages,
                down_received: report.counts.received_packets,
            },
            tunnels: &report.tunnels,
            generators: &report.counts,
            gateway: status.as_ref(),
            kernel: &kernel,
            mtu_bytes: scenario.mtu_bytes(),
        };
        (result.up, result.down) = accounts.accounts();
        result.limited_by = accounting::limited_by(scenario, &effort, result.lost_packets());
        result.failures = accounting::failures(scenario, &result, &report.counts)?;
        if !result.failures.is_empty() {
            let reasons = report.failures.0.iter().map(|(reason, times)| format!("{reason} ({})", count(*times)));
            result.failures.extend(reasons.map(|reason| format!("connections or flows failed: {reason}")));
        }
        Ok(result)
    }

    /// Brings all clients up, as far as they come.
    fn ramp(&mut self) -> Result<()> {
        let cpu_before = self.testbed.gateway.cpu_seconds()?;
        let started = Instant::now();
        let mut looked_at = started;
        self.testbed.order(Order::Connect)?;
        let wanted = u64::from(self.result.ramp.wanted);
        let counts = loop {
            thread::sleep(LOOK_INTERVAL);
            let counts = self.testbed.counts();
            let is_over = counts.connecting == 0 && counts.connected + counts.failed + counts.lost >= wanted;
            if counts.handshakes == 0 && (is_over || started.elapsed() >= ANSWER_TIMEOUT) {
                let report = self.testbed.report()?;
                let reasons: Vec<&str> = report.failures.0.keys().map(String::as_str).collect();
                let reason = if reasons.is_empty() { "it does not answer".to_owned() } else { reasons.join("; ") };
                bail!("no connection to the gateway at {SERVICE} came up: {reason}");
            }
            if is_over {
                break counts;
            }
            if looked_at.elapsed() >= SAMPLE_INTERVAL {
                looked_at = Instant::now();
                self.testbed.require_all()?;
            }
            self.progress.update(|| format!("{} of {} connections", count(counts.connected), count(wanted)));
        };
        self.result.ramp = Ramp {
            connected: counts.connected as u32,
            seconds: started.elapsed().as_secs_f64(),
            gateway_cpu_seconds: self.testbed.gateway.cpu_seconds()? - cpu_before,
            ..self.result.ramp
        };
        Ok(())
    }

    /// Runs traffic, and samples. Returns how hard all worked.
    fn traffic(&mut self, observe: &mut Observer<'_>) -> Result<Effort> {
        let before = self.moment()?;
        let started = Instant::now();
        self.testbed.order(Order::StartTraffic)?;
        let duration = self.scenario.duration;
        let interval = SAMPLE_INTERVAL.max(duration / SAMPLES_MAX);
        let mut next_sample = started + interval;
        let mut last = (before.at, received_bytes(&before));
        while started.elapsed() < duration {
            let left = (started + duration).saturating_duration_since(Instant::now());
            thread::sleep(next_sample.saturating_duration_since(Instant::now()).min(left));
            if Instant::now() < next_sample {
                continue;
            }
            let now = self.moment()?;
            self.sample(started, &now, last);
            last = (now.at, received_bytes(&now));
            next_sample += interval;
            observe(&self.result)?;
        }
        let after = self.moment()?;
        self.testbed.order(Order::StopTraffic)?;
        self.measure(&before, &after)?;
        self.result.seconds = (after.at - started).as_secs_f64();
        Ok(self.effort(&before, &after))
    }

    /// Adds a sample. `last` is when the one before was taken, and how many bytes had been received then.
    fn sample(&mut self, started: Instant, now: &Moment, last: (Instant, u64)) {
        let seconds = (now.at - last.0).as_secs_f64().max(1e-9);
        let sample = Sample {
            seconds: now.at.saturating_duration_since(started).as_secs_f64(),
            handshakes: now.counts.handshakes,
            connections: now.counts.connected,
            gateway_cpu_seconds: now.gateway.cpu_seconds,
            gateway_memory_bytes: now.gateway.memory_bytes,
            gateway_descriptors: now.gateway.descriptors,
            bits_per_second: received_bytes(now).saturating_sub(last.1) as f64 * 8.0 / seconds,
        };
        self.result.seconds = sample.seconds;
        self.result.churn = Churn {
            connected: now.counts.handshakes,
            closed: now.counts.closed,
            failed: now.counts.failed_handshakes,
            lost: now.counts.lost,
            rebound: now.counts.rebound,
        };
        self.result.samples.push(sample);
        let total = self.scenario.duration.as_secs_f64();
        self.progress.update(|| {
            let rate = bits_per_second(sample.bits_per_second);
            format!("{:.0} of {total:.0} s: {} connections, {rate}", sample.seconds, count(sample.connections))
        });
    }

    /// Waits until nothing is under way. What never ends is left alone after a while; the accounts will tell.
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
            let counts = self.testbed.counts();
            if counts.is_settled() && last.1.elapsed() >= QUIET {
                return Ok(());
            }
            self.testbed.require_all()?;
            self.progress.update(|| format!("{doing}: {}", count(counts.questions_pending + counts.closing)));
        }
        Ok(())
    }

    /// What changes as long as packets move.
    fn moving(&self) -> [u64; 4] {
        let (counts, responder) = (self.testbed.counts(), self.testbed.responder_totals());
        [counts.sent_packets, counts.received_packets, responder.received_messages, responder.sent_messages]
    }

    /// Waits until a gateway of ours has no connection any more: only then has it counted all that it dropped with them.
    fn wait_for_gateway(&mut self) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < FAREWELL_TIMEOUT {
            let Some(status) = self.testbed.gateway.sample()?.status else { break };
            if status.shards.iter().all(|shard| shard.owned_connections == 0) {
                break;
            }
            thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    fn moment(&mut self) -> Result<Moment> {
        self.testbed.require_all()?;
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Ok(Moment {
            gateway: self.testbed.gateway.sample()?,
            at: Instant::now(),
            counts: self.testbed.counts(),
            generators_cpu_ns: self.testbed.counts_of_each().map(|counts| counts.cpu_ns).collect(),
            responder: self.testbed.responder_totals(),
            busy_seconds: busy_seconds(&fs::read_to_string("/proc/stat")?, &self.testbed.gateway_cpus),
            harness_cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        })
    }

    /// What gateway and harness used between two moments.
    fn measure(&mut self, before: &Moment, after: &Moment) -> Result<()> {
        let seconds = (after.at - before.at).as_secs_f64();
        let usage = |cpu_seconds: f64, cpus: usize, memory_bytes, descriptors| {
            let cpu_share = cpu_seconds / (seconds * cpus.max(1) as f64);
            Usage { cpu_seconds, cpu_share, memory_bytes, descriptors }
        };
        let (first, last) = (&before.gateway, &after.gateway);
        let cpu_seconds = last.cpu_seconds - first.cpu_seconds;
        let cpus = self.testbed.gateway.cpus();
        self.result.gateway_usage = usage(cpu_seconds, cpus, last.memory_bytes, last.descriptors);
        self.result.gateway_cpus_busy = (after.busy_seconds - before.busy_seconds) / (seconds * cpus.max(1) as f64);
        let (memory_bytes, descriptors) = own_memory_and_descriptors()?;
        let cpu_seconds = after.harness_cpu_seconds - before.harness_cpu_seconds;
        self.result.harness_usage = usage(cpu_seconds, self.testbed.harness_cpus, memory_bytes, descriptors);
        self.result.responder_cpu_seconds = (after.responder.cpu_ns - before.responder.cpu_ns) as f64 / 1e9;
        self.result.batch =
            first.status.as_ref().zip(last.status.as_ref()).and_then(|(first, last)| batch(first, last));
        Ok(())
    }

    fn effort(&self, before: &Moment, after: &Moment) -> Effort {
        let seconds = (after.at - before.at).as_secs_f64();
        let share = |before_ns: u64, after_ns: u64| (after_ns - before_ns) as f64 / 1e9 / seconds;
        let threads =
            before.generators_cpu_ns.iter().zip(&after.generators_cpu_ns).map(|(before, after)| share(*before, *after));
        let responder =
            share(before.responder.cpu_ns, after.responder.cpu_ns) / self.testbed.responder_threads().max(1) as f64;
        Effort {
            gateway_share: self.result.gateway_usage.cpu_share,
            thread_share_max: threads.fold(responder, f64::max),
            scheduled_packets: after.counts.scheduled_packets - before.counts.scheduled_packets,
            late_packets: after.counts.late_packets - before.counts.late_packets,
        }
    }
}

fn shard_figures(status: &Status) -> ShardFigures {
    let mut figures = ShardFigures { shards: status.shards.len() as u16, ..ShardFigures::default() };
    for shard in &status.shards {
        figures.crossed += shard.counters.misrouted_frames + shard.counters.misrouted_datagrams;
        figures.arrived += shard.traffic.tun_reads + shard.traffic.udp_received_datagrams;
        figures.addresses_held += shard.addresses_held.unwrap_or(0);
        figures.sessions += shard.counters.users;
        figures.connections += shard.owned_connections as u64;
    }
    figures
}

/// Inner packets for each outer datagram that carried some, between two reports; `None` of nothing.
fn batch(first: &Status, last: &Status) -> Option<f64> {
    let of = |status: &Status| {
        let shards = status.shards.iter();
        shards.fold((0, 0), |(packets, datagrams), shard| {
            let (counters, traffic) = (&shard.counters, &shard.traffic);
            let packets_now = counters.datagrams_received + counters.datagrams_sent;
            (packets + packets_now, datagrams + traffic.udp_received_datagrams + traffic.udp_data_datagrams)
        })
    };
    let ((packets, datagrams), (packets_last, datagrams_last)) = (of(first), of(last));
    (datagrams_last > datagrams).then(|| (packets_last - packets) as f64 / (datagrams_last - datagrams) as f64)
}

fn received_bytes(moment: &Moment) -> u64 {
    moment.counts.received_bytes + moment.responder.received_bytes
}

/// How long these CPUs have been busy, in a table like /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_seconds(table: &str, cpus: &[usize]) -> f64 {
    let busy = |cpu: &usize| -> Option<f64> {
        let line = table.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")))?;
        let ticks: Vec<f64> = line.split_whitespace().take(8).filter_map(|field| field.parse().ok()).collect();
        Some((ticks.iter().sum::<f64>() - ticks.get(3)? - ticks.get(4)?) / TICKS_PER_SECOND)
    };
    cpus.iter().filter_map(busy).sum()
}

/// Resident memory of this process in bytes, and its open descriptors.
fn own_memory_and_descriptors() -> Result<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    let descriptors = fs::read_dir("/proc/self/fd").context("cannot read /proc/self/fd")?.count() as u64;
    Ok((kib.context("the kernel does not tell this process's memory")? * 1024, descriptors))
}

fn groups(scenario: &Scenario, near: &[GroupCounts], seconds: f64) -> Vec<GroupResult> {
    let figures = |sent: &FlowCounts, received: &FlowCounts, peak_bytes: u64| FlowFigures {
        counts: FlowCounts { sent_packets: sent.sent_packets, ..*received },
        lost_packets: sent.sent_packets.saturating_sub(received.received_packets),
        bits_per_second: if seconds > 0.0 { received.received_bytes as f64 * 8.0 / seconds } else { 0.0 },
        user_peak_bits_per_second: peak_bytes as f64 * 8.0,
    };
    let result = scenario.traffic.iter().zip(near).map(|(plan, group)| GroupResult {
        name: plan.name.clone(),
        connections: plan.connections,
        up: figures(&group.near, &group.far, group.user_peak_up_bytes),
        down: figures(&group.far, &group.near, group.user_peak_down_bytes),
        round_trip: group.round_trips.as_ref().and_then(|trips| trips.latencies()),
    });
    result.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_cpus_are_not_busy() {
        let table = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 0 50 700 30 20 30 0 5 5\ncpu1 1 1 1 1 1 1 1 1 0 0\ncpu10 5 0 0 0 0 0 0 0 0 0\n";
        assert_eq!((busy_seconds(table, &[0]), busy_seconds(table, &[1, 10])), (2.0, 0.11));
    }
}
