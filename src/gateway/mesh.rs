//! The mesh: a bounded channel for each ordered pair of shards, and one wake-up for a batch.
//!
//! This module never looks into a message beyond whether it may be lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tollgate_shards::{Message, ShardIndex};

use crate::io::Wake;

/// Messages between two shards that the receiver has not taken yet.
const MESSAGES_MAX: usize = 1024;
/// Messages taken from one shard in one pass.
const BATCH_MAX: usize = 256;

/// Wakes a shard that sleeps.
#[derive(Clone)]
pub struct Waker {
    sleeping: Arc<AtomicBool>,
    descriptor: Arc<Wake>,
}

impl Waker {
    /// Of a shard that is awake.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn new() -> std::io::Result<Self> {
        Ok(Waker { sleeping: Arc::new(AtomicBool::new(false)), descriptor: Arc::new(Wake::new()?) })
    }

    /// The descriptor that ends the shard's sleep.
    pub fn descriptor(&self) -> &Wake {
        &self.descriptor
    }

    /// Wakes the shard if it sleeps. What it is to find must have been put in place before.
    pub fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            self.descriptor.notify();
        }
    }

    /// Sleeps by `sleep`, which is told whether nothing waits and returns whether the descriptor had been notified when it ended. Afterwards
    /// the shard must look for what has come.
    ///
    /// No wake-up is lost. A sender puts something in place first and reads `sleeping` then; the shard sets `sleeping` before `is_idle`
    /// looks. All four are sequentially consistent, so one of the two sees the other: the shard does not sleep, or it is notified. A
    /// notification that is drained was for something that is in place by then, and the shard looks for that after each sleep.
    pub fn sleep(&self, is_idle: impl FnOnce() -> bool, sleep: impl FnOnce(bool) -> bool) {
        self.fall_asleep();
        let is_notified = sleep(is_idle());
        self.end_sleep(is_notified);
    }

    /// Announces sleep: from now on senders notify.
    fn fall_asleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    /// Ends a sleep; `is_notified` says whether the descriptor had been notified by then. A notification that comes late, when something else
    /// had ended an earlier sleep, ends this one: it must be drained, or no later sleep would last.
    fn end_sleep(&self, is_notified: bool) {
        let is_woken = !self.sleeping.swap(false, Ordering::SeqCst);
        if is_woken || is_notified {
            self.descriptor.drain();
        }
    }
}

/// One shard's end of the mesh.
pub struct Mesh {
    inboxes: Vec<Receiver<Message>>,
    peers: Vec<Peer>,
}

struct Peer {
    outbox: Option<Sender<Message>>,
    waker: Waker,
    /// Messages that must not be lost and found the channel full. Their number is bounded by the connections they speak of.
    held: VecDeque<Message>,
    /// Whether it was woken since it last got a message.
    is_woken: bool,
}

impl Mesh {
    /// The ends of a mesh between the shards behind `wakers`, in order.
    pub fn between(wakers: &[Waker]) -> Vec<Mesh> {
        let shards = wakers.len();
        let mut ends: Vec<Mesh> = (0..shards).map(|_| Mesh { inboxes: Vec::new(), peers: Vec::new() }).collect();
        for from in 0..shards {
            for to in 0..shards {
                let outbox = (from != to).then(|| {
                    let (sender, receiver) = bounded(MESSAGES_MAX);
                    ends[to].inboxes.push(receiver);
                    sender
                });
                let peer = Peer { outbox, waker: wakers[to].clone(), held: VecDeque::new(), is_woken: true };
                ends[from].peers.push(peer);
            }
        }
        ends
    }

    /// Sends `message` with the next [`Mesh::flush`]. Returns how many packets were lost because the channel is full.
    pub fn send(&mut self, to: ShardIndex, message: Message) -> u64 {
        let peer = &mut self.peers[usize::from(to.0)];
        let Some(outbox) = &peer.outbox else { return 0 };
        let expendable = message.expendable();
        if !peer.held.is_empty() {
            // Nothing may overtake what is held.
            if expendable.is_none() {
                peer.held.push_back(message);
            }
            return expendable.unwrap_or(0);
        }
        match outbox.try_send(message) {
            Ok(()) => peer.is_woken = false,
            Err(TrySendError::Full(message)) if expendable.is_none() => peer.held.push_back(message),
            Err(_) => return expendable.unwrap_or(0),
        }
        0
    }

