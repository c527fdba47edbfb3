//! Parameters of every connection, as quinn-proto wants them.
//!
//! This module decides nothing at run time.

use std::sync::Arc;

use quinn_proto::congestion::{BbrConfig, CubicConfig, NewRenoConfig};
use quinn_proto::{AckFrequencyConfig, IdleTimeout, TransportConfig, VarInt};

use crate::congestion::UncontrolledConfig;
use crate::params::{Congestion, TransportParams};

/// UDP payload that an inner packet of the tunnel's MTU needs beyond its own length, in bytes, as Quincy reckons it. 38 are used with 8-byte
/// connection IDs.
pub const OUTER_OVERHEAD_BYTES: u16 = 50;

/// Packets that the peer may leave unacknowledged, where it can be asked (draft-ietf-quic-ack-frequency). Half a UDP receive's worth: an
/// acknowledgement for every other packet costs both ends more than it tells them.
const UNACKNOWLEDGED_PACKETS: u32 = 20;

/// The transport configuration of either end.
pub fn transport(params: &TransportParams) -> TransportConfig {
    let mut config = TransportConfig::default();
    let udp_payload_bytes = params.mtu_bytes + OUTER_OVERHEAD_BYTES;
    let idle = IdleTimeout::try_from(params.idle_timeout).unwrap_or_else(|_| IdleTimeout::from(VarInt::MAX));
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(UNACKNOWLEDGED_PACKETS));
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(params.keep_alive)
        // What the protocol promises to carry must fit from the first packet, so there is nothing to discover below or above it.
        .initial_mtu(udp_payload_bytes)
        .min_mtu(udp_payload_bytes)
        .mtu_discovery_config(None)
        .datagram_send_buffer_size(params.datagram_send_buffer_bytes_max)
        .datagram_receive_buffer_size(Some(params.datagram_receive_buffer_bytes_max))
        // The protocol has one stream, the server's.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .ack_frequency_config(Some(acknowledgements));
    if let Some(initial_rtt) = params.initial_rtt {
        config.initial_rtt(initial_rtt);
    }
    match params.congestion {
        Congestion::Cubic => config.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::Bbr => config.congestion_controller_factory(Arc::new(BbrConfig::default())),
        Congestion::Uncontrolled => config.congestion_controller_factory(Arc::new(UncontrolledConfig)),
        Congestion::NewReno => config.congestion_controller_factory(Arc::new(NewRenoConfig::default())),
    };
    config
}
