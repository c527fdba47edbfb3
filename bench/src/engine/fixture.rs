//! The work that is measured: each fixture prepares a round, does it, and makes sure afterwards that what was measured is what was meant.

mod forward;
mod handshake;
mod packet;

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::frames::Flow;

/// Length of a large inner packet, in bytes: the tunnel's MTU.
pub const LARGE_BYTES: usize = 1400;
const SMALL_BYTES: usize = 100;
/// Large packets of a super-frame: as many as its 65,535 bytes hold, less a few that the sender did not have yet.
const SEGMENTS: usize = 44;
/// Flows of small packets, in turn.
const SMALL_FLOWS: u16 = 32;
/// Units that are enough for a count that repeats.
const PACKETS: u64 = 4000;
const HANDSHAKES: u64 = 30;

/// Work in rounds. Only [`Fixture::work`] is measured.
pub trait Fixture {
    fn prepare(&mut self) -> Result<()>;

    /// Returns how many units of work were done: with 0, another turn of all three belongs to the same round.
    fn work(&mut self) -> u64;

    /// Makes sure that all of it was done.
    fn conclude(&mut self) -> Result<()>;
}

/// Makes a fixture, warmed up.
type Make = fn() -> Result<Box<dyn Fixture>>;

/// A benchmark.
pub struct Case {
    pub name: &'static str,
    /// What it does once, for people.
    pub unit: &'static str,
    pub what: &'static str,
    /// How many units are measured at least.
    pub units: u64,
    pub make: Make,
}

const fn packets(name: &'static str, what: &'static str, make: Make) -> Case {
    Case { name, unit: "packet", what, units: PACKETS, make }
}

pub static CASES: [Case; 10] = [
    packets("up_1400", "UDP runs of a client in, TSO frames out", || forward::up(LARGE_BYTES)),
    packets("down_1400", "TSO frames in, UDP runs to a client out", || forward::down(LARGE_BYTES, false)),
    packets("cross_down_1400", "the same, but the frames come to the wrong shard and cross the mesh", || {
        forward::down(LARGE_BYTES, true)
    }),
    packets("up_100", "small UDP packets of 32 flows from a client", || forward::up(SMALL_BYTES)),
    packets("down_100", "small UDP packets of 32 flows to a client, 16 a pass", || forward::down(SMALL_BYTES, false)),
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

/// One round. `measured` has the work done, and may count or time it. Returns the units done.
pub fn round(fixture: &mut dyn Fixture, measured: &mut impl FnMut(&mut dyn Fixture) -> u64) -> Result<u64> {
    loop {
        fixture.prepare()?;
        let units = measured(fixture);
        fixture.conclude()?;
        if units > 0 {
            return Ok(units);
        }
    }
}

/// Inner packets from one address to another: one flow of TCP, and many of small UDP packets.
struct Traffic {
    large: Flow,
    small: Vec<Flow>,
    next: usize,
}

impl Traffic {
    fn new(from: Ipv4Addr, to: Ipv4Addr) -> Self {
        let small = (0..SMALL_FLOWS).map(|flow| Flow::udp(from, 20_000 + flow, to, SMALL_BYTES)).collect();
        Traffic { large: Flow::tcp(from, to, LARGE_BYTES), small, next: 0 }
    }

    fn next_small(&mut self) -> &mut Flow {
        self.next = (self.next + 1) % self.small.len();
        &mut self.small[self.next]
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
                let units = round(&mut *fixture, &mut |fixture| fixture.work()).unwrap();
                assert!(units > 0 && units <= case.units, "{}: {units}", case.name);
            }
        }
    }
}
