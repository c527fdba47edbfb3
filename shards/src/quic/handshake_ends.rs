//! How handshakes end: with a login, with a failure, or in favour of another one.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{ConnectionError, VarInt};
use tollgate_noise::UnlistedKey;

use super::close_code;
use super::connections::Stage;
use super::endpoint::{HELLO_TIMEOUT, QuicEndpoint};
use super::failures::{COST_OF_FAILURE, COST_OF_HALF};
use super::peer::{Failed, Failure, credential, reconnects};
use crate::drops::DropReason;
use crate::handshake_counts::HandshakeOutcome;
use crate::ids::{Credential, Reconnects};
use crate::memory::Accounts;

/// What becomes of a handshake whose connection is lost because of `error`.
pub fn outcome(error: &ConnectionError) -> HandshakeOutcome {
    match error {
        ConnectionError::TransportError(error) if UnlistedKey::of(error).is_some() => {
            HandshakeOutcome::UnknownCredential
        }
        ConnectionError::TransportError(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted
        | ConnectionError::LocallyClosed => HandshakeOutcome::Refused,
        ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => {
            HandshakeOutcome::ClosedByClient
        }
        ConnectionError::TimedOut => HandshakeOutcome::TimedOut,
    }
}

impl QuicEndpoint {
    /// Ends a pending handshake at once, so that another one finds room: nothing of it stays. A client that has heard of it is told, since its
    /// packets have an ID by now that serves for nothing else. One that has not will repeat its Initial, and so begin anew.
    pub(super) fn give_way(&mut self, now: Instant, slot: u32, accounts: &mut Accounts) {
        let Some(client) = self.connections.at(slot) else { return };
        accounts.counters.drops.count(DropReason::HandshakeGaveWay);
        if client.tunnel.connection.stats().udp_tx.datagrams > 0 {
            client.tunnel.connection.close(now, VarInt::from_u32(close_code::ESTABLISHMENT_FAILED), Bytes::new());
            let mut last_words = Vec::new();
            if let Some(transmit) = client.tunnel.poll_transmit(now, 1, 0, &mut last_words) {
                self.responses.respond(transmit, &last_words, &mut accounts.counters);
            }
        }
        let failure = Failure::Other("gave way to another handshake".to_owned());
        self.handshake_failed(now, slot, COST_OF_HALF, (HandshakeOutcome::GaveWay, failure));
        self.give_up(slot);
        self.forget(now, slot, accounts);
    }

    /// A handshake is over, and nobody has logged in: it costs `cost`, more where its ClientHello was taken. Returns whether it was one.
    fn handshake_failed(
        &mut self,
        now: Instant,
        slot: u32,
        cost: Duration,
        (outcome, failure): (HandshakeOutcome, Failure),
    ) -> bool {
        let Some(client) = self.connections.at(slot) else { return false };
        let Stage::Handshaking { place, .. } = client.stage else { return false };
        client.stage = Stage::Closed;
        let (remote, kind) = (client.tunnel.connection.remote_address(), client.kind);
        self.handshake_ends.count(kind, outcome);
        self.admission.release(place);
        self.count_failure(now, slot, if place.has_hello { COST_OF_FAILURE } else { cost });
        self.failed.push_back(Failed { remote, kind, failure });
        true
    }

    /// This side has closed a connection. Returns whether it was a handshake.
    pub fn handshake_closed(&mut self, now: Instant, slot: u32, reason: &str) -> bool {
        let Some(client) = self.connections.at(slot) else { return false };
        let outcome = match client.stage {
            _ if client.tunnel.misuses_crypto() => HandshakeOutcome::Refused,
            Stage::Handshaking { deadline, .. } if deadline <= now => HandshakeOutcome::TimedOut,
            _ => HandshakeOutcome::ClosedByGateway,
        };
        self.handshake_failed(now, slot, COST_OF_HALF, (outcome, Failure::Other(reason.to_owned())))
    }

    /// The other side has closed a connection, or it has died. Returns whether it was a handshake.
    pub fn handshake_lost(&mut self, now: Instant, slot: u32, reason: &ConnectionError) -> bool {
        // What TLS refused it had to compute first, as opposed to what was not there yet.
        let cost = match reason {
            ConnectionError::TransportError(_) => COST_OF_FAILURE,
            _ => COST_OF_HALF,
        };
        self.handshake_failed(now, slot, cost, (outcome(reason), Failure::of(reason)))
    }

    /// Counts a failed login against its source.
    pub fn count_failure(&mut self, now: Instant, slot: u32, cost: Duration) {
        if let Some(client) = self.connections.at(slot) {
            self.failures.count(now, client.tunnel.connection.remote_address().ip(), cost);
        }
    }

    /// All of the ClientHello has arrived: the client has the rest of the time for its own last flight.
    pub fn hello_complete(&mut self, now: Instant, slot: u32) {
        if let Some(client) = self.connections.at(slot)
            && let Stage::Handshaking { place, deadline, .. } = &mut client.stage
        {
            self.admission.complete_hello(now, place);
            let started = *deadline - HELLO_TIMEOUT.min(self.params.handshake_timeout);
            *deadline = started + self.params.handshake_timeout;
        }
    }

    /// The handshake is complete; the client has proved that it holds the secret of the credential that is returned, and said whether it connects anew.
    pub fn handshake_complete(&mut self, slot: u32) -> Option<(Credential, Reconnects)> {
        let client = self.connections.at(slot)?;
        if let Stage::Handshaking { place, .. } = client.stage {
            self.admission.release(place);
            client.stage = Stage::Closed;
        }
        let connection = &client.tunnel.connection;
        let credential = credential(connection);
        if credential.is_none() {
            self.handshake_ends.count(client.kind, HandshakeOutcome::Refused);
        }
        Some((credential?, reconnects(connection)))
    }
}
