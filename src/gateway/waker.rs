//! The wake-up of a shard that sleeps: a flag says whether it does, and only then somebody else's notification ends the sleep.

use super::sync::{Arc, AtomicBool, Ordering, fence};
use crate::io::Wake;

/// What ends a sleep: level-triggered, until it is drained.
pub trait Notify {
    /// Ends the sleep, now or the next one.
    fn notify(&self);
    /// Forgets the notifications so far.
    fn drain(&self);
}

impl Notify for Wake {
    fn notify(&self) {
        self.notify();
    }

    fn drain(&self) {
        self.drain();
    }
}

/// Wakes a shard that sleeps.
#[derive(Debug)]
pub struct Waker<W = Wake> {
    sleeping: Arc<AtomicBool>,
    descriptor: Arc<W>,
}

impl<W> Clone for Waker<W> {
    fn clone(&self) -> Self {
        Waker { sleeping: self.sleeping.clone(), descriptor: self.descriptor.clone() }
    }
}

impl<W: Notify> Waker<W> {
    /// Of a shard that is awake, and whose sleeps `descriptor` ends.
    pub fn new(descriptor: W) -> Self {
        Waker { sleeping: Arc::new(AtomicBool::new(false)), descriptor: Arc::new(descriptor) }
    }

    /// The descriptor that ends the shard's sleep.
    pub fn descriptor(&self) -> &W {
        &self.descriptor
    }

    /// Wakes the shard if it sleeps. What it is to find must have been put in place before.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        // Of many who wake one notifies; and who finds the shard awake writes nothing.
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            self.descriptor.notify();
        }
    }

    /// Announces a sleep, and asks `is_idle` whether nothing waits: only then the shard may sleep. Either way [`Waker::end_sleep`] follows.
    ///
    /// No wake-up is lost. A sender puts something in place, passes its fence and reads `sleeping`; the shard sets `sleeping`, passes its fence
    /// and has `is_idle` look. Of the two fences one comes first, and what was done before it is seen behind the other: the shard does not
    /// sleep, or it is notified. A notification that is drained was for something that is in place by then, and the shard looks for that after
    /// each sleep.
    pub fn fall_asleep(&self, is_idle: impl FnOnce() -> bool) -> bool {
        // A store would do. Of a swap the model checker knows its place among the others; and a system call follows.
        self.sleeping.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        is_idle()
    }

    /// Ends a sleep; `is_notified` says whether the descriptor had been notified by then. A notification that comes late, when something else
    /// had ended an earlier sleep, ends this one: it must be drained, or no later sleep would last. Afterwards the shard must look for what
    /// has come.
    pub fn end_sleep(&self, is_notified: bool) {
        let is_woken = !self.sleeping.swap(false, Ordering::AcqRel);
        if is_woken || is_notified {
            self.descriptor.drain();
        }
    }
}
