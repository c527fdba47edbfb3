//! The metrics that there are, and their text in OpenMetrics.
//!
//! What shards count has the label `shard`. A gateway with more shards than [`SHARDS_TOLD_MAX`] has the rest of them summed under `shard="other"`, so that
//! the number of series is bounded.

use std::collections::BTreeMap;
use std::fmt;
use std::iter;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tollgate_shards::{DropReason, Durations, HandshakeCounts, HandshakeOutcome, SessionEnd, Usage};

use crate::gateway::{HostReport, Report};

/// Most series of one scrape.
pub const SERIES_MAX: usize = 5000;
/// Shards with a label of their own.
const SHARDS_TOLD_MAX: usize = 24;
/// The label of all shards, and of all connections, that have none of their own and are summed.
pub(super) const OTHER: &str = "other";

/// What the control plane knows beside its shards' figures.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The number of the configuration in force.
    pub epoch: u64,
    /// Users in it.
    pub users_configured: usize,
    /// Whether no new clients are taken.
    pub is_draining: bool,
    /// Whether a process before this one still has clients.
    pub has_predecessor: bool,
    /// Log lines that standard error did not take.
    pub lost_log_lines: u64,
    /// What was put back on the host.
    pub host: HostReport,
}

/// A client's connection, or the sum of several.
#[derive(Debug, Clone)]
pub struct Client {
    /// The user's name.
    pub user: String,
    /// The inner address, by which Quincy tells connections apart.
    pub connection: String,
    /// What it has carried.
    pub usage: Usage,
    /// Its round-trip time, and the age of its connection. A sum has none.
    pub path: Option<(Duration, Duration)>,
}

/// All that is told in one scrape.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// One for each shard, in order; none of one that has not begun.
    pub shards: Vec<Option<Report>>,
    /// The rest.
    pub state: State,
}

/// A value under those of two labels.
type Pair = ([&'static str; 2], u64);

/// Where the values of a family are. Those of several shards are summed.
enum Value<S: 'static> {
    Count(fn(&S) -> u64),
    Time(fn(&S) -> Duration),
    /// One for each value of a label.
    Each(&'static str, fn(&S) -> Vec<(&'static str, u64)>),
    /// One for each value of two labels.
    Pairs([&'static str; 2], fn(&S) -> Vec<Pair>),
    Histogram(fn(&S) -> Durations),
    /// One for each value of a label.
    Histograms(&'static str, fn(&S) -> Vec<(&'static str, Durations)>),
}

/// The metrics of one name.
struct Family<S: 'static> {
    /// Without the unit, and without the `_total` of counters.
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    value: Value<S>,
}

/// Declares families: `counter` or `gauge`, name, unit or `-`, what it says, and where the value is.
macro_rules! families {
    ($name:ident of $of:ty, by $it:ident: $($kind:ident $metric:literal $unit:tt $help:literal => $how:ident $value:expr,)*) => {
        const $name: &[Family<$of>] = &[$(Family {
            name: $metric,
            help: $help,
            unit: families!(@unit $unit),
            kind: families!(@kind $kind),
            value: families!(@value $how $of, $it, $value),
        },)*];
    };
    (@unit -) => { None };
    (@unit bytes) => { Some(Unit::Bytes) };
    (@unit seconds) => { Some(Unit::Seconds) };
    (@kind counter) => { MetricType::Counter };
    (@kind gauge) => { MetricType::Gauge };
    (@kind histogram) => { MetricType::Histogram };
    (@value count $of:ty, $it:ident, $value:expr) => { Value::Count(|$it: &$of| $value) };
    (@value time $of:ty, $it:ident, $value:expr) => { Value::Time(|$it: &$of| $value) };
    (@value account $of:ty, $it:ident, $value:expr) => { Value::Each("account", |$it: &$of| $value) };
    (@value reason $of:ty, $it:ident, $value:expr) => { Value::Each("reason", |$it: &$of| $value) };
    (@value durations $of:ty, $it:ident, $value:expr) => { Value::Histogram(|$it: &$of| $value) };
    (@value kinds $of:ty, $it:ident, $value:expr) => { Value::Histograms("kind", |$it: &$of| $value) };
    (@value outcomes $of:ty, $it:ident, $value:expr) => { Value::Pairs(["kind", "outcome"], |$it: &$of| $value) };
    (@value what $of:ty, $it:ident, $value:expr) => { Value::Each("what", |$it: &$of| $value) };
}

