//! The pass of a core: batches between a machine and its two descriptors.
//!
//! Gateway and client share it. It moves bytes and knows nothing of what they mean; how long to run and when to sleep is its caller's business.

use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tollgate_shards::{DropReason, Machine};

use crate::io::{
    FRAME_BYTES_MAX, Poller, Readiness, ReceiveBatch, ReceiveCounters, SendCounters, TransmitBatch, TunCounters,
    TunQueue, UdpSocket, Wake, WriteOutcome,
};

/// UDP messages of one receive; each may hold 64 KiB.
const MESSAGES_MAX: usize = 16;
/// UDP sends gathered for one system call.
const SENDS_MAX: usize = 16;
/// Datagrams of handshakes taken at once, and how long none is taken afterwards: while live traffic passes, and while none does. Strangers
/// can send more of them than any core can answer, so live traffic comes first, and these get a share that is bounded in time.
const HANDSHAKE_MESSAGES_MAX: usize = 16;
const HANDSHAKE_REST_BUSY: Duration = Duration::from_millis(2);
const HANDSHAKE_REST_IDLE: Duration = Duration::from_micros(250);
/// TUN frames read in one pass: of single packets, what makes a full send.
const FRAMES_MAX: usize = 64;
/// Bytes of them: a congestion window's worth, which leaves the timers their turn.
const FRAME_BYTES_IN_PASS_MAX: usize = 1 << 20;

/// A machine's descriptors and the buffers between.
pub struct Pump {
    udp: UdpSocket,
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
    traffic: Traffic,
}

/// A socket that is read after the other one, a bounded number of datagrams in a time.
struct Handshakes {
    socket: UdpSocket,
    receive: ReceiveBatch,
    /// When to look next; `None` while the poller watches.
    due: Option<Instant>,
}

impl Handshakes {
    /// Takes what is due. `busy` is whether live traffic passes.
    fn receive(&mut self, poller: &Poller, machine: &mut impl Machine, now: Instant, busy: bool) -> io::Result<usize> {
        if self.due.is_none_or(|due| due > now) {
            return Ok(0);
        }
        let received = self.socket.receive(&mut self.receive, &mut |received| machine.handle_udp(now, received))?;
        if received.truncated > 0 {
            machine.handle_drop(DropReason::UdpTruncated, received.truncated as u64);
        }
        self.due = if received.messages == 0 {
            poller.want_handshakes(&self.socket)?;
            None
        } else {
            Some(now + if busy { HANDSHAKE_REST_BUSY } else { HANDSHAKE_REST_IDLE })
        };
        Ok(received.messages)
    }
}

/// What a pump moved, in system calls and what they carried.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Passes made.
    pub passes: u64,
    /// Times slept.
    pub sleeps: u64,
}

