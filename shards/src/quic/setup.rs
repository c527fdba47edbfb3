//! quinn-proto's endpoint and what answers in front of it, as the parameters of a shard want them.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::crypto::ServerConfig as CryptoConfig;
use quinn_proto::{Endpoint, EndpointConfig, ServerConfig};

use super::connection_id::SteeringIds;
use super::in_flight::InFlight;
use super::keys::ShardKeys;
use super::retry::{self, Retries};
use super::transport::gateway_transport;
use super::wall_clock::WallClock;
use crate::params::Params;

/// Time between two stateless resets. A gateway that comes back after a crash owes one to every old client, soon.
const RESET_INTERVAL: Duration = Duration::from_micros(100);

pub fn retries(params: &Params, keys: &ShardKeys) -> Retries {
    // Of another key than the endpoint's own, so that no ID is issued twice.
    let nonce_key = retry::subkey(&params.seed, b"retry id");
    let ids = SteeringIds::new(keys.connection_id.clone(), params.shards, params.index, nonce_key);
    Retries::new(keys.token.clone(), ids, retry::subkey(&params.seed, b"retry token"))
}

pub fn endpoint(params: &Params, keys: &ShardKeys, server: Arc<ServerConfig>) -> Endpoint {
    let (shards, here, id_key) = (params.shards, params.index, keys.connection_id.clone());
    let nonce_key: [u8; 16] = params.seed[..16].try_into().expect("a seed has 32 bytes");
    let mut config = EndpointConfig::new(keys.reset.clone());
    config
        .cid_generator(move || Box::new(SteeringIds::new(id_key.clone(), shards, here, nonce_key)))
        .rng_seed(Some(params.seed))
        .supported_versions(vec![retry::VERSION])
        .min_reset_interval(RESET_INTERVAL);
    config.max_udp_payload_size(65_527).expect("the largest payload that RFC 9000, section 18.2 knows");
    Endpoint::new(Arc::new(config), Some(server), true, None)
}

pub fn server_config(
    params: &Params,
    keys: &ShardKeys,
    tls: Arc<dyn CryptoConfig>,
    wall_clock: &WallClock,
    in_flight: &InFlight,
) -> Arc<ServerConfig> {
    let mut server = ServerConfig::new(tls, Arc::new(keys.token.clone()));
    server
        .transport_config(Arc::new(gateway_transport(&params.transport, in_flight)))
        .migration(true)
        .retry_token_lifetime(retry::TOKEN_LIFETIME)
        .max_incoming(params.limits.handshakes_max)
        // An Initial is answered at once, so nothing comes between.
        .incoming_buffer_size(0)
        .incoming_buffer_size_total(0)
        .time_source(Arc::new(wall_clock.clone()));
    Arc::new(server)
}