families! { OF_SHARDS of Report, by it:
    counter "tollgate_up_packets" - "Inner packets from clients that went to the TUN device." => count it.counters.up_packets,
    counter "tollgate_up" bytes "Bytes of those packets." => count it.counters.up_bytes,
    counter "tollgate_down_packets" - "Inner packets queued for clients." => count it.counters.down_packets,
    counter "tollgate_down" bytes "Bytes of those packets." => count it.counters.down_bytes,
    counter "tollgate_relayed_packets" - "Inner packets from one client to another." => count it.counters.relayed_packets,
    counter "tollgate_own_packets" - "Inner packets that the gateway made: ICMP, fragments, probes." => count it.counters.own_packets,
    counter "tollgate_thinned_acks" - "TCP acknowledgements from clients that later ones superseded." => count it.counters.thinned_acks,
    counter "tollgate_fragmented_packets" - "Packets fragmented because the client's path carries less." => count it.counters.fragmented_packets,
    counter "tollgate_too_big_replies" - "ICMP messages that a packet is too big." => count it.counters.too_big_replies,
    counter "tollgate_received_datagram_frames" - "DATAGRAM frames received from clients." => count it.counters.datagrams_received,
    counter "tollgate_sent_datagram_frames" - "DATAGRAM frames sent to clients." => count it.counters.datagrams_sent,
    counter "tollgate_narrowed_paths" - "Times that a client's path was found to carry less than before." => count it.counters.narrowed_paths,
    counter "tollgate_too_narrow_paths" - "Those among them that carry less than inner IPv6 needs." => count it.counters.too_narrow_paths,
    counter "tollgate_handshakes" - "Handshakes completed by clients that are known." => count it.counters.handshakes,
    counter "tollgate_retries" - "Retry packets sent." => count it.counters.retries,
    counter "tollgate_stateless_responses" - "Responses outside any connection, mostly stateless resets." => count it.counters.stateless_responses,
    counter "tollgate_misrouted_frames" - "TUN frames that arrived at the wrong shard." => count it.counters.misrouted_frames,
    counter "tollgate_misrouted_datagrams" - "UDP datagrams that arrived at the wrong shard." => count it.counters.misrouted_datagrams,
    counter "tollgate_mesh_messages" - "Messages sent to other shards." => count it.counters.messages,
    counter "tollgate_untold_events" - "Events without lines in the log, because there were too many at once." => count it.counters.forgotten_events,
    gauge "tollgate_clients" - "Clients logged in on connections that the shard carries." => count it.clients as u64,
    gauge "tollgate_user_connections" - "Connections of users whose home the shard is." => count it.counters.connections,
    gauge "tollgate_users" - "Users with a session whose home the shard is." => count it.counters.users,
    gauge "tollgate_owned_connections" - "QUIC connections that the shard carries, handshakes included." => count it.owned_connections as u64,
    counter "tollgate_leases" - "Leases of tokens begun, of limited users whose connections the shard carries." => count it.counters.leases,
    counter "tollgate_lease_grants" - "Grants of tokens on them." => count it.counters.lease_grants,
    gauge "tollgate_open_leases" - "Leases that are open." => count it.counters.open_leases,
    gauge "tollgate_waiting_packets" - "Packets of limited users that wait for tokens; their bytes are in the account 'waiting'." => count it.counters.waiting_packets,
    gauge "tollgate_queued_packets" - "Packets queued to be sent to clients; their bytes are in the account 'queued'." => count it.counters.queued_packets,
    gauge "tollgate_leased_addresses" - "Inner addresses that clients have." => count it.addresses_held.unwrap_or_default(),
    gauge "tollgate_memory" bytes "Memory held for others, by account." => account memory(it),
    gauge "tollgate_memory_limit" bytes "What all accounts of the shard together may hold." => count it.memory.limit_bytes,
    counter "tollgate_busy" seconds "Time in which the shard had work." => time Duration::from_millis(it.busy_ms),
    counter "tollgate_gathers" - "Times that a busy shard let work gather." => count it.moderated.waits,
    counter "tollgate_gather" seconds "How long that was to take in all." => time Duration::from_micros(it.moderated.wait_us),
    counter "tollgate_gather_suspensions" - "Times that letting work gather was given up for a while because more passed without." => count it.moderated.suspensions,
    counter "tollgate_passes" - "Passes of the event loop." => count it.traffic.passes,
    counter "tollgate_sleeps" - "Sleeps of the event loop." => count it.traffic.sleeps,
    counter "tollgate_restarts" - "Times that the shard has panicked and was started anew." => count u64::from(it.restarts),
    counter "tollgate_udp_receives" - "UDP messages received, aggregates counted once." => count it.traffic.udp_receives,
    counter "tollgate_udp_received_datagrams" - "UDP datagrams received." => count it.traffic.udp_received_datagrams,
    counter "tollgate_udp_sends" - "UDP sends, runs counted once." => count it.traffic.udp_sends,
    counter "tollgate_udp_sent_datagrams" - "UDP datagrams sent." => count it.traffic.udp_sent_datagrams,
    counter "tollgate_udp_data_sends" - "UDP sends of data." => count it.traffic.udp_data_sends,
    counter "tollgate_udp_data_datagrams" - "UDP datagrams in those." => count it.traffic.udp_data_datagrams,
    counter "tollgate_tun_reads" - "TUN frames read." => count it.traffic.tun_reads,
    counter "tollgate_tun_data_reads" - "Those of data." => count it.traffic.tun_data_reads,
    counter "tollgate_tun_data_read" bytes "Bytes of those." => count it.traffic.tun_data_read_bytes,
    counter "tollgate_tun_writes" - "TUN frames written." => count it.traffic.tun_writes,
    counter "tollgate_tun_data_writes" - "Those of data." => count it.traffic.tun_data_writes,
    counter "tollgate_tun_data_written" bytes "Bytes of those." => count it.traffic.tun_data_write_bytes,
    counter "tollgate_tun_refused_merges" - "Super-packets that the kernel refused, whose packets went one by one." => count it.traffic.tun_refused_merges,
    counter "tollgate_udp_receive_errors" - "UDP receives that failed." => count it.traffic.udp_receive_errors,
    counter "tollgate_tun_read_errors" - "TUN reads that failed." => count it.traffic.tun_read_errors,
    counter "tollgate_poll_errors" - "Times the poller failed." => count it.traffic.poll_errors,
    counter "tollgate_lost_descriptors" - "Descriptors given up because they were out of order." => count it.traffic.lost_descriptors,
}

