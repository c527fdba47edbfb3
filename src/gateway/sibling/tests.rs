//! Tests of the link over socket pairs, with the kernel's descriptors and threads.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tollgate_shards::sibling::{MESSAGE_BYTES_MAX, encode};
use tollgate_shards::{
    CommandId, ControlMessage, Generation, Message, PacketMessage, ShardIndex, Shards, User, UserIndex, Users,
};

use super::end::OUTGOING_BYTES_MAX;
use super::link::{BATCHES_MAX, WORDS_MAX};
use super::{CONTROL_PLANE, Line, Said, SiblingEnd, SiblingLink, push_frame};
use crate::gateway::waker::Waker;
use crate::io::Wake;

const OLD: Shards = Shards { generation: Generation::Even, count: 2 };
const NEW: Shards = Shards { generation: Generation::Odd, count: 3 };
/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);
const FRAME_BYTES: usize = 60_000;

/// One process's side.
struct Side {
    link: SiblingLink,
    ends: Vec<SiblingEnd>,
    wakers: Vec<Waker>,
    wake: Arc<Wake>,
    shards: Shards,
    users: Users,
}

impl Side {
    fn on(stream: UnixStream, shards: Shards, names: &[&str]) -> Side {
        let wakers: Vec<_> = shards.iter().map(|_| Waker::new(Wake::new().unwrap())).collect();
        let wake = Arc::new(Wake::new().unwrap());
        let (link, ends) = SiblingLink::start(stream, &wakers, wake.clone()).unwrap();
        let user = |name: &&str| User { name: (*name).to_owned(), ..User::default() };
        let users = Users::new(names.iter().map(user).collect()).unwrap();
        Side { link, ends, wakers, wake, shards, users }
    }

    fn send(&mut self, from: usize, to: ShardIndex, message: impl Into<Message>) -> u64 {
        self.ends[from].send(to, message.into(), &self.users)
    }

    /// What comes to a core, until `count` messages have.
    fn receive(&mut self, core: usize, count: usize) -> Vec<Message> {
        let (mut messages, start) = (Vec::new(), Instant::now());
        while messages.len() < count {
            assert!(start.elapsed() < PATIENCE, "{} of {count} messages have come", messages.len());
            self.ends[core].receive(self.shards, &self.users, |message| messages.push(message));
        }
        messages
    }

    /// What is said, once it is.
    fn hear(&self) -> Said {
        let start = Instant::now();
        loop {
            if let Some(said) = self.link.poll() {
                return said;
            }
            assert!(start.elapsed() < PATIENCE, "nothing is said");
        }
    }

    fn hear_reason(&self) -> String {
        match self.hear() {
            Said::Gone(reason) => reason,
            said => panic!("{said:?}"),
        }
    }
}

fn both() -> (Side, Side) {
    let (one, other) = UnixStream::pair().unwrap();
    (Side::on(one, OLD, &["alice", "bob"]), Side::on(other, NEW, &["bob", "carol", "alice"]))
}

/// A side, and the bare socket of the other process.
fn one() -> (Side, UnixStream) {
    let (one, other) = UnixStream::pair().unwrap();
    (Side::on(one, OLD, &["alice"]), other)
}

fn barrier(id: u64) -> Message {
    ControlMessage::Barrier { from: ShardIndex(0), command: CommandId(id), revoked: Vec::new() }.into()
}

fn number(message: &Message) -> u64 {
    match message {
        Message::Control(ControlMessage::Barrier { command, .. }) => command.0,
        message => panic!("{message:?}"),
    }
}

fn packet() -> Message {
    PacketMessage::Frame(Bytes::from_static(&[0; FRAME_BYTES])).into()
}

fn frame(to: ShardIndex, message: Message) -> Vec<u8> {
    let mut frame = Vec::new();
    push_frame(&mut frame, to.place() as u16, &encode(to, message, &Users::default()).unwrap());
    frame
}

/// Waits until nobody has the link's socket open any more.
fn await_end(line: &Weak<Line>) {
    let start = Instant::now();
    while line.strong_count() > 0 {
        assert!(start.elapsed() < PATIENCE, "the link's threads still run");
        std::thread::yield_now();
    }
}

#[test]
fn messages_reach_their_core_in_order_and_users_go_by_name() {
    let (mut old, mut new) = both();
    for id in 0..3000 {
        assert_eq!(old.send((id % 2) as usize, NEW.at(2), barrier(id)), 0);
        assert_eq!(new.send(1, OLD.at(0), barrier(id)), 0);
        if id % 100 == 99 {
            old.ends.iter_mut().chain(&mut new.ends).for_each(|end| while end.flush() {});
        }
    }
    let heard: Vec<_> = new.receive(2, 3000).iter().map(number).collect();
    for from in 0..2 {
        let of_one: Vec<_> = heard.iter().copied().filter(|id| id % 2 == from).collect();
        assert_eq!(of_one, (from..3000).step_by(2).collect::<Vec<_>>());
    }
    assert_eq!(old.receive(0, 3000).iter().map(number).collect::<Vec<_>>(), (0..3000).collect::<Vec<_>>());
    assert!(new.ends.iter().chain(&old.ends).all(SiblingEnd::is_idle));
    old.send(0, NEW.at(0), ControlMessage::Level { user: UserIndex(0), level_bytes: 7 });
    old.ends[0].flush();
    match &new.receive(0, 1)[0] {
        Message::Control(ControlMessage::Level { user, level_bytes: 7 }) => assert_eq!(*user, UserIndex(2), "alice"),
        message => panic!("{message:?}"),
    }
}

