//! The work that is measured: each fixture prepares a round, does it, and makes sure afterwards that what was measured is what was meant.

mod forward;
mod handshake;
mod packet;

use anyhow::Result;

use super::traffic::{LARGE_BYTES, SMALL_BYTES};

/// Work in rounds. Only [`Fixture::work`] is measured.
pub trait Fixture {
    /// Gets everything ready for the work.
    fn prepare(&mut self) -> Result<()>;

    /// The work. Returns how many units of it were done: with 0, another turn of all three belongs to the same round.
    fn work(&mut self) -> u64;

    /// Makes sure that all of it was done.
    fn conclude(&mut self) -> Result<()>;
}

/// A benchmark.
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it does once, for people.
    pub unit: &'static str,
    /// What it is, in a line.
    pub what: &'static str,
    /// How many units are enough for a count that repeats.
    pub units: u64,
    /// Makes the fixture, warmed up.
    pub make: fn() -> Result<Box<dyn Fixture>>,
}

/// All benchmarks.
pub static CASES: [Case; 10] = [
    Case {
        name: "up_1400",
        unit: "packet",
        what: "UDP runs of a client in, TSO frames out",
        units: 4000,
        make: || forward::up(LARGE_BYTES),
    },
    Case {
        name: "down_1400",
        unit: "packet",
        what: "TSO frames in, UDP runs to a client out",
        units: 4000,
        make: || forward::down(LARGE_BYTES, false),
    },
    Case {
        name: "cross_down_1400",
        unit: "packet",
        what: "the same, but the frames come to the wrong shard and cross the mesh",
        units: 4000,
        make: || forward::down(LARGE_BYTES, true),
    },
    Case {
        name: "up_100",
        unit: "packet",
        what: "small UDP packets of 32 flows from a client",
        units: 4000,
        make: || forward::up(SMALL_BYTES),
    },
    Case {
        name: "down_100",
        unit: "packet",
        what: "small UDP packets of 32 flows to a client, 16 a pass",
        units: 4000,
        make: || forward::down(SMALL_BYTES, false),
    },
    Case {
        name: "split",
        unit: "packet",
        what: "a TSO frame into packets of 1400 B",
        units: 4000,
        make: packet::splitting,
    },
    Case {
        name: "merge_tcp",
        unit: "packet",
        what: "packets of 1400 B into TSO frames",
        units: 4000,
        make: packet::merging_tcp,
    },
    Case {
        name: "merge_udp",
        unit: "packet",
        what: "packets of 100 B of 32 flows into USO frames",
        units: 4000,
        make: packet::merging_udp,
    },
    Case {
        name: "checksum",
        unit: "packet",
        what: "the Internet checksum of 1400 B",
        units: 4000,
        make: packet::checksumming,
    },
    Case {
        name: "handshake",
        unit: "handshake",
        what: "the gateway's part of a login: Retry, mutual TLS 1.3, address",
        units: 30,
        make: handshake::new,
    },
];

/// The benchmark of this name.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_benchmark_does_its_work_round_after_round() {
        for case in &CASES {
            let mut fixture = (case.make)().unwrap();
            for _ in 0..3 {
                let units = round(&mut *fixture, &mut |fixture| fixture.work()).unwrap();
                assert!(units > 0 && units <= case.units, "{}: {units}", case.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        for case in &CASES {
            assert!(std::ptr::eq(find(case.name).unwrap(), case), "{}", case.name);
        }
    }
}
