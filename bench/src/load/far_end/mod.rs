//! The far end: an ordinary UDP service behind the gateway, the other end of every flow.
//!
//! It receives, checks, counts and answers; sends the data of flows that want some; and says what it counted when asked. It sends
//! only to who opened a flow, for no longer than [`LIFETIME_MAX`], but it does not ask whether a sender's address is true: it belongs
//! into a test's network only.

mod flows;
mod service;
mod totals;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use tollgate::io::{Poller, ReceiveBatch, TransmitBatch, UdpSocket, Wake};

use service::Service;
pub use totals::FarTotals;

/// The most flows of a thread.
pub const FLOWS_MAX: usize = 1 << 20;

/// The most answers and control messages of a thread that wait to be sent. While they are nearly as many, nothing is received.
pub const REPLIES_MAX: usize = 1 << 16;

/// The longest time that a flow may want to send, whatever it hears.
pub const LIFETIME_MAX: Duration = Duration::from_secs(7 * 86_400);

/// How long a flow is remembered that has ended, so that its counts can be asked for again.
pub const LINGER: Duration = Duration::from_secs(60);

/// Data that is sent later than this after it was due counts as late.
pub const LATE_AFTER: Duration = Duration::from_millis(10);

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

/// The threads of the far end. They stop when it is dropped.
#[derive(Debug)]
pub struct FarEnd {
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
    totals: Mutex<FarTotals>,
}

/// What a thread owns.
struct Driver {
    socket: UdpSocket,
    shared: Arc<Shared>,
    poller: Poller,
    service: Service,
    receives: ReceiveBatch,
    sends: TransmitBatch,
    /// Whether answers have to name the address that they come from.
    is_bound_to_any: bool,
    receive_errors: u64,
    passes: u64,
    cpu: Duration,
    cpu_read_at: Option<Instant>,
}

impl FarEnd {
    /// Starts a thread for each of `sockets`, which are in the network namespace behind the gateway, each with a port or an address of
    /// its own. Thread n has the CPU number n of `cpus`, counted round; without `cpus`, any.
    ///
    /// # Errors
    ///
    /// When descriptors run out, or a CPU is not there to be had.
    pub fn start(sockets: Vec<UdpSocket>, cpus: &[usize]) -> Result<FarEnd> {
        let mut far_end = FarEnd { threads: Vec::new() };
        for (index, socket) in sockets.into_iter().enumerate() {
            let cpu = (!cpus.is_empty()).then(|| cpus[index % cpus.len()]);
            far_end.threads.push(Thread::start(index, socket, cpu)?);
        }
        Ok(far_end)
    }

    /// Where it listens, in the order of the sockets. Each flow is to stay with one.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.threads.iter().map(|thread| thread.address).collect()
    }

    /// What all threads counted so far, each up to the end of its last pass.
    pub fn totals(&self) -> FarTotals {
        self.threads.iter().map(|thread| *thread.shared.totals()).fold(FarTotals::default(), FarTotals::plus)
    }

    /// Ends all threads. What waited to be sent is not sent, and not counted as such.
    ///
    /// # Errors
    ///
    /// When a thread had ended before, of an error that its socket could not recover from.
    pub fn stop(mut self) -> Result<FarTotals> {
        self.threads.iter().for_each(Thread::ask_to_stop);
        let ends: Vec<Result<()>> = self.threads.iter_mut().map(Thread::join).collect();
        ends.into_iter().collect::<Result<()>>()?;
        Ok(self.totals())
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        self.threads.iter().for_each(Thread::ask_to_stop);
        // Who wants to know of errors calls `stop`.
        self.threads.iter_mut().for_each(|thread| drop(thread.join()));
    }
}

impl Thread {
    fn start(index: usize, socket: UdpSocket, cpu: Option<usize>) -> Result<Thread> {
        let address = socket.local_address();
        let failed = || format!("far end at {address}");
        let wake = Wake::new().with_context(failed)?;
        let shared = Arc::new(Shared { wake, is_stopping: AtomicBool::new(false), totals: Mutex::default() });
        let mut driver = Driver::new(socket, Arc::clone(&shared)).with_context(failed)?;
        let (started, is_started) = mpsc::channel();
        let run = move || {
            let pinned = cpu.map_or(Ok(()), pin);
            let is_pinned = pinned.is_ok();
            // The receiver waits for exactly this.
            let _ = started.send(pinned);
            if is_pinned { driver.run() } else { Ok(()) }
        };
        let handle = thread::Builder::new().name(format!("far-end-{index}")).spawn(run).with_context(failed)?;
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
            .with_context(|| format!("far end at {}", self.address))
    }
}

impl Shared {
    fn totals(&self) -> MutexGuard<'_, FarTotals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver {
    fn new(socket: UdpSocket, shared: Arc<Shared>) -> Result<Driver> {
        let poller = Poller::new(Some(&socket), None, &shared.wake)?;
        let is_bound_to_any = socket.local_address().ip().is_unspecified();
        Ok(Driver {
            socket,
            shared,
            poller,
            service: Service::new(Instant::now(), FLOWS_MAX),
            receives: ReceiveBatch::new(RECEIVES_MAX),
            sends: TransmitBatch::new(SENDS_MAX),
            is_bound_to_any,
            receive_errors: 0,
            passes: 0,
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
        let (service, is_bound_to_any) = (&mut self.service, self.is_bound_to_any);
        for _ in 0..ROUNDS_MAX {
            if !service.has_room() {
                return false;
            }
            let outcome = self.socket.receive(&mut self.receives, &mut |received| {
                service.handle(now, &received, received.local_ip.filter(|_| is_bound_to_any));
            });
            match outcome {
                Ok(outcome) if outcome.messages < RECEIVES_MAX => return false,
                Ok(_) => {}
                Err(_) => {
                    self.receive_errors += 1;
                    return false;
                }
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
        self.passes += 1;
        if self.cpu_read_at.is_none_or(|at| now.saturating_duration_since(at) >= CPU_INTERVAL) {
            let cpu = clock_gettime(ClockId::ThreadCPUTime);
            self.cpu = Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32);
            self.cpu_read_at = Some(now);
        }
        let (receives, sends) = (self.receives.counters(), self.sends.counters());
        *self.shared.totals() = FarTotals {
            sent_messages: sends.datagrams,
            send_dropped: sends.dropped,
            receive_errors: self.receive_errors + receives.truncated + receives.unusable,
            passes: self.passes,
            blocked: sends.blocked,
            cpu_ns: self.cpu.as_nanos() as u64,
            ..self.service.totals()
        };
    }
}

/// The time, and not the same as `before`.
fn later(before: Instant) -> Instant {
    Instant::now().max(before + Duration::from_nanos(1))
}

/// Binds this thread to one CPU.
fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    if cpu < CpuSet::MAX_CPU {
        cpus.set(cpu);
    }
    sched_setaffinity(None, &cpus)
        .with_context(|| format!("CPU {cpu} cannot be used: name one that `taskset -p $$` allows"))
}

#[cfg(test)]
mod tests;
