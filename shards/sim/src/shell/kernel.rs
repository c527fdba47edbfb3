//! The kernel's side of a core's descriptors, in memory: sockets whose buffers fill, a TUN queue, and what a core sleeps on.
//!
//! Nothing here blocks: whoever runs a core ends its sleep when [`Alarm::is_ready`] says so.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::time::Duration;

use tollgate::gateway::waker::Notify;
use tollgate::io::{Readiness, ReceiveCounters, ReceiveOutcome, SendCounters, SendOutcome, TunCounters, WriteOutcome};
use tollgate::packet_io::{Descriptors, Poller, ReceiveBatch, TransmitBatch, Tun, Udp};
use tollgate_shards::{Frame, Received, Transmit};

use super::steering::Map;

/// What the kernel counts of a datagram against its socket's buffer, beside its bytes.
const OVERHEAD_BYTES: usize = 768;
/// A descriptor in a bad state.
const EBADFD: i32 = 77;
const EPERM: i32 = 1;

#[derive(Debug)]
pub enum Simulated {}

impl Descriptors for Simulated {
    type Udp = Socket;
    type Tun = Queue;
    type Wake = Alarm;
    type Poller = Watch;
    type SteeringMap = Map;

    fn pause(_: Duration) {}
}

/// What a core panics with where that is planned. No hook is told of it.
#[derive(Debug)]
pub struct PlannedPanic;

/// When whoever asks is to panic.
#[derive(Debug, Default)]
pub struct Fate(Cell<Option<u64>>);

impl Fate {
    /// It panics when it asks for the time after so many.
    pub fn panic_after(&self, times: u64) {
        self.0.set(Some(times));
    }

    /// It does not panic.
    pub fn spare(&self) {
        self.0.set(None);
    }

    /// Asks.
    pub fn ask(&self) {
        match self.0.get() {
            Some(0) => {
                self.spare();
                resume_unwind(Box::new(PlannedPanic));
            }
            Some(times) => self.0.set(Some(times - 1)),
            None => {}
        }
    }
}

/// The kernel's side of a socket.
#[derive(Debug, Default)]
pub struct SocketState {
    input: VecDeque<Received>,
    input_bytes: usize,
    input_bytes_max: usize,
    /// Runs that it has taken to send.
    pub sent: Vec<(Transmit, Vec<u8>)>,
    room_bytes: usize,
    room_bytes_max: usize,
    pub is_broken: bool,
    /// Whether it refuses to send, and is sound.
    pub refuses: bool,
    /// Of the core, asked between receives, and between runs that are sent.
    pub fates: [Fate; 2],
    is_closed: bool,
}

impl SocketState {
    /// Datagrams of some length reach it. Returns whether there was room.
    pub fn deliver(&mut self, received: Received) -> bool {
        let bytes = cost_bytes(&received);
        let fits = !self.is_closed && !self.is_broken && self.input_bytes + bytes <= self.input_bytes_max;
        if fits {
            self.input_bytes += bytes;
            self.input.push_back(received);
        }
        fits
    }

    /// The device has sent what was in its send buffer. Returns whether there was anything.
    pub fn drain(&mut self) -> bool {
        let was_full = self.room_bytes < self.room_bytes_max;
        self.room_bytes = self.room_bytes_max;
        was_full
    }

    /// Receives that go with it.
    pub fn left(&self) -> u64 {
        self.input.len() as u64
    }

    pub fn has_unsent(&self) -> bool {
        self.room_bytes < self.room_bytes_max
    }

    fn is_readable(&self) -> bool {
        !self.is_closed && (self.is_broken || !self.input.is_empty())
    }
}

fn cost_bytes(received: &Received) -> usize {
    received.data.len() + received.data.len().div_ceil(received.segment_bytes.max(1)) * OVERHEAD_BYTES
}

pub type SharedSocket = Rc<RefCell<SocketState>>;

/// A core's side of a socket.
#[derive(Debug)]
pub struct Socket(SharedSocket);

impl Socket {
    /// A socket whose buffers hold so many bytes, and the kernel's side of it.
    pub fn open(receive_bytes_max: usize, send_bytes_max: usize) -> (Socket, SharedSocket) {
        let state = SocketState {
            input_bytes_max: receive_bytes_max,
            room_bytes: send_bytes_max,
            room_bytes_max: send_bytes_max,
            ..SocketState::default()
        };
        let shared = Rc::new(RefCell::new(state));
        (Socket(shared.clone()), shared)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.borrow_mut().is_closed = true;
    }
}

/// Counts what a core receives.
#[derive(Debug)]
pub struct Messages {
    messages_max: usize,
    at_hand: usize,
    counters: ReceiveCounters,
}

impl ReceiveBatch for Messages {
    fn new(messages_max: usize) -> Self {
        Messages { messages_max, at_hand: 0, counters: ReceiveCounters::default() }
    }

