//! The pass of a core: batches between a machine and its two descriptors.
//!
//! Gateway and client share it. It moves bytes and knows nothing of what they mean; how long to run and when to sleep is its caller's business.

mod health;

use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tollgate_shards::packet::MergeKind;
use tollgate_shards::{DropReason, Machine};
use tracing::warn;

use crate::io::{
    FRAME_BYTES_MAX, Poller, Readiness, ReceiveBatch, ReceiveCounters, SendCounters, TransmitBatch, TunCounters,
    TunQueue, UdpSocket, Wake, WriteOutcome,
};

pub use health::Lost;
use health::{Health, is_final};

/// UDP messages of one receive; each may hold 64 KiB.
const MESSAGES_MAX: usize = 16;
/// UDP sends gathered for one system call.
const SENDS_MAX: usize = 16;
/// Datagrams of handshakes taken at once, and how long none is taken afterwards: while live traffic passes, and while none does. Strangers
/// can send more of them than any core can answer, so live traffic comes first, and these get a share that is bounded in time.
const HANDSHAKE_MESSAGES_MAX: usize = 16;
const HANDSHAKE_REST_BUSY: Duration = Duration::from_millis(4);
const HANDSHAKE_REST_IDLE: Duration = Duration::from_micros(250);
/// For how long after the last of it live traffic counts as passing: passes that bring handshakes alone come between.
const LIVE_WINDOW: Duration = Duration::from_millis(20);
/// TUN frames read in one pass: of single packets, what makes a full send.
const FRAMES_MAX: usize = 64;
/// Bytes of them: a congestion window's worth, which leaves the timers their turn.
const FRAME_BYTES_IN_PASS_MAX: usize = 1 << 20;

/// How long a pass stops where the poller fails, and nobody knows what is ready.
const POLLER_REST: Duration = Duration::from_millis(1);

/// A machine's descriptors and the buffers between.
///
/// An error of one call is counted and forgotten. A descriptor that is out of order is given up, and [`Pump::take_lost`] tells; until there is
/// another one, what would go to it is counted as dropped or waits.
pub struct Pump {
    udp: Option<UdpSocket>,
    tun: Option<TunQueue>,
    poller: Poller,
    handshakes: Option<Handshakes>,
    receive: ReceiveBatch,
    transmit: TransmitBatch,
    frame: Box<[u8]>,
    udp_blocked: bool,
    woken: bool,
    ready: Readiness,
    /// Whether `ready` is of a sleep that no intake has followed yet.
    fresh: bool,
    udp_health: Health,
    tun_health: Health,
    lost: Lost,
    /// Whether there was a TUN queue that is given up.
    misses_tun: bool,
    /// Of queues before this one.
    tun_before: TunCounters,
    traffic: Traffic,
}

/// A socket that is read after the other one, a bounded number of datagrams in a time.
struct Handshakes {
    socket: Option<UdpSocket>,
    receive: ReceiveBatch,
    /// When to look next; `None` while the poller watches.
    due: Option<Instant>,
    /// When live traffic passed last.
    live_at: Option<Instant>,
    health: Health,
}

impl Handshakes {
    /// Takes what is due. `live` is whether live traffic passes now.
    ///
    /// # Errors
    ///
    /// Those of the call, and of the poller.
    fn receive(&mut self, poller: &Poller, machine: &mut impl Machine, now: Instant, live: bool) -> io::Result<usize> {
        if live {
            self.live_at = Some(now);
        }
        let Some(socket) = self.socket.as_ref().filter(|_| self.due.is_some_and(|due| due <= now)) else {
            return Ok(0);
        };
        let received = socket.receive(&mut self.receive, &mut |received| machine.handle_udp(now, received))?;
        self.health.succeeded();
        if received.truncated > 0 {
            machine.handle_drop(DropReason::UdpTruncated, received.truncated as u64);
        }
        let busy = self.live_at.is_some_and(|live_at| now.duration_since(live_at) < LIVE_WINDOW);
        self.due = if received.messages == 0 {
            poller.want_handshakes(socket)?;
            None
        } else {
            Some(now + if busy { HANDSHAKE_REST_BUSY } else { HANDSHAKE_REST_IDLE })
        };
        Ok(received.messages)
    }
}

