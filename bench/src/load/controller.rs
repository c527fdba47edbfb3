//! The controller: ramps up, starts and stops traffic, samples the gateway, and at the end balances the accounts.
//!
//! It runs on the calling thread, on the harness's CPUs, and sees no packet.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};
use tollgate::gateway::Status;

use super::accounts::Accounts;
use super::report::{Counts, Report};
use super::result::{FlowFigures, GroupResult, LoadResult, Ramp, Sample, ShardFigures, Usage};
use super::scenario::Scenario;
use super::scrapes::Scraper;
use super::sink::FlowCounts;
use super::testbed::Testbed;
use super::verdict;
use super::worker::{Order, TICKS_PER_SECOND};
use crate::deploy::{GatewaySample, SERVICE};
use crate::measure::units::{bits_per_second, count};
use crate::programs::Gateway;
use tollgate::progress::Progress;

/// How often the ramp and the end are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How often the gateway is sampled, at most.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
const SAMPLES_MAX: u32 = 3600;
/// When by then no handshake was completed, nobody answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// When nothing changed for so long, nothing is under way.
const QUIET: Duration = Duration::from_millis(300);
/// How long it may take until nothing is under way, and so much longer for each client.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
const SETTLE_TIMEOUT_PER_CLIENT: Duration = Duration::from_millis(2);
/// How long a gateway of ours may take to notice that clients have gone.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

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
        ..LoadResult::default()
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
    counts: Counts,
    /// Of each generator.
    generators_cpu_seconds: Vec<f64>,
    harness_cpu_seconds: f64,
    gateway: GatewaySample,
    /// What the gateway's CPUs did for anybody, in seconds.
    busy_seconds: f64,
}