    fn counters(&self) -> ReceiveCounters {
        self.counters
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn forget(&mut self) -> usize {
        std::mem::take(&mut self.at_hand)
    }
}

/// Runs that a core has to send.
#[derive(Debug)]
pub struct Runs {
    runs: Vec<(Transmit, Vec<u8>)>,
    buf: Vec<u8>,
    runs_max: usize,
    counters: SendCounters,
}

impl TransmitBatch for Runs {
    fn new(runs_max: usize) -> Self {
        Runs { runs: Vec::new(), buf: Vec::new(), runs_max, counters: SendCounters::default() }
    }

    fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    fn is_full(&self) -> bool {
        self.runs.len() == self.runs_max
    }

    fn buffer(&mut self) -> Option<&mut Vec<u8>> {
        if self.is_full() {
            return None;
        }
        self.buf.clear();
        Some(&mut self.buf)
    }

    fn push(&mut self, transmit: Transmit) {
        self.runs.push((transmit, std::mem::take(&mut self.buf)));
    }

    fn counters(&self) -> SendCounters {
        self.counters
    }

    fn forget(&mut self) -> usize {
        self.runs.drain(..).map(|(transmit, _)| transmit.datagrams()).sum()
    }
}

impl Udp for Socket {
    type ReceiveBatch = Messages;
    type TransmitBatch = Runs;

    fn receive(&self, batch: &mut Messages, sink: &mut impl FnMut(Received)) -> io::Result<ReceiveOutcome> {
        let mut outcome = ReceiveOutcome::default();
        if self.0.borrow().is_broken {
            return Err(io::Error::from_raw_os_error(EBADFD));
        }
        while outcome.messages < batch.messages_max {
            let Some(received) = self.0.borrow_mut().input.pop_front() else { break };
            self.0.borrow_mut().input_bytes -= cost_bytes(&received);
            outcome.messages += 1;
            batch.at_hand = received.data.len().div_ceil(received.segment_bytes.max(1));
            outcome.datagrams += batch.at_hand;
            outcome.bytes += received.data.len();
            self.0.borrow().fates[0].ask();
            sink(received);
            batch.at_hand = 0;
        }
        batch.counters.messages += outcome.messages as u64;
        batch.counters.datagrams += outcome.datagrams as u64;
        Ok(outcome)
    }

    fn send(&self, batch: &mut Runs) -> SendOutcome {
        let mut outcome = SendOutcome::default();
        let mut state = self.0.borrow_mut();
        if state.is_broken || state.refuses {
            outcome.dropped = batch.runs.drain(..).map(|(transmit, _)| transmit.datagrams()).sum();
            outcome.error = Some(if state.is_broken { EBADFD } else { EPERM });
            return outcome;
        }
        let (mut sent, mut room_bytes) = (0, state.room_bytes);
        for (transmit, bytes) in &batch.runs {
            state.fates[1].ask();
            // A run that is longer than the buffer goes alone.
            if room_bytes < bytes.len() && room_bytes < state.room_bytes_max {
                outcome.blocked = true;
                break;
            }
            room_bytes = room_bytes.saturating_sub(bytes.len());
            outcome.sends += 1;
            outcome.datagrams += transmit.datagrams();
            sent += 1;
        }
        // Of a core that panics on the way nothing is sent, and nothing takes room.
        state.room_bytes = room_bytes;
        state.sent.extend(batch.runs.drain(..sent));
        batch.counters.sends += outcome.sends as u64;
        batch.counters.datagrams += outcome.datagrams as u64;
        outcome
    }
}

/// The kernel's side of a TUN queue.
#[derive(Debug, Default)]
pub struct QueueState {
    /// Frames, each with the number of packets that it stands for.
    input: VecDeque<(Vec<u8>, u64)>,
    frames_max: usize,
    /// Frames that it has taken.
    pub written: Vec<Vec<u8>>,
    /// Frames that it takes before it is full.
    pub room_frames: usize,
    pub is_broken: bool,
    /// Of the core, asked for each frame that is read, and each that is written.
    pub fates: [Fate; 2],
    is_closed: bool,
    counters: TunCounters,
}

impl QueueState {
    /// A frame for the core. Returns whether there was room.
    pub fn deliver(&mut self, frame: Vec<u8>, packets: u64) -> bool {
        let fits = !self.is_closed && !self.is_broken && self.input.len() < self.frames_max;
        if fits {
            self.input.push_back((frame, packets));
        }
        fits
    }

    /// Its device is gone. Returns the packets that go with it.
    pub fn destroy(&mut self) -> u64 {
        self.is_broken = true;
        self.input.drain(..).map(|(_, packets)| packets).sum()
    }

    fn is_readable(&self) -> bool {
        !self.is_closed && (self.is_broken || !self.input.is_empty())
    }
}

pub type SharedQueue = Rc<RefCell<QueueState>>;

/// A core's side of a TUN queue.
#[derive(Debug)]
pub struct Queue(SharedQueue);

impl Queue {
    /// A queue that holds so many frames, and the kernel's side of it.
    pub fn open(frames_max: usize) -> (Queue, SharedQueue) {
        let shared = Rc::new(RefCell::new(QueueState { frames_max, room_frames: usize::MAX, ..QueueState::default() }));
        (Queue(shared.clone()), shared)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.borrow_mut().is_closed = true;
    }
}

impl Tun for Queue {
    fn read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut state = self.0.borrow_mut();
        if state.is_broken {
            return Err(io::Error::from_raw_os_error(EBADFD));
        }
        let Some((frame, _)) = state.input.pop_front() else { return Ok(None) };
        state.fates[0].ask();
        state.counters.read_frames += 1;
        buf[..frame.len()].copy_from_slice(&frame);
        Ok(Some(frame.len()))
    }

