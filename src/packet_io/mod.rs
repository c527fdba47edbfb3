//! Packets between a machine and its descriptors, a batch at a time: input, output, and the sleep between two passes.
//!
//! Gateway and client share it. It moves bytes and knows nothing of what they mean; its caller decides how long to run and when to sleep.

mod descriptors;
mod health;
mod input;
mod output;
mod traffic;

use std::io;
use std::time::{Duration, Instant};

use crate::io::{FRAME_BYTES_MAX, Readiness, ReceiveCounters, SendCounters, TunCounters};

pub use descriptors::{Descriptors, Kernel, Poller, ReceiveBatch, TransmitBatch, Tun, Udp};
pub use health::Lost;
pub use traffic::Traffic;

use self::health::Health;
use self::input::{HANDSHAKE_MESSAGES_MAX, Handshakes, MESSAGES_MAX};

/// UDP sends gathered for one system call.
const SENDS_MAX: usize = 16;
/// How long a pass stops where the poller fails, and nobody knows what is ready.
const POLLER_REST: Duration = Duration::from_millis(1);

/// A machine's descriptors and the buffers between.
///
/// An error of one call is counted and forgotten. A descriptor that is out of order is given up, and [`PacketIo::take_lost`] tells; until there is
/// another one, what would go to it is counted as dropped or waits.
pub struct PacketIo<D: Descriptors = Kernel> {
    udp: Option<D::Udp>,
    tun: Option<D::Tun>,
    poller: D::Poller,
    handshakes: Option<Handshakes<D::Udp>>,
    receive: <D::Udp as Udp>::ReceiveBatch,
    transmit: <D::Udp as Udp>::TransmitBatch,
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

impl<D: Descriptors> PacketIo<D> {
    /// Between `udp` and `tun`; `wake` ends a sleep.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn new(udp: D::Udp, tun: Option<D::Tun>, wake: &D::Wake) -> io::Result<Self> {
        let poller = D::Poller::new(Some(&udp), tun.as_ref(), wake)?;
        Ok(PacketIo {
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

    /// Sets the TUN queue, once there is one, or another one.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_tun(&mut self, tun: Option<D::Tun>, wake: &D::Wake) -> io::Result<()> {
        self.take_tun();
        self.tun = tun;
        self.misses_tun = false;
        self.tun_health = Health::default();
        self.lost.tun = false;
        self.watch(wake)
    }

    /// Sets another UDP socket, or none for now, and closes what there was. What the old one had not taken yet goes out through the next one.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_udp(&mut self, udp: Option<D::Udp>, wake: &D::Wake) -> io::Result<()> {
        self.close_udp();
        self.udp = udp;
        self.udp_blocked = false;
        self.ready.udp = false;
        self.udp_health = Health::default();
        self.lost.udp = false;
        self.watch(wake)
    }

    /// Sets a second socket to receive from, of the same address, for what comes before a connection stands.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn set_handshakes(&mut self, socket: D::Udp, wake: &D::Wake) -> io::Result<()> {
        let receive = match self.handshakes.take() {
            Some(handshakes) => handshakes.receive,
            None => ReceiveBatch::new(HANDSHAKE_MESSAGES_MAX),
        };
        self.handshakes =
            Some(Handshakes { socket: Some(socket), receive, due: None, live_at: None, health: Health::default() });
        self.watch(wake)
    }

    /// Watches the descriptors that there are now.
    fn watch(&mut self, wake: &D::Wake) -> io::Result<()> {
        self.poller = D::Poller::new(self.udp.as_ref(), self.tun.as_ref(), wake)?;
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

    /// Sleeps until something is ready, or `deadline` has come.
    pub fn sleep(&mut self, now: Instant, deadline: Option<Instant>) {
        self.traffic.sleeps += 1;
        let deadline = [deadline, self.poll_timeout(now)].into_iter().flatten().min();
        self.look(now, deadline.map(|deadline| deadline.saturating_duration_since(now)));
        self.fresh = true;
    }

    /// When it is to look again although nothing is ready.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let handshakes = self.handshakes.as_ref().filter(|handshakes| handshakes.socket.is_some());
        let handshakes = handshakes.and_then(|handshakes| handshakes.due);
        [self.udp_health.rests_until(now), self.tun_health.rests_until(now), handshakes].into_iter().flatten().min()
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
        D::pause(POLLER_REST);
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

    /// Forgets what is in its buffers, for a machine that takes the place of one which has panicked, perhaps in the midst of a call from here. The
    /// descriptors stay. Returns how many datagrams were received and not handled, or not sent yet.
    pub fn forget(&mut self) -> u64 {
        let handshakes = self.handshakes.as_mut().map_or(0, |handshakes| handshakes.receive.forget());
        (self.receive.forget() + handshakes + self.transmit.forget()) as u64
    }

    /// Whether the kernel has taken all that the machine has handed out.
    pub fn is_flushed(&self) -> bool {
        self.transmit.is_empty()
    }

    /// The counters of all descriptors so far.
    pub fn traffic(&self) -> Traffic {
        let ReceiveCounters { messages, datagrams, .. } = self.receive.counters();
        let handshakes = self.handshakes.as_ref().map(|handshakes| handshakes.receive.counters()).unwrap_or_default();
        let sent: SendCounters = self.transmit.counters();
        let mut tun = self.tun_before;
        tun += self.tun.as_ref().map(Tun::counters).unwrap_or_default();
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
