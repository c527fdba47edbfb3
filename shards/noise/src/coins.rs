//! What a side draws for one handshake. Kinds with ML-KEM mix it with a secret of the private key, so that it stays secret where the system's
//! randomness is not; with the same draws it is what Quincy's side makes of them.

use zeroize::Zeroizing;

use crate::failed::Failed;
use crate::hash::{Hash, expand, hmac};
use crate::random::Randomness;

/// What a draw is for.
#[derive(Clone, Copy)]
pub enum Purpose {
    EphemeralDh,
    EphemeralKem,
    Encapsulation,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Purpose::EphemeralDh => b"ephemeral-dh-key-generation",
            Purpose::EphemeralKem => b"ephemeral-key-generation",
            Purpose::Encapsulation => b"encapsulation",
        }
    }
}

pub struct Coins<'a> {
    /// The key's secret, if its kind has one.
    pub secret: Option<&'a Hash>,
    /// The name of the handshake.
    pub name: &'static str,
    pub source: &'a dyn Randomness,
}

impl Coins<'_> {
    pub fn draw<const BYTES: usize>(&self, purpose: Purpose) -> Result<Zeroizing<[u8; BYTES]>, Failed> {
        let mut output = Zeroizing::new([0; BYTES]);
        let Some(secret) = self.secret else {
            self.fill(&mut *output)?;
            return Ok(output);
        };
        let mut drawn = Zeroizing::new([0; 32]);
        self.fill(&mut *drawn)?;
        let parts = [b"reishi KDF-SEEC v1", &[0][..], self.name.as_bytes(), &[0], purpose.label(), &[0], &*drawn];
        expand(&hmac(secret, &parts), b"reishi KDF-SEEC output", &mut *output).ok_or(Failed)?;
        Ok(output)
    }

    fn fill(&self, bytes: &mut [u8]) -> Result<(), Failed> {
        self.source.fill(bytes).map_err(|_| Failed)
    }
}
