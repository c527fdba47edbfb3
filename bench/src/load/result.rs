//! What a load found, for machines and for people. Times are in the unit that their names end with; shares are 0 to 1.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::report::Counts;
use super::scrapes::Scrapes;
use super::sink::FlowCounts;
use super::verdict::bytes_per_connection;
use crate::measure::record::table;
use crate::measure::round_trips::Latencies;
use crate::measure::units::{bits_per_second, bytes, count, nanoseconds, percent, signed};

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LoadResult {
    pub scenario: String,
    pub gateway: String,
    pub users: u32,
    pub ramp: Ramp,
    /// What all generators counted.
    pub clients: Counts,
    pub seconds: f64,
    /// One for each group of traffic, in the scenario's order.
    pub groups: Vec<GroupResult>,
    /// Every inner packet from clients to the network, from the run's first to its last.
    pub up: Account,
    pub down: Account,
    /// What the gateway's process used while traffic was measured.
    pub gateway_usage: Usage,
    /// What it had at the end of that: resident memory, and descriptors.
    pub gateway_memory_bytes: u64,
    pub gateway_descriptors: u64,
    /// What the harness used meanwhile.
    pub harness_usage: Usage,
    /// How busy the gateway's CPUs were, whoever was billed for it: receiving interrupts are others'. The part of a CPU, over all of them.
    pub gateway_cpus_busy: f64,
    /// Inner packets for each outer datagram, while traffic was measured: what stands behind every cost of a packet. `None` of a peer.
    pub batch: Option<f64>,
    /// The part of a CPU that the busiest thread of the harness used, and the part of scheduled packets that it sent more than 1 ms late.
    pub busiest_thread_share: f64,
    pub late_share: f64,
    pub limited_by: LimitedBy,
    /// What the gateway itself says; `None` of a peer.
    pub shards: Option<ShardFigures>,
    /// What scraping its metrics came to; `None` where nobody did.
    pub scrapes: Option<Scrapes>,
    /// How things were over time, once a second or less often.
    pub samples: Vec<Sample>,
    /// Every figure that is not as the scenario demands, in words. Empty exactly when the load succeeded.
    pub failures: Vec<String>,
}

/// How the connections came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Ramp {
    pub wanted: u32,
    pub connected: u32,
    /// From the first packet to the last address.
    pub seconds: f64,
    pub gateway_cpu_seconds: f64,
}

/// What a group of traffic came to, from the run's first packet to its last.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GroupResult {
    pub name: String,
    pub connections: u32,
    /// From clients to the network.
    pub up: FlowFigures,
    /// From the network to clients.
    pub down: FlowFigures,
    /// Round trips, counted from when each request was due; `None` where nothing is answered.
    pub round_trip: Option<Latencies>,
}

/// All flows of a group in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct FlowFigures {
    /// What one end sent and the other received.
    #[serde(flatten)]
    pub counts: FlowCounts,
    pub lost_packets: u64,
    /// Inner bits a second while traffic was measured.
    pub bits_per_second: f64,
}

/// Where every packet of one direction went.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Account {
    pub sent: u64,
    pub received: u64,
    /// Packets counted as dropped, by place and reason: `client: datagram_queue_full`, `gateway: no_route`, `kernel: tun0 queue` ...
    pub drops: BTreeMap<String, u64>,
    /// `sent` - `received` - drops. 0 exactly when both ends agree.
    pub unaccounted: i64,
    /// The most that any one user received or had received in any whole second but its first, in bits; 0 where no user is limited.
    pub user_peak_bits_per_second: f64,
}

/// What a process used over a stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    pub cpu_seconds: f64,
    /// Of the CPUs that it may use.
    pub cpu_share: f64,
}

/// What kept the traffic from being more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    /// Everything that was to be sent was sent.
    Scenario,
    /// The gateway had no CPU time left.
    Gateway,
    /// This harness had no CPU time left, or could not keep its schedule. The figures say nothing of the gateway's limit.
    Harness,
    /// The windows of bulk flows, a rate limit, or the network between.
    #[default]
    Window,
}

/// What a Tollgate gateway says of itself, over the whole run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ShardFigures {
    pub shards: u16,
    /// TUN frames and datagrams that arrived at a wrong shard.
    pub crossed: u64,
    pub arrived: u64,
    /// Of the end: addresses held, sessions, connections.
    pub addresses_held: u64,
    pub sessions: u64,
    pub connections: u64,
}

