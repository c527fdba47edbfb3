//! One end of a TCP connection.

use std::collections::VecDeque;
use std::time::Duration;

use super::receiver::Receiver;
use super::segment::{ACK, CWR, ECE, ECT_0, FIN, PSH, SYN, Segment};
use super::sender::{Run, Sender};
use crate::schedule::Time;

/// Room of a super-packet for headers of both kinds, in bytes.
const HEADERS_BYTES_MAX: u64 = 120;
const SUPER_PACKET_BYTES_MAX: u64 = 65_535 - HEADERS_BYTES_MAX;
const TIMESTAMPS_BYTES: u64 = 12;
const WINDOW_SCALE: u8 = 6;

/// What both ends of a connection are.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub is_v6: bool,
    pub has_timestamps: bool,
    pub has_ecn: bool,
    /// Tells the bytes of connections apart.
    pub content: u64,
}

/// What one end is.
#[derive(Debug, Clone, Copy)]
pub struct EndSettings {
    pub opens: bool,
    pub mtu_bytes: u64,
    pub sends_bytes: u64,
    pub write_bytes: u64,
    pub buffer_bytes: u64,
    pub reads_every: Option<Duration>,
    pub initial_seq: u32,
    /// Whether it hands on super-packets.
    pub has_tso: bool,
}

/// A segment to be sent, maybe a super-packet.
#[derive(Debug)]
pub struct Outgoing {
    pub segment: Segment,
    pub ecn: u8,
    /// Payload of each segment, where it is a super-packet.
    pub gso_size: Option<u16>,
}

#[derive(Debug)]
pub struct Endpoint {
    settings: Settings,
    end: EndSettings,
    pub sender: Sender,
    pub receiver: Receiver,
    peer_seq: Option<u32>,
    peer_scale: u8,
    has_ecn: bool,
    must_send_syn: bool,
    /// Acknowledgements that are to go, as they were when they were due.
    acks: VecDeque<Segment>,
}

impl Endpoint {
    pub fn new(settings: Settings, end: EndSettings) -> Self {
        let mss = end.mtu_bytes - headers_bytes(settings.is_v6);
        let options = if settings.has_timestamps { TIMESTAMPS_BYTES } else { 0 };
        Endpoint {
            settings,
            end,
            sender: Sender::new(end.sends_bytes, end.write_bytes, mss - options),
            receiver: Receiver::new(end.buffer_bytes, end.reads_every, mss - options),
            peer_seq: None,
            peer_scale: 0,
            has_ecn: false,
            must_send_syn: end.opens,
            acks: VecDeque::new(),
        }
    }

    /// Whether both directions have ended.
    pub fn is_done(&self, other_sends: bool) -> bool {
        self.sender.is_done() && (!other_sends || self.receiver.is_done())
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        [self.sender.timeout_at, self.receiver.ack_at, self.receiver.read_at].into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, now: Time) {
        if self.receiver.read_at.is_some_and(|at| at <= now) && self.receiver.reads() {
            self.acknowledge(now);
        }
        if self.receiver.ack_at.is_some_and(|at| at <= now) {
            self.acknowledge(now);
        }
        if self.sender.timeout_at.is_some_and(|at| at <= now) && self.sender.timed_out(now) {
            self.must_send_syn = !self.sender.is_given_up && (self.end.opens || self.peer_seq.is_some());
        }
    }

    /// Takes one segment, or several that arrived as one, of a packet marked with `ecn`.
    pub fn handle_segment(&mut self, now: Time, segment: &Segment, ecn: u8) -> Result<(), String> {
        if segment.has(SYN) {
            return self.handle_syn(now, segment);
        }
        let Some(peer_seq) = self.peer_seq else { return Ok(()) };
        let ack = unwrap(self.sender.una, segment.ack.wrapping_sub(self.end.initial_seq));
        if ack > self.sender.max {
            return Err(format!("{ack} is acknowledged, {} was sent", self.sender.max));
        }
        let window = u64::from(segment.window) << self.peer_scale;
        self.sender.acknowledged(now, ack, segment, window, |echoed| since(now, echoed));
        let at = unwrap(self.receiver.next, segment.seq.wrapping_sub(peer_seq));
        if let Some(place) = (at..).zip(&segment.payload).position(|(at, &byte)| byte != self.content(at, false)) {
            return Err(format!("the byte at {} is another than was sent", at + place as u64));
        }
        if self.receiver.take(now, at, segment, ecn) {
            self.acknowledge(now);
        }
        Ok(())
    }

    fn handle_syn(&mut self, now: Time, segment: &Segment) -> Result<(), String> {
        if segment.has(ACK) {
            let ack = segment.ack.wrapping_sub(self.end.initial_seq);
            if ack != 1 {
                return Err(format!("a SYN is acknowledged with {ack}"));
            }
            self.sender.acknowledged(now, 1, segment, u64::from(segment.window), |echoed| since(now, echoed));
        }
        if self.peer_seq.is_none() {
            self.peer_seq = Some(segment.seq);
            self.peer_scale = segment.window_scale.unwrap_or(0);
            self.receiver.next = 1;
            let offers = if self.end.opens { ECE } else { ECE | CWR };
            self.has_ecn = self.settings.has_ecn && segment.has(offers);
            self.sender.set_ecn(self.has_ecn);
            let options = if self.settings.has_timestamps { TIMESTAMPS_BYTES } else { 0 };
            self.sender.mss = self.sender.mss.min(u64::from(segment.mss.unwrap_or(536)) - options);
        }
        if let Some((own, _)) = segment.timestamps {
            self.receiver.timestamp = own;
        }
        if self.end.opens {
            self.acknowledge(now);
        } else {
            self.must_send_syn = true;
        }
        Ok(())
    }

