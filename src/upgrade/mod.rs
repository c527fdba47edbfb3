//! What the two processes of an upgrade have to do with each other, beside what their shards say.
//!
//! The process that serves starts the next one as its child, with a socket in the place of standard input, and [introduces](Introduction) itself there:
//! what the other one has to agree with, and copies of its descriptors. From then on both say [`Words`] there, between the messages of their shards.

mod child;
mod introduction;
pub mod words;

pub use child::{Program, SpawnError, Successor};
pub use introduction::{Handed, Introduction, IntroductionError, Listeners, take_over_input};
pub use words::Words;

/// The version of [`Introduction`] and [`Words`], beside that of the messages between shards. Another one whenever either changes.
pub const VERSION: u16 = 5;
