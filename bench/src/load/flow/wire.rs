//! What near and responder of a flow say to each other: the UDP payload of inner packets.
//!
//! ```text
//!  0       2      3       4          8             16            24
//!  | magic | kind | group | flow     | sequence    | stamp_ns    | body ...
//! ```
//!
//! All numbers are big-endian. `flow` is unique in a run. This module sends nothing.

use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The header's length in bytes: the shortest payload.
pub const HEADER_BYTES: usize = 24;

/// The longest body of a control message, in bytes: what fits the smallest MTU that IPv6 allows.
pub const BODY_BYTES_MAX: usize = 1024;

/// The first two bytes of every message.
pub const MAGIC: u16 = 0x544c;

/// The header of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The traffic group's index in the scenario.
    pub group: u8,
    /// The flow.
    pub flow: u32,
    /// Counts the messages of one sender in this flow, data and requests or answers, from 0. Of [`Kind::Credit`]: the number of messages of
    /// the other side received so far. Of control messages: 0.
    pub sequence: u64,
    /// Of data and requests: when it was due, in nanoseconds of the sender's monotonic clock from an origin of its own (see
    /// [`stamp_ns`]). Of answers: the request's. Of [`Kind::Credit`]: the highest sequence received, plus 1. Otherwise 0.
    pub stamp_ns: u64,
}

/// Kinds of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Payload, to be checked and counted. Body: [`pattern`](super::pattern).
    Data = 1,
    /// Payload that is to be answered.
    Request = 2,
    /// The answer.
    Answer = 3,
    /// From the receiver of a window's data to its sender.
    Credit = 4,
    /// Generator to responder: a flow begins. Body: [`FlowSpec`] as JSON. Repeated until it is answered.
    Open = 5,
    /// The answer to it. Body: empty, or why there will be no such flow, in words.
    Opened = 6,
    /// Generator to responder: stop sending, and say what you counted. Repeated until it is answered.
    Close = 7,
    /// The answer to it. Body: [`FlowCounts`] as JSON.
    Report = 8,
}

/// What the responder is to do in a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowSpec {
    /// What the responder sends, if anything. Requests are answered anyway.
    pub down: Option<SendSpec>,
    /// Length of an answer as an inner packet, in bytes; 0 for the request's.
    pub answer_bytes: u16,
    /// Whether data from the generator is to be acknowledged with [`Kind::Credit`].
    pub acknowledge: bool,
}

/// What one end sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SendSpec {
    /// Lengths of inner packets in bytes, with their weights.
    pub sizes: Vec<(u16, u32)>,
    /// Packets a second; `None` for as many as the window lets.
    pub packets_per_second: Option<f64>,
    /// Bytes that may be on the way; `None` for no window.
    pub window_bytes: Option<u32>,
    /// Packets that fall due together, and at most so many of which go to the kernel as one super-packet. At least 1.
    pub train_packets: u16,
}

crate::load::counts! {
    /// What an end counted of a flow.
    #[derive(Serialize, Deserialize)]
    FlowCounts {
        /// Data, requests or answers sent.
        sent_packets,
        /// Data, requests or answers received, each counted once.
        received_packets,
        /// Bytes of those as inner packets.
        received_bytes,
        /// Received after a later one.
        reordered_packets,
        /// Received more than once.
        duplicated_packets,
        /// Received with wrong bytes.
        corrupted_packets,
    }
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Kind> {
        const KINDS: [Kind; 8] = [
            Kind::Data,
            Kind::Request,
            Kind::Answer,
            Kind::Credit,
            Kind::Open,
            Kind::Opened,
            Kind::Close,
            Kind::Report,
        ];
        KINDS.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Whether it is numbered and counted in its flow, and its body is a window onto the pattern.
    pub fn is_payload(self) -> bool {
        matches!(self, Kind::Data | Kind::Request | Kind::Answer)
    }
}

impl Header {
    /// The header of a control message: [`Kind::Open`], [`Kind::Opened`], [`Kind::Close`] or [`Kind::Report`].
    pub fn control(kind: Kind, group: u8, flow: u32) -> Header {
        Header { kind, group, flow, sequence: 0, stamp_ns: 0 }
    }

    /// The header of a [`Kind::Credit`].
    pub fn credit(group: u8, flow: u32, received: u64, highest_plus_1: u64) -> Header {
        Header { kind: Kind::Credit, group, flow, sequence: received, stamp_ns: highest_plus_1 }
    }

    /// The header as it travels.
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[2] = self.kind as u8;
        bytes[3] = self.group;
        bytes[4..8].copy_from_slice(&self.flow.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[16..].copy_from_slice(&self.stamp_ns.to_be_bytes());
        bytes
    }

    /// Reads a UDP payload: the header, and the body behind it. `None` for what is not one of these messages.
    #[inline]
    pub fn parse(payload: &[u8]) -> Option<(Header, &[u8])> {
        let (header, body) = payload.split_first_chunk::<HEADER_BYTES>()?;
        let word = |at: usize| header[at..at + 8].iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let first = word(0);
        if (first >> 48) as u16 != MAGIC {
            return None;
        }
        let kind = Kind::from_number(header[2])?;
        Some((Header { kind, group: header[3], flow: first as u32, sequence: word(8), stamp_ns: word(16) }, body))
    }
}

/// The body of a [`Kind::Open`] or a [`Kind::Report`].
pub fn encode(body: &impl Serialize) -> Vec<u8> {
    // Numbers, strings and options in structs: nothing that JSON has not.
    serde_json::to_vec(body).unwrap_or_default()
}

/// Reads the body of a [`Kind::Open`] or a [`Kind::Report`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body)
}

/// `at` as a stamp of a clock that began at `origin`: 0 for what was before.
#[inline]
pub fn stamp_ns(origin: Instant, at: Instant) -> u64 {
    at.saturating_duration_since(origin).as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        (1u8..=8).prop_map(|number| Kind::from_number(number).unwrap())
    }

    proptest! {
        #[test]
        fn a_header_survives_the_wire(
            (kind, group, flow, sequence, stamp_ns) in (kinds(), any::<u8>(), any::<u32>(), any::<u64>(), any::<u64>()),
            body in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let header = Header { kind, group, flow, sequence, stamp_ns };
            let mut payload = header.to_bytes().to_vec();
            payload.extend(&body);
            prop_assert_eq!(Header::parse(&payload), Some((header, &body[..])));
            prop_assert_eq!(Header::parse(&payload[..HEADER_BYTES - 1]), None);
        }

    }

    #[test]
    fn bodies_survive_the_wire_and_fit_into_a_message() {
        let down = SendSpec {
            sizes: vec![(65_535, 1023); 16],
            packets_per_second: Some(1e-5),
            window_bytes: Some(u32::MAX),
            train_packets: u16::MAX,
        };
        let spec = FlowSpec { down: Some(down), answer_bytes: u16::MAX, acknowledge: false };
        let body = encode(&spec);
        assert!(body.len() <= BODY_BYTES_MAX, "{}", body.len());
        assert_eq!(decode::<FlowSpec>(&body).unwrap(), spec);
        let counts = FlowCounts { sent_packets: u64::MAX, corrupted_packets: 3, ..FlowCounts::default() };
        assert_eq!(decode::<FlowCounts>(&encode(&counts)).unwrap(), counts);
        assert!(decode::<FlowSpec>(&encode(&counts)).is_err() && decode::<FlowSpec>(b"").is_err());
    }
}
