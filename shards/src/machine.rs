//! The contract between a state machine of this crate and whoever drives it; see the crate's documentation for the order of calls.

use std::time::Instant;

use crate::drops::DropReason;
use crate::io::{Received, Transmit, WakeReason};
use crate::packet::MergeKind;
use crate::packet::frame::Frame;

/// What a machine has for its driver.
#[derive(Debug)]
pub enum Output<'a, A> {
    /// For the TUN queue. It is gone with the next call.
    Frame(Frame<'a>),
    /// A UDP send, whose bytes were appended to the driver's buffer.
    Transmit(Transmit),
    /// Whatever else the driver has to carry out, or to know.
    Action(A),
}

/// A sans-IO state machine between a UDP socket and a TUN queue.
pub trait Machine {
    /// What it has for its driver beside packets.
    type Action;

    fn handle_udp(&mut self, now: Instant, received: Received);

    /// Takes one frame of a TUN queue, the virtio header in front.
    fn handle_frame(&mut self, now: Instant, frame: &[u8]);

    /// Takes note that `now` has come. Cheap when nothing is due.
    fn handle_timeout(&mut self, now: Instant);

    /// The next thing for the driver, in the order in which it is to be carried out; after a batch, each connection that it touched is looked at
    /// first. A send is appended to `buf`, which must be empty; without `buf`, sends stay inside, as frames do unless `takes_frames`.
    fn poll_output(
        &mut self,
        now: Instant,
        takes_frames: bool,
        buf: Option<&mut Vec<u8>>,
    ) -> Option<Output<'_, Self::Action>>;

    /// Takes note that the driver could not deliver `packets` that it was given.
    fn handle_drop(&mut self, reason: DropReason, packets: u64);

    /// Takes note that the TUN queue refuses super-packets of this kind: from now on their packets come one by one.
    fn handle_refused_merges(&mut self, kind: MergeKind);

    /// Whether the last batch has left received datagrams that were not looked at. More of them are to wait in the kernel meanwhile.
    fn has_backlog(&self) -> bool {
        false
    }

    /// When `handle_timeout` is wanted next, and why.
    fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)>;
}
