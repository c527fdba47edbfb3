//! The side of the server: its keys, and who may come in.

use std::sync::Arc;

use quinn_proto::crypto::{self, Keys, UnsupportedVersion};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side};

use crate::handshake::Handshake;
use crate::keys::{Listed, Pair, PrivateKey};
use crate::kind::Kind;
use crate::random::Randomness;
use crate::schedule::{Level, RetryKey};
use crate::session::{Given, Session};

/// Two keys of one kind: a server has one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("two private keys for {0}; a server has one for each kind")]
pub struct DuplicateKind(pub Kind);

/// A server's configuration for quinn-proto, for the versions of its keys.
pub struct ServerConfig {
    /// In the order of their kinds.
    own: Arc<[Arc<Pair>]>,
    listed: Arc<dyn Listed>,
    source: Arc<dyn Randomness>,
}

impl ServerConfig {
    /// A server with these keys. A client that is not `listed` is refused within the handshake, as soon as it has shown that it is who it says.
    ///
    /// # Errors
    ///
    /// When two keys are of one kind.
    pub fn new<'a>(
        keys: impl IntoIterator<Item = &'a PrivateKey>,
        listed: Arc<dyn Listed>,
        source: Arc<dyn Randomness>,
    ) -> Result<Self, DuplicateKind> {
        let mut own: Vec<Arc<Pair>> = keys.into_iter().map(|key| Arc::new(key.pair())).collect();
        own.sort_by_key(|pair| pair.public.kind());
        match own.windows(2).find(|pairs| pairs[0].public.kind() == pairs[1].public.kind()) {
            Some(pairs) => Err(DuplicateKind(pairs[0].public.kind())),
            None => Ok(ServerConfig { own: own.into(), listed, source }),
        }
    }

    /// The same server with another list.
    pub fn listing(&self, listed: Arc<dyn Listed>) -> Self {
        ServerConfig { own: self.own.clone(), listed, source: self.source.clone() }
    }

    /// The kinds of its keys, in the order of [`Kind::ALL`].
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.own.iter().map(|pair| pair.public.kind())
    }

    fn pair(&self, version: u32) -> Option<&Arc<Pair>> {
        self.own.iter().find(|pair| pair.public.kind().quic_version() == version)
    }
}

impl crypto::ServerConfig for ServerConfig {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        let pair = self.pair(version).ok_or(UnsupportedVersion)?;
        Ok(Level::initial(pair.public.kind(), dst_cid).keys(Side::Server))
    }

    fn retry_tag(&self, _: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        RetryKey::new().tag_of(orig_dst_cid, [packet, &[]])
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn crypto::Session> {
        Box::new(match self.pair(version) {
            Some(own) => {
                let mut parameters = Vec::new();
                params.write(&mut parameters);
                let (source, listed) = (self.source.clone(), Some(self.listed.clone()));
                let handshake = Handshake::responder(own);
                Session::server(Given { handshake, parameters, source, listed }, own.public.kind())
            }
            None => Session::failed(Kind::Standard, Side::Server),
        })
    }
}
