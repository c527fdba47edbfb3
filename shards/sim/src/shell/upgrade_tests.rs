//! The shell's cores of two processes, with the link between them.

#![expect(
    clippy::disallowed_methods,
    reason = "the threads of the link take their time, and no longer than patience lasts"
)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tollgate::gateway::core::{CoreCommand, Report};
use tollgate::gateway::notices::Notice;
use tollgate::gateway::sibling::{Said, SiblingEnd, SiblingLink};
use tollgate::gateway::waker::Waker;
use tollgate::io::Wake;
use tollgate_shards::{
    CommandId, Counters, Generation, Message, PacketMessage, Params, Shard, ShardIndex, Shards, Users, sibling,
};

use super::{Machine, Shell};
use crate::gateway::Gateway;
use crate::plan::{Feature, Features, Plan};

const OLD: Shards = Shards { generation: Generation::Even, count: 2 };
const NEW: Shards = Shards { generation: Generation::Odd, count: 3 };
/// The incarnation of the new process's shards.
const INCARNATION: u32 = 1;
/// Of real time, for what threads have to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process: its cores, and what they have told.
struct Process {
    shell: Shell,
    machines: Vec<Machine>,
    done: Vec<(CommandId, u16)>,
    taken_over: Vec<u16>,
    reports: Vec<Report>,
}

impl Process {
    fn new(shards: Shards, predecessor: Option<Shards>, incarnation: u32) -> Process {
        let mut plans = (0..).map(|seed| Plan::new(seed, Features::of(&[Feature::Shell]), Duration::from_secs(1)));
        let plan = plans.find(|plan| plan.shell.is_some()).expect("one in some ten");
        crate::identity::begin(plan.seed, false);
        let now = crate::world::origin();
        let Gateway { params, keys, snapshot, .. } = Gateway::new(&plan, now);
        let streams = ["shell", "refusals", "panics"].map(|name| plan.draws.stream(name));
        let params = Params { shards, predecessor, incarnation, ..params };
        let shard = |index| Shard::new(Params { index, ..params.clone() }, &keys, snapshot.clone(), now);
        let made = shards.iter().map(shard).collect();
        let (shell, mut machines) =
            Shell::assemble(plan.shell.expect("a plan with a shell"), streams, made, (&params, &keys), &snapshot, now);
        machines.iter_mut().for_each(|machine| machine.core.seat.standing.is_taking_over = predecessor.is_some());
        Process { shell, machines, done: Vec::new(), taken_over: Vec::new(), reports: Vec::new() }
    }

    fn link(&self, stream: UnixStream) -> SiblingLink {
        let wakers: Vec<_> = self.machines.iter().map(|_| Waker::new(Wake::new().unwrap())).collect();
        let (link, ends) = SiblingLink::start(stream, &wakers, Arc::new(Wake::new().unwrap())).unwrap();
        let give = |(machine, end): (&Machine, SiblingEnd)| machine.command(CoreCommand::Sibling(end));
        self.machines.iter().zip(ends).for_each(give);
        link
    }

    fn turn(&mut self, now: Instant) {
        for machine in &mut self.machines {
            machine.turn(now, Duration::ZERO).expect("no panic is planned");
        }
        while let Some(notice) = self.shell.next_notice() {
            match notice {
                Notice::Done { command, shard, .. } => self.done.push((command, shard)),
                Notice::TakenOver { shard } => self.taken_over.push(shard),
                Notice::Report { report, .. } => self.reports.push(*report),
                notice => panic!("{notice:?}"),
            }
        }
    }

    fn command(&self, command: impl Fn() -> CoreCommand<super::Simulated>) {
        self.machines.iter().for_each(|machine| machine.command(command()));
    }

    fn counters(&self) -> Counters {
        let all = self.machines.iter().map(|machine| machine.core.life.shard.counters());
        all.fold(Counters::default(), |sum, counters| counters.beside(&sum))
    }
}

/// Turns of both processes until `is_over`.
fn turns(processes: &mut [&mut Process], what: &str, is_over: impl Fn(&[&mut Process]) -> bool) {
    let (start, mut now) = (Instant::now(), crate::world::origin());
    while !is_over(processes) {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        now += Duration::from_micros(10);
        processes.iter_mut().for_each(|process| process.turn(now));
    }
}

fn sorted<T: Ord + Clone>(all: &[T]) -> Vec<T> {
    let mut all = all.to_vec();
    all.sort_unstable();
    all
}

