//! The threads that cores run on: glommio executors where io_uring is to be had, plain pinned threads elsewhere.
//!
//! A thread starts, is pinned and says so before it gets its core: a gateway whose threads cannot start has opened nothing and told nobody.
//! A core runs the same on both kinds, and ends the same.

use std::ffi::CString;
use std::io;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use glommio::{CpuSet as Cpus, LocalExecutorPoolBuilder, PoolPlacement, PoolThreadHandles};
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
pub type Job = Box<dyn FnOnce() + Send>;

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

/// A pinned thread that waits for its one job. It ends without one when this value is dropped.
pub struct CoreThread(Sender<Job>);

impl CoreThread {
    /// Gives the thread its job.
    pub fn run(self, job: Job) {
        // The thread waits for it: it has said that it started.
        let _ = self.0.send(job);
    }
}

/// The threads of all shards.
pub struct Pool(Kind);

enum Kind {
    Executors(PoolThreadHandles<io::Result<()>>),
    Plain(Vec<JoinHandle<io::Result<()>>>),
}

impl Pool {
    /// Waits for the end of all threads. Returns why the first one of those that failed did, outside of its job.
    pub fn join(self) -> Result<(), String> {
        match self.0 {
            Kind::Executors(handles) => handles.join_all().into_iter().try_for_each(|ended| match ended {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }),
            Kind::Plain(handles) => handles.into_iter().map(JoinHandle::join).try_for_each(|ended| match ended {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err("it panicked".to_owned()),
            }),
        }
    }
}

/// Starts a thread for each shard on the CPU of that index, all of one kind, and waits until they run.
///
/// # Errors
///
/// If not even plain threads start.
pub fn start(cpus: &[usize]) -> Result<(Pool, Vec<CoreThread>), ThreadError> {
    let executors = capacity::allow_executors(cpus.len())
        .and_then(|()| uring::probe().map_err(|refusal| refusal.to_string()))
        .and_then(|()| start_all(cpus, executors).map_err(|error| error.reason));
    executors.or_else(|reason| {
        info!(
            "the shards run on plain pinned threads instead of io_uring executors ({reason}); nothing is lost by that"
        );
        start_all(cpus, plain)
    })
}

fn start_all(
    cpus: &[usize],
    start: impl Fn(Vec<Start>) -> Result<Pool, ThreadError>,
) -> Result<(Pool, Vec<CoreThread>), ThreadError> {
    let (started, starts) = bounded(cpus.len());
    let (threads, waiting): (Vec<_>, Vec<_>) = cpus
        .iter()
        .enumerate()
        .map(|(shard, &cpu)| {
            let (jobs, job) = bounded(1);
            (CoreThread(jobs), Start { shard: shard as u16, cpu, job, started: started.clone() })
        })
        .unzip();
    drop(started);
    let pool = start(waiting)?;
    let mut missing: Vec<u16> = (0..cpus.len() as u16).collect();
    while let Ok(shard) = starts.recv() {
        missing.retain(|other| *other != shard);
        if missing.is_empty() {
            return Ok((pool, threads));
        }
    }
    // Those that have started end without a job, and one of the others says why it did not.
    drop(threads);
    let reason = pool.join().err().unwrap_or_else(|| "it ended at once".to_owned());
    let shard = missing[0];
    Err(ThreadError { shard, cpu: cpus[usize::from(shard)], reason })
}

