//! Parameters of every connection, as quinn-proto wants them.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn_proto::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::memory::HANDED_BYTES_MAX;
use crate::params::{Congestion, TransportParams};
use crate::quic::congestion::UncontrolledConfig;
use crate::quic::in_flight::{BoundedConfig, InFlight};

/// UDP payload that an inner packet of the tunnel's MTU needs beyond its own length, in bytes, as Quincy reckons it. 38 are used with 8-byte
/// connection IDs.
pub const OUTER_OVERHEAD_BYTES: u16 = 50;

/// UDP payload that every path of QUIC carries, in bytes (RFC 9000, section 14).
pub const UDP_PAYLOAD_BYTES_MIN: u16 = 1200;

/// How often a larger MTU is looked for on a path that carries less than it might: RFC 8899's PMTU_RAISE_TIMER. Its 600 s are long for clients
/// that walk from one network into another; a search costs some 15 packets.
const RAISE_INTERVAL: Duration = Duration::from_secs(10);
/// A path that has shrunk is searched at once.
const SHRUNK_INTERVAL: Duration = Duration::from_millis(1);
/// A search ends this close to what the path carries, in bytes.
const SEARCH_STEP_BYTES: u16 = 4;

/// Packets that the peer may leave unacknowledged, where it can be asked (draft-ietf-quic-ack-frequency). Half a UDP receive's worth: an
/// acknowledgement for every other packet costs both ends more than it tells them.
const UNACKNOWLEDGED_PACKETS: u32 = 20;

/// What either end may have on a stream that the other has not read, in bytes: many times an assignment. Also bounds what comes out of order.
const STREAM_BYTES_MAX: u32 = 8 * 1024;

/// The transport configuration of the gateway's end: its clients open no streams, and what waits for them waits outside of quinn-proto.
pub fn gateway_transport(params: &TransportParams, in_flight: &InFlight) -> TransportConfig {
    let mut config = transport(params);
    config
        .congestion_controller_factory(bounded(params.congestion, Some(in_flight.clone())))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_send_buffer_size(params.datagram_send_buffer_bytes_max.min(HANDED_BYTES_MAX));
    config
}

/// The transport configuration of a client's end.
pub fn transport(params: &TransportParams) -> TransportConfig {
    let mut config = TransportConfig::default();
    let udp_payload_bytes = (params.mtu_bytes + OUTER_OVERHEAD_BYTES).max(UDP_PAYLOAD_BYTES_MIN);
    let idle = IdleTimeout::try_from(params.idle_timeout).unwrap_or_else(|_| IdleTimeout::from(VarInt::MAX));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery
        .upper_bound(udp_payload_bytes)
        .interval(RAISE_INTERVAL)
        .black_hole_cooldown(SHRUNK_INTERVAL)
        .minimum_change(SEARCH_STEP_BYTES);
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(UNACKNOWLEDGED_PACKETS));
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(params.keep_alive)
        // What the protocol promises to carry fits from the first packet, and nothing larger is looked for. A path that carries less is found
        // out by losses (RFC 8899, section 4.3).
        .initial_mtu(udp_payload_bytes)
        .min_mtu(UDP_PAYLOAD_BYTES_MIN)
        .mtu_discovery_config(Some(discovery))
        .datagram_send_buffer_size(params.datagram_send_buffer_bytes_max)
        .datagram_receive_buffer_size(Some(params.datagram_receive_buffer_bytes_max))
        // The server's: one of Quincy's protocol, and one for a notice.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(2))
        .stream_receive_window(VarInt::from_u32(STREAM_BYTES_MAX))
        .receive_window(VarInt::from_u32(STREAM_BYTES_MAX))
        .send_window(STREAM_BYTES_MAX.into())
        .ack_frequency_config(Some(acknowledgements));
    if let Some(initial_rtt) = params.initial_rtt {
        config.initial_rtt(initial_rtt);
    }
    config.congestion_controller_factory(bounded(params.congestion, None));
    config
}

fn bounded(congestion: Congestion, in_flight: Option<InFlight>) -> Arc<BoundedConfig> {
    Arc::new(BoundedConfig { inner: controllers(congestion), in_flight })
}

fn controllers(congestion: Congestion) -> Arc<dyn ControllerFactory + Send + Sync> {
    match congestion {
        Congestion::Cubic => Arc::new(CubicConfig::default()),
        Congestion::Bbr => Arc::new(BbrConfig::default()),
        Congestion::Uncontrolled => Arc::new(UncontrolledConfig),
        Congestion::NewReno => Arc::new(NewRenoConfig::default()),
    }
}
