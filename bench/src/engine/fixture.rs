//! The work that is measured: each fixture prepares a round, has it done, and makes sure afterwards that what was measured is what was meant.

mod forward;
mod handshake;
mod packet;

use std::net::Ipv4Addr;

use anyhow::Result;
use bytes::Bytes;

use crate::frames::Flow;

/// Length of a large inner packet, in bytes: the tunnel's MTU.
const LARGE_BYTES: usize = 1400;
const SMALL_BYTES: usize = 100;
/// Large packets of a super-frame: as many as its 65,535 bytes hold, less a few that the sender did not have yet.
const SEGMENTS: usize = 44;
/// Super-frames of a round that passes through a gateway.
const SUPER_FRAMES: usize = 3;
/// Flows of small packets, and packets of a round of them.
const SMALL_FLOWS: u16 = 32;
const SMALL_PACKETS: usize = 128;
/// Units that are enough for a count that repeats.
const PACKETS: u64 = 4000;
const HANDSHAKES: u64 = 30;

/// Does a round, and returns how many units of work it was. Only what it hands to its argument is measured.
pub type Fixture = Box<dyn FnMut(Measure<'_>) -> Result<u64>>;
/// Has work done once, and may count or time it.
pub type Measure<'a> = &'a mut dyn FnMut(&mut dyn FnMut());

/// A benchmark.
pub struct Case {
    pub name: &'static str,
    /// What it does once, for people.
    pub unit: &'static str,
    pub what: &'static str,
    /// How many units are measured at least.
    pub units: u64,
    pub make: fn() -> Result<Fixture>,
}

const fn packets(name: &'static str, what: &'static str, make: fn() -> Result<Fixture>) -> Case {
    Case { name, unit: "packet", what, units: PACKETS, make }
}

pub static CASES: [Case; 10] = [
    packets("up_1400", "UDP runs of a client in, TSO frames out", || forward::up(Traffic::large)),
    packets("down_1400", "TSO frames in, UDP runs to a client out", || forward::down(Traffic::large, false)),
    packets("cross_down_1400", "the same, but the frames come to the wrong shard and cross the mesh", || {
        forward::down(Traffic::large, true)
    }),
    packets("up_100", "small UDP packets of 32 flows from a client", || forward::up(Traffic::small)),
    packets("down_100", "small UDP packets of 32 flows to a client, 16 a pass", || {
        forward::down(Traffic::small, false)
    }),
    packets("split", "a TSO frame into packets of 1400 B", packet::splitting),
    packets("merge_tcp", "packets of 1400 B into TSO frames", packet::merging_tcp),
    packets("merge_udp", "packets of 100 B of 32 flows into USO frames", packet::merging_udp),
    packets("checksum", "the Internet checksum of 1400 B", packet::checksumming),
    Case {
        name: "handshake",
        unit: "handshake",
        what: "the gateway's part of a login: Retry, mutual TLS 1.3, address",
        units: HANDSHAKES,
        make: handshake::new,
    },
];

pub fn find(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

/// Inner packets from one address to another, of its flows in turn.
struct Traffic {
    flows: Vec<Flow>,
    next: usize,
    /// Packets of a TUN frame.
    segments: usize,
    /// TUN frames of a round.
    frames: usize,
}

impl Traffic {
    /// One flow of TCP.
    fn large(from: Ipv4Addr, to: Ipv4Addr) -> Self {
        let flows = vec![Flow::tcp(from, to, LARGE_BYTES)];
        Traffic { flows, next: 0, segments: SEGMENTS, frames: SUPER_FRAMES }
    }

    /// Many flows of small UDP packets.
    fn small(from: Ipv4Addr, to: Ipv4Addr) -> Self {
        let flows = (0..SMALL_FLOWS).map(|flow| Flow::udp(from, 20_000 + flow, to, SMALL_BYTES)).collect();
        Traffic { flows, next: 0, segments: 1, frames: SMALL_PACKETS }
    }

    fn next_flow(&mut self) -> &mut Flow {
        self.next = (self.next + 1) % self.flows.len();
        &mut self.flows[self.next]
    }

    /// A round of single packets.
    fn packets(&mut self) -> Vec<Bytes> {
        (0..self.frames * self.segments).map(|_| self.next_flow().packet().into()).collect()
    }

    /// The same in TUN frames.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let segments = self.segments;
        let frame = |flow: &mut Flow| if segments > 1 { flow.super_frame(segments) } else { flow.frame() };
        (0..self.frames).map(|_| frame(self.next_flow())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_benchmark_has_a_name_of_its_own_and_does_its_work_round_after_round() {
        for case in &CASES {
            assert!(std::ptr::eq(find(case.name).unwrap(), case), "{}", case.name);
            let mut fixture = (case.make)().unwrap();
            for _ in 0..3 {
                let mut measured = 0;
                let units = fixture(&mut |work| {
                    work();
                    measured += 1;
                });
                let units = units.unwrap();
                assert!(measured > 0 && units > 0 && units <= case.units, "{}: {units}", case.name);
            }
        }
    }
}
