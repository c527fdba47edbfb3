//! What mesh and wakers share between threads. A model checker compiles both with others in the place of these.

pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicBool, Ordering, fence};

pub use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