impl Pump {
    /// A pump between `udp` and `tun`, to be woken by `wake`.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn new(udp: UdpSocket, tun: Option<TunQueue>, wake: &Wake) -> io::Result<Self> {
        let poller = Poller::new(&udp, tun.as_ref(), wake)?;
        Ok(Pump {
            udp,
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
            traffic: Traffic::default(),
        })
    }

    /// Gives the pump a second socket to receive from, of the same address, for what comes before a connection stands.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_handshakes(&mut self, socket: UdpSocket, wake: &Wake) -> io::Result<()> {
        let receive = ReceiveBatch::new(HANDSHAKE_MESSAGES_MAX);
        self.handshakes = Some(Handshakes { socket, receive, due: None });
        self.watch(wake)
    }

    /// Watches the descriptors that there are now.
    fn watch(&mut self, wake: &Wake) -> io::Result<()> {
        self.poller = Poller::new(&self.udp, self.tun.as_ref(), wake)?;
        if let Some(handshakes) = &mut self.handshakes {
            self.poller.watch_handshakes(&handshakes.socket)?;
            handshakes.due = None;
        }
        Ok(())
    }

    /// Gives the pump its TUN queue, once there is one.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_tun(&mut self, tun: Option<TunQueue>, wake: &Wake) -> io::Result<()> {
        self.tun = tun;
        self.watch(wake)
    }

    /// Gives the pump another UDP socket. What the old one had not taken yet goes out through the new one.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_udp(&mut self, udp: UdpSocket, wake: &Wake) -> io::Result<()> {
        self.udp = udp;
        self.udp_blocked = false;
        self.watch(wake)
    }

    /// In: a bounded batch from both descriptors. Returns whether there was anything.
    ///
    /// # Errors
    ///
    /// When a descriptor is unusable for good.
    pub fn intake(&mut self, machine: &mut impl Machine, now: Instant) -> io::Result<bool> {
        self.traffic.passes += 1;
        if !std::mem::take(&mut self.fresh) {
            self.look(now, Some(Duration::ZERO))?;
        }
        let messages = self.receive_messages(machine, now)?;
        let frames = self.read_frames(machine, now)?;
        let live = messages > 0 || frames > 0;
        let handshakes = match &mut self.handshakes {
            Some(handshakes) => handshakes.receive(&self.poller, machine, now, live)?,
            None => 0,
        };
        Ok(live || handshakes > 0)
    }

    /// Whether the last intake left something behind.
    pub fn has_more(&self) -> bool {
        self.ready.udp || (self.ready.tun && !self.udp_blocked)
    }

    fn receive_messages(&mut self, machine: &mut impl Machine, now: Instant) -> io::Result<usize> {
        if !self.ready.udp {
            return Ok(0);
        }
        let received = self.udp.receive(&mut self.receive, &mut |received| machine.handle_udp(now, received))?;
        if received.truncated > 0 {
            machine.handle_drop(DropReason::UdpTruncated, received.truncated as u64);
        }
        self.ready.udp = received.messages + received.truncated >= MESSAGES_MAX;
        Ok(received.messages)
    }

    fn read_frames(&mut self, machine: &mut impl Machine, now: Instant) -> io::Result<usize> {
        // Frames that no datagram can leave for would only grow the connections' queues; the kernel's queue is the better place to wait.
        if self.udp_blocked || !self.ready.tun {
            return Ok(0);
        }
        let Some(tun) = &self.tun else { return Ok(0) };
        let (mut frames, mut frames_bytes) = (0, 0);
        while frames < FRAMES_MAX && frames_bytes < FRAME_BYTES_IN_PASS_MAX {
            let Some(bytes) = tun.read(&mut self.frame)? else {
                self.ready.tun = false;
                break;
            };
            machine.handle_frame(now, &self.frame[..bytes]);
            frames += 1;
            frames_bytes += bytes;
        }
        Ok(frames)
    }

    /// Out: everything the machine has for both descriptors. What the UDP socket does not take now is kept.
    ///
    /// # Errors
    ///
    /// When a descriptor is unusable for good.
    pub fn output(&mut self, machine: &mut impl Machine, now: Instant) -> io::Result<()> {
        self.write_frames(machine)?;
        loop {
            while self.transmit.fill(|buf| machine.poll_transmit(now, buf)) {}
            if self.transmit.is_empty() {
                break;
            }
            let full = self.transmit.is_full();
            let outcome = self.udp.send(&mut self.transmit);
            if outcome.dropped > 0 {
                machine.handle_drop(DropReason::UdpSend, outcome.dropped as u64);
            }
            self.udp_blocked = outcome.blocked;
            if outcome.blocked || !full {
                break;
            }
        }
        self.poller.want_udp_writable(self.udp_blocked)?;
        self.poller.want_tun(!self.udp_blocked)
    }

    fn write_frames(&mut self, machine: &mut impl Machine) -> io::Result<()> {
        let Some(tun) = &self.tun else { return Ok(()) };
        let mut refused = 0;
        while let Some(frame) = machine.poll_frame() {
            match tun.write(&frame) {
                WriteOutcome::Written => {}
                // One payload to each packet that was merged.
                _ => refused += frame.payloads.len() as u64,
            }
        }
        if refused > 0 {
            machine.handle_drop(DropReason::TunWrite, refused);
        }
        Ok(())
    }

    /// Sleeps until something is ready, or `deadline` has come.
    ///
    /// # Errors
    ///
    /// When the poller is unusable.
    pub fn sleep(&mut self, now: Instant, deadline: Option<Instant>) -> io::Result<()> {
        self.traffic.sleeps += 1;
        let handshakes = self.handshakes.as_ref().and_then(|handshakes| handshakes.due);
        let deadline = [deadline, handshakes].into_iter().flatten().min();
        self.look(now, deadline.map(|deadline| deadline.saturating_duration_since(now)))?;
        self.fresh = true;
        Ok(())
    }

    /// One system call tells what both descriptors have, sleeping or not; asking each of them for what it has not would cost one each.
    fn look(&mut self, now: Instant, timeout: Option<Duration>) -> io::Result<()> {
        let ready = self.poller.wait(timeout)?;
        self.udp_blocked &= !ready.udp_writable;
        self.woken |= ready.wake;
        self.ready.udp |= ready.udp;
        if let Some(handshakes) = self.handshakes.as_mut().filter(|_| ready.handshakes) {
            handshakes.due = Some(now);
        }
        self.ready.tun |= ready.tun;
        Ok(())
    }

    /// Whether a sleep was ended by the wake-up since this was last asked. It is to be drained then.
    pub fn take_woken(&mut self) -> bool {
        std::mem::take(&mut self.woken)
    }

    /// Whether the kernel has taken all that the machine has handed out.
    pub fn is_flushed(&self) -> bool {
        self.transmit.is_empty()
    }

    /// What was moved so far.
    pub fn traffic(&self) -> Traffic {
        let ReceiveCounters { messages, datagrams, .. } = self.receive.counters();
        let handshakes = self.handshakes.as_ref().map(|handshakes| handshakes.receive.counters()).unwrap_or_default();
        let sent: SendCounters = self.transmit.counters();
        let tun: TunCounters = self.tun.as_ref().map(TunQueue::counters).unwrap_or_default();
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
            ..self.traffic
        }
    }
}
