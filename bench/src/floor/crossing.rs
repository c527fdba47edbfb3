//! What is measured: a batch of packets put in at one end and taken out at the other, and the packets' sizes.

use anyhow::Result;

/// Length of an inner IPv4 packet, in bytes: the tunnel's MTU.
pub(super) const PACKET_BYTES: usize = 1400;
/// Bytes of an inner packet that are TCP payload: all but the headers of IPv4 and of TCP with timestamps.
pub(super) const PAYLOAD_BYTES: usize = PACKET_BYTES - 20 - 32;
/// Length of the outer UDP datagram with such a packet, in bytes: QUIC's short header with a connection ID of 8 bytes and a packet number
/// of 3, a DATAGRAM frame of known length, and the cipher's tag.
pub(super) const DATAGRAM_BYTES: usize = PACKET_BYTES + 12 + 3 + 16;

/// Two stages that need each other: what one puts in, the other takes out.
///
/// All bytes are of payload (see [`PAYLOAD_BYTES`]), so that stages add up, and compare with what a gateway needs for a gigabyte.
pub(super) trait Crossing: Send {
    /// The names of putting in and of taking out.
    fn names(&self) -> [&'static str; 2];

    /// Makes a batch ready. Not measured.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Puts the batch in, and returns its bytes of payload.
    fn put(&mut self) -> Result<u64>;

    /// Takes out all that was put in, and returns its bytes of payload.
    fn take(&mut self) -> Result<u64>;
}
