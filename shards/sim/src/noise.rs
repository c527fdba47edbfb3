//! Noise of which nothing is left to chance: keys come from seeds, and what handshakes draw, from a stream of the run's.

use std::cell::RefCell;
use std::sync::Arc;

use tollgate_noise::{ClientConfig, Handshakes, Kind, Listed, NoRandomness, PrivateKey, Randomness, ServerConfig};
use tollgate_shards::Users;

use crate::identity::Identity;
use crate::random::Stream;

/// The numbers of identities say in their first bits of which kind they are; 0 is a certificate.
const KIND_SHIFT: u32 = 60;

thread_local! {
    /// What handshakes draw from. They ask for a source that may be sent, and a run stays in its thread.
    static RANDOM: RefCell<Stream> = RefCell::new(Stream::new(0, "noise"));
    /// The gateway's side with all its keys. It lists nobody.
    static GATEWAY: Arc<ServerConfig> = gateway();
}

/// Lets handshakes of this thread draw from the run of `seed` from now on.
pub fn begin(seed: u64) {
    RANDOM.set(Stream::new(seed, "noise"));
}

struct Seeded;

impl Randomness for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        RANDOM.with_borrow_mut(|random| random.fill(bytes));
        Ok(())
    }
}

/// What `make` makes where handshakes draw from `stream`. A run's own draws must not depend on what has been made before.
fn apart<T>(stream: Stream, make: impl FnOnce() -> T) -> T {
    let before = RANDOM.replace(stream);
    let made = make();
    RANDOM.set(before);
    made
}

fn key(kind: Kind, name: &str, number: u64) -> PrivateKey {
    let stream = Stream::numbered(kind.quic_version().into(), name, number);
    apart(stream, || PrivateKey::generate(kind, &Seeded)).expect("a stream has no end")
}

/// The identity that has, instead of the certificate `number`, a key of `kind`.
pub fn with_key(number: u64, kind: Kind) -> u64 {
    kinds_bits(kind) | number & ((1 << KIND_SHIFT) - 1)
}

fn kinds_bits(kind: Kind) -> u64 {
    let place = Kind::ALL.iter().position(|&other| other == kind).expect("all are there");
    (place as u64 + 1) << KIND_SHIFT
}

/// The kind of an identity's key; `None` for a certificate.
pub fn kind(identity: u64) -> Option<Kind> {
    Kind::ALL.into_iter().find(|&kind| kinds_bits(kind) == identity >> KIND_SHIFT << KIND_SHIFT)
}

/// Identity `number` of the same kind as `identity`.
pub fn renewed(identity: u64, number: u64) -> u64 {
    kind(identity).map_or(number, |kind| with_key(number, kind))
}

/// The key of `identity`, whose kind it is.
pub fn client_key(kind: Kind, identity: u64) -> PrivateKey {
    key(kind, "noise identity", identity)
}

/// A client that has `own` as its key.
pub fn client(own: &PrivateKey) -> Arc<ClientConfig> {
    let server = key(own.kind(), "noise gateway", 0).public();
    // It draws to see whether it can begin at all.
    let config = apart(Stream::new(0, "noise client"), || ClientConfig::new(own, server, Arc::new(Seeded)));
    Arc::new(config.expect("keys of one kind"))
}

struct Nobody;

impl Listed for Nobody {
    fn is_listed(&self, _: &tollgate_noise::PublicKey) -> bool {
        false
    }
}

fn gateway() -> Arc<ServerConfig> {
    let keys = Kind::ALL.map(|kind| key(kind, "noise gateway", 0));
    Arc::new(ServerConfig::new(&keys, Arc::new(Nobody), Arc::new(Seeded)).expect("one of each kind"))
}

/// The gateway's side, which lists nobody.
pub fn server() -> Arc<ServerConfig> {
    GATEWAY.with(Arc::clone)
}

/// What the gateway serves: TLS, and all kinds of Noise where it `has_noise`.
pub fn handshakes(has_noise: bool, users: &Arc<Users>) -> Handshakes {
    let noise = has_noise.then(|| Arc::new(server().listing(users.clone())));
    Handshakes { tls: Some(Identity::gateway()), noise }
}