#[test]
fn a_core_that_sleeps_is_woken_for_what_has_come() {
    let (mut old, mut new) = both();
    let waker = new.wakers[1].clone();
    assert!(waker.fall_asleep(|| new.ends[1].is_idle()));
    old.send(0, NEW.at(1), barrier(1));
    old.ends[0].flush();
    let start = Instant::now();
    while !waker.descriptor().drain() {
        assert!(start.elapsed() < PATIENCE, "it sleeps on");
    }
    assert!(!waker.fall_asleep(|| new.ends[1].is_idle()), "a message waits");
    assert_eq!(number(&new.receive(1, 1)[0]), 1);
}

#[test]
fn a_core_goes_on_while_the_other_process_reads_nothing_and_loses_packets_only() {
    let (mut old, mut other) = one();
    let (mut sent, mut lost, mut controls) = (0, 0, 0);
    // As many turns as it takes until nothing has room.
    let start = Instant::now();
    while lost < 1000 {
        assert!(start.elapsed() < PATIENCE);
        for _ in 0..10 {
            lost += old.send(0, NEW.at(0), packet());
            sent += 1;
        }
        old.send(0, NEW.at(0), barrier(controls));
        controls += 1;
        old.ends[0].flush();
    }
    assert!(old.ends[0].flush(), "it is held");
    let kept = sent - lost;
    let bytes_max = (BATCHES_MAX + 3) * (OUTGOING_BYTES_MAX + 20 * FRAME_BYTES);
    assert!(kept as usize * FRAME_BYTES < bytes_max, "{kept} packets of {sent} wait for a process that reads nothing");
    // It reads again: all that was not lost is there, in order.
    let mut new = Side::on(other.try_clone().unwrap(), NEW, &[]);
    let (mut packets, mut barriers) = (0, Vec::new());
    while packets < kept || barriers.len() < controls as usize {
        assert!(start.elapsed() < 2 * PATIENCE, "{packets} of {kept} packets, {} of {controls}", barriers.len());
        old.ends[0].flush();
        new.ends[0].receive(NEW, &new.users, |message| match message {
            Message::Packet(_) => packets += 1,
            message => barriers.push(number(&message)),
        });
    }
    assert_eq!((packets, barriers), (kept, (0..controls).collect()));
    assert!(!old.ends[0].flush());
    other.flush().unwrap();
}

#[test]
fn what_a_core_does_not_take_waits_at_the_other_process() {
    let (mut old, mut other) = one();
    other.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let (mut ids, many) = (0_u64, 64 << 20);
    let long = |id| ControlMessage::Barrier {
        from: ShardIndex(0),
        command: CommandId(id),
        revoked: vec![IpAddr::from([198, 18, 0, 1]); 10_000],
    };
    let mut written = 0;
    let cut = loop {
        let frame = frame(OLD.at(0), long(ids).into());
        let mut left = &frame[..];
        while let Ok(bytes @ 1..) = other.write(left) {
            left = &left[bytes..];
        }
        written += frame.len() - left.len();
        if !left.is_empty() || written > many {
            break left.to_vec();
        }
        ids += 1;
    };
    assert!(written < 4 << 20, "{written} bytes wait for a core that takes nothing");
    let mut heard = old.receive(0, ids as usize);
    other.write_all(&cut).unwrap();
    heard.extend(old.receive(0, 1));
    assert_eq!(heard.iter().map(number).collect::<Vec<_>>(), (0..=ids).collect::<Vec<_>>());
}