    /// The path carries packets of no more than `mtu_bytes`.
    pub fn handle_too_big(&mut self, mtu_bytes: u64) {
        let options = if self.settings.has_timestamps { TIMESTAMPS_BYTES } else { 0 };
        let mtu_bytes = mtu_bytes.max(if self.settings.is_v6 { 1280 } else { 552 });
        self.sender.narrow(mtu_bytes - headers_bytes(self.settings.is_v6) - options);
    }

    fn acknowledge(&mut self, now: Time) {
        let mut ack = self.segment(now, self.sender.max.max(1));
        let wire = |at: u64| self.peer_seq.unwrap_or(0).wrapping_add(at as u32);
        ack.sack = self.receiver.blocks().into_iter().map(|(from, to)| (wire(from), wire(to))).collect();
        self.receiver.acknowledges();
        self.acks.push_back(ack);
    }

    /// The next segment to send.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Outgoing> {
        if std::mem::take(&mut self.must_send_syn) {
            return Some(Outgoing { segment: self.syn(now), ecn: 0, gso_size: None });
        }
        if let Some(segment) = self.acks.pop_front() {
            return Some(Outgoing { segment, ecn: 0, gso_size: None });
        }
        let super_bytes = if self.end.has_tso { SUPER_PACKET_BYTES_MAX } else { self.sender.mss };
        let run = self.sender.next_run(now, super_bytes)?;
        let segment = self.data(now, run);
        // Neither retransmissions nor what carries no data (RFC 3168, section 6.1.5).
        let is_capable = self.has_ecn && run.is_new && run.bytes > 0;
        let gso_size = (run.bytes > self.sender.mss).then_some(self.sender.mss as u16);
        Some(Outgoing { segment, ecn: if is_capable { ECT_0 } else { 0 }, gso_size })
    }

    fn data(&mut self, now: Time, run: Run) -> Segment {
        let mut segment = self.segment(now, run.from);
        let end = run.from + run.bytes;
        segment.payload = (run.from..end).map(|at| self.content(at, true)).collect();
        segment.flags |= if run.bytes > 0 && self.sender.is_pushed(end) { PSH } else { 0 };
        segment.flags |= if run.has_fin { FIN } else { 0 };
        segment.flags |= if run.says_cwr { CWR } else { 0 };
        self.receiver.acknowledges();
        segment
    }

    /// Without data, and with what every segment says.
    fn segment(&self, now: Time, at: u64) -> Segment {
        Segment {
            seq: self.end.initial_seq.wrapping_add(at as u32),
            ack: self.peer_seq.unwrap_or(0).wrapping_add(self.receiver.next as u32),
            flags: ACK | if self.receiver.echoes && self.has_ecn { ECE } else { 0 },
            window: (self.receiver.window() >> WINDOW_SCALE).min(65_535) as u16,
            timestamps: self.settings.has_timestamps.then(|| (clock(now), self.receiver.timestamp)),
            ..Segment::default()
        }
    }

    fn syn(&mut self, now: Time) -> Segment {
        self.sender.syn_sent(now);
        let answers = self.peer_seq.is_some();
        let ecn = match (answers, self.settings.has_ecn) {
            (false, true) => ECE | CWR,
            (true, true) if self.has_ecn => ECE,
            _ => 0,
        };
        Segment {
            ack: self.peer_seq.map_or(0, |seq| seq.wrapping_add(1)),
            flags: SYN | ecn | if answers { ACK } else { 0 },
            window: self.end.buffer_bytes.min(65_535) as u16,
            mss: Some((self.end.mtu_bytes - headers_bytes(self.settings.is_v6)) as u16),
            window_scale: Some(WINDOW_SCALE),
            ..self.segment(now, 0)
        }
    }

    /// The byte at a place of the sequence space, sent or received.
    fn content(&self, at: u64, is_own: bool) -> u8 {
        let direction = u64::from(is_own == self.end.opens);
        let mixed = (self.settings.content ^ direction << 60 ^ at >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> (8 * (at & 3) + 24)) as u8
    }
}

/// Of IP and TCP, without options.
fn headers_bytes(is_v6: bool) -> u64 {
    if is_v6 { 60 } else { 40 }
}

/// A number of 32 bits near one of the sequence space.
fn unwrap(near: u64, wire: u32) -> u64 {
    near.saturating_add_signed(i64::from(wire.wrapping_sub(near as u32) as i32))
}

/// The clock of timestamps: milliseconds.
fn clock(now: Time) -> u32 {
    (now.ns / 1_000_000) as u32
}

fn since(now: Time, echoed: u32) -> Duration {
    Duration::from_millis(u64::from(clock(now).wrapping_sub(echoed)))
}
