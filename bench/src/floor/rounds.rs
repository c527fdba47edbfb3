//! All stages in turn, round after round on one thread pinned to one CPU, and what they come to.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tollgate::lab::{Topology, TopologyPlan};

use super::aead::AeadCrossing;
use super::crossing::Crossing;
use super::meter::{Cost, Meter};
use super::tun::TunCrossing;
use super::udp::UdpCrossing;
use crate::cpus;
use crate::results::{Floor, GIGABYTE, Spread, Stage};

/// The stages, set up in namespaces of their own, which go when this value does.
pub struct Rounds {
    entries: Vec<Entry>,
    cpu: usize,
    slot: Duration,
    // Behind what uses it.
    _topology: Topology,
}

/// What one round found of the floor, in CPU seconds per gigabyte of payload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Round {
    /// From client to network.
    pub up: f64,
    /// From network to client.
    pub down: f64,
}

/// Two stages, whether a gateway's core cannot do without them, and their tallies round by round.
struct Entry {
    crossing: Box<dyn Crossing>,
    counts: [Counts; 2],
    rounds: Vec<[Tally; 2]>,
}

/// The directions of whose floor a stage is a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    up: bool,
    down: bool,
}

/// What a stage did and cost in a round.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Tally {
    payload_bytes: u64,
    cost: Cost,
}

const UP: Counts = Counts { up: true, down: false };
const DOWN: Counts = Counts { up: false, down: true };
const NEITHER: Counts = Counts { up: false, down: false };

impl Rounds {
    /// Sets everything up, to be measured on `cpu`, for `slot` per round each pair of stages.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn set_up(cpu: usize, slot: Duration) -> Result<Self> {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() })?;
        let entries = entries(&topology)?;
        let mut rounds = Rounds { entries, cpu, slot, _topology: topology };
        // The first packets find neighbours and fault pages in.
        rounds.on_its_cpu(|entries, meter| {
            entries.iter_mut().try_for_each(|entry| turn(&mut *entry.crossing, meter).map(drop))
        })?;
        Ok(rounds)
    }

    /// How long a round takes, in about.
    pub fn round_duration(&self) -> Duration {
        self.slot * self.entries.len() as u32
    }

    /// Measures every stage once.
    ///
    /// # Errors
    ///
    /// When a packet did not come through.
    pub fn run(&mut self) -> Result<Round> {
        let slot = self.slot;
        self.on_its_cpu(|entries, meter| {
            entries.iter_mut().try_for_each(|entry| {
                let tallies = measure(&mut *entry.crossing, meter, slot)?;
                entry.rounds.push(tallies);
                Ok(())
            })
        })?;
        let last = |entry: &Entry, side: usize| entry.rounds.last().map_or(0.0, |round| round[side].per_gigabyte());
        Ok(Round {
            up: sum(&self.entries, |counts| counts.up, last),
            down: sum(&self.entries, |counts| counts.down, last),
        })
    }

    /// What all rounds came to; `None` before the first.
    pub fn floor(&self) -> Option<Floor> {
        let stages = self.entries.iter().map(Entry::stages).collect::<Option<Vec<_>>>()?.concat();
        let sum = |part: fn(&Stage) -> bool| {
            stages.iter().filter(|stage| part(stage)).map(|stage| stage.cpu_seconds_per_gigabyte.median).sum()
        };
        Some(Floor {
            up_cpu_seconds_per_gigabyte: sum(|stage| stage.counts_up),
            down_cpu_seconds_per_gigabyte: sum(|stage| stage.counts_down),
            stages,
        })
    }

    /// Does `work` on a thread of its own, pinned: this one may go on as it likes.
    fn on_its_cpu(&mut self, work: impl FnOnce(&mut [Entry], &mut Meter) -> Result<()> + Send) -> Result<()> {
        let (entries, cpu) = (&mut self.entries, self.cpu);
        let pinned = move || {
            cpus::pin(&[cpu])?;
            work(entries, &mut Meter::here())
        };
        thread::scope(|scope| scope.spawn(pinned).join()).map_err(|_| anyhow!("the measuring thread has panicked"))?
    }
}

/// All that is measured, and what of it is a part of the floor: of the suites, the one that gateway and clients agree on by default.
fn entries(topology: &Topology) -> Result<Vec<Entry>> {
    let entry = |crossing: Box<dyn Crossing>, counts| Entry { crossing, counts, rounds: Vec::new() };
    let gateway = &topology.gateway;
    let mut entries = vec![entry(Box::new(TunCrossing::tcp_super_packets(gateway)?), [UP, DOWN])];
    if let Some(crossing) = TunCrossing::udp_super_packets(gateway)? {
        entries.push(entry(Box::new(crossing), [NEITHER; 2]));
    }
    entries.extend([
        entry(Box::new(TunCrossing::single_packets(gateway)?), [NEITHER; 2]),
        entry(Box::new(UdpCrossing::in_runs(topology)?), [DOWN, UP]),
        entry(Box::new(UdpCrossing::single_datagrams(topology)?), [NEITHER; 2]),
        entry(Box::new(AeadCrossing::aes_256()?), [DOWN, UP]),
        entry(Box::new(AeadCrossing::aes_128()?), [NEITHER; 2]),
        entry(Box::new(AeadCrossing::chacha20()?), [NEITHER; 2]),
    ]);
    Ok(entries)
}

