//! The responder: an ordinary UDP service behind the gateway, the other end of every flow.
//!
//! It receives, checks, counts and answers; sends the data of flows that want some; and says what it counted when asked. It does not ask
//! whether a sender's address is true: it belongs into a test's network only.

mod service;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::time::{ClockId, clock_gettime};
use tollgate::io::{Poller, ReceiveBatch, TransmitBatch, UdpSocket, Wake};

use crate::measure::cpus;
use service::Service;

/// The most flows of a thread.
pub const FLOWS_MAX: usize = 1 << 20;

/// The most answers and control messages of a thread that wait to be sent. While they are nearly as many, nothing is received.
pub const REPLIES_MAX: usize = 1 << 16;

/// How long a flow is remembered that has ended, so that its counts can be asked for again.
pub const LINGER: Duration = Duration::from_secs(60);

/// How long a thread sleeps at least when nothing arrives: what falls due meanwhile goes together.
const SLEEP_MIN: Duration = Duration::from_micros(200);
/// How long a thread sleeps at most.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// Messages of a `recvmmsg`, each an aggregate in 64 KiB of its own: more of them would not stay in a core's cache.
const RECEIVES_MAX: usize = 8;
/// Runs of a `sendmmsg`, likewise.
const SENDS_MAX: usize = 8;
/// System calls in a row for one direction, before the other has its turn.
const ROUNDS_MAX: usize = 8;
/// How often a thread reads its CPU clock.
const CPU_INTERVAL: Duration = Duration::from_millis(100);

crate::load::counts! {
    /// Counts since the responder started, of all its threads.
    ResponderTotals {
        /// Messages received, of all kinds.
        received_messages,
        /// Bytes of those as inner packets.
        received_bytes,
        /// Messages that the kernel took, of all kinds.
        sent_messages,
        /// Answers and control messages that were dropped because too many waited. They have no number.
        replies_dropped,
        /// CPU time of the threads, no more than 100 ms old.
        cpu_ns,
    }
}

/// The threads of the responder. They stop when it is dropped.
#[derive(Debug)]
pub struct Responder {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    address: SocketAddr,
    shared: Arc<Shared>,
    handle: Option<JoinHandle<Result<()>>>,
}

/// What a thread shares with its owner.
#[derive(Debug)]
struct Shared {
    wake: Wake,
    is_stopping: AtomicBool,
    totals: Mutex<ResponderTotals>,
}

/// What a thread owns.
struct Driver {
    socket: UdpSocket,
    shared: Arc<Shared>,
    poller: Poller,
    service: Service,
    receives: ReceiveBatch,
    sends: TransmitBatch,
    cpu: Duration,
    cpu_read_at: Option<Instant>,
}

impl Responder {
    /// Starts a thread for each of `sockets`, which are in the network namespace behind the gateway, each with a port or an address of
    /// its own. Thread n has the CPU number n of `cpus`, counted round; without `cpus`, any.
    pub fn start(sockets: Vec<UdpSocket>, cpus: &[usize]) -> Result<Responder> {
        let mut responder = Responder { threads: Vec::new() };
        for (index, socket) in sockets.into_iter().enumerate() {
            let cpu = (!cpus.is_empty()).then(|| cpus[index % cpus.len()]);
            responder.threads.push(Thread::start(index, socket, cpu)?);
        }
        Ok(responder)
    }

    /// Where it listens, in the order of the sockets. Each flow is to stay with one.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.threads.iter().map(|thread| thread.address).collect()
    }

    /// What all threads counted so far, each up to the end of its last pass.
    pub fn totals(&self) -> ResponderTotals {
        let mut sum = ResponderTotals::default();
        self.threads.iter().for_each(|thread| sum += *thread.shared.totals());
        sum
    }

    /// Ends all threads. What waited to be sent is not sent, and not counted as such.
    pub fn stop(mut self) -> Result<ResponderTotals> {
        self.threads.iter().for_each(Thread::ask_to_stop);
        let ends: Vec<Result<()>> = self.threads.iter_mut().map(Thread::join).collect();
        ends.into_iter().collect::<Result<()>>()?;
        Ok(self.totals())
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.threads.iter().for_each(Thread::ask_to_stop);
        // Who wants to know of errors calls `stop`.
        self.threads.iter_mut().for_each(|thread| drop(thread.join()));
    }
}

