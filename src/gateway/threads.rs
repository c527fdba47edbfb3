//! The threads that cores run on: glommio executors where io_uring is to be had, plain pinned threads elsewhere.
//!
//! A thread starts, is pinned and says so before it gets its core: a gateway whose threads cannot start has opened nothing and told nobody.
//! A core runs the same on both kinds, and ends the same.

use std::io;
use std::num::NonZeroU64;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use rustix::thread::CpuSet;
use tracing::{debug, info};

use super::capacity;
use crate::io::uring;

/// glommio's own I/O memory, in bytes. The data path does its own system calls and needs none of it.
const IO_MEMORY_BYTES: usize = 64 * 1024;
/// Longer than it takes to start on the busiest machine: a core is its executor's only task and is never preempted.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);
/// How late the kernel may end a sleep to save wake-ups: a core's waits are of some 100 microseconds, and the default is 50.
const TIMER_SLACK_NS: u64 = 1;

/// What a thread does once it has started.
pub type Job = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A core's thread could not start.
#[derive(Debug, thiserror::Error)]
#[error(
    "shard {shard} cannot have a thread on CPU {cpu}: {reason}; lower [shards] count, or allow for more threads (`ulimit -u`, TasksMax= or \
     the container's limit of processes)"
)]
pub struct ThreadError {
    shard: u16,
    cpu: usize,
    reason: String,
}

/// A pinned thread that waits for its one job.
pub struct CoreThread {
    jobs: Sender<Job>,
    join: Join,
}

/// A thread that has its job.
pub struct RunningThread(Join);

enum Join {
    Executor(ExecutorJoinHandle<io::Result<()>>),
    Plain(JoinHandle<io::Result<()>>),
}

/// Starts a thread for each shard on the CPU of that index, all of one kind, and waits until they run.
///
/// # Errors
///
/// If not even plain threads start.
pub fn start(cpus: &[usize]) -> Result<Vec<CoreThread>, ThreadError> {
    let executors = capacity::allow_executors(cpus.len())
        .and_then(|()| uring::probe().map_err(|refusal| refusal.to_string()))
        .and_then(|()| start_all(cpus, executor).map_err(|error| error.reason));
    executors.or_else(|reason| {
        info!(
            "the shards run on plain pinned threads instead of io_uring executors ({reason}); nothing is lost by that"
        );
        start_all(cpus, plain)
    })
}

fn start_all(
    cpus: &[usize],
    start: impl Fn(u16, usize, Start) -> Result<Join, String>,
) -> Result<Vec<CoreThread>, ThreadError> {
    let mut starting = Vec::with_capacity(cpus.len());
    for (shard, &cpu) in cpus.iter().enumerate() {
        let shard = shard as u16;
        let (jobs, job) = bounded(1);
        let (started, starts) = bounded(1);
        let join = start(shard, cpu, Start { job, started }).map_err(|reason| ThreadError { shard, cpu, reason })?;
        starting.push((shard, cpu, starts, CoreThread { jobs, join }));
    }
    let mut threads = Vec::with_capacity(cpus.len());
    for (shard, cpu, starts, thread) in starting {
        if starts.recv().is_err() {
            let reason = match thread.join.join() {
                Ok(Err(error)) => error.to_string(),
                Ok(Ok(())) => "it ended at once".to_owned(),
                Err(reason) => reason,
            };
            return Err(ThreadError { shard, cpu, reason });
        }
        threads.push(thread);
    }
    Ok(threads)
}

fn executor(shard: u16, cpu: usize, start: Start) -> Result<Join, String> {
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("tollgate-{shard}"))
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT_TIMER)
        .spawn(move || async move { start.run() })
        .map(Join::Executor)
        .map_err(|error| error.to_string())
}

fn plain(shard: u16, cpu: usize, start: Start) -> Result<Join, String> {
    let pinned = move || {
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        rustix::thread::sched_setaffinity(None, &cpus)?;
        start.run()
    };
    let spawned = Builder::new().name(format!("tollgate-{shard}")).spawn(pinned);
    spawned.map(Join::Plain).map_err(|error| error.to_string())
}

/// The index, CPU and channel that a new thread gets.
struct Start {
    job: Receiver<Job>,
    started: Sender<()>,
}

impl Start {
    fn run(self) -> io::Result<()> {
        if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS)) {
            debug!(%error, "the kernel may end sleeps up to 50 us late");
        }
        // The gateway waits for it, or has given up because another thread did not start.
        let _ = self.started.send(());
        match self.job.recv() {
            Ok(job) => job(),
            // The gateway has failed to start.
            Err(_) => Ok(()),
        }
    }
}

impl CoreThread {
    /// Gives the thread its job.
    pub fn run(self, job: Job) -> RunningThread {
        // A thread that is gone tells why when it is joined.
        let _ = self.jobs.send(job);
        RunningThread(self.join)
    }
}

impl RunningThread {
    /// Waits for the job's end, and gives its result.
    ///
    /// # Errors
    ///
    /// If the thread has ended without one.
    pub fn join(self) -> Result<io::Result<()>, String> {
        self.0.join()
    }
}

impl Join {
    fn join(self) -> Result<io::Result<()>, String> {
        match self {
            Join::Executor(handle) => handle.join().map_err(|error| error.to_string()),
            Join::Plain(handle) => handle.join().map_err(|_| "it panicked".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Way = fn(u16, usize, Start) -> Result<Join, String>;
    const WAYS: [(&str, Way); 2] = [("executor", executor), ("plain", plain)];

    fn cpu() -> usize {
        let affinity = rustix::thread::sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).find(|&cpu| affinity.is_set(cpu)).unwrap()
    }

    #[test]
    fn a_job_runs_named_pinned_and_with_fine_timers_on_both_kinds() {
        for (name, way) in WAYS {
            let cpu = cpu();
            let mut threads = start_all(&[cpu, cpu], way).unwrap();
            let (sender, receiver) = bounded(1);
            let job = move || {
                let affinity = rustix::thread::sched_getaffinity(None)?;
                let pinned: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| affinity.is_set(cpu)).collect();
                let named = std::thread::current().name().unwrap_or_default().to_owned();
                let _ = sender.send((named, pinned, rustix::thread::current_timer_slack()?));
                Err(io::Error::from_raw_os_error(libc::ENODEV))
            };
            let running = threads.remove(1).run(Box::new(job));
            let (named, pinned, slack) = receiver.recv().unwrap();
            assert!(named.starts_with("tollgate-1"), "{name}: {named}");
            assert_eq!((pinned, slack), (vec![cpu], TIMER_SLACK_NS), "{name}");
            let ended = running.join().unwrap().unwrap_err();
            assert_eq!(ended.raw_os_error(), Some(libc::ENODEV), "{name}: {ended}");
            // One that gets no job ends with its owner.
            let CoreThread { jobs, join } = threads.remove(0);
            drop(jobs);
            join.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_thread_that_cannot_start_is_named_with_its_cpu() {
        for (name, way) in WAYS {
            let error = start_all(&[cpu(), 1023], way).err().expect("no machine has CPU 1023").to_string();
            assert!(error.contains("shard 1") && error.contains("CPU 1023"), "{name}: {error}");
            assert_eq!(error.lines().count(), 1, "{name}: {error}");
        }
    }
}