/// The sum of `figure` over the stages that `part` takes.
fn sum(entries: &[Entry], part: fn(Counts) -> bool, figure: impl Fn(&Entry, usize) -> f64) -> f64 {
    let stages = entries.iter().flat_map(|entry| [(entry, 0), (entry, 1)]);
    stages.filter(|(entry, side)| part(entry.counts[*side])).map(|(entry, side)| figure(entry, side)).sum()
}

/// One batch through `crossing`.
fn turn(crossing: &mut dyn Crossing, meter: &mut Meter) -> Result<[Tally; 2]> {
    crossing.prepare()?;
    let (put_bytes, put) = meter.measure(|| crossing.put())?;
    let (taken_bytes, taken) = meter.measure(|| crossing.take())?;
    Ok([Tally { payload_bytes: put_bytes, cost: put }, Tally { payload_bytes: taken_bytes, cost: taken }])
}

/// Batch after batch, for `slot`; at least one.
fn measure(crossing: &mut dyn Crossing, meter: &mut Meter, slot: Duration) -> Result<[Tally; 2]> {
    let started = Instant::now();
    let mut tallies = turn(crossing, meter)?;
    while started.elapsed() < slot {
        let further = turn(crossing, meter)?;
        tallies.iter_mut().zip(further).for_each(|(tally, further)| tally.add(further));
    }
    Ok(tallies)
}

impl Entry {
    /// The results of both stages; `None` before the first round.
    fn stages(&self) -> Option<Vec<Stage>> {
        let stage = |side: usize| {
            let tallies = || self.rounds.iter().map(move |round| &round[side]);
            let cycles = Spread::of(tallies().filter_map(Tally::cycles_per_byte));
            Some(Stage {
                name: self.crossing.names()[side].to_owned(),
                cpu_seconds_per_gigabyte: Spread::of(tallies().map(Tally::per_gigabyte))?,
                cycles_per_byte: cycles.map(|cycles| cycles.median),
                counts_up: self.counts[side].up,
                counts_down: self.counts[side].down,
            })
        };
        Some(vec![stage(0)?, stage(1)?])
    }
}

impl Tally {
    fn add(&mut self, further: Tally) {
        self.payload_bytes += further.payload_bytes;
        self.cost.cpu_seconds += further.cost.cpu_seconds;
        self.cost.cycles = self.cost.cycles.zip(further.cost.cycles).map(|(cycles, further)| cycles + further);
    }

    /// CPU seconds for each gigabyte of payload.
    fn per_gigabyte(&self) -> f64 {
        self.cost.cpu_seconds * GIGABYTE / self.payload_bytes as f64
    }

    fn cycles_per_byte(&self) -> Option<f64> {
        Some(self.cost.cycles? as f64 / self.payload_bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Costs what it is told, without a clock.
    struct Told;

    impl Crossing for Told {
        fn names(&self) -> [&'static str; 2] {
            ["in", "out"]
        }

        fn put(&mut self) -> Result<u64> {
            Ok(1000)
        }

        fn take(&mut self) -> Result<u64> {
            Ok(2000)
        }
    }

    fn tally(cpu_seconds: f64, cycles: Option<u64>) -> Tally {
        Tally { payload_bytes: 1_000_000_000, cost: Cost { cpu_seconds, cycles } }
    }

    fn entry(counts: [Counts; 2], rounds: Vec<[Tally; 2]>) -> Entry {
        Entry { crossing: Box::new(Told), counts, rounds }
    }

    #[test]
    fn a_stage_is_measured_by_its_own_payload_and_at_least_once() {
        let tallies = measure(&mut Told, &mut Meter::here(), Duration::ZERO).unwrap();
        assert_eq!(tallies.map(|tally| tally.payload_bytes), [1000, 2000]);
        let longer = measure(&mut Told, &mut Meter::here(), Duration::from_millis(1)).unwrap();
        assert!(longer[0].payload_bytes > 1000);
        assert_eq!(longer[1].payload_bytes, 2 * longer[0].payload_bytes);
    }

    #[test]
    fn a_direction_is_the_sum_of_its_stages_only() {
        let rounds = || vec![[tally(0.25, None), tally(0.5, None)]];
        let entries = [
            entry([UP, DOWN], rounds()),
            entry([DOWN, UP], rounds()),
            entry([NEITHER; 2], rounds()),
            entry([DOWN, NEITHER], rounds()),
        ];
        let last = |entry: &Entry, side: usize| entry.rounds[0][side].per_gigabyte();
        assert_eq!(sum(&entries, |counts| counts.up, last), 0.75);
        assert_eq!(sum(&entries, |counts| counts.down, last), 1.0);
    }

    #[test]
    fn a_stages_figures_are_of_all_rounds() {
        let rounds = [1.0, 3.0, 2.0].map(|seconds| [tally(seconds, Some(4_000_000_000)), tally(seconds / 2.0, None)]);
        let stages = entry([UP, NEITHER], rounds.to_vec()).stages().unwrap();
        assert_eq!(stages[0].cpu_seconds_per_gigabyte, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!((stages[0].cycles_per_byte, stages[1].cycles_per_byte), (Some(4.0), None));
        assert_eq!((stages[0].counts_up, stages[0].counts_down, stages[1].counts_up), (true, false, false));
        assert!(entry([UP, UP], Vec::new()).stages().is_none());
    }

    #[test]
    fn cycles_are_told_of_all_batches_or_of_none() {
        let mut told = tally(1.0, Some(5));
        told.add(tally(1.0, Some(6)));
        assert_eq!((told.cost.cycles, told.payload_bytes), (Some(11), 2_000_000_000));
        told.add(tally(1.0, None));
        assert_eq!(told.cost.cycles, None);
    }
}
