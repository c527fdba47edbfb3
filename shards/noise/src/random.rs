//! Where random bytes come from.

/// A source of random bytes that nobody else knows: the system's, or in a simulation a stream of its seed.
pub trait Randomness: Send + Sync {
    /// Fills `bytes`.
    ///
    /// # Errors
    ///
    /// When the source gives none. `bytes` are then of no use.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;
}

/// The source of randomness gave none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness;

impl Randomness for aws_lc_rs::rand::SystemRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        aws_lc_rs::rand::SecureRandom::fill(self, bytes).map_err(|_| NoRandomness)
    }
}
