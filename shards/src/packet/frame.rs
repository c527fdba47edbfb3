//! Frames for the TUN queue.

use bytes::Bytes;

use super::vnet::HEADER_BYTES;

/// One frame for a TUN queue opened with `IFF_VNET_HDR`, possibly a TSO or USO super-packet.
///
/// What is written is `header` followed by each of `payloads`, in order.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The virtio header, and behind it the inner headers where they had to be rewritten.
    pub header: &'a [u8],
    /// The rest of the frame, as slices of the buffers it was received in.
    pub payloads: &'a [Bytes],
    /// Whether the inner packet carries TCP or UDP payload, as opposed to a bare acknowledgement, an ICMP message and the like.
    pub carries_data: bool,
}

impl Frame<'_> {
    /// Length of the inner packet (all that follows the virtio header), in bytes.
    pub fn inner_bytes(&self) -> usize {
        self.header.len() + self.payloads.iter().map(Bytes::len).sum::<usize>() - HEADER_BYTES
    }
}