impl Thread {
    fn start(index: usize, socket: UdpSocket, cpu: Option<usize>) -> Result<Thread> {
        let address = socket.local_address();
        let failed = || format!("responder at {address}");
        let wake = Wake::new().with_context(failed)?;
        let shared = Arc::new(Shared { wake, is_stopping: AtomicBool::new(false), totals: Mutex::default() });
        let mut driver = Driver::new(socket, Arc::clone(&shared)).with_context(failed)?;
        let (started, is_started) = mpsc::channel();
        let run = move || {
            let pinned = cpus::pin(cpu.as_slice());
            let is_pinned = pinned.is_ok();
            // The receiver waits for exactly this.
            let _ = started.send(pinned);
            if is_pinned { driver.run() } else { Ok(()) }
        };
        let handle = thread::Builder::new().name(format!("responder-{index}")).spawn(run).with_context(failed)?;
        let mut thread = Thread { address, shared, handle: Some(handle) };
        match is_started.recv() {
            Ok(Ok(())) => Ok(thread),
            // Before anybody is told, the thread has given up its socket.
            Ok(Err(error)) => thread.join().and(Err(error.context(failed()))),
            Err(_) => thread.join().and(Err(anyhow!("{}: the thread ended at once", failed()))),
        }
    }

    fn ask_to_stop(&self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        self.shared.wake.notify();
    }

    fn join(&mut self) -> Result<()> {
        let Some(handle) = self.handle.take() else { return Ok(()) };
        handle
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread panicked")))
            .with_context(|| format!("responder at {}", self.address))
    }
}

impl Shared {
    fn totals(&self) -> MutexGuard<'_, ResponderTotals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver {
    fn new(socket: UdpSocket, shared: Arc<Shared>) -> Result<Driver> {
        let poller = Poller::new(Some(&socket), None, &shared.wake)?;
        Ok(Driver {
            socket,
            shared,
            poller,
            service: Service::new(Instant::now()),
            receives: ReceiveBatch::new(RECEIVES_MAX),
            sends: TransmitBatch::new(SENDS_MAX),
            cpu: Duration::ZERO,
            cpu_read_at: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut now = Instant::now();
        while !self.shared.is_stopping.load(Ordering::Relaxed) {
            let may_be_more = self.receive(now);
            self.service.handle_timeout(now);
            let is_blocked = self.send(now);
            self.publish(now);
            self.poller.want_udp(true, is_blocked)?;
            let timeout = self.timeout(now, may_be_more, is_blocked);
            if self.poller.wait(Some(timeout))?.wake {
                self.shared.wake.drain();
            }
            now = later(now);
        }
        // What was received is not to be missing only because nothing was sent behind it.
        self.publish(now);
        Ok(())
    }

    /// Returns whether there may be more.
    fn receive(&mut self, now: Instant) -> bool {
        let service = &mut self.service;
        for _ in 0..ROUNDS_MAX {
            if !service.has_room() {
                return false;
            }
            let outcome = self.socket.receive(&mut self.receives, &mut |received| service.handle(now, &received));
            // An error of an earlier send, reported here, concerns that datagram only.
            if outcome.map_or(0, |outcome| outcome.messages) < RECEIVES_MAX {
                return false;
            }
        }
        true
    }

    /// Returns whether the socket is full.
    fn send(&mut self, now: Instant) -> bool {
        for _ in 0..ROUNDS_MAX {
            while self.sends.fill(|buf| self.service.poll_transmit(now, buf)) {}
            if self.sends.is_empty() {
                return false;
            }
            if self.socket.send(&mut self.sends).blocked {
                return true;
            }
        }
        false
    }

    fn timeout(&self, now: Instant, may_be_more: bool, is_blocked: bool) -> Duration {
        if is_blocked {
            // Nothing that falls due could be sent; room or a message ends the sleep.
            return SLEEP_MAX;
        }
        let next_at = self.service.next_at(now).unwrap_or(now + SLEEP_MAX);
        if may_be_more || next_at <= now {
            return Duration::ZERO;
        }
        (next_at - now).clamp(SLEEP_MIN, SLEEP_MAX)
    }

    fn publish(&mut self, now: Instant) {
        if self.cpu_read_at.is_none_or(|at| now.saturating_duration_since(at) >= CPU_INTERVAL) {
            let cpu = clock_gettime(ClockId::ThreadCPUTime);
            self.cpu = Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32);
            self.cpu_read_at = Some(now);
        }
        *self.shared.totals() = ResponderTotals {
            sent_messages: self.sends.counters().datagrams,
            cpu_ns: self.cpu.as_nanos() as u64,
            ..self.service.totals()
        };
    }
}

/// The time, and not the same as `before`.
fn later(before: Instant) -> Instant {
    Instant::now().max(before + Duration::from_nanos(1))
}
