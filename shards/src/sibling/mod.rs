//! What the shards of two processes of one gateway say to each other, as bytes.
//!
//! A gateway that is upgraded has two processes for a while, which need not be of one build. So each message says which version of the format it has, and is
//! refused in any other. Users go by name: each process numbers them by itself. A hash over all of it tells what was changed or cut off.
//!
//! In bytes: magic (2), version (2), hash (8), then by `postcard` who it is for, the name of the user it speaks of, and the message. Framing is the driver's.

mod octets;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::ids::{ConnectionKey, ShardIndex, Shards, UserIndex};
use crate::io::Received;
use crate::packet::ecn::Ecn;
use crate::session::message::ControlMessage;
use crate::session::users::Users;
use crate::shard::message::{Message, PacketMessage};

use octets::Octets;

/// The version of the format. Another one whenever a message is added, taken away or changed: a test holds the bytes of each.
pub const VERSION: u16 = 3;
/// Longest message, in bytes: a barrier after which every address of a full shard is revoked takes half of that.
pub const MESSAGE_BYTES_MAX: usize = 2 << 20;

const MAGIC: [u8; 2] = *b"Tg";
const HASH_BYTES: usize = 8;
const HEAD_BYTES: usize = MAGIC.len() + 2 + HASH_BYTES;

/// Why there are no bytes for a message, or no message in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiblingError {
    #[error("not a message of a gateway's shard")]
    Foreign,
    #[error(
        "the other process speaks version {theirs} of the messages between shards, this one version {VERSION}: upgrade by way of a release that speaks both, or restart"
    )]
    Version { theirs: u16 },
    #[error("a message was cut off or changed on its way")]
    Damaged,
    #[error("a message for shard {} of {generation:?}, which is not there", shard.place(), generation = shard.generation())]
    NoSuchShard { shard: ShardIndex },
    #[error("a message of {bytes} bytes, {MESSAGE_BYTES_MAX} at most may go to another process")]
    TooLong { bytes: usize },
    #[error("a message that stays within a process")]
    Internal,
}

/// What is said, and to whom.
#[derive(Serialize, Deserialize)]
struct Spoken<'a> {
    to: ShardIndex,
    /// The user that a control message speaks of, where that is known by name.
    user: Option<&'a str>,
    #[serde(borrow)]
    body: Body<'a>,
}

#[derive(Serialize, Deserialize)]
enum Body<'a> {
    Control(Cow<'a, ControlMessage>),
    Hairpin {
        connection: ConnectionKey,
        #[serde(borrow)]
        packets: Vec<Octets<'a>>,
    },
    Frame(#[serde(borrow)] Octets<'a>),
    Datagram {
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        /// The bits of RFC 3168.
        ecn: u8,
        segment_bytes: u32,
        #[serde(borrow)]
        data: Octets<'a>,
    },
}

/// `message` for shard `to` of the other process, in bytes. `users` are those of the shard that says it.
///
/// # Errors
///
/// [`SiblingError::TooLong`], and [`SiblingError::Internal`] for what no process says to another.
pub fn encode(to: ShardIndex, mut message: Message, users: &Users) -> Result<Vec<u8>, SiblingError> {
    let user = match &mut message {
        Message::Control(message) => message.user_mut().and_then(|user| users.known_name(*user)),
        Message::Packet(_) | Message::Load { .. } => None,
    };
    let body = match &message {
        Message::Control(message) => Body::Control(Cow::Borrowed(message)),
        Message::Packet(PacketMessage::Hairpin { connection, packets }) => {
            Body::Hairpin { connection: *connection, packets: packets.iter().map(|packet| Octets(packet)).collect() }
        }
        Message::Packet(PacketMessage::Frame(frame)) => Body::Frame(Octets(frame)),
        Message::Packet(PacketMessage::Datagram(received)) => {
            let &Received { remote, local_ip, ecn, segment_bytes, ref data } = received;
            let ecn = ecn.map_or(0, |ecn| ecn as u8);
            let segment_bytes = u32::try_from(segment_bytes).unwrap_or(u32::MAX);
            Body::Datagram { remote, local_ip, ecn, segment_bytes, data: Octets(data) }
        }
        Message::Load { .. } => return Err(SiblingError::Internal),
    };
    let head = [&MAGIC[..], &VERSION.to_be_bytes(), &[0; HASH_BYTES]].concat();
    let mut bytes = postcard::to_extend(&Spoken { to, user, body }, head).map_err(|_| SiblingError::Internal)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(SiblingError::TooLong { bytes: bytes.len() });
    }
    seal(&mut bytes);
    Ok(bytes)
}

/// Writes the hash of what stands behind it into a message.
fn seal(bytes: &mut [u8]) {
    let hash = hash(&bytes[HEAD_BYTES..]);
    bytes[HEAD_BYTES - HASH_BYTES..HEAD_BYTES].copy_from_slice(&hash);
}

/// The message in `bytes`, and the one of `shards` that it is for, whose users are `users`. A user whom they do not know is
/// [`NOBODY`](UserIndex::NOBODY).
///
/// # Errors
///
/// All but [`SiblingError::Internal`].
pub fn decode(bytes: &[u8], shards: Shards, users: &Users) -> Result<(ShardIndex, Message), SiblingError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(SiblingError::TooLong { bytes: bytes.len() });
    }
    let (magic, rest) = bytes.split_first_chunk().ok_or(SiblingError::Foreign)?;
    if *magic != MAGIC {
        return Err(SiblingError::Foreign);
    }
    let (version, rest) = rest.split_first_chunk().ok_or(SiblingError::Damaged)?;
    let theirs = u16::from_be_bytes(*version);
    if theirs != VERSION {
        return Err(SiblingError::Version { theirs });
    }
    let (told, rest) = rest.split_first_chunk().ok_or(SiblingError::Damaged)?;
    if *told != hash(rest) {
        return Err(SiblingError::Damaged);
    }
    let (Spoken { to, user, body }, left) = postcard::take_from_bytes(rest).map_err(|_| SiblingError::Damaged)?;
    if !left.is_empty() {
        return Err(SiblingError::Damaged);
    }
    if !shards.contains(to) {
        return Err(SiblingError::NoSuchShard { shard: to });
    }
    let message = match body {
        Body::Control(message) => {
            let mut message = message.into_owned();
            if let Some(of_message) = message.user_mut() {
                *of_message = user.and_then(|name| users.find_known(name)).unwrap_or(UserIndex::NOBODY);
            }
            message.into()
        }
        Body::Hairpin { connection, packets } => {
            let packets = packets.iter().map(|packet| Bytes::copy_from_slice(packet.0)).collect();
            PacketMessage::Hairpin { connection, packets }.into()
        }
        Body::Frame(frame) => PacketMessage::Frame(Bytes::copy_from_slice(frame.0)).into(),
        Body::Datagram { remote, local_ip, ecn, segment_bytes, data } => {
            let segment_bytes = segment_bytes.max(1) as usize;
            let received =
                Received { remote, local_ip, ecn: Ecn::from_bits(ecn), segment_bytes, data: BytesMut::from(data.0) };
            PacketMessage::Datagram(received).into()
        }
    };
    Ok((to, message))
}

/// Against accidents: both processes are the operator's own.
fn hash(bytes: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish().to_be_bytes()
}

/// What a fuzzer makes up, with the head that it does not guess.
#[cfg(feature = "inspect")]
pub fn sealed(spoken: &[u8]) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &VERSION.to_be_bytes(), &[0; HASH_BYTES], spoken].concat();
    seal(&mut bytes);
    bytes
}