/// How things were at one moment, `seconds` after traffic began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sample {
    pub seconds: f64,
    /// Completed so far.
    pub handshakes: u64,
    /// Now up.
    pub connections: u64,
    /// So far.
    pub gateway_cpu_seconds: f64,
    pub gateway_memory_bytes: u64,
    pub gateway_descriptors: u64,
    /// Inner bits received since the last sample, a second.
    pub bits_per_second: f64,
}

impl LoadResult {
    /// Inner bits that arrived each second while traffic was measured, both directions together.
    pub fn carried_bits_per_second(&self) -> f64 {
        self.groups.iter().map(GroupResult::bits_per_second).sum()
    }

    /// CPU seconds for each gigabyte of inner packets that arrived, while traffic was measured; `None` when nothing arrived.
    pub fn cpu_seconds_per_gigabyte(&self, usage: Usage) -> Option<f64> {
        let gigabytes = self.carried_bits_per_second() * self.seconds / 8e9;
        (gigabytes > 0.0).then(|| usage.cpu_seconds / gigabytes)
    }

    pub fn received_packets(&self) -> u64 {
        self.groups.iter().flat_map(GroupResult::ways).map(|(_, flow)| flow.counts.received_packets).sum()
    }

    pub fn lost_packets(&self) -> u64 {
        self.groups.iter().map(|group| group.up.lost_packets + group.down.lost_packets).sum()
    }
}

impl GroupResult {
    pub fn bits_per_second(&self) -> f64 {
        self.up.bits_per_second + self.down.bits_per_second
    }

    pub fn ways(&self) -> [(&'static str, &FlowFigures); 2] {
        [("up", &self.up), ("down", &self.down)]
    }
}

impl fmt::Display for LoadResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadResult { scenario, gateway, users, ramp, clients, seconds, .. } = self;
        let [connected, wanted, users] = [ramp.connected, ramp.wanted, *users].map(|number| count(number.into()));
        let handshake = nanoseconds((ramp.gateway_cpu_seconds * 1e9 / f64::from(ramp.connected.max(1))) as u64);
        writeln!(
            f,
            "{scenario} against {gateway}: {connected} of {wanted} connections of {users} users came up in {:.1} s, {handshake} of the gateway's CPU time each; {seconds:.1} s of traffic",
            ramp.seconds,
        )?;
        let Counts { handshakes, failed_handshakes, rebound, lost, .. } = *clients;
        // The first handshake of each is the ramp's, and the last end is the load's.
        let again = handshakes.saturating_sub(ramp.connected.into());
        if again + rebound + failed_handshakes + lost > 0 {
            let [again, rebound, failed, lost] = [again, rebound, failed_handshakes, lost].map(count);
            writeln!(
                f,
                "{again} left and came again, {rebound} changed their address; {failed} handshakes failed, {lost} connections were lost"
            )?;
            if let Some(grown) = bytes_per_connection(&self.samples) {
                writeln!(f, "the gateway's memory grew by {} for each connection that came", bytes(grown))?;
            }
        }
        writeln!(f, "\n{}\n\n{}\n", groups(self), accounts(self))?;
        for (way, account) in [("up", &self.up), ("down", &self.down)] {
            if account.user_peak_bits_per_second > 0.0 {
                writeln!(
                    f,
                    "most for a user in a second, {way}: {}",
                    bits_per_second(account.user_peak_bits_per_second)
                )?;
            }
        }
        for (group, trips) in self.groups.iter().filter_map(|group| Some((group, group.round_trip.as_ref()?))) {
            let [p50, p99, p999, max] = [trips.p50_ns, trips.p99_ns, trips.p999_ns, trips.max_ns].map(nanoseconds);
            let (name, number) = (&group.name, count(trips.count));
            writeln!(f, "round trips of {name}: p50 {p50}, p99 {p99}, p99.9 {p999}, longest {max} ({number} of them)")?;
        }
        usage(f, self)?;
        let limit = match self.limited_by {
            LimitedBy::Scenario => "the scenario, all that was to be sent was sent in time",
            LimitedBy::Gateway => "the gateway, it had no CPU time left",
            LimitedBy::Harness => {
                "THIS HARNESS, it had no CPU time left or fell behind its schedule; the figures say nothing of the gateway's limit"
            }
            LimitedBy::Window => "neither gateway nor harness was busy: the flows' windows, a rate limit, or the path",
        };
        writeln!(f, "limit: {limit}")?;
        if self.failures.is_empty() {
            return write!(f, "success: both ends agree on every packet, and everything demanded holds");
        }
        write!(f, "FAILURE")?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n- {failure}"))
    }
}