families! { OF_THE_GATEWAY of Totals, by it:
    counter "tollgate_dropped_packets" - "Packets dropped, by reason." => reason drops(it),
    counter "tollgate_ended_handshakes" - "Handshakes that are over, by what the client logs in with and what became of it." => outcomes handshakes(it),
    counter "tollgate_ended_sessions" - "Sessions that have ended at a deadline of [sessions], by reason." => reason session_ends(it),
    histogram "tollgate_handshake" seconds "From the first packet of a client that has proved its address to its login." => kinds handshake_times(it),
    histogram "tollgate_wait" seconds "How long packets of limited users have waited for tokens, of those that went." => durations waits(it),
    gauge "tollgate_pool_addresses" - "Inner addresses for users without their own." => count pool(it).0,
    gauge "tollgate_free_pool_addresses" - "Those that no client has." => count pool(it).1,
    gauge "tollgate_shards" - "Shards." => count it.shards.len() as u64,
    gauge "tollgate_epoch" - "Number of the configuration in force." => count it.state.epoch,
    gauge "tollgate_configured_users" - "Users in the users file in force." => count it.state.users_configured as u64,
    gauge "tollgate_draining" - "1 while no new clients are taken." => count u64::from(it.state.is_draining),
    gauge "tollgate_upgrading" - "1 while the process before this one still has clients, of whom nothing is told here." => count u64::from(it.state.has_predecessor),
    counter "tollgate_lost_log_lines" - "Log lines that standard error did not take." => count it.state.lost_log_lines,
    counter "tollgate_host_repairs" - "Things put back on the host because others had changed them." => what repairs(it),
    counter "tollgate_host_repair_failures" - "Times that something could not be put back yet." => count it.state.host.failures,
}

families! { OF_CLIENTS of Client, by it:
    counter "quincy_bytes_tx" - "UDP payload sent to the client, in bytes." => count it.usage.sent_bytes,
    counter "quincy_bytes_rx" - "UDP payload received from the client, in bytes." => count it.usage.received_bytes,
    counter "quincy_datagrams_tx" - "UDP datagrams sent to the client." => count it.usage.sent_datagrams,
    counter "quincy_datagrams_rx" - "UDP datagrams received from the client." => count it.usage.received_datagrams,
}

