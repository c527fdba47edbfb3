//! What a pass takes from the kernel, and what it leaves there.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use tollgate::gateway::core::CoreCommand;
use tollgate::gateway::notices::Notice;
use tollgate::gateway::waker::Notify;
use tollgate::packet_io::PacketIo;
use tollgate_shards::packet::MergeKind;
use tollgate_shards::{CommandId, DropReason, Machine, Output, Received, Transmit, UserIndex, WakeReason};

use super::kernel::{Alarm, Queue, SharedQueue, SharedSocket, Simulated, Socket};
use super::steering::socket_of;
use crate::gateway::Gateway;
use crate::plan::{Feature, Features, LayoutPlan, Plan};
use crate::schedule::Time;

const ROOM_BYTES: usize = 1 << 30;

/// A machine that counts what it is given.
#[derive(Debug, Default)]
struct Counts {
    datagrams: usize,
    frames: usize,
    frames_bytes: usize,
    has_backlog: bool,
    /// Datagrams that it has to send.
    to_send: usize,
}

impl Machine for Counts {
    type Action = ();

    fn handle_udp(&mut self, _now: Instant, _received: Received) {
        self.datagrams += 1;
    }

    fn handle_frame(&mut self, _now: Instant, frame: &[u8]) {
        self.frames += 1;
        self.frames_bytes += frame.len();
    }

    fn handle_timeout(&mut self, _now: Instant) {}

    fn poll_output(&mut self, _now: Instant, _takes_frames: bool, buf: Option<&mut Vec<u8>>) -> Option<Output<'_, ()>> {
        let buf = buf.filter(|_| self.to_send > 0)?;
        self.to_send -= 1;
        buf.resize(1000, 0);
        let remote = "198.18.0.1:4433".parse().expect("an address");
        Some(Output::Transmit(Transmit { remote, local_ip: None, ecn: None, bytes: 1000, segment_bytes: 1000 }))
    }

    fn handle_drop(&mut self, reason: DropReason, packets: u64) {
        panic!("{packets} packets dropped: {reason:?}");
    }

    fn handle_refused_merges(&mut self, _kind: MergeKind) {}

    fn has_backlog(&self) -> bool {
        self.has_backlog
    }

    fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        None
    }
}

/// A machine between its descriptors, and the kernel's side of them.
struct Site {
    machine: Counts,
    packet_io: PacketIo<Simulated>,
    live: SharedSocket,
    handshakes: SharedSocket,
    tun: SharedQueue,
    now: Instant,
}

impl Site {
    fn new() -> Self {
        let (alarm, (socket, live), (queue, tun)) =
            (Alarm::default(), Socket::open(ROOM_BYTES, 10_000), Queue::open(1000));
        let (strangers, handshakes) = Socket::open(ROOM_BYTES, ROOM_BYTES);
        let mut packet_io = PacketIo::new(socket, Some(queue), &alarm).unwrap();
        packet_io.set_handshakes(strangers, &alarm).unwrap();
        alarm.drain();
        Site { machine: Counts::default(), packet_io, live, handshakes, tun, now: crate::world::origin() }
    }

    /// Datagrams and frames that a pass takes.
    fn pass(&mut self) -> (usize, usize) {
        (self.machine.datagrams, self.machine.frames) = (0, 0);
        self.packet_io.intake(&mut self.machine, self.now);
        assert!(self.packet_io.output(&mut self.machine, self.now).is_none());
        (self.machine.datagrams, self.machine.frames)
    }
}

fn deliver(socket: &SharedSocket, datagrams: usize) {
    for _ in 0..datagrams {
        let remote = "198.18.0.1:4433".parse().unwrap();
        let received =
            Received { remote, local_ip: None, ecn: None, segment_bytes: 100, data: BytesMut::from(&[0; 100][..]) };
        assert!(socket.borrow_mut().deliver(received));
    }
}

fn deliver_frames(tun: &SharedQueue, frames: usize, bytes: usize) {
    (0..frames).for_each(|_| assert!(tun.borrow_mut().deliver(vec![0; bytes], 1)));
}

#[test]
fn a_pass_takes_64_frames_or_a_mebibyte_of_them_and_the_rest_waits_in_the_kernel() {
    let mut site = Site::new();
    deliver_frames(&site.tun, 150, 100);
    assert_eq!([0; 4].map(|_| site.pass().1), [64, 64, 22, 0]);
    deliver_frames(&site.tun, 30, 60_000);
    assert_eq!([0; 3].map(|_| site.pass().1), [18, 12, 0], "18 are the first that come to a mebibyte");
}

