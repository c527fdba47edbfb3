//! All handshakes that a server takes on one port, told apart by QUIC's version.

use std::sync::Arc;

use quinn_proto::crypto::{self, Keys, UnsupportedVersion};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side};

use crate::keys::Listed;
use crate::kind::Kind;
use crate::server::ServerConfig;
use crate::session::Session;

/// QUIC version 1, which is TLS's.
pub const TLS_VERSION: u32 = 1;

/// TLS, Noise, or both.
#[derive(Clone, Default)]
pub struct Handshakes {
    /// Of QUIC version 1.
    pub tls: Option<Arc<dyn crypto::ServerConfig>>,
    /// Of the versions of its kinds.
    pub noise: Option<Arc<ServerConfig>>,
}

impl Handshakes {
    /// Exactly the versions that are served, for `quinn_proto::EndpointConfig`: one that were listed and is not served would be silence.
    pub fn versions(&self) -> Vec<u32> {
        let noise = self.noise.iter().flat_map(|noise| noise.kinds()).map(Kind::quic_version);
        self.tls.iter().map(|_| TLS_VERSION).chain(noise).collect()
    }

    /// The same, with another list of Noise clients.
    pub fn listing(&self, listed: Arc<dyn Listed>) -> Self {
        let noise = self.noise.as_ref().map(|noise| Arc::new(noise.listing(listed)));
        Handshakes { tls: self.tls.clone(), noise }
    }

    fn of(&self, version: u32) -> Option<Arc<dyn crypto::ServerConfig>> {
        match version {
            TLS_VERSION => self.tls.clone(),
            _ => self.noise.clone().map(|noise| noise as _),
        }
    }
}

impl crypto::ServerConfig for Handshakes {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.of(version).ok_or(UnsupportedVersion)?.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.of(version).map_or([0; 16], |config| config.retry_tag(version, orig_dst_cid, packet))
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn crypto::Session> {
        match self.of(version) {
            Some(config) => config.start_session(version, params),
            None => Box::new(Session::failed(Kind::Standard, Side::Server)),
        }
    }
}