families! { OF_PATHS of Client, by it:
    gauge "quincy_connection_rtt" seconds "Round-trip time of the client's path." => time it.path.unwrap_or_default().0,
    gauge "quincy_connection_duration" seconds "Time since the handshake of the client began." => time it.path.unwrap_or_default().1,
}

fn memory(Report { memory, .. }: &Report) -> Vec<(&'static str, u64)> {
    vec![
        ("receive_buffers", memory.receive_buffers_bytes),
        ("packet_chunks", memory.packet_chunks_bytes),
        ("queued", memory.queued_bytes),
        ("waiting", memory.waiting_bytes),
        ("connections", memory.connections_bytes),
        ("unacknowledged", memory.unacknowledged_bytes),
    ]
}

fn drops(totals: &Totals) -> Vec<(&'static str, u64)> {
    let of = |reason| totals.shards.iter().flatten().map(|figures| figures.counters.drops.of(reason)).sum();
    DropReason::ALL.into_iter().map(|reason| (reason.name(), of(reason))).collect()
}

fn handshake_counts(totals: &Totals) -> HandshakeCounts {
    let counted = totals.shards.iter().flatten().map(|figures| figures.counters.handshake_ends);
    counted.fold(HandshakeCounts::default(), |sum, shard| sum.beside(&shard))
}

fn handshakes(totals: &Totals) -> Vec<Pair> {
    let kinds = handshake_counts(totals).kinds().into_iter();
    let each = kinds.flat_map(|(name, kind)| HandshakeOutcome::ALL.map(|it| ([name, it.name()], kind.outcomes.of(it))));
    each.collect()
}

fn handshake_times(totals: &Totals) -> Vec<(&'static str, Durations)> {
    handshake_counts(totals).kinds().into_iter().map(|(name, kind)| (name, kind.times)).collect()
}

fn session_ends(totals: &Totals) -> Vec<(&'static str, u64)> {
    let of = |end| totals.shards.iter().flatten().map(|figures| figures.counters.session_ends.of(end)).sum();
    SessionEnd::ALL.into_iter().map(|end| (end.name(), of(end))).collect()
}

fn waits(totals: &Totals) -> Durations {
    totals.shards.iter().flatten().fold(Durations::default(), |sum, figures| sum.beside(&figures.counters.waits))
}

/// Of the shard that allocates addresses.
fn pool(totals: &Totals) -> (u64, u64) {
    totals.shards.iter().flatten().find_map(|figures| figures.address_pool).unwrap_or_default()
}

fn repairs(totals: &Totals) -> Vec<(&'static str, u64)> {
    let host = totals.state.host;
    vec![
        ("link", host.restored_links),
        ("address", host.restored_addresses),
        ("route", host.restored_routes),
        ("device", host.remade_devices),
        ("sockets", host.remade_sockets),
    ]
}

impl Totals {
    /// The text of a scrape, with that of the `clients`.
    ///
    /// # Panics
    ///
    /// Never: text can always be written.
    pub fn into_text(self, clients: &str) -> String {
        let mut text = part(self);
        text.push_str(clients);
        text::encode_eof(&mut text).expect("text can always be written");
        text
    }

    /// The label of each shard that is told of, with the figures that are summed under it.
    fn told(&self) -> BTreeMap<String, Vec<&Report>> {
        let mut told: BTreeMap<String, Vec<&Report>> = BTreeMap::new();
        for (place, figures) in self.shards.iter().enumerate() {
            let label = if place < SHARDS_TOLD_MAX { place.to_string() } else { OTHER.to_owned() };
            told.entry(label).or_default().extend(figures);
        }
        told
    }
}

impl Collector for Totals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let told = self.told();
        for family in OF_SHARDS {
            let mut encoder = family.describe(&mut encoder)?;
            for (shard, figures) in &told {
                family.encode(figures, &[("shard", shard)], &mut encoder)?;
            }
        }
        for family in OF_THE_GATEWAY {
            family.encode(&[self], &[], &mut family.describe(&mut encoder)?)?;
        }
        Ok(())
    }
}

/// What is told of clients: of those with figures of their own, and of the sum of all others.
#[derive(Debug, Clone, Default)]
pub struct Clients(pub Vec<Client>);

impl Clients {
    /// Their part of a scrape.
    ///
    /// # Panics
    ///
    /// Never: text can always be written.
    pub fn into_text(self) -> String {
        part(self)
    }
}

