//! A generator's thread, seen from outside and from within: what it is told, what it publishes, and what it reports at its end.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, anyhow, bail};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::thread::{Pid, gettid};
use tollgate::io::Wake;
use tollgate_testkit::Namespace;

use super::generator::{Driver, GeneratorPlan};
use super::report::{Counts, Report};
use crate::measure::cpus;

/// What the kernel counts CPU time in (`USER_HZ`).
pub const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time that the thread whose folder of `/proc` is `folder` has used, in seconds.
pub fn thread_cpu_seconds(folder: &str) -> Result<f64> {
    let path = format!("{folder}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // Behind the name: utime and stime are the 12th and 13th field.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Ok(fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND)
}

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
    thread: Pid,
}

/// The thread's side.
pub struct Desk {
    pub orders: Receiver<(Order, Sender<()>)>,
    pub wake: Arc<Wake>,
    counts: Arc<Mutex<Counts>>,
}

impl Worker {
    /// Starts a generator on `cpu` and in `namespace`.
    pub fn start(plan: GeneratorPlan, cpu: usize, namespace: &Namespace) -> Result<Self> {
        let name = format!("generator-{}", plan.thread);
        let (sender, orders) = unbounded();
        let wake = Arc::new(Wake::new().context("cannot make an eventfd")?);
        let counts = Arc::default();
        let desk = Desk { orders, wake: Arc::clone(&wake), counts: Arc::clone(&counts) };
        let (started, is_started) = bounded(1);
        let run = move || {
            cpus::pin(&[cpu])?;
            let driver = Driver::new(plan, desk)?;
            // The receiver waits for exactly this, or the thread's end.
            let _ = started.send(gettid());
            driver.run()
        };
        let spawn = || Builder::new().name(name.clone()).spawn(run);
        let handle = namespace.run(spawn).with_context(|| format!("cannot start {name}"))?;
        match is_started.recv() {
            Ok(thread) => Ok(Worker { orders: sender, wake, counts, handle: Some(handle), thread }),
            Err(_) => joined(handle).and_then(|_| bail!("the thread ended")).context(name),
        }
    }

    /// What it counted up to the end of its last pass. It is not disturbed by that.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// CPU time so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        thread_cpu_seconds(&format!("/proc/self/task/{}", self.thread.as_raw_nonzero()))
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
        joined(handle)
    }
}

fn joined(handle: JoinHandle<Result<Report>>) -> Result<Report> {
    handle.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
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
}