/// Two processes with a link, of which the new one has the homes.
fn handed_over() -> [(Process, SiblingLink); 2] {
    let (one, other) = UnixStream::pair().unwrap();
    let (mut old, mut new) = (Process::new(OLD, None, 0), Process::new(NEW, Some(OLD), INCARNATION));
    let links = [old.link(one), new.link(other)];
    turns(&mut [&mut old, &mut new], "some turns", |processes| processes[0].machines[0].idle_turns > 3);
    assert!(new.taken_over.is_empty(), "the homes are not there yet");
    old.command(|| CoreCommand::HandOver { id: CommandId(1), to: NEW, incarnation: INCARNATION });
    turns(&mut [&mut old, &mut new], "the homes go over", |processes| {
        processes[0].done.len() == 2 && processes[1].taken_over.len() == 3
    });
    let [of_old, of_new] = links;
    [(old, of_old), (new, of_new)]
}

fn hear_of_the_end(link: &SiblingLink) {
    let start = Instant::now();
    while !matches!(link.poll(), Some(Said::Gone(_))) {
        assert!(start.elapsed() < PATIENCE, "it goes on");
    }
}

#[test]
fn homes_go_over_to_the_cores_of_another_process_each_of_which_tells_once_that_it_has_taken_over() {
    let [(mut old, of_old), (mut new, of_new)] = handed_over();
    assert_eq!(sorted(&old.done), [(CommandId(1), 0), (CommandId(1), 1)]);
    assert_eq!(sorted(&new.taken_over), [0, 1, 2]);
    (0..100).for_each(|_| turns(&mut [&mut old, &mut new], "one more", |_| true));
    drop((old, of_old));
    hear_of_the_end(&of_new);
    new.command(|| CoreCommand::PredecessorGone);
    new.command(|| CoreCommand::Kick { id: CommandId(2), user: tollgate_shards::UserIndex(0) });
    turns(&mut [&mut new], "a command without the other process", |processes| processes[0].done.len() == 3);
    assert_eq!(new.taken_over.len(), 3, "once");
    assert!(new.machines.iter().all(|machine| machine.core.seat.sibling.is_none()));
    assert!(new.machines.iter().all(|machine| machine.core.life.shard.inspect().is_settled()));
}

#[test]
fn homes_come_back_from_a_process_that_is_dead_and_a_panic_after_that_is_gone_on_from() {
    let [(mut old, of_old), (new, of_new)] = handed_over();
    drop((new, of_new));
    hear_of_the_end(&of_old);
    old.command(|| CoreCommand::TakeBack { id: CommandId(2), incarnation: INCARNATION + 1 });
    turns(&mut [&mut old], "the homes come back", |processes| processes[0].done.len() == 4);
    assert_eq!(sorted(&old.done[2..]), [(CommandId(2), 0), (CommandId(2), 1)]);
    let is_settled = |machine: &Machine| machine.core.life.shard.inspect().is_settled();
    turns(&mut [&mut old], "every owner is attached", |processes| processes[0].machines.iter().all(is_settled));
    // A shard that is started anew now has an incarnation that none has had, as has the process's number of panics its own count.
    let birth = tollgate::gateway::seat::Birth { wall_clock: std::time::SystemTime::UNIX_EPOCH, seed: [1; 32] };
    old.machines[1].core.begin_anew(birth, crate::world::origin());
    match old.shell.next_notice() {
        Some(Notice::BegunAnew { shard, incarnation }) => {
            assert_eq!((shard, incarnation), (ShardIndex(1), INCARNATION + 2));
        }
        notice => panic!("{notice:?}"),
    }
    old.command(|| CoreCommand::Report { id: CommandId(3), with_usage: false });
    turns(&mut [&mut old], "reports", |processes| processes[0].reports.len() == 2);
    assert_eq!(old.reports.iter().map(|report| (report.shard, report.restarts)).collect::<Vec<_>>(), [(0, 0), (1, 1)]);
}

#[test]
fn a_shard_hears_of_a_death_after_all_that_the_dead_have_said() {
    const SAID: usize = 3000;
    let mut new = Process::new(NEW, Some(OLD), INCARNATION);
    let (one, mut other) = UnixStream::pair().unwrap();
    let link = new.link(one);
    // No frame of a TUN device: each is counted.
    let message = Message::Packet(PacketMessage::Frame(Bytes::from_static(b"?")));
    let bytes = sibling::encode(NEW.at(1), message, &Users::default()).unwrap();
    let head = [&(bytes.len() as u32).to_be_bytes()[..], &1_u16.to_be_bytes()].concat();
    other.write_all(&[head, bytes].concat().repeat(SAID)).unwrap();
    drop(other);
    hear_of_the_end(&link);
    new.command(|| CoreCommand::PredecessorGone);
    let total = |process: &Process| process.counters().drops.total();
    assert_eq!(total(&new), 0);
    // One turn: its end of the link, then the command.
    new.turn(crate::world::origin());
    assert_eq!(total(&new), SAID as u64);
    turns(&mut [&mut new], "there is nothing left to take over", |processes| processes[0].taken_over.len() == 3);
}