impl Collector for Clients {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let paths = self.0.iter().filter(|client| client.path.is_some());
        encode_clients(OF_CLIENTS, self.0.iter(), &mut encoder)?;
        encode_clients(OF_PATHS, paths, &mut encoder)
    }
}

/// A part of a scrape.
fn part(of: impl Collector) -> String {
    let (mut registry, mut text) = (Registry::default(), String::new());
    registry.register_collector(Box::new(of));
    text::encode_registry(&mut text, &registry).expect("text can always be written");
    text
}

fn encode_clients<'c>(
    families: &[Family<Client>],
    clients: impl Iterator<Item = &'c Client> + Clone,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    for family in families {
        let mut encoder = family.describe(encoder)?;
        for client in clients.clone() {
            let labels = [("user", &client.user[..]), ("connection", &client.connection)];
            family.encode(&[client], &labels, &mut encoder)?;
        }
    }
    Ok(())
}

impl<S> Family<S> {
    fn describe<'e>(&'e self, encoder: &'e mut DescriptorEncoder<'_>) -> Result<MetricEncoder<'e>, fmt::Error> {
        encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), self.kind)
    }

    /// The sum over `of`, under `labels`.
    fn encode(&self, of: &[&S], labels: &[(&str, &str)], encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        match self.value {
            Value::Count(count) => self.encode_one(of.iter().map(|it| count(it)).sum::<u64>(), labels, encoder),
            Value::Time(time) => {
                let seconds = of.iter().map(|it| time(it)).sum::<Duration>().as_secs_f64();
                self.encode_one(seconds, labels, encoder)
            }
            Value::Each(label, each) => {
                let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
                of.iter().flat_map(|it| each(it)).for_each(|(value, count)| *sums.entry(value).or_default() += count);
                sums.into_iter().try_for_each(|(value, count)| {
                    let labels: Vec<_> = labels.iter().copied().chain([(label, value)]).collect();
                    self.encode_one(count, &labels, encoder)
                })
            }
            Value::Pairs(names, each) => of.iter().flat_map(|it| each(it)).try_for_each(|(values, count)| {
                let labels: Vec<_> = labels.iter().copied().chain(iter::zip(names, values)).collect();
                self.encode_one(count, &labels, encoder)
            }),
            Value::Histogram(durations) => {
                let sum = of.iter().fold(Durations::default(), |sum, it| sum.beside(&durations(it)));
                encode_histogram(&sum, labels, encoder)
            }
            Value::Histograms(label, each) => of.iter().flat_map(|it| each(it)).try_for_each(|(value, durations)| {
                let labels: Vec<_> = labels.iter().copied().chain([(label, value)]).collect();
                encode_histogram(&durations, &labels, encoder)
            }),
        }
    }

    fn encode_one<V>(&self, value: V, labels: &[(&str, &str)], encoder: &mut MetricEncoder<'_>) -> fmt::Result
    where
        V: EncodeCounterValue + EncodeGaugeValue,
    {
        let encode = |encoder: &mut MetricEncoder<'_>| match self.kind {
            MetricType::Counter => encoder.encode_counter::<NoLabelSet, V, u64>(&value, None),
            _ => encoder.encode_gauge(&value),
        };
        if labels.is_empty() { encode(encoder) } else { encode(&mut encoder.encode_family(&labels)?) }
    }

    /// The name as a scrape has it.
    fn full_name(&self) -> String {
        let unit = self.unit.as_ref().map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
        let total = if matches!(self.kind, MetricType::Counter) { "_total" } else { "" };
        format!("{}{unit}{total}", self.name)
    }
}

fn encode_histogram(durations: &Durations, labels: &[(&str, &str)], encoder: &mut MetricEncoder<'_>) -> fmt::Result {
    let bound = |longest: Option<Duration>| longest.map_or(f64::INFINITY, |longest| longest.as_secs_f64());
    let classes: Vec<_> = durations.classes().map(|(longest, count)| (bound(longest), count)).collect();
    let count = classes.iter().map(|(_, count)| count).sum();
    let sum = durations.sum().as_secs_f64();
    encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &classes, None)
}

/// The names of all metrics that there are, as a scrape has them, but for a histogram's without the ends of its parts.
pub fn names() -> Vec<String> {
    let shards = OF_SHARDS.iter().map(Family::full_name).chain(OF_THE_GATEWAY.iter().map(Family::full_name));
    shards.chain(OF_CLIENTS.iter().chain(OF_PATHS).map(Family::full_name)).collect()
}

#[cfg(test)]
mod tests;
