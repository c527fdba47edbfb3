//! The sockets where the control plane listens, opened before the process gives up its privileges: a port below 1024 is a privilege, and so may the folder
//! of the control socket be.

use std::net::{SocketAddr, TcpListener};

use tollgate_config::ServerConfig;
use tracing::warn;

use super::ControlError;
use super::acceptor::{Acceptor, SocketError};
use super::metrics;
use crate::upgrade::Listeners;

/// Those of one gateway.
#[derive(Debug)]
pub struct Sockets {
    acceptor: Result<Acceptor, SocketError>,
    pub(super) metrics: Option<(SocketAddr, TcpListener)>,
}

impl Sockets {
    /// Those that `config` asks for, or of them what another process has `lent`.
    ///
    /// # Errors
    ///
    /// If it cannot be listened where `config` says. A gateway serves its clients without a control socket, unless its configuration names it.
    pub fn open(config: &ServerConfig, lent: Listeners) -> Result<Self, ControlError> {
        let place = &config.control.socket;
        let acceptor = match lent.control {
            Some((path, socket)) if path == place.path => Acceptor::inherit(&path, socket),
            _ => Acceptor::listen(&place.path),
        };
        let metrics = metrics::bind(&config.metrics, lent.metrics)?;
        match acceptor {
            Err(error) if place.is_configured => Err(error.into()),
            acceptor => Ok(Sockets { acceptor, metrics }),
        }
    }

    /// The control socket. Says so where there is none.
    pub(super) fn acceptor(self) -> Option<Acceptor> {
        match self.acceptor {
            Ok(acceptor) => return Some(acceptor),
            Err(error @ SocketError::InUse { .. }) => warn!(
                "`tollgate reload` and `tollgate kick` reach the gateway that has the control socket, whichever --config they are given, and not \
                 this one, which SIGHUP and SIGTERM reach: {error}"
            ),
            Err(error) => warn!(
                "`tollgate reload` and `tollgate kick` cannot reach this gateway, SIGHUP and SIGTERM can: {error}"
            ),
        }
        None
    }
}
