//! What kernels and gateway counted during a run.
//!
//! This module makes no traffic.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use tollgate::gateway::Status;
use tollgate::lab::{Namespace, Topology};

use super::site::CLIENT_TUN;
use crate::deployment::{GATEWAY_TUN, counters, queues};
use crate::results::Direction;

/// What has been counted so far, or over a stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Packets that the receiver of the bulk traffic saw marked "congestion experienced".
    pub(super) ce_marks: u64,
    /// TCP segments that its sender sent again.
    pub(super) resent_segments: u64,
    /// Packets for which a TUN interface's queue had no room.
    pub(super) tun_queue_drops: u64,
    /// The gateway's own; `None` of a peer.
    pub(super) gateway: Option<GatewayCounts>,
}

/// What a gateway counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GatewayCounts {
    /// Bytes of inner packets passed on, both directions together.
    pub(super) inner_bytes: u64,
    /// Inner packets dropped, by reason. Only what is not 0.
    pub(super) drops: BTreeMap<String, u64>,
}

impl Counts {
    /// Reads everything that there is of one run with bulk traffic in `direction`.
    pub(super) fn read(topology: &Topology, direction: Direction, status: Option<&Status>) -> Result<Self> {
        let (client, network) = (&topology.clients[0].namespace, &topology.network);
        let (sender, receiver) = if direction == Direction::Up { (client, network) } else { (network, client) };
        let tun_queue = |namespace: &Namespace, interface: &str| -> Result<u64> {
            Ok(queues(&table(namespace, "dev")?).get(interface).copied().unwrap_or(0))
        };
        Ok(Counts {
            // Each packet of an aggregate counts (ip_rcv_core of the kernel).
            ce_marks: counter(receiver, "netstat", "IpExt", "InCEPkts")?,
            resent_segments: counter(sender, "snmp", "Tcp", "RetransSegs")?,
            tun_queue_drops: tun_queue(client, CLIENT_TUN)? + tun_queue(&topology.gateway, GATEWAY_TUN)?,
            gateway: status.map(GatewayCounts::of),
        })
    }

    /// What has been counted since `earlier`.
    pub(super) fn since(&self, earlier: &Counts) -> Counts {
        let gateway = self.gateway.as_ref().zip(earlier.gateway.as_ref()).map(|(now, before)| now.since(before));
        Counts {
            ce_marks: self.ce_marks.saturating_sub(earlier.ce_marks),
            resent_segments: self.resent_segments.saturating_sub(earlier.resent_segments),
            tun_queue_drops: self.tun_queue_drops.saturating_sub(earlier.tun_queue_drops),
            gateway,
        }
    }
}

impl GatewayCounts {
    fn of(status: &Status) -> Self {
        let mut counts = GatewayCounts::default();
        for report in &status.shards {
            counts.inner_bytes += report.counters.up_bytes + report.counters.down_bytes;
            for (reason, packets) in report.counters.drops.iter().filter(|(_, packets)| *packets > 0) {
                *counts.drops.entry(reason.name().to_owned()).or_default() += packets;
            }
        }
        counts
    }

    fn since(&self, earlier: &GatewayCounts) -> GatewayCounts {
        let before = |reason: &str| earlier.drops.get(reason).copied().unwrap_or(0);
        let drops = self.drops.iter().map(|(reason, packets)| (reason.clone(), packets.saturating_sub(before(reason))));
        GatewayCounts {
            inner_bytes: self.inner_bytes.saturating_sub(earlier.inner_bytes),
            drops: drops.filter(|(_, packets)| *packets > 0).collect(),
        }
    }
}

fn counter(namespace: &Namespace, file: &str, protocol: &str, name: &str) -> Result<u64> {
    let found = counters(&table(namespace, file)?, protocol, &[name])?;
    Ok(found.iter().map(|(_, count)| count).sum())
}

fn table(namespace: &Namespace, file: &str) -> Result<String> {
    let path = format!("/proc/thread-self/net/{file}");
    let text = namespace.run(|| fs::read_to_string(&path));
    text.with_context(|| format!("cannot read {path} in namespace {}", namespace.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_counted_since_is_told() {
        let counts = |ce_marks, inner_bytes, drops: &[(&str, u64)]| Counts {
            ce_marks,
            gateway: Some(GatewayCounts {
                inner_bytes,
                drops: drops.iter().map(|(reason, packets)| ((*reason).to_owned(), *packets)).collect(),
            }),
            ..Counts::default()
        };
        let since = counts(9, 100, &[("a", 2), ("b", 3)]).since(&counts(4, 40, &[("a", 2)]));
        assert_eq!(since, counts(5, 60, &[("b", 3)]));
        assert_eq!(Counts::default().since(&Counts::default()).gateway, None, "a peer tells nothing");
    }
}
