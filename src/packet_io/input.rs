//! Input: bounded batches from the descriptors to the machine.

use std::io;
use std::time::{Duration, Instant};

use tollgate_shards::{DropReason, Machine};

use super::health::Health;
use super::{Descriptors, PacketIo, Poller, Tun, Udp};

/// UDP messages of one receive; each may hold 64 KiB.
pub(super) const MESSAGES_MAX: usize = 16;
/// Datagrams of handshakes taken at once, and how long none is taken afterwards: while live traffic passes, and while none does. Strangers
/// can send more of them than any core can answer, so live traffic comes first, and these get a share that is bounded in time.
pub(super) const HANDSHAKE_MESSAGES_MAX: usize = 16;
const HANDSHAKE_REST_BUSY: Duration = Duration::from_millis(4);
const HANDSHAKE_REST_IDLE: Duration = Duration::from_micros(250);
/// For how long after the last of it live traffic counts as passing: passes that bring handshakes alone come between.
const LIVE_WINDOW: Duration = Duration::from_millis(20);
/// TUN frames read in one pass: of single packets, what makes a full send.
const FRAMES_MAX: usize = 64;
/// Bytes of them: a congestion window's worth, which leaves the timers their turn.
const FRAME_BYTES_IN_PASS_MAX: usize = 1 << 20;

/// A socket that is read after the other one, a bounded number of datagrams in a time.
pub(super) struct Handshakes<U: Udp> {
    pub socket: Option<U>,
    pub receive: U::ReceiveBatch,
    /// When to look next; `None` while the poller watches.
    pub due: Option<Instant>,
    /// When live traffic passed last.
    pub live_at: Option<Instant>,
    pub health: Health,
}

impl<U: Udp> Handshakes<U> {
    /// Takes what is due. `live` is whether live traffic passes now.
    ///
    /// # Errors
    ///
    /// Those of the call, and of the poller.
    fn receive<D: Descriptors<Udp = U>>(
        &mut self,
        poller: &D::Poller,
        machine: &mut impl Machine,
        now: Instant,
        live: bool,
    ) -> io::Result<usize> {
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

impl<D: Descriptors> PacketIo<D> {
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
        match handshakes.receive::<D>(&self.poller, machine, now, busy) {
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
}
