//! Threads that work until their owner goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// A thread of the calling thread's namespace. Dropping this value ends it.
#[derive(Debug)]
pub struct Worker {
    halted: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Calls `work`, which must not take long, until it returns false, and once more at the end: what has come by then is dealt with.
    pub fn repeat(mut work: impl FnMut() -> bool + Send + 'static) -> Self {
        Worker::start(move |halted| {
            loop {
                let is_last = halted.load(Ordering::Relaxed);
                if !work() || is_last {
                    return;
                }
            }
        })
    }

    /// Calls `work` once with what tells it when to end.
    pub fn start(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let halted = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&halted);
        Worker { halted, thread: Some(thread::spawn(move || work(&shared))) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.halted.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}