#[test]
fn a_pass_takes_16_receives_of_live_traffic() {
    let mut site = Site::new();
    deliver(&site.live, 40);
    assert_eq!([0; 4].map(|_| site.pass().0), [16, 16, 8, 0]);
}

#[test]
fn strangers_have_16_datagrams_in_4_ms_beside_live_traffic_and_in_a_quarter_of_a_millisecond_without() {
    let mut site = Site::new();
    deliver(&site.handshakes, 1000);
    let start = site.now;
    let mut taken = 0;
    for microseconds in 0..20_000 {
        site.now = start + Duration::from_micros(microseconds);
        deliver(&site.live, 1);
        taken += site.pass().0 - 1;
    }
    assert_eq!(taken, 16 * 5, "while live traffic passes");
    // Live traffic counts as passing for a while after the last of it.
    site.now += Duration::from_millis(20);
    let start = site.now;
    taken = 0;
    for microseconds in 0..5_000 {
        site.now = start + Duration::from_micros(microseconds);
        taken += site.pass().0;
    }
    assert_eq!(taken, 16 * 20, "while none does");
}

#[test]
fn datagrams_wait_in_the_kernel_while_the_machine_has_some_that_it_has_not_looked_at() {
    let mut site = Site::new();
    deliver(&site.live, 10);
    deliver_frames(&site.tun, 1, 100);
    site.machine.has_backlog = true;
    assert_eq!(site.pass(), (0, 1));
    assert_eq!(site.live.borrow().left(), 10);
    site.machine.has_backlog = false;
    assert_eq!(site.pass(), (10, 0));
}

#[test]
fn frames_wait_in_the_kernel_while_the_socket_takes_no_datagram() {
    let mut site = Site::new();
    deliver_frames(&site.tun, 100, 100);
    // The socket takes ten of them.
    site.machine.to_send = 15;
    assert_eq!(site.pass(), (0, 64));
    deliver(&site.live, 1);
    assert_eq!(site.pass(), (1, 0));
    assert!(site.live.borrow_mut().drain());
    assert_eq!([0; 2].map(|_| site.pass().1).iter().sum::<usize>(), 36);
    assert_eq!((site.live.borrow().sent.len(), site.machine.to_send), (15, 0));
}

#[test]
fn datagrams_are_steered_by_the_byte_of_their_id_that_names_the_shard() {
    let layout = LayoutPlan::PLAIN;
    for byte in 0..=255 {
        let id = [1, 2, 3, 4, 5, 6, 7, byte];
        let (short, long) = ([&[0x40], &id[..]].concat(), [&[0xc0, 0, 0, 0, 1, 8], &id[..]].concat());
        let shard = u16::from(byte & 0x7f) % 3;
        assert_eq!([&short, &long].map(|it| socket_of(it, &layout, 3)), [(shard, false), (shard, true)]);
        assert_eq!([&short[..8], &long[..13]].map(|it| socket_of(it, &layout, 3)), [(0, true); 2]);
    }
}

#[test]
fn an_order_that_a_shard_has_not_completed_when_it_panics_is_completed_by_the_next_one() {
    let mut plans = (0..).map(|seed| Plan::new(seed, Features::of(&[Feature::Shell]), Duration::from_secs(1)));
    let plan = plans.find(|plan| plan.shell.is_some() && plan.shards == 2).expect("one in some ten");
    crate::identity::begin(plan.seed, false);
    let mut now = crate::world::origin();
    let mut gateway = Gateway::new(&plan, now);
    let streams = ["shell", "refusals", "panics"].map(|name| plan.draws.stream(name));
    let shell = gateway.enter_shell(plan.shell.expect("a plan with a shell"), streams);
    let id = CommandId(1);
    let kick = || CoreCommand::Kick { id, user: UserIndex(0) };
    let mut done = Vec::new();
    for round in 0..100 {
        for (index, core) in gateway.cores.iter_mut().enumerate() {
            let machine = core.machine_mut().expect("the shell's cores");
            // The second one is told after the first one has panicked.
            if round == 10 * index {
                machine.command(kick());
            }
            machine.turn(now, Duration::ZERO).expect("no panic is planned");
            now += Duration::from_micros(10);
        }
        if round == 5 {
            gateway.restart(0, Time::default());
        }
        done.extend(std::iter::from_fn(|| shell.next_notice()).filter_map(|notice| match notice {
            Notice::Done { command, shard, .. } if command == id => Some(shard),
            _ => None,
        }));
        assert!(round >= 10 || done.is_empty(), "the second one has not been told");
    }
    done.sort_unstable();
    assert_eq!(done, [0, 1]);
}
