//! `floor`: what this machine's kernel and ciphers allow one core of a gateway, whoever wrote it.
//!
//! Each stage of a packet's way is measured by itself, on one thread pinned to one CPU, by that thread's CPU time. A gateway's core cannot
//! do without three of them in each direction; their sum is the floor that gateways are held against. Nothing of a gateway runs here.

mod aead;
mod packet;
mod tun;
mod udp;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tollgate_testkit::{Topology, TopologyPlan};

use self::aead::AeadCrossing;
use self::tun::TunCrossing;
use self::udp::UdpCrossing;
use crate::measure::cpus;
use crate::measure::progress::Progress;
use crate::measure::record::{Output, table};
use crate::measure::spread::Spread;

/// Length of an inner IPv4 packet, in bytes: the tunnel's MTU.
const PACKET_BYTES: usize = 1400;
/// Bytes of an inner packet that are TCP payload: all but the headers of IPv4 and of TCP with timestamps.
const PAYLOAD_BYTES: usize = PACKET_BYTES - 20 - 32;
/// Length of the outer UDP datagram with such a packet, in bytes: QUIC's short header with a connection ID of 8 bytes and a packet number
/// of 3, a DATAGRAM frame of known length, and the cipher's tag.
const DATAGRAM_BYTES: usize = PACKET_BYTES + 12 + 3 + 16;
/// How often each stage is measured, and for how long each pair of them at a time.
const FULL: (usize, Duration) = (9, Duration::from_millis(100));
const QUICK: (usize, Duration) = (5, Duration::from_millis(40));

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Take 2 seconds instead of 8: figures with more noise.
    #[arg(long)]
    quick: bool,
    /// The CPU to measure on, by number [default: the first that may be used].
    #[arg(long, value_name = "C")]
    cpu: Option<usize>,
    #[command(flatten)]
    output: Output,
}

/// What kernel and cipher allow on one core.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Floor {
    pub stages: Vec<Stage>,
    /// The sum of a gateway core's stages from client to network.
    pub up_cpu_seconds_per_gigabyte: f64,
    /// The sum of a gateway core's stages from network to client.
    pub down_cpu_seconds_per_gigabyte: f64,
}

/// One stage of the floor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    name: &'static str,
    /// For a gigabyte of TCP payload, over the rounds.
    cpu_seconds_per_gigabyte: Spread,
    part_of: Part,
}

/// The direction of whose floor a stage is a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Up,
    Down,
    Neither,
}

/// Two stages that need each other: what one puts in, the other takes out.
///
/// All bytes are of payload, so that stages add up, and compare with what a gateway needs for a gigabyte.
trait Crossing: Send {
    /// The names of putting in and of taking out.
    fn names(&self) -> [&'static str; 2];

    /// Makes a batch ready. Not measured.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Puts the batch in, and returns its bytes of payload.
    fn put(&mut self) -> Result<u64>;

    /// Takes out all that was put in, and returns its bytes of payload.
    fn take(&mut self) -> Result<u64>;
}

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
    pub up: f64,
    pub down: f64,
}

/// Two stages, and what they cost round by round, in CPU seconds per gigabyte.
struct Entry {
    crossing: Box<dyn Crossing>,
    parts: [Part; 2],
    rounds: Vec<[f64; 2]>,
}

/// Measures and prints.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
pub fn run(options: &Options) -> Result<()> {
    cpus::require_usable(options.cpu.as_slice(), "--cpu")?;
    let cpu = cpus::split(options.cpu.as_slice(), &[])?.0[0];
    tollgate_testkit::prepare()?;
    tollgate_testkit::require_tun()?;
    let mut recording = options.output.start([])?;
    let (count, slot) = if options.quick { QUICK } else { FULL };
    let mut progress = Progress::new();
    progress.step("setting up");
    let mut rounds = Rounds::set_up(cpu, slot)?;
    for round in 1..=count {
        progress.update(|| format!("round {round} of {count}"));
        rounds.run()?;
    }
    progress.clear();
    let floor = rounds.floor().context("there was no round")?;
    let part = |part: Part| format!("{part:?}").to_lowercase();
    let shown = |figure: f64| format!("{figure:.3}");
    let rows = floor
        .stages
        .iter()
        .map(|stage| [stage.name.to_owned(), stage.cpu_seconds_per_gigabyte.shown(shown), part(stage.part_of)]);
    let sums = [("floor, up", floor.up_cpu_seconds_per_gigabyte), ("floor, down", floor.down_cpu_seconds_per_gigabyte)];
    let sums = sums.map(|(name, sum)| [name.to_owned(), shown(sum), String::new()]);
    let heading = ["stage", "CPU s/GB", "part of the floor"];
    recording.print(&format!(
        "one thread, pinned to CPU {cpu}, {count} rounds\n\n{}",
        table(1, &heading, rows.chain(sums))
    ))?;
    recording.write("floor", &floor)
}

