//! The three handshakes: one, of which each kind has a part.
//!
//! ```text
//! <- dh, kem                                     the server's keys, known beforehand
//! -> skem, e, es, ENC(ekem, dh, kem), ss         standard: with a payload
//! <- ekem, ENC(skem), e, ee, se, ENC(payload)
//! -> ENC(payload)                                not standard
//! ```
//!
//! Kinds without ML-KEM leave out `skem`, `ekem` and `kem`; kinds without X25519 leave out `dh` and all that has an `e` or an `s` of two letters. `skem`
//! and `ekem` are ciphertexts for the other side's key and for its ephemeral one.

use std::sync::Arc;

use quinn_proto::Side;
use zeroize::Zeroizing;

use crate::coins::{Coins, Purpose};
use crate::failed::Failed;
use crate::keys::{Pair, PublicKey};
use crate::kind::Kind;
use crate::protection::TAG_BYTES;
use crate::random::Randomness;
use crate::schedule::{SECRET_LABEL, Secrets};
use crate::symmetric::Symmetric;
use crate::{dh, kem};

/// Sets the version apart from whatever else may be in a prologue.
const VERSION_LABEL: [u8; 21] = *b"\0reishi-quic-version\0";

/// After [`Failed`] it is of no use.
pub struct Handshake {
    own: Arc<Pair>,
    side: Side,
    symmetric: Symmetric,
    /// How many messages there have been, of both sides.
    messages: usize,
    /// The other side's key. That of a client is what its first message says.
    peer: Option<PublicKey>,
    ephemeral_dh: Option<dh::Secret>,
    ephemeral_kem: Option<kem::Secret>,
    peer_ephemeral_dh: Option<dh::Public>,
    peer_ephemeral_kem: Option<Box<kem::Public>>,
}

impl Handshake {
    /// The side of the server, whose keys are `own`.
    pub fn responder(own: &Arc<Pair>) -> Self {
        Handshake::new(own, Side::Server, &own.public, None)
    }

    /// The side of the client, whose keys are `own`, towards a server with the key `server`, which is of the same kind.
    pub fn initiator(own: &Arc<Pair>, server: &PublicKey) -> Self {
        Handshake::new(own, Side::Client, server, Some(server.clone()))
    }

    fn new(own: &Arc<Pair>, side: Side, server: &PublicKey, peer: Option<PublicKey>) -> Self {
        let kind = own.public.kind();
        let mut symmetric = Symmetric::new(kind.protocol_name());
        symmetric.mix_hash(&prologue(kind));
        server.dh().into_iter().for_each(|key| symmetric.mix_hash(key));
        server.kem().into_iter().for_each(|key| symmetric.mix_hash(key));
        Handshake {
            own: own.clone(),
            side,
            symmetric,
            messages: 0,
            peer,
            ephemeral_dh: None,
            ephemeral_kem: None,
            peer_ephemeral_dh: None,
            peer_ephemeral_kem: None,
        }
    }

    fn kind(&self) -> Kind {
        self.own.public.kind()
    }

    pub fn side(&self) -> Side {
        self.side
    }

    pub fn is_complete(&self) -> bool {
        self.messages == if self.kind().has_kem() { 3 } else { 2 }
    }

    pub fn is_to_write(&self) -> bool {
        let turn = if self.messages.is_multiple_of(2) { Side::Client } else { Side::Server };
        turn == self.side && !self.is_complete()
    }

    /// Whether the next message carries what this crate's caller gives.
    fn carries_payload(&self) -> bool {
        self.messages > 0 || !self.kind().has_kem()
    }

