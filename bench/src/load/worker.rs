//! A pinned thread of the harness: what it is told, what it publishes, and what it reports at its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::time::{ClockId, clock_gettime};
use tollgate::io::Wake;
use tollgate_testkit::Namespace;

use crate::measure::cpus;

/// How often a thread reads its CPU clock.
const CPU_INTERVAL: Duration = Duration::from_millis(100);

/// A thread that takes messages `M`, publishes counts `C` with every pass, and ends with a report `R`.
pub struct Worker<M, C, R> {
    inbox: Inbox<M>,
    counts: Arc<Mutex<C>>,
    handle: Option<JoinHandle<Result<R>>>,
}

/// Where messages go; `None` ends the thread.
pub struct Inbox<M>(Sender<Option<M>>, Arc<Wake>);

/// The thread's side.
pub struct Desk<M, C> {
    pub inbox: Receiver<Option<M>>,
    pub wake: Arc<Wake>,
    counts: Arc<Mutex<C>>,
    cpu: (Option<Instant>, u64),
}

impl<M: Send + 'static, C: Copy + Default + Send + 'static, R: Send + 'static> Worker<M, C, R> {
    /// Starts the thread on `cpu` and in `namespace`, where it opens what it runs.
    pub fn start<D: FnOnce() -> Result<R>>(
        name: &str,
        cpu: usize,
        namespace: &Namespace,
        open: impl FnOnce(Desk<M, C>) -> Result<D> + Send + 'static,
    ) -> Result<Self> {
        let (sender, inbox) = unbounded();
        let wake = Arc::new(Wake::new().context("cannot make an eventfd")?);
        let counts = Arc::default();
        let desk = Desk { inbox, wake: Arc::clone(&wake), counts: Arc::clone(&counts), cpu: (None, 0) };
        let (started, is_started) = bounded(1);
        let run = move || {
            let run = cpus::pin(&[cpu]).and_then(|()| open(desk))?;
            // The receiver waits for exactly this, or the thread's end.
            let _ = started.send(());
            run()
        };
        let spawn = || Builder::new().name(name.to_owned()).spawn(run);
        let handle = namespace.run(spawn).with_context(|| format!("cannot start {name}"))?;
        let mut worker = Worker { inbox: Inbox(sender, wake), counts, handle: Some(handle) };
        if is_started.recv().is_err() {
            worker.end().with_context(|| name.to_owned())?;
        }
        Ok(worker)
    }

    /// What it counted up to the end of its last pass. It is not disturbed by that.
    pub fn counts(&self) -> C {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn inbox(&self) -> &Inbox<M> {
        &self.inbox
    }

    /// Whether the thread has ended, of an error that [`Worker::join`] tells.
    pub fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread.
    pub fn join(mut self) -> Result<R> {
        self.end()
    }
}

impl<M, C, R> Worker<M, C, R> {
    fn end(&mut self) -> Result<R> {
        let handle = self.handle.take().context("the thread has ended before")?;
        self.inbox.put(None);
        handle.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
    }
}

impl<M, C, R> Drop for Worker<M, C, R> {
    fn drop(&mut self) {
        // Who wants to know of errors calls `join`.
        let _ = self.end();
    }
}

impl<M> Inbox<M> {
    pub fn send(&self, message: M) {
        self.put(Some(message));
    }

    /// Whoever is gone needs no message.
    fn put(&self, message: Option<M>) {
        let _ = self.0.send(message);
        self.1.notify();
    }
}

impl<M> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Inbox(self.0.clone(), Arc::clone(&self.1))
    }
}

impl<M, C> Desk<M, C> {
    pub fn publish(&self, counts: C) {
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
