//! X25519 (RFC 7748).

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use zeroize::Zeroizing;

use crate::failed::Failed;

pub const KEY_BYTES: usize = 32;

pub type Public = [u8; KEY_BYTES];

pub struct Secret {
    key: PrivateKey,
    public: Public,
}

impl Secret {
    pub fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let key = PrivateKey::from_private_key(&X25519, bytes).expect("any 32 bytes are a key");
        let public = key.compute_public_key().expect("every key has a public one");
        Secret { public: public.as_ref().try_into().expect("a public key has 32 bytes"), key }
    }

    pub fn public(&self) -> &Public {
        &self.public
    }

    /// What this side and the owner of `public` have in common. Fails if that is nothing, as with points of low order.
    pub fn agree(&self, public: &Public) -> Result<Zeroizing<[u8; KEY_BYTES]>, Failed> {
        let public = UnparsedPublicKey::new(&X25519, public);
        agreement::agree(&self.key, public, Failed, |shared| {
            Ok(Zeroizing::new(shared.try_into().expect("a shared secret has 32 bytes")))
        })
    }
}
