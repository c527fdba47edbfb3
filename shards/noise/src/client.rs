//! The side of the client.

use std::sync::Arc;

use quinn_proto::ConnectError;
use quinn_proto::crypto;
use quinn_proto::transport_parameters::TransportParameters;

use crate::announcement::Announcement;
use crate::failed::Failed;
use crate::handshake::Handshake;
use crate::keys::{Pair, PrivateKey, PublicKey};
use crate::kind::Kind;
use crate::random::Randomness;
use crate::session::{Given, Session};

/// Why a client cannot be configured so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[allow(missing_docs, reason = "its message says it")]
    #[error("the private key is {own} and the server's public key {server}; they must be of one kind")]
    KindsDiffer { own: Kind, server: Kind },
    #[allow(missing_docs, reason = "its message says it")]
    #[error("no handshake can begin with this public key of the server; is it damaged?")]
    UnusableServerKey,
}

/// A client's configuration for quinn-proto, for one server.
pub struct ClientConfig {
    own: Arc<Pair>,
    server: PublicKey,
    source: Arc<dyn Randomness>,
    announcement: Option<Announcement>,
}

impl ClientConfig {
    /// A client with the key `own`, for a server with the key `server`.
    ///
    /// # Errors
    ///
    /// When the keys are of two kinds, or the server's is none with which a handshake can begin.
    pub fn new(own: &PrivateKey, server: PublicKey, source: Arc<dyn Randomness>) -> Result<Self, ClientError> {
        if own.kind() != server.kind() {
            return Err(ClientError::KindsDiffer { own: own.kind(), server: server.kind() });
        }
        let config = ClientConfig { own: Arc::new(own.pair()), server, source, announcement: None };
        config.session(Vec::new()).map_err(|Failed| ClientError::UnusableServerKey)?;
        Ok(config)
    }

    /// The same client, which says this of itself.
    #[must_use]
    pub fn announcing(&self, announcement: Announcement) -> Self {
        let ClientConfig { own, server, source, .. } = self;
        let (own, server, source) = (own.clone(), server.clone(), source.clone());
        ClientConfig { own, server, source, announcement: Some(announcement) }
    }

    /// The version that `quinn_proto::ClientConfig` must be set to.
    pub fn quic_version(&self) -> u32 {
        self.own.public.kind().quic_version()
    }

    fn session(&self, parameters: Vec<u8>) -> Result<Session, Failed> {
        let handshake = Handshake::initiator(&self.own, &self.server);
        let given = Given { handshake, parameters, source: self.source.clone(), listed: None };
        Session::client(given, self.own.public.kind())
    }
}

impl crypto::ClientConfig for ClientConfig {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        _: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn crypto::Session>, ConnectError> {
        if version != self.quic_version() {
            return Err(ConnectError::UnsupportedVersion);
        }
        let mut parameters = Vec::new();
        params.write(&mut parameters);
        self.announcement.iter().for_each(|announcement| announcement.write(&mut parameters));
        // Only the source of randomness can fail, for which quinn-proto has no error.
        self.session(parameters).map(|session| Box::new(session) as _).map_err(|Failed| ConnectError::EndpointStopping)
    }
}