/// What a pump moved, in system calls and what they carried.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// UDP messages received, aggregates counted once.
    pub udp_receives: u64,
    /// UDP datagrams received.
    pub udp_received_datagrams: u64,
    /// UDP sends, runs counted once.
    pub udp_sends: u64,
    /// UDP datagrams sent.
    pub udp_sent_datagrams: u64,
    /// UDP sends of data.
    pub udp_data_sends: u64,
    /// UDP datagrams in those.
    pub udp_data_datagrams: u64,
    /// TUN frames read.
    pub tun_reads: u64,
    /// Data-carrying ones, and the bytes of those.
    pub tun_data_reads: u64,
    /// Bytes of the data-carrying frames read.
    pub tun_data_read_bytes: u64,
    /// TUN frames written.
    pub tun_writes: u64,
    /// Data-carrying ones.
    pub tun_data_writes: u64,
    /// Bytes of the data-carrying frames written.
    pub tun_data_write_bytes: u64,
    /// UDP receives that failed.
    pub udp_receive_errors: u64,
    /// Super-packets that the kernel refused on the TUN queue, and whose packets went one by one.
    pub tun_refused_merges: u64,
    /// TUN reads that failed.
    pub tun_read_errors: u64,
    /// Times the poller failed.
    pub poll_errors: u64,
    /// Descriptors given up because they were out of order.
    pub lost_descriptors: u64,
    /// Passes of the event loop.
    pub passes: u64,
    /// Sleeps of the event loop.
    pub sleeps: u64,
}

