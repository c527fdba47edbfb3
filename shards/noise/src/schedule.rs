//! Which keys come of which secret. HKDF is Noise's, over BLAKE2s.

use quinn_proto::crypto::{self, KeyPair, Keys};
use quinn_proto::{ConnectionId, Side};
use zeroize::Zeroizing;

use crate::hash::{Hash, expand, hash, hkdf, hmac};
use crate::kind::Kind;
use crate::protection::{HeaderKey, KEY_BYTES, PacketKey, TAG_BYTES};

/// What the handshake is asked for a secret by.
pub const SECRET_LABEL: &[u8] = b"reishi key";
/// Longest connection ID, in bytes (RFC 9000, section 17.2).
const ID_BYTES_MAX: usize = 20;

/// A secret of which the keys of both sides are made.
pub struct Level(Zeroizing<Hash>);

impl Level {
    /// Of Initial packets: known to everybody who has seen the first one.
    pub fn initial(kind: Kind, client_destination: &ConnectionId) -> Self {
        let mut material = [0; 4 + ID_BYTES_MAX];
        material[..4].copy_from_slice(&kind.quic_version().to_be_bytes());
        material[4..][..client_destination.len()].copy_from_slice(client_destination);
        Level(first_output(&hash(&[b"reishi initial"]), &material[..4 + client_destination.len()]))
    }

    fn key(&self, label: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
        first_output(&self.0, label)
    }

    pub fn keys(&self, side: Side) -> Keys {
        let header = |label| -> Box<dyn crypto::HeaderKey> { Box::new(HeaderKey::new(&self.key(label))) };
        Keys { header: of_sides(side, header(b"init hp"), header(b"resp hp")), packet: self.packet_keys(side) }
    }

    pub fn packet_keys(&self, side: Side) -> KeyPair<Box<dyn crypto::PacketKey>> {
        let packet = |label| -> Box<dyn crypto::PacketKey> { Box::new(PacketKey::new(&self.key(label))) };
        of_sides(side, packet(b"init data"), packet(b"resp data"))
    }

    /// The level after a key update.
    pub fn next(&self) -> Self {
        Level(self.key(b"reishi rekey"))
    }
}

/// The first output of HKDF (The Noise Protocol Framework, section 4.3).
fn first_output(salt: &Hash, material: &[u8]) -> Zeroizing<Hash> {
    Zeroizing::new(hkdf::<1>(salt, material)[0])
}

fn of_sides<T>(side: Side, initiator: T, responder: T) -> KeyPair<T> {
    match side {
        Side::Client => KeyPair { local: initiator, remote: responder },
        Side::Server => KeyPair { local: responder, remote: initiator },
    }
}

/// What comes of a completed handshake.
pub struct Secrets {
    pub handshake: Level,
    pub data: Level,
    pub exporter: Exporter,
}

impl Secrets {
    /// `secret` is what the handshake gives for [`SECRET_LABEL`].
    pub fn new(secret: &Hash) -> Self {
        let levels = hkdf::<3>(secret, b"reishi levels");
        let [handshake, data, exporter] = (*levels).map(Zeroizing::new);
        Secrets { handshake: Level(handshake), data: Level(data), exporter: Exporter(exporter) }
    }
}

/// Makes what applications on both sides take as a secret of this connection.
pub struct Exporter(Zeroizing<Hash>);

impl Exporter {
    /// Fills `output`, unless it is longer than HKDF's limit.
    pub fn export(&self, output: &mut [u8], label: &[u8], context: &[u8]) -> Option<()> {
        expand(&hmac(&self.0, &[label]), context, output)
    }
}

/// Makes the integrity tags of Retries. The key is no secret; the tag only tells damage.
#[derive(Debug, Clone, Copy)]
pub struct RetryKey(Hash);

impl RetryKey {
    #[allow(missing_docs, reason = "there is one")]
    #[allow(clippy::new_without_default, reason = "a key is made, not defaulted")]
    pub fn new() -> Self {
        RetryKey(hash(&[b"reishi retry"]))
    }

    /// The tag of a Retry packet. `packet` begins with the client's first destination ID behind its length, as in RFC 9001, section 5.8.
    pub fn tag(&self, packet: &[u8]) -> [u8; TAG_BYTES] {
        self.tag_of_parts(&[packet])
    }