#[test]
fn what_was_said_before_the_end_reaches_the_cores_and_then_the_control_plane_hears_of_it() {
    let (mut old, mut other) = one();
    // There is something that it has not read: its end is a reset of the socket.
    old.send(0, NEW.at(0), packet());
    old.ends[0].flush();
    let mut frames = Vec::new();
    (0..5000).for_each(|id| frames.extend(frame(OLD.at((id % 2) as u16), barrier(id))));
    push_frame(&mut frames, CONTROL_PLANE, b"last words");
    frames.extend(&frame(OLD.at(0), barrier(5000))[..9]);
    let writer = std::thread::spawn(move || other.write_all(&frames).unwrap());
    let heard = old.receive(1, 1);
    assert_eq!(old.hear(), Said::Words(b"last words".to_vec()));
    assert_eq!(old.hear_reason(), "the other process has ended");
    writer.join().unwrap();
    assert!(old.wake.drain());
    let mut all = [Vec::new(), heard];
    for (core, all) in all.iter_mut().enumerate() {
        old.ends[core].receive_all(OLD, &old.users, |message| all.push(message));
        let numbers: Vec<_> = all.iter().map(number).collect();
        assert_eq!(numbers, (core as u64..5000).step_by(2).collect::<Vec<_>>());
    }
    assert_eq!(old.link.poll(), None, "it is gone once");
    // Nobody is there.
    assert_eq!(old.send(0, NEW.at(0), packet()), 1);
    assert_eq!(old.send(0, NEW.at(0), barrier(0)), 0);
    assert!(!old.ends[0].flush());
}

#[test]
fn frames_that_cannot_be_end_the_link_and_say_why() {
    let head = |length: u32, place: u16| [&length.to_be_bytes()[..], &place.to_be_bytes()].concat();
    let cases = [
        (head(MESSAGE_BYTES_MAX as u32 + 1, 0), "2097153 bytes"),
        (head(u32::MAX, CONTROL_PLANE), "4294967295 bytes"),
        (head(0, OLD.count), "for shard 2"),
    ];
    for (bad, reason) in cases {
        let (mut old, mut other) = one();
        other.write_all(&[frame(OLD.at(0), barrier(1)), bad].concat()).unwrap();
        let told = old.hear_reason();
        assert!(told.contains(reason), "{told}");
        assert_eq!(number(&old.receive(0, 1)[0]), 1, "what came before");
        assert_eq!(other.read(&mut [0; 8]).unwrap(), 0, "the other process sees the end too");
    }
}

#[test]
fn a_message_that_cannot_be_read_ends_the_link_and_nothing_comes_after_it() {
    let (mut old, mut other) = one();
    let mut damaged = frame(OLD.at(0), barrier(2));
    *damaged.last_mut().unwrap() ^= 1;
    other.write_all(&[frame(OLD.at(0), barrier(1)), damaged, frame(OLD.at(0), barrier(3))].concat()).unwrap();
    assert_eq!(number(&old.receive(0, 1)[0]), 1);
    let start = Instant::now();
    let reason = loop {
        old.ends[0].receive_all(OLD, &old.users, |message| panic!("{message:?}"));
        match old.link.poll() {
            Some(Said::Gone(reason)) => break reason,
            said => assert_eq!(said, None),
        }
        assert!(start.elapsed() < PATIENCE);
    };
    assert!(reason.contains("cut off or changed"), "{reason}");
}

#[test]
fn words_keep_their_order_and_the_last_ones_leave_before_the_link_is_closed() {
    let (old, new) = both();
    let words = |number: u8| vec![number; usize::from(number)];
    for number in 0..200 {
        old.link.send(words(number));
        assert_eq!(new.hear(), Said::Words(words(number)));
    }
    for number in 0..40 {
        old.link.send(words(number));
    }
    let line = Arc::downgrade(&old.ends[0].line);
    old.link.close();
    for number in 0..40 {
        assert_eq!(new.hear(), Said::Words(words(number)));
    }
    assert_eq!(new.hear_reason(), "the other process has ended");
    drop(old.ends);
    await_end(&line);
}

#[test]
fn a_control_plane_that_is_not_listened_to_ends_the_link() {
    let (old, mut other) = one();
    let start = Instant::now();
    let mut said = 0;
    while !old.ends[0].line.has_ended() {
        old.link.send(vec![1; 100_000]);
        said += 1;
        assert!(said < 4 * WORDS_MAX, "so many words wait: {said}");
    }
    assert!(start.elapsed() < PATIENCE);
    assert!(old.hear_reason().contains("does not take what it is told"));
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    std::io::copy(&mut other, &mut std::io::sink()).unwrap();
}

#[test]
fn a_link_ends_with_its_value_whoever_it_waits_for_and_leaves_nothing() {
    for round in 0..20 {
        let (mut old, other) = one();
        other.set_nonblocking(true).unwrap();
        // The writer waits for a process that reads nothing; the reader waits for a core that takes nothing.
        for _ in 0..100 {
            old.send(0, NEW.at(0), packet());
            old.ends[0].flush();
        }
        let frames = frame(OLD.at(1), packet()).repeat(200);
        assert_eq!((&other).write_all(&frames).unwrap_err().kind(), ErrorKind::WouldBlock);
        let line = Arc::downgrade(&old.ends[0].line);
        let start = Instant::now();
        if round % 2 == 0 {
            old.link.close();
        } else {
            drop(old.link);
        }
        assert!(start.elapsed() < Duration::from_secs(5), "whoever closes it does not wait");
        drop(old.ends);
        await_end(&line);
    }
}
