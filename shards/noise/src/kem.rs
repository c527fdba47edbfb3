//! ML-KEM-768 (FIPS 203). Nothing is drawn here, so that a simulated handshake repeats.

use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768PrivateKey, MlKem768PublicKey};
use zeroize::{Zeroize, Zeroizing};

use crate::failed::Failed;

pub const SEED_BYTES: usize = 64;
pub const COINS_BYTES: usize = 32;
pub const KEY_BYTES: usize = 1184;
pub const CIPHERTEXT_BYTES: usize = 1088;

pub type Public = [u8; KEY_BYTES];
pub type Ciphertext = [u8; CIPHERTEXT_BYTES];
type Shared = Zeroizing<[u8; 32]>;

/// Expanded from its seed, which costs as much as its use.
pub struct Secret(Box<MlKem768PrivateKey>);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0[0..].zeroize();
    }
}

impl Secret {
    pub fn new(seed: &[u8; SEED_BYTES]) -> (Self, Public) {
        let (secret, public) = mlkem768::generate_key_pair(*seed).into_parts();
        (Secret(Box::new(secret)), public.into())
    }

    /// A ciphertext that is for another key gives a secret that nobody shares.
    pub fn decapsulate(&self, ciphertext: &Ciphertext) -> Shared {
        Zeroizing::new(mlkem768::decapsulate(&self.0, &MlKem768Ciphertext::from(ciphertext)))
    }
}

/// Fails if `public` is no key (FIPS 203, section 7.2).
pub fn encapsulate(public: &Public, coins: &[u8; COINS_BYTES]) -> Result<(Ciphertext, Shared), Failed> {
    let public = MlKem768PublicKey::from(public);
    if !mlkem768::validate_public_key(&public) {
        return Err(Failed);
    }
    let (ciphertext, shared) = mlkem768::encapsulate(&public, *coins);
    Ok((ciphertext.into(), Zeroizing::new(shared)))
}