impl Controller<'_> {
    fn run(mut self, observe: &mut Observer<'_>) -> Result<LoadResult> {
        self.ramp()?;
        self.traffic(observe)?;
        self.settle("waiting for packets in flight")?;
        self.result.shards = self.testbed.gateway.sample()?.status.as_ref().map(shard_figures);
        self.testbed.order(Order::Close)?;
        self.settle("closing connections")?;
        let status = self.status_without_connections()?;
        let kernel = self.testbed.kernel_drops()?;
        self.progress.clear();
        let report = self.testbed.join()?;
        let Controller { scenario, testbed, mut result, .. } = self;
        testbed.gateway.stop()?;
        result.groups = groups(scenario, &report, result.seconds);
        let accounts = Accounts {
            generators: &report.counts,
            tunnels: &report.tunnels,
            gateway: status.as_ref(),
            kernel: &kernel,
            mtu_bytes: scenario.mtu_bytes(),
        };
        (result.up, result.down) = accounts.balance();
        let [up_bytes, down_bytes] = report.user_peak_bytes;
        result.up.user_peak_bits_per_second = up_bytes as f64 * 8.0;
        result.down.user_peak_bits_per_second = down_bytes as f64 * 8.0;
        result.clients = report.counts;
        result.limited_by = verdict::limited_by(scenario, &result);
        result.failures = verdict::failures(scenario, &result)?;
        if !result.failures.is_empty() {
            let reasons = report.failures.iter().map(|(reason, times)| format!("{reason} ({})", count(*times)));
            result.failures.extend(reasons.map(|reason| format!("connections failed: {reason}")));
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
            let is_over = counts.connecting() == 0 && counts.connected() + counts.failed + counts.lost >= wanted;
            if counts.handshakes == 0 && (is_over || started.elapsed() >= ANSWER_TIMEOUT) {
                let report = self.testbed.join()?;
                let reasons: Vec<&str> = report.failures.keys().map(String::as_str).collect();
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
            self.progress.update(|| format!("{} of {} connections", count(counts.connected()), count(wanted)));
        };
        self.result.ramp.connected = counts.connected() as u32;
        self.result.ramp.seconds = started.elapsed().as_secs_f64();
        self.result.ramp.gateway_cpu_seconds = self.testbed.gateway.cpu_seconds()? - cpu_before;
        Ok(())
    }

    /// Runs traffic, and samples.
    fn traffic(&mut self, observe: &mut Observer<'_>) -> Result<()> {
        let before = self.moment()?;
        let started = Instant::now();
        self.testbed.order(Order::StartTraffic)?;
        let scraper = self.testbed.start_scraper(self.scenario.gateway.scrapes)?;
        let duration = self.scenario.duration;
        let interval = SAMPLE_INTERVAL.max(duration / SAMPLES_MAX);
        let mut next_sample = started + interval;
        let mut last = (before.at, before.counts.received_bytes());
        while started.elapsed() < duration {
            let until = next_sample.min(started + duration);
            thread::sleep(until.saturating_duration_since(Instant::now()));
            if Instant::now() < next_sample {
                continue;
            }
            let now = self.moment()?;
            self.sample(started, &now, last);
            last = (now.at, now.counts.received_bytes());
            next_sample += interval;
            observe(&self.result)?;
        }
        let after = self.moment()?;
        self.result.scrapes = scraper.map(Scraper::finish).transpose()?;
        self.testbed.order(Order::StopTraffic)?;
        self.result.seconds = (after.at - started).as_secs_f64();
        self.measure(&before, &after);
        Ok(())
    }

    /// Adds a sample. `last` is when the one before was taken, and how many bytes had been received then.
    fn sample(&mut self, started: Instant, now: &Moment, last: (Instant, u64)) {
        let seconds = (now.at - last.0).as_secs_f64().max(1e-9);
        let sample = Sample {
            seconds: now.at.saturating_duration_since(started).as_secs_f64(),
            handshakes: now.counts.handshakes,
            connections: now.counts.connected(),
            gateway_cpu_seconds: now.gateway.cpu_seconds,
            gateway_memory_bytes: now.gateway.memory_bytes,
            gateway_descriptors: now.gateway.descriptors,
            bits_per_second: now.counts.received_bytes().saturating_sub(last.1) as f64 * 8.0 / seconds,
        };
        self.result.seconds = sample.seconds;
        self.result.clients = now.counts;
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
        let mut last = ([0; 4], started);
        while started.elapsed() < timeout {
            let counts = self.testbed.counts();
            if counts.packets() != last.0 {
                last = (counts.packets(), Instant::now());
            }
            if counts.unsettled() == 0 && last.1.elapsed() >= QUIET {
                return Ok(());
            }
            self.testbed.require_all()?;
            self.progress.update(|| format!("{doing}: {}", count(counts.unsettled())));
            thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// What a gateway of ours says once it has no connection any more: only then has it counted all that it dropped with them.
    fn status_without_connections(&mut self) -> Result<Option<Status>> {
        let started = Instant::now();
        loop {
            let status = self.testbed.gateway.sample()?.status;
            let is_done = |status: &Status| status.shards.iter().all(|shard| shard.owned_connections == 0);
            if started.elapsed() >= FAREWELL_TIMEOUT || status.as_ref().is_none_or(is_done) {
                return Ok(status);
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    fn moment(&mut self) -> Result<Moment> {
        self.testbed.require_all()?;
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Ok(Moment {
            gateway: self.testbed.gateway.sample()?,
            at: Instant::now(),
            counts: self.testbed.counts(),
            generators_cpu_seconds: self.testbed.generators_cpu_seconds()?,
            busy_seconds: busy_seconds(&fs::read_to_string("/proc/stat")?, &self.testbed.gateway_cpus),
            harness_cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        })
    }

    /// What gateway and harness used between two moments.
    fn measure(&mut self, before: &Moment, after: &Moment) {
        let seconds = (after.at - before.at).as_secs_f64();
        let usage = |cpu_seconds: f64, cpus: usize| Usage {
            cpu_seconds,
            cpu_share: cpu_seconds / (seconds * cpus.max(1) as f64),
        };
        let (first, last) = (&before.gateway, &after.gateway);
        let cpus = self.testbed.gateway_cpus.len();
        self.result.gateway_usage = usage(last.cpu_seconds - first.cpu_seconds, cpus);
        self.result.gateway_cpus_busy = usage(after.busy_seconds - before.busy_seconds, cpus).cpu_share;
        self.result.gateway_memory_bytes = last.memory_bytes;
        self.result.gateway_descriptors = last.descriptors;
        let cpu_seconds = after.harness_cpu_seconds - before.harness_cpu_seconds;
        self.result.harness_usage = usage(cpu_seconds, self.testbed.harness_cpus);
        self.result.batch =
            first.status.as_ref().zip(last.status.as_ref()).and_then(|(first, last)| batch(first, last));
        let threads = before.generators_cpu_seconds.iter().zip(&after.generators_cpu_seconds);
        let shares = threads.map(|(before, after)| (after - before) / seconds);
        self.result.busiest_thread_share = shares.fold(0.0, f64::max);
        let scheduled = after.counts.scheduled_packets - before.counts.scheduled_packets;
        let late = after.counts.late_packets - before.counts.late_packets;
        self.result.late_share = late as f64 / scheduled.max(1) as f64;
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

/// How long these CPUs have been busy, in a table like /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_seconds(table: &str, cpus: &[usize]) -> f64 {
    let busy = |cpu: &usize| -> Option<f64> {
        let line = table.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")))?;
        let ticks: Vec<f64> = line.split_whitespace().take(8).filter_map(|field| field.parse().ok()).collect();
        Some((ticks.iter().sum::<f64>() - ticks.get(3)? - ticks.get(4)?) / TICKS_PER_SECOND)
    };
    cpus.iter().filter_map(busy).sum()
}

fn groups(scenario: &Scenario, report: &Report, seconds: f64) -> Vec<GroupResult> {
    let figures = |sent: &FlowCounts, received: &FlowCounts| FlowFigures {
        counts: FlowCounts { sent_packets: sent.sent_packets, ..*received },
        lost_packets: sent.sent_packets.saturating_sub(received.received_packets),
        bits_per_second: if seconds > 0.0 { received.received_bytes as f64 * 8.0 / seconds } else { 0.0 },
    };
    let group = scenario.traffic.iter().zip(&report.groups).map(|(plan, group)| GroupResult {
        name: plan.name.clone(),
        connections: plan.connections,
        up: figures(&group.near, &group.far),
        down: figures(&group.far, &group.near),
        round_trip: group.round_trips.as_ref().and_then(|trips| trips.latencies()),
    });
    group.collect()
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