fn groups(result: &LoadResult) -> comfy_table::Table {
    let rows = result.groups.iter().flat_map(|group| {
        group.ways().map(|(way, flow)| {
            let FlowCounts { reordered_packets, duplicated_packets, corrupted_packets, .. } = flow.counts;
            let (connections, sent, received) =
                (group.connections.into(), flow.counts.sent_packets, flow.counts.received_packets);
            let arrived = [connections, sent, received, flow.lost_packets];
            let counts =
                arrived.into_iter().chain([reordered_packets, duplicated_packets, corrupted_packets]).map(count);
            let names = [group.name.clone(), way.to_owned()];
            names.into_iter().chain(counts).chain([bits_per_second(flow.bits_per_second)]).collect::<Vec<_>>()
        })
    });
    let heading = ["traffic", "", "connections", "sent", "received", "lost", "reordered", "twice", "corrupt", "rate"];
    table(2, &heading, rows)
}

/// Both accounts side by side, line by line.
fn accounts(result: &LoadResult) -> comfy_table::Table {
    let (up, down) = (&result.up, &result.down);
    let mut reasons: Vec<&String> = up.drops.keys().chain(down.drops.keys()).collect();
    reasons.sort();
    reasons.dedup();
    let dropped = reasons.into_iter().map(|reason| {
        let [up, down] =
            [up, down].map(|account| account.drops.get(reason).map_or_else(String::new, |packets| count(*packets)));
        [format!("dropped, {reason}"), up, down]
    });
    let ends = [("sent", up.sent, down.sent), ("received", up.received, down.received)];
    let rows = ends.into_iter().map(|(what, up, down)| [what.to_owned(), count(up), count(down)]).chain(dropped);
    let unaccounted = ["unaccounted for".to_owned(), signed(up.unaccounted), signed(down.unaccounted)];
    table(1, &["every inner packet, the harness's own too", "up", "down"], rows.chain([unaccounted]))
}

/// What gateway and harness used, and how cheap the one is beside the other.
fn usage(f: &mut fmt::Formatter<'_>, result: &LoadResult) -> fmt::Result {
    let (gateway, harness) = (result.gateway_usage, result.harness_usage);
    for (name, usage) in [("gateway", gateway), ("harness", harness)] {
        let cost = result.cpu_seconds_per_gigabyte(usage).map(|cost| format!(", {cost:.2} s/GB")).unwrap_or_default();
        let (seconds, share) = (usage.cpu_seconds, percent(usage.cpu_share));
        writeln!(f, "{name}: {seconds:.2} s of CPU time, {share} of its CPUs{cost}")?;
    }
    let [busy, memory] = [percent(result.gateway_cpus_busy), bytes(result.gateway_memory_bytes as f64)];
    let descriptors = count(result.gateway_descriptors);
    writeln!(f, "the gateway's CPUs were busy for {busy} of the time; it has {memory} and {descriptors} descriptors")?;
    if gateway.cpu_seconds > 0.0 {
        let times = harness.cpu_seconds / gateway.cpu_seconds;
        writeln!(f, "a packet costs the harness {times:.2} times what it costs the gateway")?;
    }
    if let Some(batch) = result.batch {
        writeln!(f, "{batch:.2} inner packets for each outer datagram")?;
    }
    if let Some(Scrapes { scrapes, failed, bytes: length, longest_seconds, control_thread_share }) = result.scrapes {
        let (length, share) = (bytes(length as f64), percent(control_thread_share));
        let longest = nanoseconds((longest_seconds * 1e9) as u64);
        writeln!(
            f,
            "{scrapes} scrapes of {length}, {failed} of them failed, the longest took {longest}; the gateway's control thread used {share} of a CPU"
        )?;
    }
    if let Some(shards) = result.shards {
        let share = shards.crossed as f64 / shards.arrived.max(1) as f64;
        writeln!(f, "{} shards; {} of what arrived crossed to another", shards.shards, percent(share))?;
    }
    Ok(())
}
