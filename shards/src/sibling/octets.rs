//! A run of bytes that is neither taken apart nor copied where it is written and read.

use serde::{Deserialize, Serialize, Serializer};

/// A packet, a frame or a datagram.
#[derive(Deserialize)]
pub struct Octets<'a>(pub &'a [u8]);

impl Serialize for Octets<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}