impl Rounds {
    /// Sets everything up, to be measured on `cpu`, for `slot` per round each pair of stages.
    pub fn set_up(cpu: usize, slot: Duration) -> Result<Self> {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() })?;
        let entries = entries(&topology)?;
        let mut rounds = Rounds { entries, cpu, slot, _topology: topology };
        // The first packets find neighbours and fault pages in.
        rounds.on_its_cpu(|entries| entries.iter_mut().try_for_each(|entry| turn(&mut *entry.crossing).map(drop)))?;
        Ok(rounds)
    }

    /// Measures every stage once.
    pub fn run(&mut self) -> Result<Round> {
        let slot = self.slot;
        self.on_its_cpu(|entries| {
            entries.iter_mut().try_for_each(|entry| {
                entry.rounds.push(measure(&mut *entry.crossing, slot)?);
                Ok(())
            })
        })?;
        let last = |entry: &Entry| entry.rounds.last().copied().unwrap_or_default();
        let sum = |part| sum(self.entries.iter().map(|entry| (entry.parts, last(entry))), part);
        Ok(Round { up: sum(Part::Up), down: sum(Part::Down) })
    }

    /// What all rounds came to; `None` before the first.
    pub fn floor(&self) -> Option<Floor> {
        let stages = self.entries.iter().map(Entry::stages).collect::<Option<Vec<_>>>()?.concat();
        let sum = |part: Part| {
            stages.iter().filter(|stage| stage.part_of == part).map(|stage| stage.cpu_seconds_per_gigabyte.median).sum()
        };
        Some(Floor {
            up_cpu_seconds_per_gigabyte: sum(Part::Up),
            down_cpu_seconds_per_gigabyte: sum(Part::Down),
            stages,
        })
    }

    /// Does `work` on a thread of its own, pinned: this one may go on as it likes.
    fn on_its_cpu(&mut self, work: impl FnOnce(&mut [Entry]) -> Result<()> + Send) -> Result<()> {
        let (entries, cpu) = (&mut self.entries, self.cpu);
        let pinned = move || {
            cpus::pin(&[cpu])?;
            work(entries)
        };
        thread::scope(|scope| scope.spawn(pinned).join()).map_err(|_| anyhow!("the measuring thread has panicked"))?
    }
}

/// All that is measured, and what of it is a part of the floor: of the suites, the one that gateway and clients agree on by default.
fn entries(topology: &Topology) -> Result<Vec<Entry>> {
    use Part::{Down, Neither, Up};
    let entry = |crossing: Box<dyn Crossing>, parts| Entry { crossing, parts, rounds: Vec::new() };
    let gateway = &topology.gateway;
    let mut entries = vec![entry(Box::new(TunCrossing::tcp_super_packets(gateway)?), [Up, Down])];
    if let Some(crossing) = TunCrossing::udp_super_packets(gateway)? {
        entries.push(entry(Box::new(crossing), [Neither; 2]));
    }
    entries.extend([
        entry(Box::new(TunCrossing::single_packets(gateway)?), [Neither; 2]),
        entry(Box::new(UdpCrossing::in_runs(topology)?), [Down, Up]),
        entry(Box::new(UdpCrossing::single_datagrams(topology)?), [Neither; 2]),
        entry(Box::new(AeadCrossing::aes_256()?), [Down, Up]),
        entry(Box::new(AeadCrossing::aes_128()?), [Neither; 2]),
        entry(Box::new(AeadCrossing::chacha20()?), [Neither; 2]),
    ]);
    Ok(entries)
}

/// The sum over the stages that are part of this floor.
fn sum(entries: impl Iterator<Item = ([Part; 2], [f64; 2])>, part: Part) -> f64 {
    let stages = entries.flat_map(|(parts, figures)| parts.into_iter().zip(figures));
    stages.filter(|(of, _)| *of == part).map(|(_, figure)| figure).sum()
}

/// One batch through `crossing`: bytes and CPU seconds of each stage.
fn turn(crossing: &mut dyn Crossing) -> Result<[(u64, f64); 2]> {
    crossing.prepare()?;
    let before = cpu_seconds();
    let put = crossing.put()?;
    let between = cpu_seconds();
    let taken = crossing.take()?;
    Ok([(put, between - before), (taken, cpu_seconds() - between)])
}

/// Batch after batch, for `slot`, at least one: CPU seconds per gigabyte of each stage.
fn measure(crossing: &mut dyn Crossing, slot: Duration) -> Result<[f64; 2]> {
    let started = Instant::now();
    let mut sums = turn(crossing)?;
    while started.elapsed() < slot {
        for (sum, (bytes, seconds)) in sums.iter_mut().zip(turn(crossing)?) {
            *sum = (sum.0 + bytes, sum.1 + seconds);
        }
    }
    Ok(sums.map(|(bytes, seconds)| seconds * 1e9 / bytes as f64))
}

/// CPU time of the calling thread so far, in user and kernel mode.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

impl Entry {
    /// The results of both stages; `None` before the first round.
    fn stages(&self) -> Option<Vec<Stage>> {
        let stage = |side: usize| {
            let cpu_seconds_per_gigabyte = Spread::of(self.rounds.iter().map(|round| round[side]))?;
            Some(Stage { name: self.crossing.names()[side], cpu_seconds_per_gigabyte, part_of: self.parts[side] })
        };
        Some(vec![stage(0)?, stage(1)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does nothing, but for batches of a known size.
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

    #[test]
    fn a_direction_is_the_sum_of_its_stages_only() {
        use Part::{Down, Neither, Up};
        let entries = [[Up, Down], [Down, Up], [Neither; 2], [Down, Neither]].map(|parts| (parts, [0.25, 0.5]));
        assert_eq!((sum(entries.into_iter(), Up), sum(entries.into_iter(), Down)), (0.75, 1.0));
        assert_eq!(turn(&mut Told).unwrap().map(|(bytes, _)| bytes), [1000, 2000]);
        let entry =
            Entry { crossing: Box::new(Told), parts: [Up, Neither], rounds: vec![[1.0, 0.1], [3.0, 0.3], [2.0, 0.2]] };
        let stages = entry.stages().unwrap();
        assert_eq!(stages[0].cpu_seconds_per_gigabyte, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!((stages[1].name, stages[1].part_of), ("out", Neither));
    }
}
