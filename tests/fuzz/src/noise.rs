//! The CRYPTO streams of a Noise handshake, either way: as they are, in parts, changed, and made up.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn_proto::Side;
use quinn_proto::crypto::{ClientConfig as _, ServerConfig as _, Session};
use quinn_proto::transport_parameters::TransportParameters;
use tollgate_noise::{ClientConfig, Kind, Listed, NoRandomness, PrivateKey, PublicKey, Randomness, ServerConfig};

use crate::input::Input;

const STEPS_MAX: usize = 64;
/// What a side may write in all: its messages, and one that is empty.
const WRITTEN_MAX: usize = 2 * 8192 + 16;

/// Numbers that do not repeat: the same in every run of an input.
struct Counting(AtomicU64);

impl Randomness for Counting {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        for part in bytes.chunks_mut(8) {
            let number = self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            part.copy_from_slice(&number.to_le_bytes()[..part.len()]);
        }
        Ok(())
    }
}

struct Only(Option<PublicKey>);

impl Listed for Only {
    fn is_listed(&self, key: &PublicKey) -> bool {
        self.0.as_ref() == Some(key)
    }
}

struct End {
    session: Box<dyn Session>,
    /// What it has written and the other side has not been given: in Initial packets, in Handshake packets.
    outgoing: [Vec<u8>; 2],
    written: usize,
    /// Sets of keys that it has.
    levels: u32,
    has_failed: Cell<bool>,
}

impl End {
    fn new(session: Box<dyn Session>) -> Self {
        let mut end =
            End { session, outgoing: Default::default(), written: 0, levels: 0, has_failed: Cell::new(false) };
        end.write();
        end
    }

    fn read(&mut self, stream: &[u8]) {
        match self.session.read_handshake(stream) {
            Ok(_) => assert!(!self.has_failed.get(), "it goes on after it has failed"),
            Err(_) => self.has_failed.set(true),
        }
        self.write();
    }

    /// As quinn-proto asks: until there is nothing more.
    fn write(&mut self) {
        loop {
            let outgoing = &mut self.outgoing[usize::from(self.levels > 0)];
            let before = outgoing.len();
            let keys = self.session.write_handshake(outgoing);
            let bytes = outgoing.len() - before;
            assert!(!self.has_failed.get() || keys.is_none(), "keys for nobody");
            self.levels += u32::from(keys.is_some());
            self.written += bytes;
            if bytes == 0 && keys.is_none() {
                break;
            }
        }
        assert!(self.levels <= 2 && self.written <= WRITTEN_MAX);
    }

    fn secret(&self) -> Option<[u8; 32]> {
        let mut secret = [0; 32];
        self.session.export_keying_material(&mut secret, b"label", b"context").ok().map(|()| secret)
    }
}

/// Both sides of a handshake, whose streams an input cuts, changes and makes up. If nothing was changed, both have the same secret at the end; if
/// both have one, it is the same in any case.
pub fn noise(data: &[u8]) {
    let mut input = Input::new(data);
    let head = input.u8();
    let kind = Kind::ALL[usize::from(head) % Kind::ALL.len()];
    let source: Arc<dyn Randomness> = Arc::new(Counting(AtomicU64::new(1)));
    let [own, server] = [0; 2].map(|_| PrivateKey::generate(kind, &*source).expect("numbers have no end"));
    let is_listed = head & 0x80 == 0;
    let listed = Arc::new(Only(is_listed.then(|| own.public())));
    let config = Arc::new(ServerConfig::new([&server], listed, source.clone()).expect("one key"));
    let client = Arc::new(ClientConfig::new(&own, server.public(), source).expect("keys of one kind"));
    let parameters = |side| TransportParameters::read(side, &mut &[0x0f, 1, 7][..]).expect("an ID");
    let version = kind.quic_version();
    let mut ends = [
        End::new(client.start_session(version, "", &parameters(Side::Server)).expect("its own version")),
        End::new(config.start_session(version, &parameters(Side::Client))),
    ];
    let mut is_changed = false;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        is_changed |= step(&mut ends, &mut input);
    }
    let secrets = ends.each_ref().map(|end| end.secret());
    if let [Some(of_client), Some(of_server)] = secrets {
        assert!(is_listed && of_client == of_server, "two secrets, or one for somebody who is not listed");
    }
    if !is_changed && is_listed {
        (0..8).for_each(|number| carry(&mut ends, number % 2, usize::MAX));
        assert!(ends.iter().all(|end| !end.has_failed.get() && end.levels == 2 && end.secret().is_some()));
    }
}

/// Gives the other side what `from` has written, up to so many bytes: of Handshake packets once it can read those, and there is no Initial.
fn carry(ends: &mut [End; 2], from: usize, bytes_max: usize) {
    let level = usize::from(ends[from].outgoing[0].is_empty());
    if level == 1 && ends[1 - from].levels == 0 {
        return;
    }
    let outgoing = &mut ends[from].outgoing[level];
    let bytes = outgoing.len().min(bytes_max);
    let part: Vec<u8> = outgoing.drain(..bytes).collect();
    ends[1 - from].read(&part);
}

/// Returns whether anything is not as it was sent.
fn step(ends: &mut [End; 2], input: &mut Input<'_>) -> bool {
    let what = input.u8();
    let from = usize::from(what & 1);
    match what >> 1 & 3 {
        0 => carry(ends, from, usize::MAX),
        1 => carry(ends, from, usize::from(input.u16())),
        2 => {
            let (at, change) = (usize::from(input.u16()), input.u8());
            let outgoing = &mut ends[from].outgoing[usize::from(what >> 3 & 1)];
            let place = at % outgoing.len().max(1);
            if let Some(byte) = outgoing.get_mut(place) {
                *byte ^= change;
                return change != 0;
            }
        }
        _ => {
            let bytes = input.bytes();
            ends[1 - from].read(bytes);
            return !bytes.is_empty();
        }
    }
    false
}
