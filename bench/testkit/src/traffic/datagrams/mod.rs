//! Numbered UDP datagrams: a generator, a receiver that counts losses, repetitions and reorderings of each flow, and an echo.

mod message;
mod receiver;
mod sender;
mod tally;

pub use receiver::{DatagramReceiver, DatagramResponse};
pub use sender::{DatagramPlan, DatagramReport, send};
pub use tally::FlowCounts;