/// glommio places, starts and joins a pool of executors, one for each of `starts`.
fn executors(starts: Vec<Start>) -> Result<Pool, ThreadError> {
    let error = |start: &Start, reason: &dyn ToString| ThreadError {
        shard: start.shard,
        cpu: start.cpu,
        reason: reason.to_string(),
    };
    let online = Cpus::online().map_err(|reason| error(&starts[0], &reason))?;
    let mut placement = Vec::with_capacity(starts.len());
    for start in &starts {
        let cpu = online.clone().filter(|location| location.cpu == start.cpu);
        if cpu.is_empty() {
            return Err(error(start, &"this CPU is not online"));
        }
        placement.push(cpu);
    }
    let first = ThreadError { shard: starts[0].shard, cpu: starts[0].cpu, reason: String::new() };
    let starts = Arc::new(Mutex::new(starts));
    LocalExecutorPoolBuilder::new(PoolPlacement::Custom(placement))
        .name("tollgate")
        .io_memory(IO_MEMORY_BYTES)
        .preempt_timer(PREEMPT_TIMER)
        .on_all_shards(move || async move { Start::take(&starts)?.run() })
        .map(|handles| Pool(Kind::Executors(handles)))
        .map_err(|reason| ThreadError { reason: reason.to_string(), ..first })
}

fn plain(starts: Vec<Start>) -> Result<Pool, ThreadError> {
    let mut handles = Vec::with_capacity(starts.len());
    for start in starts {
        let (shard, cpu) = (start.shard, start.cpu);
        let pinned = move || {
            let mut cpus = CpuSet::new();
            cpus.set(cpu);
            rustix::thread::sched_setaffinity(None, &cpus)?;
            start.run()
        };
        let spawned = Builder::new().name(format!("tollgate-{shard}")).spawn(pinned);
        handles.push(spawned.map_err(|error| ThreadError { shard, cpu, reason: error.to_string() })?);
    }
    Ok(Pool(Kind::Plain(handles)))
}

/// The index, CPU and channel that a new thread gets.
struct Start {
    shard: u16,
    cpu: usize,
    job: Receiver<Job>,
    started: Sender<u16>,
}

impl Start {
    /// The first of `starts` for the CPU of the calling thread: threads on one CPU are alike.
    fn take(starts: &Mutex<Vec<Start>>) -> io::Result<Start> {
        let affinity = rustix::thread::sched_getaffinity(None)?;
        let mut starts = starts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = starts.iter().position(|start| affinity.is_set(start.cpu));
        own.map(|own| starts.remove(own))
            .ok_or_else(|| io::Error::other("it runs on another CPU than it was placed on"))
    }

    fn run(self) -> io::Result<()> {
        let Start { shard, job, started, .. } = self;
        // A pool numbers its threads by the order of their coming.
        if let Ok(name) = CString::new(format!("tollgate-{shard}")) {
            let _ = rustix::thread::set_name(&name);
        }
        if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS)) {
            debug!(%error, "the kernel may end sleeps up to 50 us late");
        }
        // The gateway waits for it, or has given up because another thread did not start.
        let _ = started.send(shard);
        drop(started);
        match job.recv() {
            Ok(job) => {
                job();
                Ok(())
            }
            // The gateway has failed to start.
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Way = fn(Vec<Start>) -> Result<Pool, ThreadError>;
    const WAYS: [(&str, Way); 2] = [("executors", executors), ("plain", plain)];

    fn cpu() -> usize {
        let affinity = rustix::thread::sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).find(|&cpu| affinity.is_set(cpu)).unwrap()
    }

    #[test]
    fn a_job_runs_named_pinned_and_with_fine_timers_on_both_kinds() {
        for (name, way) in WAYS {
            let cpu = cpu();
            let (pool, mut threads) = start_all(&[cpu, cpu], way).unwrap();
            let (sender, receiver) = bounded(1);
            let job = move || {
                let affinity = rustix::thread::sched_getaffinity(None).unwrap();
                let pinned: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| affinity.is_set(cpu)).collect();
                let named = rustix::thread::name().unwrap();
                let _ = sender.send((named, pinned, rustix::thread::current_timer_slack().unwrap()));
            };
            threads.remove(1).run(Box::new(job));
            let (named, pinned, slack) = receiver.recv().unwrap();
            assert_eq!(named.to_str(), Ok("tollgate-1"), "{name}");
            assert_eq!((pinned, slack), (vec![cpu], TIMER_SLACK_NS), "{name}");
            // One that gets no job ends with its owner.
            drop(threads);
            pool.join().unwrap();
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