impl Pump {
    /// A pump between `udp` and `tun`, to be woken by `wake`.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn new(udp: UdpSocket, tun: Option<TunQueue>, wake: &Wake) -> io::Result<Self> {
        let poller = Poller::new(Some(&udp), tun.as_ref(), wake)?;
        Ok(Pump {
            udp: Some(udp),
            tun,
            poller,
            handshakes: None,
            receive: ReceiveBatch::new(MESSAGES_MAX),
            transmit: TransmitBatch::new(SENDS_MAX),
            frame: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
            udp_blocked: false,
            woken: false,
            ready: Readiness::default(),
            fresh: false,
            udp_health: Health::default(),
            tun_health: Health::default(),
            lost: Lost::default(),
            misses_tun: false,
            tun_before: TunCounters::default(),
            traffic: Traffic::default(),
        })
    }

    /// Gives the pump its TUN queue, once there is one, or another one.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_tun(&mut self, tun: Option<TunQueue>, wake: &Wake) -> io::Result<()> {
        self.take_tun();
        self.tun = tun;
        self.misses_tun = false;
        self.tun_health = Health::default();
        self.lost.tun = false;
        self.watch(wake)
    }

    /// Gives the pump another UDP socket, or none for now, and closes what there was. What the old one had not taken yet goes out through the
    /// next one.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_udp(&mut self, udp: Option<UdpSocket>, wake: &Wake) -> io::Result<()> {
        self.close_udp();
        self.udp = udp;
        self.udp_blocked = false;
        self.ready.udp = false;
        self.udp_health = Health::default();
        self.lost.udp = false;
        self.watch(wake)
    }

    /// Gives the pump a second socket to receive from, of the same address, for what comes before a connection stands.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_handshakes(&mut self, socket: UdpSocket, wake: &Wake) -> io::Result<()> {
        let receive = match self.handshakes.take() {
            Some(handshakes) => handshakes.receive,
            None => ReceiveBatch::new(HANDSHAKE_MESSAGES_MAX),
        };
        self.handshakes =
            Some(Handshakes { socket: Some(socket), receive, due: None, live_at: None, health: Health::default() });
        self.watch(wake)
    }

    /// Watches the descriptors that there are now.
    fn watch(&mut self, wake: &Wake) -> io::Result<()> {
        self.poller = Poller::new(self.udp.as_ref(), self.tun.as_ref(), wake)?;
        if let Some(handshakes) = &mut self.handshakes {
            handshakes.due = None;
            if let Some(socket) = &handshakes.socket {
                self.poller.watch_handshakes(socket)?;
            }
        }
        Ok(())
    }

    /// Closes the UDP sockets. Returns whether there were any.
    fn close_udp(&mut self) -> bool {
        let handshakes = self.handshakes.as_mut().and_then(|handshakes| handshakes.socket.take());
        self.udp.take().is_some() || handshakes.is_some()
    }

    /// What was given up since this was last asked.
    pub fn take_lost(&mut self) -> Lost {
        std::mem::take(&mut self.lost)
    }

    #[cold]
    fn lose_udp(&mut self) {
        self.poller.forget_udp();
        self.ready.udp = false;
        if self.close_udp() {
            self.lost.udp = true;
            self.traffic.lost_descriptors += 1;
        }
    }

    #[cold]
    fn lose_tun(&mut self) {
        self.poller.forget_tun();
        self.ready.tun = false;
        if self.tun.is_some() {
            self.take_tun();
            self.misses_tun = true;
            self.lost.tun = true;
            self.traffic.lost_descriptors += 1;
        }
    }

    /// Closes the queue, and remembers what went through it.
    fn take_tun(&mut self) {
        if let Some(queue) = self.tun.take() {
            self.tun_before += queue.counters();
        }
    }

    /// In: a bounded batch from both descriptors. Returns whether there was anything.
    pub fn intake(&mut self, machine: &mut impl Machine, now: Instant) -> bool {
        self.traffic.passes += 1;
        if !std::mem::take(&mut self.fresh) {
            self.look(now, Some(Duration::ZERO));
        }
        let messages = self.receive_messages(machine, now);
        let frames = self.read_frames(machine, now);
        let live = messages > 0 || frames > 0;
        live | self.receive_handshakes(machine, now, live)
    }

    /// Takes what strangers sent, where that is due. Returns whether there was anything.
    fn receive_handshakes(&mut self, machine: &mut impl Machine, now: Instant, busy: bool) -> bool {
        let Some(handshakes) = &mut self.handshakes else { return false };
        match handshakes.receive(&self.poller, machine, now, busy) {
            Ok(messages) => messages > 0,
            Err(error) => {
                self.traffic.udp_receive_errors += 1;
                let is_gone = handshakes.health.failed(&error, now);
                handshakes.due = Some(handshakes.health.rests_until(now).unwrap_or(now));
                if is_gone {
                    self.lose_udp();
                }
                false
            }
        }
    }

    /// Whether the last intake left something behind.
    pub fn has_more(&self) -> bool {
        self.ready.udp || (self.ready.tun && !self.udp_blocked)
    }

    fn receive_messages(&mut self, machine: &mut impl Machine, now: Instant) -> usize {
        if machine.has_backlog() || !std::mem::take(&mut self.ready.udp) || self.udp_health.rests_until(now).is_some() {
            return 0;
        }
        let Some(udp) = &self.udp else { return 0 };
        let received = match udp.receive(&mut self.receive, &mut |received| machine.handle_udp(now, received)) {
            Ok(received) => received,
            Err(error) => {
                self.traffic.udp_receive_errors += 1;
                if self.udp_health.failed(&error, now) {
                    self.lose_udp();
                }
                return 0;
            }
        };
        self.udp_health.succeeded();
        if received.truncated > 0 {
            machine.handle_drop(DropReason::UdpTruncated, received.truncated as u64);
        }
        self.ready.udp = received.messages + received.truncated >= MESSAGES_MAX;
        received.messages
    }

    fn read_frames(&mut self, machine: &mut impl Machine, now: Instant) -> usize {
        // Frames that no datagram can leave for would only grow the connections' queues; the kernel's queue is the better place to wait.
        if self.udp_blocked || !self.ready.tun {
            return 0;
        }
        let Some(tun) = self.tun.as_ref().filter(|_| self.tun_health.rests_until(now).is_none()) else {
            self.ready.tun = false;
            return 0;
        };
        let (mut frames, mut frames_bytes) = (0, 0);
        while frames < FRAMES_MAX && frames_bytes < FRAME_BYTES_IN_PASS_MAX {
            match tun.read(&mut self.frame) {
                Ok(Some(bytes)) => {
                    machine.handle_frame(now, &self.frame[..bytes]);
                    frames += 1;
                    frames_bytes += bytes;
                }
                Ok(None) => {
                    self.ready.tun = false;
                    self.tun_health.succeeded();
                    break;
                }
                Err(error) => {
                    self.traffic.tun_read_errors += 1;
                    self.ready.tun = false;
                    if self.tun_health.failed(&error, now) {
                        self.lose_tun();
                    }
                    break;
                }
            }
        }
        frames
    }

    /// Out: everything the machine has for both descriptors. What the UDP socket does not take now is kept.
    pub fn output(&mut self, machine: &mut impl Machine, now: Instant) {
        self.write_frames(machine);
        loop {
            while self.transmit.fill(|buf| machine.poll_transmit(now, buf)) {}
            if self.transmit.is_empty() {
                break;
            }
            let Some(udp) = &self.udp else {
                self.udp_blocked = true;
                break;
            };
            let full = self.transmit.is_full();
            let outcome = udp.send(&mut self.transmit);
            if outcome.dropped > 0 {
                machine.handle_drop(DropReason::UdpSend, outcome.dropped as u64);
            }
            if is_final(outcome.error) {
                self.lose_udp();
            }
            self.udp_blocked = outcome.blocked;
            if outcome.blocked || !full {
                break;
            }
        }
        // A descriptor that the poller does not know is closed.
        if self.poller.want_udp(self.udp_health.rests_until(now).is_none(), self.udp_blocked).is_err() {
            self.lose_udp();
        }
        if self.poller.want_tun(!self.udp_blocked && self.tun_health.rests_until(now).is_none()).is_err() {
            self.lose_tun();
        }
    }

    fn write_frames(&mut self, machine: &mut impl Machine) {
        let (mut refused, mut is_gone, mut given_up) = (0, false, [None; 2]);
        let Some(tun) = &self.tun else {
            if self.misses_tun {
                while let Some(frame) = machine.poll_frame() {
                    refused += frame.payloads.len() as u64;
                }
                count_refused(machine, refused);
            }
            return;
        };
        while let Some(frame) = machine.poll_frame() {
            match tun.write(&frame) {
                WriteOutcome::Written => {}
                WriteOutcome::Apart { refused: packets, given_up: kind } => {
                    refused += packets;
                    if let Some(kind) = kind {
                        given_up[kind as usize] = Some(kind);
                    }
                }
                outcome => {
                    // One payload to each packet that was merged.
                    refused += frame.payloads.len() as u64;
                    is_gone |= matches!(outcome, WriteOutcome::Refused(errno) if is_final(Some(errno)));
                }
            }
        }
        count_refused(machine, refused);
        for kind in given_up.into_iter().flatten() {
            let name = if kind == MergeKind::Tcp { "TCP" } else { "UDP" };
            warn!(
                "the kernel refuses {name} super-packets on the TUN device: their packets go one by one, which costs more CPU"
            );
            machine.handle_refused_merges(kind);
        }
        if is_gone {
            self.lose_tun();
        }
    }

    /// Sleeps until something is ready, or `deadline` has come.
    pub fn sleep(&mut self, now: Instant, deadline: Option<Instant>) {
        self.traffic.sleeps += 1;
        let handshakes = self.handshakes.as_ref().filter(|handshakes| handshakes.socket.is_some());
        let handshakes = handshakes.and_then(|handshakes| handshakes.due);
        let rests = [self.udp_health.rests_until(now), self.tun_health.rests_until(now)];
        let deadline = rests.into_iter().chain([deadline, handshakes]).flatten().min();
        self.look(now, deadline.map(|deadline| deadline.saturating_duration_since(now)));
        self.fresh = true;
    }

    /// One system call tells what both descriptors have, sleeping or not; asking each of them for what it has not would cost one each.
    fn look(&mut self, now: Instant, timeout: Option<Duration>) {
        let Ok(ready) = self.poller.wait(timeout) else { return self.look_blindly(now) };
        self.udp_blocked &= !ready.udp_writable;
        self.woken |= ready.wake;
        self.ready.udp |= ready.udp;
        if let Some(handshakes) = self.handshakes.as_mut().filter(|_| ready.handshakes) {
            handshakes.due = Some(now);
        }
        self.ready.tun |= ready.tun;
        if ready.udp_gone {
            self.lose_udp();
        }
    }

    /// Without a poller both descriptors are asked.
    #[cold]
    fn look_blindly(&mut self, now: Instant) {
        self.traffic.poll_errors += 1;
        self.woken = true;
        self.udp_blocked &= self.udp.is_none();
        self.ready.udp = true;
        self.ready.tun = true;
        if let Some(handshakes) = &mut self.handshakes {
            handshakes.due.get_or_insert(now);
        }
        std::thread::sleep(POLLER_REST);
    }

    /// Whether a sleep was ended by the wake-up since this was last asked. It is to be drained then.
    pub fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.woken)
    }

    /// Memory of the receive buffers, in bytes, with those that are still in use elsewhere.
    pub fn receive_buffers_bytes(&self) -> usize {
        let handshakes = self.handshakes.as_ref().map_or(0, |handshakes| handshakes.receive.held_bytes());
        self.receive.held_bytes() + handshakes
    }

    /// Whether the kernel has taken all that the machine has handed out.
    pub fn is_flushed(&self) -> bool {
        self.transmit.is_empty()
    }

    /// The counters of all descriptors that this loop has had.
    pub fn traffic(&self) -> Traffic {
        let ReceiveCounters { messages, datagrams, .. } = self.receive.counters();
        let handshakes = self.handshakes.as_ref().map(|handshakes| handshakes.receive.counters()).unwrap_or_default();
        let sent: SendCounters = self.transmit.counters();
        let mut tun = self.tun_before;
        tun += self.tun.as_ref().map(TunQueue::counters).unwrap_or_default();
        Traffic {
            udp_receives: messages + handshakes.messages,
            udp_received_datagrams: datagrams + handshakes.datagrams,
            udp_sends: sent.sends,
            udp_sent_datagrams: sent.datagrams,
            udp_data_sends: sent.data_sends,
            udp_data_datagrams: sent.data_datagrams,
            tun_reads: tun.read_frames,
            tun_data_reads: tun.read_data_frames,
            tun_data_read_bytes: tun.read_data_bytes,
            tun_writes: tun.written_frames,
            tun_data_writes: tun.written_data_frames,
            tun_data_write_bytes: tun.written_data_bytes,
            tun_refused_merges: tun.refused_merges,
            ..self.traffic
        }
    }
}

fn count_refused(machine: &mut impl Machine, packets: u64) {
    if packets > 0 {
        machine.handle_drop(DropReason::TunWrite, packets);
    }
}
