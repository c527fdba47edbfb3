//! Loom's, and a channel of one sender and one receiver. It promises that what it hands out comes in order and complete; what one end knows of
//! the other may be old.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use loom::sync::atomic::AtomicUsize;

pub use loom::sync::Arc;
pub use loom::sync::atomic::{AtomicBool, Ordering, fence};

struct Channel<T> {
    messages: Mutex<VecDeque<T>>,
    sent: AtomicUsize,
    taken: AtomicUsize,
    messages_max: usize,
}

/// The sending end.
pub struct Sender<T>(Arc<Channel<T>>);

/// The receiving end.
pub struct Receiver<T>(Arc<Channel<T>>);

/// Why a message was not sent.
pub enum TrySendError<T> {
    /// There is no room.
    Full(T),
    /// Nobody receives. Not here.
    Disconnected(T),
}

/// The ends of a channel.
pub fn bounded<T>(messages_max: usize) -> (Sender<T>, Receiver<T>) {
    let channel = Arc::new(Channel {
        messages: Mutex::default(),
        sent: AtomicUsize::new(0),
        taken: AtomicUsize::new(0),
        messages_max,
    });
    (Sender(channel.clone()), Receiver(channel))
}

impl<T> Sender<T> {
    /// As crossbeam's.
    ///
    /// # Errors
    ///
    /// Where there is no room, by what this end knows.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let sent = self.0.sent.load(Ordering::Relaxed);
        if sent - self.0.taken.load(Ordering::Acquire) == self.0.messages_max {
            return Err(TrySendError::Full(message));
        }
        self.0.messages.lock().unwrap_or_else(PoisonError::into_inner).push_back(message);
        self.0.sent.store(sent + 1, Ordering::Release);
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// As crossbeam's, by what this end knows.
    pub fn is_empty(&self) -> bool {
        self.0.sent.load(Ordering::Relaxed) == self.0.taken.load(Ordering::Relaxed)
    }

    /// As crossbeam's.
    pub fn try_iter(&self) -> impl Iterator<Item = T> {
        std::iter::from_fn(|| {
            let taken = self.0.taken.load(Ordering::Relaxed);
            if self.0.sent.load(Ordering::Acquire) == taken {
                return None;
            }
            let message = self.0.messages.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            self.0.taken.store(taken + 1, Ordering::Release);
            message
        })
    }
}
