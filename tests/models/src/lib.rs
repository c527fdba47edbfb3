//! The mesh between shards and the wakers of shards, compiled from the gateway's own files for [loom](https://docs.rs/loom), which goes through
//! all orders of the threads' steps and all values that a load may see under the memory model.
//!
//! In the place of what threads share there are models: atomics and fences are loom's, a channel promises no more than its order, and an eventfd
//! is a flag that a thread can wait for.

/// The gateway's modules, of the same names.
pub mod gateway {
    #[path = "../../../../src/gateway/mesh.rs"]
    pub mod mesh;
    pub mod sync;
    #[path = "../../../../src/gateway/waker.rs"]
    pub mod waker;
}

/// The shell's descriptors.
pub mod io {
    use std::sync::PoisonError;

    use loom::sync::{Condvar, Mutex};

    /// An eventfd.
    #[derive(Debug, Default)]
    pub struct Wake {
        is_notified: Mutex<bool>,
        changed: Condvar,
    }

    impl Wake {
        /// As that of the shell.
        pub fn notify(&self) {
            *self.is_notified.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.changed.notify_all();
        }

        /// As that of the shell.
        pub fn drain(&self) -> bool {
            std::mem::take(&mut *self.is_notified.lock().unwrap_or_else(PoisonError::into_inner))
        }

        /// Whether a poller would report it.
        pub fn is_readable(&self) -> bool {
            *self.is_notified.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Sleeps until it is readable. Loom fails where that never comes.
        pub fn wait(&self) {
            let mut is_notified = self.is_notified.lock().unwrap_or_else(PoisonError::into_inner);
            while !*is_notified {
                is_notified = self.changed.wait(is_notified).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
