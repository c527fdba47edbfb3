//! What the configuration means for a shard.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tollgate_config::{CongestionController, ServerConfig};
use tollgate_shards::packet::MergeLimits;
use tollgate_shards::{Congestion, Limits, Params, Shards, TransportParams};

use super::memory;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Those of the shard at `place` of `shards`, which take over from `predecessor`. It gets its entropy and the time when it is made.
pub fn params(config: &ServerConfig, shards: Shards, predecessor: Option<Shards>, place: u16) -> Params {
    let connection = &config.connection;
    // Initials of honest clients spread evenly, so each shard gets its part of the whole; one source may have its full number on each, since
    // its few handshakes do not.
    let handshakes_max = connection.pending_handshakes_max.div_ceil(usize::from(shards.count));
    Params {
        predecessor,
        shards,
        index: shards.at(place),
        tunnel: config.tunnel_network,
        outer_addresses: outer_addresses(config),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        transport: TransportParams {
            mtu_bytes: connection.mtu_bytes,
            idle_timeout: connection.connection_timeout,
            keep_alive: None,
            initial_rtt: None,
            datagram_send_buffer_bytes_max: connection.datagram_send_buffer_bytes,
            datagram_receive_buffer_bytes_max: connection.datagram_receive_buffer_bytes,
            congestion: congestion(connection.congestion_controller),
        },
        limits: Limits {
            handshakes_max,
            handshakes_per_source_max: connection.pending_handshakes_per_source_max,
            memory_bytes_max: memory::shard_bytes_max(config.shards.memory_bytes, usize::from(shards.count)),
            merge: MergeLimits {
                tso: config.data_path.tso,
                uso: config.data_path.uso,
                thins_acks: config.data_path.thin_acks,
                ..MergeLimits::default()
            },
            ..Limits::default()
        },
        incarnation: 0,
        wall_clock: SystemTime::UNIX_EPOCH,
        seed: [0; 32],
    }
}

/// The engine's name for a configured congestion controller.
pub fn congestion(controller: CongestionController) -> Congestion {
    match controller {
        CongestionController::Cubic => Congestion::Cubic,
        CongestionController::Bbr => Congestion::Bbr,
        CongestionController::NewReno => Congestion::NewReno,
        CongestionController::None => Congestion::Uncontrolled,
    }
}

/// What is known before the first packet; where the gateway listens on all addresses, each connection adds its own.
fn outer_addresses(config: &ServerConfig) -> Vec<IpAddr> {
    Some(config.bind_address).filter(|ip| !ip.is_unspecified()).into_iter().collect()
}
