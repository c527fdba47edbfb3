//! What `packets` found.

use serde::{Deserialize, Serialize};

use super::Spread;

/// What single packets cost, that no sender has put together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PacketsResult {
    /// One for each kind of traffic.
    pub points: Vec<PacketsPoint>,
}

/// One kind of traffic, the same for every gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PacketsPoint {
    /// What it is, in a few words: `100 B, one flow up`.
    pub traffic: String,
    /// Inner packets offered each second, both directions together.
    pub offered_packets_per_second: f64,
    /// One for each gateway: ours, then peers.
    pub gateways: Vec<PacketsFigures>,
}

/// How one gateway took them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PacketsFigures {
    /// The gateway.
    pub name: String,
    /// Inner packets that arrived for each CPU second of the gateway.
    pub packets_per_cpu_second: Spread,
    /// How many times as many ours passes with as much CPU time, in the same round. 1 of ours.
    pub ours_to_this: Spread,
    /// Inner packets that arrived each second.
    pub packets_per_second: Spread,
    /// Packets that did not arrive, over all rounds.
    pub lost_packets: u64,
    /// Whether the harness was at its limit, or late, in any round.
    pub harness_limited: bool,
}

impl PacketsFigures {
    /// CPU time of the gateway for each packet that arrived, in nanoseconds.
    pub fn cpu_ns_per_packet(&self) -> Spread {
        let ns = |packets_per_cpu_second: f64| 1e9 / packets_per_cpu_second;
        let Spread { median, min, max } = self.packets_per_cpu_second;
        Spread { median: ns(median), min: ns(max), max: ns(min) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_packets_cost_the_least_time() {
        let spread = |median, min, max| Spread { median, min, max };
        let figures = PacketsFigures {
            name: "tollgate".to_owned(),
            packets_per_cpu_second: spread(500_000.0, 250_000.0, 1_000_000.0),
            ours_to_this: spread(1.0, 1.0, 1.0),
            packets_per_second: spread(1.0, 1.0, 1.0),
            lost_packets: 0,
            harness_limited: false,
        };
        assert_eq!(figures.cpu_ns_per_packet(), spread(2_000.0, 1_000.0, 4_000.0));
    }
}
