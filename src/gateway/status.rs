//! The status of a gateway, for people and for machines.

use std::fmt;

use serde::{Deserialize, Serialize};
use tollgate_shards::DropReason;

use super::{HostReport, Report};

/// The reports of all cores.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// One for each shard that has answered, in order.
    pub shards: Vec<Report>,
    /// What was put back on the host.
    pub host: HostReport,
    /// The shards that have not answered in time: sums over all shards lack theirs.
    pub unanswered: Vec<u16>,
}

impl Status {
    /// One line of JSON.
    ///
    /// # Panics
    ///
    /// Never: numbers can always be written.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers can always be written")
    }

    /// Clients that have logged in, of the shards that have answered.
    pub fn clients(&self) -> u64 {
        self.shards.iter().map(|report| report.clients as u64).sum()
    }

    /// A line for each shard that has panicked.
    pub fn panics(&self) -> impl Iterator<Item = String> {
        let panicked = self.shards.iter().filter(|report| report.restarts > 0);
        panicked.map(|Report { shard, restarts, .. }| {
            format!("shard {shard} has panicked and was started anew, times: {restarts}; the log has the reason")
        })
    }

    /// Packets dropped for `reason`, over all shards.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.shards.iter().map(|report| report.counters.drops.of(reason)).sum()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Report { shard, cpu, counters, traffic, owned_connections, .. } in &self.shards {
            write!(
                f,
                "shard {shard} on CPU {cpu}: {owned_connections} connections, up {} packets, down {}, relayed {}, across shards {}",
                counters.up_packets,
                counters.down_packets,
                counters.relayed_packets,
                counters.misrouted_frames + counters.misrouted_datagrams,
            )?;
            write!(
                f,
                ", {:.1} datagrams a data send, {:.0} bytes a data frame up, {:.0} down; dropped",
                ratio(traffic.udp_data_datagrams, traffic.udp_data_sends),
                ratio(traffic.tun_data_write_bytes, traffic.tun_data_writes),
                ratio(traffic.tun_data_read_bytes, traffic.tun_data_reads),
            )?;
            let mut any = false;
            for (reason, packets) in counters.drops.iter().filter(|&(_, packets)| packets > 0) {
                any = true;
                write!(f, " {}={packets}", reason.name())?;
            }
            writeln!(f, "{}", if any { "" } else { " nothing" })?;
        }
        self.panics().try_for_each(|line| writeln!(f, "{line}"))?;
        if self.host != HostReport::default() {
            let HostReport {
                restored_links,
                restored_addresses,
                restored_routes,
                remade_devices,
                remade_sockets,
                failures,
            } = self.host;
            writeln!(
                f,
                "put back on the host: state {restored_links} times, address {restored_addresses}, routes {restored_routes}, \
                 device {remade_devices}, sockets {remade_sockets}; tried in vain {failures} times"
            )?;
        }
        self.unanswered.iter().try_for_each(|shard| writeln!(f, "shard {shard} does not answer"))
    }
}

fn ratio(sum: u64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum as f64 / count as f64 }
}
