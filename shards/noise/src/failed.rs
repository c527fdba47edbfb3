//! The one failure of all that a handshake is made of.

/// The handshake cannot go on: what came was not meant for this side, or not as it was sent. Or nothing could be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the handshake cannot go on")]
pub struct Failed;
