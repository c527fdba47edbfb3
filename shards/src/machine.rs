//! The contract between a state machine of this crate and whoever drives it; see the crate's documentation for the order of calls.

use std::time::Instant;

use crate::drops::DropReason;
use crate::io::{Received, Transmit, WakeReason};
use crate::packet::MergeKind;
use crate::packet::frame::Frame;

/// A sans-IO state machine between a UDP socket and a TUN queue. The crate's documentation states the order of the calls.
pub trait Machine {
    fn handle_udp(&mut self, now: Instant, received: Received);

    /// Takes one frame of a TUN queue, the virtio header in front.
    fn handle_frame(&mut self, now: Instant, frame: &[u8]);

    /// Takes note that `now` has come. Cheap when nothing is due.
    fn handle_timeout(&mut self, now: Instant);

    /// Looks at every connection that the batch touched. To be called once between the batch's last `handle_*` and its first `poll_*`.
    fn decide(&mut self, now: Instant);

    /// Appends the next UDP send to `buf`, which must be empty, or says that there is none.
    fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit>;

    /// The next frame for the TUN queue. It is gone with the next call.
    fn poll_frame(&mut self) -> Option<Frame<'_>>;

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
