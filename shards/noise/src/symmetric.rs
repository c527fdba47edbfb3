//! The part of a handshake that all kinds have in common (The Noise Protocol Framework, section 5.2): what both sides have said, hashed, and the keys
//! that come of what they share.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use zeroize::Zeroizing;

use crate::failed::Failed;
use crate::hash::{Hash, hash, hkdf};
use crate::protection::nonce;

pub struct Symmetric {
    chaining_key: Zeroizing<Hash>,
    transcript: Hash,
    cipher: Option<Cipher>,
}

struct Cipher {
    key: LessSafeKey,
    /// How many messages it has sealed or opened.
    uses: u64,
}

impl Symmetric {
    /// `name` is the protocol's, longer than a hash.
    pub fn new(name: &str) -> Self {
        let transcript = hash(&[name.as_bytes()]);
        Symmetric { chaining_key: Zeroizing::new(transcript), transcript, cipher: None }
    }

    pub fn mix_hash(&mut self, said: &[u8]) {
        self.transcript = hash(&[&self.transcript, said]);
    }

    pub fn mix_key(&mut self, shared: &[u8; 32]) {
        let outputs = hkdf::<2>(&self.chaining_key, shared);
        *self.chaining_key = outputs[0];
        let key = UnboundKey::new(&CHACHA20_POLY1305, &outputs[1]).expect("32 bytes are a key");
        self.cipher = Some(Cipher { key: LessSafeKey::new(key), uses: 0 });
    }

    /// Appends `plain` to `message`, sealed.
    pub fn seal(&mut self, plain: &[u8], message: &mut Vec<u8>) -> Result<(), Failed> {
        let Cipher { key, uses } = self.cipher.as_mut().ok_or(Failed)?;
        let start = message.len();
        message.extend_from_slice(plain);
        let nonce = nonce(*uses);
        *uses += 1;
        let sealed = key.seal_in_place_separate_tag(nonce, Aad::from(&self.transcript), &mut message[start..]);
        message.extend_from_slice(sealed.map_err(|_| Failed)?.as_ref());
        self.mix_hash(&message[start..]);
        Ok(())
    }

    /// What [`Symmetric::seal`] has made `sealed` of.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failed> {
        let Cipher { key, uses } = self.cipher.as_mut().ok_or(Failed)?;
        let mut opened = Zeroizing::new(sealed.to_vec());
        let nonce = nonce(*uses);
        *uses += 1;
        let bytes = key.open_in_place(nonce, Aad::from(&self.transcript), &mut opened).map_err(|_| Failed)?.len();
        opened.truncate(bytes);
        self.mix_hash(sealed);
        Ok(opened)
    }

    /// A secret of its own for whoever asks by `label`.
    pub fn ask(&self, label: &[u8]) -> Zeroizing<Hash> {
        Zeroizing::new(hkdf::<3>(&self.chaining_key, label)[2])
    }

    #[cfg(test)]
    pub fn transcript(&self) -> &Hash {
        &self.transcript
    }
}