    /// Sends what was held back, as far as there is room, and wakes those who have got something. Returns whether something is still held.
    pub fn flush(&mut self) -> bool {
        let mut holding = false;
        for peer in &mut self.peers {
            let Some(outbox) = &peer.outbox else { continue };
            while let Some(message) = peer.held.pop_front() {
                match outbox.try_send(message) {
                    Ok(()) => peer.is_woken = false,
                    Err(TrySendError::Full(message)) => {
                        peer.held.push_front(message);
                        holding = true;
                        break;
                    }
                    Err(TrySendError::Disconnected(_)) => {}
                }
            }
            if !peer.is_woken {
                peer.is_woken = true;
                peer.waker.wake();
            }
        }
        holding
    }

    /// Takes a bounded batch from every other shard. Returns whether there was anything.
    pub fn receive(&mut self, mut sink: impl FnMut(Message)) -> bool {
        let mut any = false;
        for inbox in &self.inboxes {
            for message in inbox.try_iter().take(BATCH_MAX) {
                any = true;
                sink(message);
            }
        }
        any
    }

    /// Whether no message waits in any channel to this shard.
    pub fn is_idle(&self) -> bool {
        self.inboxes.iter().all(Receiver::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use bytes::Bytes;
    use tollgate_shards::{ConnectionKey, ControlMessage, PacketMessage};

    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::io::{UdpOptions, UdpSocket};
    use crate::packet_io::PacketIo;

    fn mesh(shards: usize) -> (Vec<Mesh>, Vec<Waker>) {
        let wakers: Vec<_> = (0..shards).map(|_| Waker::new().unwrap()).collect();
        (Mesh::between(&wakers), wakers)
    }

    fn route(host: u32) -> Message {
        let connection = ConnectionKey { owner: ShardIndex(0), slot: host, generation: 0 };
        Message::Control(ControlMessage::Route { address: IpAddr::from([198, 18, 0, 1]), connection })
    }

    fn slots(mesh: &mut Mesh) -> Vec<u32> {
        let mut slots = Vec::new();
        while mesh.receive(|message| {
            if let Message::Control(ControlMessage::Route { connection, .. }) = message {
                slots.push(connection.slot);
            }
        }) {}
        slots
    }

    #[test]
    fn messages_reach_their_shard_in_order() {
        let (mut ends, _bells) = mesh(3);
        for host in 0..10 {
            assert_eq!(ends[0].send(ShardIndex(2), route(host)), 0);
        }
        ends[0].flush();
        assert!(slots(&mut ends[1]).is_empty());
        assert_eq!(slots(&mut ends[2]), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_channel_loses_packets_but_no_control_message_and_keeps_the_order() {
        let (mut ends, _bells) = mesh(2);
        let total = MESSAGES_MAX as u32 + 50;
        for host in 0..total {
            assert_eq!(ends[0].send(ShardIndex(1), route(host)), 0);
        }
        assert_eq!(
            ends[0].send(ShardIndex(1), Message::Packet(PacketMessage::Frame(Bytes::new()))),
            1,
            "a packet is lost and counted"
        );
        assert!(ends[0].flush(), "the rest is held");
        let mut received = slots(&mut ends[1]);
        assert!(!ends[0].flush());
        received.extend(slots(&mut ends[1]));
        assert_eq!(received, (0..total).collect::<Vec<_>>());
    }

    #[test]
    fn only_a_sleeper_is_woken_and_once_a_batch() {
        let (mut ends, wakers) = mesh(2);
        ends[0].send(ShardIndex(1), route(1));
        ends[0].flush();
        assert!(!wakers[1].descriptor().drain(), "awake: it will look by itself");
        wakers[1].fall_asleep();
        ends[0].send(ShardIndex(1), route(2));
        ends[0].send(ShardIndex(1), route(3));
        ends[0].flush();
        assert!(wakers[1].descriptor().drain());
        ends[0].flush();
        assert!(!wakers[1].descriptor().drain());
    }

    /// As a core does it. Returns whether a notification ended the sleep.
    fn is_woken(waker: &Waker, packet_io: &mut PacketIo) -> bool {
        let (start, limit) = (Instant::now(), Duration::from_millis(20));
        let mut is_woken = false;
        waker.sleep(
            || true,
            |_| {
                packet_io.sleep(start, Some(start + limit));
                is_woken = packet_io.take_woken();
                is_woken
            },
        );
        is_woken
    }

    fn packet_io(waker: &Waker) -> PacketIo {
        let socket = UdpSocket::for_remote("127.0.0.1:9".parse().unwrap(), &UdpOptions::default()).unwrap();
        PacketIo::new(socket, None, waker.descriptor()).unwrap()
    }

    #[test]
    fn a_ring_that_comes_late_ends_one_sleep_and_not_all() {
        let waker = Waker::new().unwrap();
        let mut packet_io = packet_io(&waker);
        // Another thread wakes: it sees the sleeper asleep, and is interrupted before it notifies.
        waker.fall_asleep();
        assert!(waker.sleeping.swap(false, Ordering::SeqCst));
        // The sleeper wakes for another reason, and only then the notification comes.
        waker.end_sleep(false);
        waker.descriptor.notify();
        assert!(is_woken(&waker, &mut packet_io), "the late notification ends a sleep");
        let empty_passes = (0..5).filter(|_| is_woken(&waker, &mut packet_io)).count();
        assert_eq!(empty_passes, 0, "sleeps that were ended, of 5");
    }

    /// Two senders and one sleeper, their steps in random orders.
    #[test]
    fn in_no_order_of_steps_does_a_shard_sleep_on_what_was_put_in_place() {
        let mut random = 1u64;
        let mut choose = |among: u64| {
            // SplitMix64.
            random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % among
        };
        for _ in 0..20_000 {
            let waker = Waker::new().unwrap();
            let (mut put, mut step, mut is_idle, mut is_notified) = (0, 0, false, false);
            // What each still does, three steps a message; whether it saw the sleeper asleep.
            let mut senders = [(6, false), (6, false)];
            loop {
                let is_readable = waker.descriptor.drain() && {
                    waker.descriptor.notify();
                    true
                };
                let sleeps = step == 2 && is_idle;
                let others_are_done = senders.iter().all(|(left, _)| *left == 0);
                if sleeps && !is_readable && others_are_done {
                    assert_eq!(put, 0, "it sleeps and something waits");
                    break;
                }
                match choose(3) {
                    2 if sleeps && !is_readable && choose(4) > 0 => {}
                    2 => {
                        match step {
                            0 => waker.fall_asleep(),
                            1 => is_idle = put == 0,
                            2 => is_notified = is_readable && is_idle,
                            3 => waker.end_sleep(is_notified),
                            _ => put = 0,
                        }
                        step = (step + 1) % 5;
                    }
                    sender => {
                        let (left, saw) = &mut senders[sender as usize];
                        match *left % 3 {
                            _ if *left == 0 => continue,
                            0 => put += 1,
                            2 => *saw = waker.sleeping.swap(false, Ordering::SeqCst),
                            _ if *saw => waker.descriptor.notify(),
                            _ => {}
                        }
                        *left -= 1;
                    }
                }
            }
        }
    }

    #[test]
    fn shards_that_ring_and_sleep_all_the_time_lose_no_ring() {
        const SHARDS: usize = 4;
        const ROUNDS: u64 = 5_000;
        let (ends, wakers) = mesh(SHARDS);
        let done = AtomicUsize::new(0);
        // Two balls go round, so that shards sleep most of the time and are woken at every moment of it.
        let run = |index: usize, mut end: Mesh| {
            let waker = &wakers[index];
            let mut packet_io = packet_io(waker);
            let next = ShardIndex(((index + 1) % SHARDS) as u16);
            if index.is_multiple_of(2) {
                end.send(next, route(0));
            }
            let (mut balls, mut slept) = (0, 0);
            while done.load(Ordering::SeqCst) < SHARDS {
                let mut came = 0;
                let more = end.receive(|_| came += 1);
                if balls < ROUNDS && balls + came >= ROUNDS && done.fetch_add(1, Ordering::SeqCst) + 1 == SHARDS {
                    wakers.iter().for_each(Waker::wake);
                }
                balls += came;
                for _ in 0..came {
                    end.send(next, route(0));
                }
                end.flush();
                if more {
                    continue;
                }
                let (start, limit) = (Instant::now(), Duration::from_secs(20));
                waker.sleep(
                    || end.is_idle() && done.load(Ordering::SeqCst) < SHARDS,
                    |is_idle| {
                        if is_idle {
                            slept += 1;
                            packet_io.sleep(start, Some(start + limit));
                        }
                        packet_io.take_woken()
                    },
                );
                assert!(start.elapsed() < limit, "shard {index} slept for {limit:?}; nothing waits: {}", end.is_idle());
            }
            slept
        };
        let slept: u64 = std::thread::scope(|scope| {
            let run = &run;
            let shards: Vec<_> =
                ends.into_iter().enumerate().map(|(index, end)| scope.spawn(move || run(index, end))).collect();
            shards.into_iter().map(|shard| shard.join().unwrap()).sum()
        });
        assert!(slept > ROUNDS / 4, "{slept} sleeps are no trial");
    }
}
