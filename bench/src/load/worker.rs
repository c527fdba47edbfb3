//! A pinned thread of the harness: what it is told, what it publishes, and what it reports at its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use rustix::time::{ClockId, clock_gettime};
use tollgate::io::Wake;
use tollgate_testkit::Namespace;

use crate::measure::cpus;

/// How often a thread reads its CPU clock.
const CPU_INTERVAL: Duration = Duration::from_millis(100);

/// A thread that takes messages `M`, publishes counts `C` with every pass, and ends with a report `R` when the last inbox is gone.
pub struct Worker<M, C, R> {
    inbox: Option<Inbox<M>>,
    counts: Arc<Mutex<C>>,
    handle: Option<JoinHandle<Result<R>>>,
}

pub struct Inbox<M> {
    sender: Option<Sender<M>>,
    wake: Arc<Wake>,
}

/// The thread's side.
pub struct Desk<M, C> {
    inbox: Receiver<M>,
    pub wake: Arc<Wake>,
    counts: Arc<Mutex<C>>,
    cpu: Option<(Instant, u64)>,
}

impl<M: Send + 'static, C: Copy + Default + Send + 'static, R: Send + 'static> Worker<M, C, R> {
    /// Starts the thread in `namespace`, where it opens what it runs.
    pub fn start<D: FnOnce() -> Result<R>>(
        name: &str,
        cpus: &[usize],
        namespace: &Namespace,
        open: impl FnOnce(Desk<M, C>) -> Result<D> + Send + 'static,
    ) -> Result<Self> {
        let (sender, receiver) = unbounded();
        let wake = Arc::new(Wake::new().context("cannot make an eventfd")?);
        let counts = Arc::default();
        let desk = Desk { inbox: receiver, wake: Arc::clone(&wake), counts: Arc::clone(&counts), cpu: None };
        let (started, is_started) = bounded(1);
        let cpus = cpus.to_vec();
        let run = move || {
            let (opened, failure) = match cpus::pin(&cpus).and_then(|()| open(desk)) {
                Ok(opened) => (Some(opened), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // The receiver waits for exactly this.
            let _ = started.send(failure);
            opened.context("it was not opened").and_then(|run| run())
        };
        let spawn = || Builder::new().name(name.to_owned()).spawn(run);
        let handle = namespace.run(spawn).with_context(|| format!("cannot start {name}"))?;
        let inbox = Some(Inbox { sender: Some(sender), wake });
        let worker = Worker { inbox, counts, handle: Some(handle) };
        is_started.recv().unwrap_or_else(|_| Err(anyhow!("it panicked"))).with_context(|| name.to_owned())?;
        Ok(worker)
    }

    /// What it counted up to the end of its last pass. It is not disturbed by that.
    pub fn counts(&self) -> C {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Panics
    ///
    /// After the worker's end.
    pub fn inbox(&self) -> Inbox<M> {
        self.inbox.clone().expect("a worker has an inbox until it is joined")
    }

    /// Whether the thread has ended, of an error that [`Worker::join`] tells.
    pub fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread, as soon as nobody else has its inbox.
    pub fn join(mut self) -> Result<R> {
        self.end().unwrap_or_else(|| Err(anyhow!("it has ended before")))
    }
}

impl<M, C, R> Worker<M, C, R> {
    fn end(&mut self) -> Option<Result<R>> {
        self.inbox = None;
        Some(self.handle.take()?.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
    }
}

impl<M, C, R> Drop for Worker<M, C, R> {
    fn drop(&mut self) {
        // Who wants to know of errors calls `join`.
        let _ = self.end();
    }
}

impl<M> Inbox<M> {
    /// Whoever is gone needs no message.
    pub fn send(&self, message: M) {
        let _ = self.sender.as_ref().map(|sender| sender.send(message));
        self.wake.notify();
    }
}

impl<M> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Inbox { sender: self.sender.clone(), wake: Arc::clone(&self.wake) }
    }
}

impl<M> Drop for Inbox<M> {
    fn drop(&mut self) {
        self.sender = None;
        self.wake.notify();
    }
}

impl<M, C> Desk<M, C> {
    /// The next message, if there is one.
    ///
    /// # Errors
    ///
    /// When there will be none any more.
    pub fn message(&self) -> Result<Option<M>, Ended> {
        match self.inbox.try_recv() {
            Ok(message) => Ok(Some(message)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Ended),
        }
    }

    pub fn publish(&self, counts: C) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// CPU time of the thread in nanoseconds, no more than 100 ms old.
    pub fn cpu_ns(&mut self, now: Instant) -> u64 {
        match self.cpu {
            Some((read_at, ns)) if now.saturating_duration_since(read_at) < CPU_INTERVAL => ns,
            _ => {
                let cpu = clock_gettime(ClockId::ThreadCPUTime);
                let ns = Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32).as_nanos() as u64;
                self.cpu = Some((now, ns));
                ns
            }
        }
    }
}

/// Nobody has the inbox any more.
#[derive(Debug)]
pub struct Ended;