    /// Reads a message of the other side. Returns what it carries.
    pub fn read(&mut self, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failed> {
        if self.is_to_write() || self.is_complete() {
            return Err(Failed);
        }
        let mut rest = message;
        match self.messages {
            0 => self.read_keys(&mut rest)?,
            1 => self.read_answer(&mut rest)?,
            _ => {}
        }
        let payload = if self.carries_payload() {
            self.symmetric.open(rest)?
        } else if rest.is_empty() {
            Zeroizing::default()
        } else {
            return Err(Failed);
        };
        self.messages += 1;
        Ok(payload)
    }

    /// The next message. It carries what `payload` gives, if it may carry anything.
    pub fn write(&mut self, source: &dyn Randomness, payload: &mut Vec<u8>) -> Result<Vec<u8>, Failed> {
        if !self.is_to_write() {
            return Err(Failed);
        }
        let own = self.own.clone();
        let secret = own.kem.as_ref().map(|kem| &*kem.coins_secret);
        let coins = Coins { secret, name: self.kind().protocol_name(), source };
        let mut message = Vec::with_capacity(FIRST_MESSAGE_BYTES_MAX);
        match self.messages {
            0 => self.write_keys(&coins, &mut message)?,
            1 => self.write_answer(&coins, &mut message)?,
            _ => {}
        }
        if self.carries_payload() {
            self.symmetric.seal(&std::mem::take(payload), &mut message)?;
        }
        self.messages += 1;
        Ok(message)
    }

    /// `skem, e, es, ENC(ekem, dh, kem), ss`.
    fn write_keys(&mut self, coins: &Coins<'_>, message: &mut Vec<u8>) -> Result<(), Failed> {
        let (own, server) = (self.own.clone(), self.peer.clone().ok_or(Failed)?);
        if let Some(server) = server.kem() {
            let (ciphertext, shared) = kem::encapsulate(server, &*coins.draw(Purpose::Encapsulation)?)?;
            self.say(&ciphertext, message);
            self.symmetric.mix_key(&shared);
        }
        if let Some(server) = server.dh() {
            let ephemeral = self.ephemeral_dh.insert(dh::Secret::new(&*coins.draw(Purpose::EphemeralDh)?));
            let (public, shared) = (*ephemeral.public(), ephemeral.agree(server)?);
            self.say(&public, message);
            self.symmetric.mix_key(&shared);
        }
        let mut keys = Vec::with_capacity(kem::KEY_BYTES + own.public.as_bytes().len());
        if own.kem.is_some() {
            let (secret, public) = kem::Secret::new(&*coins.draw(Purpose::EphemeralKem)?);
            self.ephemeral_kem = Some(secret);
            keys.extend_from_slice(&public);
        }
        keys.extend_from_slice(own.public.as_bytes());
        self.symmetric.seal(&keys, message)?;
        if let (Some(own), Some(server)) = (&own.dh, server.dh()) {
            self.symmetric.mix_key(&*own.agree(server)?);
        }
        Ok(())
    }

    fn read_keys(&mut self, rest: &mut &[u8]) -> Result<(), Failed> {
        let own = self.own.clone();
        if let Some(own) = &own.kem {
            let ciphertext = self.hear(rest)?;
            self.symmetric.mix_key(&own.secret.decapsulate(ciphertext));
        }
        if let Some(own) = &own.dh {
            let ephemeral = self.hear(rest)?;
            self.peer_ephemeral_dh = Some(*ephemeral);
            self.symmetric.mix_key(&*own.agree(ephemeral)?);
        }
        let ephemeral_bytes = if own.kem.is_some() { kem::KEY_BYTES } else { 0 };
        let sealed = rest.split_off(..ephemeral_bytes + own.public.as_bytes().len() + TAG_BYTES).ok_or(Failed)?;
        let keys = self.symmetric.open(sealed)?;
        let (ephemeral, client) = keys.split_at(ephemeral_bytes);
        self.peer_ephemeral_kem = ephemeral.first_chunk().copied().map(Box::new);
        let client = self.peer.insert(PublicKey::of(own.public.kind(), client));
        if let (Some(own), Some(client)) = (&own.dh, client.dh()) {
            self.symmetric.mix_key(&*own.agree(client)?);
        }
        Ok(())
    }

    /// `ekem, ENC(skem), e, ee, se`.
    fn write_answer(&mut self, coins: &Coins<'_>, message: &mut Vec<u8>) -> Result<(), Failed> {
        let client = self.peer.clone().ok_or(Failed)?;
        if let (Some(ephemeral), Some(client)) = (self.peer_ephemeral_kem.take(), client.kem()) {
            let (ciphertext, shared) = kem::encapsulate(&ephemeral, &*coins.draw(Purpose::Encapsulation)?)?;
            self.say(&ciphertext, message);
            self.symmetric.mix_key(&shared);
            let (ciphertext, shared) = kem::encapsulate(client, &*coins.draw(Purpose::Encapsulation)?)?;
            self.symmetric.seal(&ciphertext, message)?;
            self.symmetric.mix_key(&shared);
        }
        if let (Some(ephemeral), Some(client)) = (self.peer_ephemeral_dh.take(), client.dh()) {
            let own = dh::Secret::new(&*coins.draw(Purpose::EphemeralDh)?);
            self.say(own.public(), message);
            self.symmetric.mix_key(&*own.agree(&ephemeral)?);
            self.symmetric.mix_key(&*own.agree(client)?);
        }
        Ok(())
    }

    fn read_answer(&mut self, rest: &mut &[u8]) -> Result<(), Failed> {
        let own = self.own.clone();
        if let (Some(ephemeral), Some(own)) = (self.ephemeral_kem.take(), &own.kem) {
            let ciphertext = self.hear(rest)?;
            self.symmetric.mix_key(&ephemeral.decapsulate(ciphertext));
            let sealed = rest.split_off(..kem::CIPHERTEXT_BYTES + TAG_BYTES).ok_or(Failed)?;
            let ciphertext = self.symmetric.open(sealed)?;
            self.symmetric.mix_key(&own.secret.decapsulate(ciphertext.first_chunk().ok_or(Failed)?));
        }
        if let (Some(ephemeral), Some(own)) = (self.ephemeral_dh.take(), &own.dh) {
            let server = self.hear(rest)?;
            self.symmetric.mix_key(&*ephemeral.agree(server)?);
            self.symmetric.mix_key(&*own.agree(server)?);
        }
        Ok(())
    }

    /// Appends `words` to `message` as they are.
    fn say(&mut self, words: &[u8], message: &mut Vec<u8>) {
        self.symmetric.mix_hash(words);
        message.extend_from_slice(words);
    }

    /// What the other side has said, as it is.
    fn hear<'a, const BYTES: usize>(&mut self, rest: &mut &'a [u8]) -> Result<&'a [u8; BYTES], Failed> {
        let words = rest.split_off(..BYTES).and_then(|words| words.first_chunk()).ok_or(Failed)?;
        self.symmetric.mix_hash(words);
        Ok(words)
    }

    /// The key of the other side, once it has shown that it holds it. A first message of the standard kind shows that too, but may be a
    /// repetition of one that somebody else sent.
    pub fn peer(&self) -> Option<&PublicKey> {
        let shown = match self.side {
            Side::Client => self.messages >= 2,
            Side::Server => self.messages >= if self.kind().has_kem() { 3 } else { 1 },
        };
        self.peer.as_ref().filter(|_| shown)
    }

    /// What the keys are made of, once it is complete.
    pub fn secrets(&self) -> Result<Secrets, Failed> {
        if self.is_complete() { Ok(Secrets::new(&self.symmetric.ask(SECRET_LABEL))) } else { Err(Failed) }
    }

    #[cfg(test)]
    pub fn secret(&self) -> [u8; 32] {
        *self.symmetric.ask(SECRET_LABEL)
    }
}

