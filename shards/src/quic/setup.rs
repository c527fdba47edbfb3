//! quinn-proto's endpoint and what answers in front of it, as the parameters of a shard want them.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{Endpoint, EndpointConfig, ServerConfig};
use tollgate_noise::Handshakes;

use super::connection_id::{IdScheme, RetryIds, SteeringIds};
use super::in_flight::InFlight;
use super::initial::Versions;
use super::keys::ShardKeys;
use super::retry::{self, Retries};
use super::transport::gateway_transport;
use super::wall_clock::WallClock;
use crate::params::Params;

/// Time between two stateless resets. A gateway that comes back after a crash owes one to every old client, soon.
const RESET_INTERVAL: Duration = Duration::from_micros(100);

/// How this shard reads connection IDs and makes them.
pub fn id_scheme(params: &Params, keys: &ShardKeys) -> IdScheme {
    IdScheme::new(keys.id_layout.clone(), params.shards, params.index)
}

pub fn retries(params: &Params, keys: &ShardKeys) -> Retries {
    // Of another key than the endpoint's own, so that no ID is issued twice.
    let nonce_key = retry::subkey(&params.seed, b"retry id");
    let ids = SteeringIds::new(id_scheme(params, keys), nonce_key);
    Retries::new(keys.token.clone(), RetryIds::new(ids), retry::subkey(&params.seed, b"retry token"))
}

pub fn endpoint(params: &Params, keys: &ShardKeys, versions: &Versions, server: Arc<ServerConfig>) -> Endpoint {
    let scheme = id_scheme(params, keys);
    let nonce_key: [u8; 16] = params.seed[..16].try_into().expect("a seed has 32 bytes");
    let mut config = EndpointConfig::new(keys.reset.clone());
    config
        .cid_generator(move || Box::new(SteeringIds::new(scheme.clone(), nonce_key)))
        .rng_seed(Some(params.seed))
        .supported_versions(versions.to_vec())
        .min_reset_interval(RESET_INTERVAL);
    config.max_udp_payload_size(65_527).expect("the largest payload that RFC 9000, section 18.2 knows");
    Endpoint::new(Arc::new(config), Some(server), true, None)
}

pub fn server_config(
    params: &Params,
    keys: &ShardKeys,
    handshakes: &Handshakes,
    wall_clock: &WallClock,
    in_flight: &InFlight,
) -> Arc<ServerConfig> {
    let mut server = ServerConfig::new(Arc::new(handshakes.clone()), Arc::new(keys.token.clone()));
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
