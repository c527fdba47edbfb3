//! The handshakes beside those of `reishi-handshake`, which Quincy has: the same bytes of the same draws, and the same refusals.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::sample::Index;
use rand_core::{CryptoRng, Error, RngCore};
use reishi_handshake::{
    Handshake as Standard, HandshakeAction, HybridHandshake, HybridKeyPair, HybridPublicKey, KeyPair, PqHandshake,
    PqKeyPair, PqPublicKey,
};
use zeroize::Zeroizing;

use crate::handshake::Handshake;
use crate::hash::hash;
use crate::keys::{Pair, PrivateKey, PublicKey};
use crate::kind::Kind;
use crate::random::{NoRandomness, Randomness};
use crate::schedule::SECRET_LABEL;

/// The same draws for both.
struct Draws(AtomicU64);

impl Randomness for Draws {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        for part in bytes.chunks_mut(32) {
            let number = self.0.fetch_add(1, Ordering::Relaxed);
            part.copy_from_slice(&hash(&[&number.to_be_bytes()])[..part.len()]);
        }
        Ok(())
    }
}

impl RngCore for Draws {
    fn next_u32(&mut self) -> u32 {
        unreachable!("nobody draws less than a key")
    }

    fn next_u64(&mut self) -> u64 {
        unreachable!("nobody draws less than a key")
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.fill(bytes).unwrap();
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl CryptoRng for Draws {}

enum Theirs {
    Standard(Box<Standard>),
    PostQuantum(Box<PqHandshake>),
    Hybrid(Box<HybridHandshake>),
}

/// Does the same for each kind.
macro_rules! each {
    ($handshake:expr, $inner:ident => $what:expr) => {
        match $handshake {
            Theirs::Standard($inner) => $what,
            Theirs::PostQuantum($inner) => $what,
            Theirs::Hybrid($inner) => $what,
        }
    };
}

impl Theirs {
    /// The side of the owner of `own`: the server's, or towards a `server` the client's.
    fn new(own: &PrivateKey, bytes: &[u8], server: Option<&PublicKey>) -> Theirs {
        let prologue = [&b"\0reishi-quic-version\0"[..], &own.kind().quic_version().to_be_bytes()].concat();
        let server = server.map(PublicKey::as_bytes);
        match own.kind() {
            Kind::Standard => {
                let own = KeyPair::from_secret_bytes(bytes.try_into().unwrap());
                let server = server.map(|key| reishi_handshake::PublicKey::from_bytes(key.try_into().unwrap()));
                Theirs::Standard(Box::new(match server {
                    Some(server) => Standard::new_initiator(&own, &server, &prologue).unwrap(),
                    None => Standard::new_responder(&own, &prologue).unwrap(),
                }))
            }
            Kind::PostQuantum => {
                let own = PqKeyPair::from_secret_bytes(bytes.try_into().unwrap());
                let server = server.map(|key| PqPublicKey::from_bytes(key.try_into().unwrap()));
                Theirs::PostQuantum(Box::new(match server {
                    Some(server) => PqHandshake::new_initiator(&own, &server, &prologue).unwrap(),
                    None => PqHandshake::new_responder(&own, &prologue).unwrap(),
                }))
            }
            Kind::Hybrid => {
                let own = HybridKeyPair::from_secret_bytes(bytes.try_into().unwrap());
                let server = server.map(|key| HybridPublicKey::from_bytes(key.try_into().unwrap()));
                Theirs::Hybrid(Box::new(match server {
                    Some(server) => HybridHandshake::new_initiator(&own, &server, &prologue).unwrap(),
                    None => HybridHandshake::new_responder(&own, &prologue).unwrap(),
                }))
            }
        }
    }

    fn is_to_write(&self) -> bool {
        each!(self, inner => inner.next_action()) == HandshakeAction::WriteMessage
    }

    fn is_complete(&self) -> bool {
        each!(self, inner => inner.next_action()) == HandshakeAction::Complete
    }

    fn read(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut payload = vec![0; message.len()];
        let length = each!(self, inner => inner.read_message(message, &mut payload)).ok()?;
        payload.truncate(length);
        Some(payload)
    }

    fn write(&mut self, draws: &mut Draws, payload: &[u8]) -> Option<Vec<u8>> {
        let payload = if each!(self, inner => inner.next_message_accepts_payload()) { payload } else { &[] };
        let mut message = vec![0; each!(self, inner => inner.next_message_overhead()) + payload.len()];
        each!(self, inner => inner.write_message_with_rng(payload, &mut message, draws)).ok()?;
        Some(message)
    }

    fn peer(&self) -> Option<Vec<u8>> {
        match self {
            Theirs::Standard(inner) => inner.remote_public_bytes().map(|key| key.to_vec()),
            Theirs::PostQuantum(inner) => inner.remote_public().map(|key| key.to_bytes().to_vec()),
            Theirs::Hybrid(inner) => inner.remote_public().map(|key| key.to_bytes().to_vec()),
        }
    }
}

/// One end of a handshake, as both have it.
struct End {
    ours: Handshake,
    theirs: Theirs,
    draws: [Draws; 2],
}

impl End {
    fn new(own: &Key, server: Option<&PublicKey>, draws: u64) -> Self {
        let ours = match server {
            Some(server) => Handshake::initiator(&own.pair, server),
            None => Handshake::responder(&own.pair),
        };
        let theirs = Theirs::new(&own.private, &own.bytes, server);
        End { ours, theirs, draws: [draws; 2].map(|first| Draws(AtomicU64::new(first))) }
    }

    /// What is written, by both alike.
    fn write(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        assert!(self.ours.is_to_write() && self.theirs.is_to_write());
        let ours = self.ours.write(&self.draws[0], &mut payload.to_vec()).ok();
        assert_eq!(ours, self.theirs.write(&mut self.draws[1], payload));
        ours
    }

    /// What is read, by both alike.
    fn read(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let ours = self.ours.read(message).ok().map(|payload| payload.to_vec());
        assert_eq!(ours, self.theirs.read(message));
        if ours.is_some() {
            assert_eq!(self.ours.is_complete(), self.theirs.is_complete());
            assert_eq!(self.ours.peer().map(|key| key.as_bytes().to_vec()), self.theirs.peer());
        }
        ours
    }

    fn secret(&self) -> [u8; 32] {
        let ours = self.ours.secret();
        assert_eq!(ours, each!(&self.theirs, inner => inner.get_ask(SECRET_LABEL)).unwrap());
        ours
    }
}

struct Key {
    private: PrivateKey,
    bytes: Vec<u8>,
    pair: Arc<Pair>,
}

fn key(kind: Kind, number: u64) -> Key {
    let mut bytes = vec![0; kind.private_key_bytes()];
    Draws(AtomicU64::new(number << 32)).fill(&mut bytes).unwrap();
    let private = PrivateKey::from_bytes(Zeroizing::new(bytes.clone())).unwrap();
    Key { pair: Arc::new(private.pair()), private, bytes }
}

/// Runs a handshake; `damage` changes a message, of which it has the number. Returns whether it was completed.
fn run(kind: Kind, keys: u64, payloads: [&[u8]; 2], mut damage: impl FnMut(usize, &mut Vec<u8>)) -> bool {
    let (client, server) = (key(kind, keys), key(kind, keys + 1));
    let mut ends = [End::new(&client, Some(&server.pair.public), keys), End::new(&server, None, !keys)];
    for number in 0.. {
        let (writer, reader) = (number % 2, 1 - number % 2);
        if ends[writer].ours.is_complete() {
            break;
        }
        let Some(mut message) = ends[writer].write(payloads[writer]) else { return false };
        damage(number, &mut message);
        let Some(payload) = ends[reader].read(&message) else { return false };
        assert!(payload.is_empty() || payload == payloads[writer]);
    }
    assert_eq!(ends[0].secret(), ends[1].secret());
    true
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_say_the_same(
        kind in kinds(), keys: u32,
        client in prop::collection::vec(any::<u8>(), 0..300), server in prop::collection::vec(any::<u8>(), 0..300)
    ) {
        let completed = run(kind, keys.into(), [&client, &server], |_, _| {});
        prop_assert!(completed);
    }

    #[test]
    fn both_refuse_what_is_damaged(kind in kinds(), keys: u32, which in 0..3usize, place: Index, bit in 0..8u8) {
        let mut damaged = false;
        let completed = run(kind, keys.into(), [b"client", b"server"], |number, message| {
            if number == which {
                let place = place.index(message.len());
                message[place] ^= 1 << bit;
                damaged = true;
            }
        });
        prop_assert_eq!(completed, !damaged);
    }

    #[test]
    fn both_refuse_what_is_cut_or_longer(kind in kinds(), keys: u32, which in 0..3usize, length: Index) {
        let mut damaged = false;
        let completed = run(kind, keys.into(), [b"client", b"server"], |number, message| {
            if number == which {
                let before = message.len();
                message.resize(length.index(before + 100), 0);
                damaged = message.len() != before;
            }
        });
        prop_assert_eq!(completed, !damaged);
    }

    #[test]
    fn both_read_garbage_alike(kind in kinds(), garbage in prop::collection::vec(any::<u8>(), 0..4000)) {
        let server = key(kind, 1);
        prop_assert!(End::new(&server, None, 1).read(&garbage).is_none());
    }
}

/// Keys that are on the wire as any others, and with which nothing can be agreed.
#[test]
fn both_refuse_keys_that_are_none() {
    let mut one = [0; 32];
    one[0] = 1;
    for (kind, damaged) in [
        (Kind::Standard, vec![0; 32]),
        (Kind::Standard, one.to_vec()),
        (Kind::PostQuantum, vec![0xff; 1184]),
        (Kind::Hybrid, [&[9; 32][..], &[0xff; 1184]].concat()),
        (Kind::Hybrid, [&[0; 32][..], key(Kind::PostQuantum, 3).pair.public.as_bytes()].concat()),
    ] {
        let server = PublicKey::of(kind, &damaged);
        assert_eq!(End::new(&key(kind, 1), Some(&server), 1).write(&[]), None, "{server}");
    }
}

#[test]
fn both_refuse_clients_whose_keys_are_none() {
    for (kind, damaged) in [
        (Kind::Standard, vec![0; 32]),
        (Kind::PostQuantum, vec![0xff; 1184]),
        (Kind::Hybrid, [&[9; 32][..], &[0xff; 1184]].concat()),
        (Kind::Hybrid, [&[0; 32][..], key(Kind::PostQuantum, 3).pair.public.as_bytes()].concat()),
    ] {
        let (client, server) = (key(kind, 1), key(kind, 2));
        let mut pair = client.private.pair();
        pair.public = PublicKey::of(kind, &damaged);
        let mut ours = Handshake::initiator(&Arc::new(pair), &server.pair.public);
        let first = ours.write(&Draws(AtomicU64::new(1)), &mut Vec::new()).unwrap();
        let mut server = End::new(&server, None, 2);
        assert!(server.read(&first).and_then(|_| server.write(&[])).is_none(), "{kind}: {damaged:?}");
    }
}
