//! What `shaping` found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Direction, Latencies, Spread};

/// How usable the tunnel of a limited user stays while bulk traffic runs through it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShapingResult {
    /// The user's bandwidth limit, in bits of inner packets a second.
    pub limit_bits_per_second: f64,
    /// The congestion control of bulk TCP, as the kernel names it.
    pub congestion_control: String,
    /// The time from one ping to the next, in seconds.
    pub ping_interval_seconds: f64,
    /// For how long each run pinged, in seconds.
    pub seconds: u16,
    /// The client's program, the same with every gateway.
    pub client: String,
    /// For each kind of bulk traffic, each gateway: ours, then peers.
    pub points: Vec<ShapingPoint>,
}

/// One gateway under one kind of bulk traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShapingPoint {
    /// The gateway.
    pub gateway: String,
    /// Which way the bulk traffic went: up or down.
    pub direction: Direction,
    /// Whether its TCP was capable of ECN (RFC 3168).
    pub ecn: bool,
    /// The pings of all runs together, round trip. Those that were lost are not among them.
    pub round_trip: Latencies,
    /// Each run, one for each pair.
    pub runs: Vec<ShapingRun>,
}

/// One run: bulk traffic and pings through the same tunnel. All but the transfer's end is of the time in which it pinged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShapingRun {
    /// 99 % of the pings took no longer, round trip, in nanoseconds.
    pub p99_ns: u64,
    /// Pings that were sent.
    pub pings: u64,
    /// Pings that were not answered.
    pub lost_pings: u64,
    /// TCP payload that arrived, in bits a second.
    pub bulk_bits_per_second: f64,
    /// Inner packets that the gateway passed on, both directions together, in bits a second; `None` of a peer, which does not tell.
    pub inner_bits_per_second: Option<f64>,
    /// Packets that reached the receiver of the bulk traffic marked "congestion experienced".
    pub ce_marks: u64,
    /// TCP segments that the sender of the bulk traffic sent again.
    pub resent_segments: u64,
    /// Inner packets that the gateway dropped, by reason; `None` of a peer, which does not tell.
    pub gateway_drops: Option<BTreeMap<String, u64>>,
    /// Packets for which there was no room in the queue of a TUN interface, the client's or the gateway's.
    pub tun_queue_drops: u64,
    /// The offset of the first byte of payload that was not the one sent; `None` when all were.
    pub corrupt_at_byte: Option<u64>,
}

impl ShapingPoint {
    /// Median and extremes of a figure over the runs; `None` without a run.
    pub fn spread(&self, figure: impl Fn(&ShapingRun) -> f64) -> Option<Spread> {
        Spread::of(self.runs.iter().map(figure))
    }

    /// The sum of a count over the runs.
    pub fn sum(&self, count: impl Fn(&ShapingRun) -> u64) -> u64 {
        self.runs.iter().map(count).sum()
    }

    /// Inner packets that the gateway dropped for whatever reason, over all runs; `None` of a peer.
    pub fn gateway_dropped(&self) -> Option<u64> {
        self.runs.iter().map(|run| Some(run.gateway_drops.as_ref()?.values().sum::<u64>())).sum()
    }

    /// What the figure is for pings under this kind of bulk traffic, in a word each: `down, ECN`.
    pub fn kind(&self) -> String {
        let direction = match self.direction {
            Direction::Up => "up",
            Direction::Down => "down",
            Direction::Both => "both ways",
        };
        format!("{direction}, {}", if self.ecn { "ECN" } else { "no ECN" })
    }
}
