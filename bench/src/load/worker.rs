//! A generator's thread, seen from outside and from within: what it is told, what it publishes, and what it reports at its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::time::{ClockId, clock_gettime};
use tollgate::io::Wake;
use tollgate_testkit::Namespace;

use super::report::{Counts, Report};
use crate::measure::cpus;

/// How often a thread reads its CPU clock.
const CPU_INTERVAL: Duration = Duration::from_millis(100);

/// What a generator is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Bring all clients up that never were, with no more handshakes at once than the scenario allows.
    Connect,
    /// Open the flows of all clients that are up, and begin with churn, losses and rebinding.
    StartTraffic,
    /// End churn, losses and rebinding, and stop sending in all flows.
    StopTraffic,
    /// Close all connections, and make no new ones. What is still queued is dropped and counted.
    Close,
    /// Report and end.
    End,
}

/// A pinned thread that takes orders, publishes counts with every pass, and ends with a report.
pub struct Worker {
    orders: Sender<(Order, Sender<()>)>,
    wake: Arc<Wake>,
    counts: Arc<Mutex<Counts>>,
    handle: Option<JoinHandle<Result<Report>>>,
}

/// The thread's side.
pub struct Desk {
    pub orders: Receiver<(Order, Sender<()>)>,
    pub wake: Arc<Wake>,
    counts: Arc<Mutex<Counts>>,
    cpu: (Option<Instant>, u64),
}

impl Worker {
    /// Starts the thread on `cpu` and in `namespace`, where it opens what it runs.
    pub fn start<D: FnOnce() -> Result<Report>>(
        name: &str,
        cpu: usize,
        namespace: &Namespace,
        open: impl FnOnce(Desk) -> Result<D> + Send + 'static,
    ) -> Result<Self> {
        let (sender, orders) = unbounded();
        let wake = Arc::new(Wake::new().context("cannot make an eventfd")?);
        let counts = Arc::default();
        let desk = Desk { orders, wake: Arc::clone(&wake), counts: Arc::clone(&counts), cpu: (None, 0) };
        let (started, is_started) = bounded(1);
        let run = move || {
            let run = cpus::pin(&[cpu]).and_then(|()| open(desk))?;
            // The receiver waits for exactly this, or the thread's end.
            let _ = started.send(());
            run()
        };
        let spawn = || Builder::new().name(name.to_owned()).spawn(run);
        let handle = namespace.run(spawn).with_context(|| format!("cannot start {name}"))?;
        let mut worker = Worker { orders: sender, wake, counts, handle: Some(handle) };
        if is_started.recv().is_err() {
            worker.end().with_context(|| name.to_owned())?;
        }
        Ok(worker)
    }

    /// What it counted up to the end of its last pass. It is not disturbed by that.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an order, and waits until it is begun: counts that are read afterwards show it. Returns whether the thread was there to begin.
    pub fn order(&self, order: Order) -> bool {
        let (reply, is_begun) = bounded(1);
        let is_given = self.orders.send((order, reply)).is_ok();
        self.wake.notify();
        is_given && is_begun.recv().is_ok()
    }

    /// Whether the thread has ended, of an error that [`Worker::join`] tells.
    pub fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread.
    pub fn join(mut self) -> Result<Report> {
        self.end()
    }

    fn end(&mut self) -> Result<Report> {
        let handle = self.handle.take().context("the thread has ended before")?;
        self.order(Order::End);
        handle.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Who wants to know of errors calls `join`.
        let _ = self.end();
    }
}

impl Desk {
    pub fn publish(&self, counts: Counts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// CPU time of the thread in nanoseconds, no more than 100 ms old.
    pub fn cpu_ns(&mut self, now: Instant) -> u64 {
        if self.cpu.0.is_none_or(|read_at| now.saturating_duration_since(read_at) >= CPU_INTERVAL) {
            let cpu = clock_gettime(ClockId::ThreadCPUTime);
            self.cpu = (Some(now), Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32).as_nanos() as u64);
        }
        self.cpu.1
    }
}