/// Of the hybrid kind, which is the longest of all but for payloads.
const FIRST_MESSAGE_BYTES_MAX: usize =
    kem::CIPHERTEXT_BYTES + dh::KEY_BYTES + kem::KEY_BYTES + Kind::Hybrid.public_key_bytes() + TAG_BYTES;

fn prologue(kind: Kind) -> [u8; VERSION_LABEL.len() + 4] {
    let mut prologue = [0; VERSION_LABEL.len() + 4];
    prologue[..VERSION_LABEL.len()].copy_from_slice(&VERSION_LABEL);
    prologue[VERSION_LABEL.len()..].copy_from_slice(&kind.quic_version().to_be_bytes());
    prologue
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;
    use crate::keys::PrivateKey;
    use crate::random::NoRandomness;
    use crate::vectors::{Vector, vectors};

    /// Ever the next number.
    struct Counting(AtomicU8);

    impl Randomness for Counting {
        fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
            bytes.iter_mut().for_each(|byte| *byte = self.0.fetch_add(1, Ordering::Relaxed));
            Ok(())
        }
    }

    struct Broken;

    impl Randomness for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), NoRandomness> {
            Err(NoRandomness)
        }
    }

    fn pair(vector: &Vector, name: &str) -> Arc<Pair> {
        Arc::new(PrivateKey::from_bytes(Zeroizing::new(vector.bytes(name))).unwrap().pair())
    }

    /// Client and server of the vector's keys.
    fn both(vector: &Vector) -> [Handshake; 2] {
        let (client, server) = (pair(vector, "client_private"), pair(vector, "server_private"));
        assert_eq!(client.public.as_bytes(), vector.bytes("client_public"));
        assert_eq!(server.public.as_bytes(), vector.bytes("server_public"));
        [Handshake::initiator(&client, &server.public), Handshake::responder(&server)]
    }

    fn handshakes() -> impl Iterator<Item = Vector> {
        vectors().into_iter().filter(|vector| vector.has("messages"))
    }

    #[test]
    fn messages_and_what_comes_of_them_are_those_of_the_vectors() {
        for vector in handshakes() {
            let mut sides = both(&vector);
            assert_eq!(prologue(pair(&vector, "server_private").public.kind())[..], vector.bytes("prologue"));
            let sources = [Counting(AtomicU8::new(0x10)), Counting(AtomicU8::new(0x90))];
            let names = ["payload_client", "payload_server"];
            let mut payloads = names.map(|name| vector.text(name).as_bytes().to_vec());
            let mut carried = [Vec::new(), Vec::new()];
            let messages = vector.list("messages");
            for (number, expected) in messages.iter().enumerate() {
                let (writer, reader) = (number % 2, 1 - number % 2);
                assert!(sides[writer].is_to_write() && !sides[reader].is_complete());
                let message = sides[writer].write(&sources[writer], &mut payloads[writer]).unwrap();
                assert_eq!(&message, expected, "{} {number}", vector.text("mode"));
                carried[writer].extend_from_slice(&sides[reader].read(&message).unwrap());
            }
            assert_eq!(carried, names.map(|name| vector.text(name).as_bytes()));
            for (side, peer) in sides.iter().zip(["server_public", "client_public"]) {
                assert!(side.is_complete());
                assert_eq!(side.peer().unwrap().as_bytes(), vector.bytes(peer));
                assert_eq!(side.secret()[..], vector.bytes("ask"));
                assert_eq!(side.symmetric.transcript()[..], vector.bytes("handshake_hash"));
            }
        }
    }

    #[test]
    fn a_client_that_has_shown_nothing_is_nobody() {
        for vector in handshakes() {
            let [mut client, mut server] = both(&vector);
            let source = Counting(AtomicU8::new(0));
            assert!(server.peer().is_none());
            server.read(&client.write(&source, &mut Vec::new()).unwrap()).unwrap();
            assert_eq!(server.peer().is_some(), vector.text("mode") == "standard");
            assert!(client.peer().is_none());
        }
    }

    #[test]
    fn a_message_that_is_not_as_it_was_sent_is_refused() {
        for vector in handshakes() {
            let first = &vector.list("messages")[0];
            for place in (0..first.len()).step_by(97) {
                let mut message = first.clone();
                message[place] ^= 0x10;
                assert_eq!(both(&vector)[1].read(&message), Err(Failed), "byte {place}");
                assert_eq!(both(&vector)[1].read(&first[..place]), Err(Failed), "{place} bytes");
            }
            assert_eq!(both(&vector)[1].read(&[&first[..], &[0]].concat()), Err(Failed));
        }
    }

    #[test]
    fn nothing_is_written_without_randomness() {
        for vector in handshakes() {
            assert_eq!(both(&vector)[0].write(&Broken, &mut Vec::new()), Err(Failed));
        }
    }
}