    fn write(&self, frame: &Frame<'_>) -> WriteOutcome {
        let mut state = self.0.borrow_mut();
        if state.is_broken {
            return WriteOutcome::Refused(EBADFD);
        }
        if state.room_frames == 0 {
            return WriteOutcome::Full;
        }
        state.fates[1].ask();
        state.room_frames -= 1;
        state.counters.written_frames += 1;
        state.written.push([frame.header, &frame.payloads.concat()].concat());
        WriteOutcome::Written
    }

    fn counters(&self) -> TunCounters {
        self.0.borrow().counters
    }
}

/// What ends a core's sleep from outside, and what it sleeps on by now.
#[derive(Debug, Default, Clone)]
pub struct Alarm(Rc<AlarmState>);

#[derive(Debug, Default)]
struct AlarmState {
    is_notified: Cell<bool>,
    watched: RefCell<Option<Rc<Watched>>>,
}

impl Alarm {
    /// Whether a sleep would end now.
    pub fn is_ready(&self) -> bool {
        let watched = self.0.watched.borrow();
        let readiness = watched.as_ref().map(|watched| watched.readiness()).unwrap_or_default();
        self.0.is_notified.get() || readiness != Readiness::default()
    }
}

impl Notify for Alarm {
    fn notify(&self) {
        self.0.is_notified.set(true);
    }

    fn drain(&self) {
        self.0.is_notified.set(false);
    }
}

#[derive(Debug)]
struct Watched {
    udp: RefCell<Option<SharedSocket>>,
    tun: RefCell<Option<SharedQueue>>,
    handshakes: RefCell<Option<SharedSocket>>,
    udp_wanted: Cell<bool>,
    writable_wanted: Cell<bool>,
    tun_wanted: Cell<bool>,
    handshakes_wanted: Cell<bool>,
}

impl Watched {
    fn readiness(&self) -> Readiness {
        let udp = self.udp.borrow();
        let udp = udp.as_ref().map(|udp| udp.borrow()).filter(|udp| !udp.is_closed);
        let tun = self.tun.borrow();
        let handshakes = self.handshakes.borrow();
        Readiness {
            udp: self.udp_wanted.get() && udp.as_ref().is_some_and(|udp| udp.is_readable()),
            udp_writable: self.writable_wanted.get()
                && udp.as_ref().is_some_and(|udp| udp.is_broken || udp.room_bytes > 0),
            tun: self.tun_wanted.get() && tun.as_ref().is_some_and(|tun| tun.borrow().is_readable()),
            wake: false,
            handshakes: self.handshakes_wanted.get()
                && handshakes.as_ref().is_some_and(|socket| socket.borrow().is_readable()),
            udp_gone: false,
        }
    }
}

/// What a core sleeps on.
#[derive(Debug)]
pub struct Watch {
    watched: Rc<Watched>,
    alarm: Alarm,
}

impl Poller<Simulated> for Watch {
    fn new(udp: Option<&Socket>, tun: Option<&Queue>, wake: &Alarm) -> io::Result<Self> {
        let watched = Rc::new(Watched {
            udp: RefCell::new(udp.map(|socket| socket.0.clone())),
            tun: RefCell::new(tun.map(|queue| queue.0.clone())),
            handshakes: RefCell::new(None),
            udp_wanted: Cell::new(true),
            writable_wanted: Cell::new(false),
            tun_wanted: Cell::new(true),
            handshakes_wanted: Cell::new(false),
        });
        wake.0.watched.replace(Some(watched.clone()));
        Ok(Watch { watched, alarm: wake.clone() })
    }

    fn watch_handshakes(&self, socket: &Socket) -> io::Result<()> {
        self.watched.handshakes.replace(Some(socket.0.clone()));
        self.watched.handshakes_wanted.set(true);
        Ok(())
    }

    fn want_handshakes(&self, _socket: &Socket) -> io::Result<()> {
        self.watched.handshakes_wanted.set(true);
        Ok(())
    }

    fn want_udp(&self, input: bool, writable: bool) -> io::Result<()> {
        self.watched.udp_wanted.set(input);
        self.watched.writable_wanted.set(writable);
        Ok(())
    }

    fn want_tun(&self, wanted: bool) -> io::Result<()> {
        self.watched.tun_wanted.set(wanted);
        Ok(())
    }

    fn forget_udp(&mut self) {
        self.watched.udp.replace(None);
    }

    fn forget_tun(&mut self) {
        self.watched.tun.replace(None);
    }

    fn wait(&self, _timeout: Option<Duration>) -> io::Result<Readiness> {
        let readiness = Readiness { wake: self.alarm.0.is_notified.get(), ..self.watched.readiness() };
        if readiness.handshakes {
            self.watched.handshakes_wanted.set(false);
        }
        Ok(readiness)
    }
}