    /// The tag of a Retry of `parts`.
    pub(crate) fn tag_of(&self, original: &ConnectionId, parts: [&[u8]; 2]) -> [u8; TAG_BYTES] {
        self.tag_of_parts(&[&[original.len() as u8], original, parts[0], parts[1]])
    }

    fn tag_of_parts(&self, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        *hmac(&self.0, parts).first_chunk().expect("a hash is longer than a tag")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::{Vector, vectors};

    fn id(bytes: &[u8]) -> ConnectionId {
        ConnectionId::new(bytes)
    }

    fn kind(version: &str) -> Kind {
        Kind::of_quic_version(u32::from_str_radix(version.trim_start_matches("0x"), 16).unwrap()).unwrap()
    }

    fn has_keys(level: &Level, of: impl Fn(&str) -> [u8; 32]) {
        for label in ["init hp", "resp hp", "init data", "resp data"] {
            assert_eq!(*level.key(label.as_bytes()), of(label), "{label}");
        }
    }

    #[test]
    fn initial_keys_are_those_of_the_vectors() {
        let mut seen = 0;
        for vector in vectors().into_iter().filter(|vector| vector.has("initial_version")) {
            let level = Level::initial(kind(vector.text("initial_version")), &id(&vector.bytes("dcid")));
            assert_eq!(level.0[..], vector.bytes("level"));
            has_keys(&level, |label| match label {
                "init hp" => vector.array("init_header"),
                "resp hp" => vector.array("resp_header"),
                "init data" => vector.array("init_packet"),
                _ => vector.array("resp_packet"),
            });
            seen += 1;
        }
        assert_eq!(seen, Kind::ALL.len());
    }

    #[test]
    fn levels_and_updated_keys_are_those_of_the_vectors() {
        let mut seen = 0;
        for vector in vectors().into_iter().filter(|vector| vector.has("ask")) {
            let secrets = Secrets::new(&vector.array("ask"));
            assert_eq!(secrets.handshake.0[..], vector.bytes("handshake_level"));
            assert_eq!(secrets.data.0[..], vector.bytes("data_level"));
            assert_eq!(secrets.exporter.0[..], vector.bytes("exporter"));
            let keys = vector.part("data_keys");
            has_keys(&secrets.data, |label| keys.array(label));
            let next = secrets.data.next();
            assert_eq!(next.0[..], vector.bytes("rekey_1"));
            let keys: Vector = vector.part("next_keys");
            assert_eq!(*next.key(b"init data"), keys.array("init data"));
            assert_eq!(*next.key(b"resp data"), keys.array("resp data"));
            seen += 1;
        }
        assert_eq!(seen, Kind::ALL.len());
    }

    #[test]
    fn the_tag_of_a_retry_is_that_of_the_vector_and_of_the_reference() {
        let all = vectors();
        let vector = all.iter().find(|vector| vector.has("retry_tag")).unwrap();
        let (original, packet) = (vector.bytes("retry_odcid"), vector.bytes("retry_packet_without_tag"));
        let (head, rest) = packet.split_at(5);
        let tag = RetryKey::new().tag_of(&id(&original), [head, rest]);
        assert_eq!(tag[..], vector.bytes("retry_tag"));
        for length in 0..300 {
            let packet = vec![length as u8; length];
            let original = id(&packet[..length.min(20)]);
            let expected = reishi_quinn::initial::compute_retry_tag(&original, &packet);
            assert_eq!(RetryKey::new().tag_of(&original, [&packet, &[]]), expected);
        }
    }

    #[test]
    fn an_export_has_a_limit_and_depends_on_all_that_goes_in() {
        let exporter = Exporter(Zeroizing::new([9; 32]));
        let export = |label: &str, context: &str| {
            let mut output = [0; 40];
            exporter.export(&mut output, label.as_bytes(), context.as_bytes()).unwrap();
            output
        };
        assert_ne!(export("a", "c"), export("b", "c"));
        assert_ne!(export("a", "c"), export("a", "d"));
        assert!(exporter.export(&mut [0; 255 * 32], b"a", b"c").is_some());
        assert!(exporter.export(&mut [0; 255 * 32 + 1], b"a", b"c").is_none());
    }
}
