//! A shard's connections from login to goodbye.
//!
//! Never looks into a packet.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{Connection, ConnectionError, Dir, EndpointEvent, Event as ConnectionEvent, VarInt};
use rustls::pki_types::CertificateDer;

use super::connections::{Member, Owned, Stage};
use super::outer::{HELLO_TIMEOUT, touch, want_to_send};
use super::{Event, Shard};
use crate::assignment::Assignment;
use crate::drops::DropReason;
use crate::excerpt::excerpt;
use crate::ids::{ConnectionKey, Fingerprint};
use crate::quic::close_code;
use crate::quic::failures::{COST_OF_FAILURE, COST_OF_HALF};
use crate::session::home::home_of;
use crate::session::message::{CloseReason, Login, Message};

impl Shard {
    /// Looks at one connection that the batch touched: what happened to it, what came out of it.
    pub(super) fn drive(&mut self, now: Instant, slot: u32) {
        let Some(mut owned) = self.connections.take(slot) else { return };
        owned.touched = false;
        let drained = owned.link.exchange(&mut self.endpoint);
        while let Some(event) = owned.link.connection.poll() {
            match event {
                ConnectionEvent::HandshakeDataReady => self.hello_complete(now, &mut owned),
                ConnectionEvent::Connected => self.logged_in(now, &mut owned),
                ConnectionEvent::ConnectionLost { reason } => self.lost(&mut owned, &reason),
                _ => {}
            }
        }
        if let Stage::Handshaking { deadline, .. } = owned.stage
            && deadline <= now
        {
            self.goodbye(now, &mut owned, close_code::ESTABLISHMENT_FAILED, "Handshake timed out");
        }
        if owned.stage != Stage::Closed && owned.link.misuses_crypto() {
            self.goodbye(now, &mut owned, close_code::MISUSE, "CRYPTO frames after the handshake");
        }
        if self.take_inner_packets(&mut owned) {
            touch(&mut self.touched, &mut owned);
        }
        if drained {
            return self.forget(owned);
        }
        want_to_send(&mut self.sending, &mut owned);
        self.connections.put_back(owned);
    }

    /// All of the ClientHello has arrived: the client has the rest of the time for its own last flight.
    fn hello_complete(&mut self, now: Instant, owned: &mut Owned) {
        if let Stage::Handshaking { place, deadline, .. } = &mut owned.stage {
            self.admission.complete_hello(now, place);
            let started = *deadline - HELLO_TIMEOUT.min(self.params.handshake_timeout);
            *deadline = started + self.params.handshake_timeout;
        }
    }

    /// The handshake is complete; the client has proved that it holds the key of its certificate.
    fn logged_in(&mut self, now: Instant, owned: &mut Owned) {
        if let Stage::Handshaking { place, .. } = owned.stage {
            self.admission.release(place);
            owned.stage = Stage::Closed;
        }
        owned.link.handshake_is_complete();
        let Some(certificate) = fingerprint_of_peer(&owned.link.connection) else {
            return self.goodbye(now, owned, close_code::ESTABLISHMENT_FAILED, "Session establishment failed");
        };
        let Some(user) = self.epoch.directory.find(&certificate) else {
            self.failures.count(now, owned.link.connection.remote_address().ip(), COST_OF_FAILURE);
            self.tell(Event::UnknownCertificate { certificate });
            return self.goodbye(now, owned, close_code::ESTABLISHMENT_FAILED, "Session establishment failed");
        };
        self.counters.handshakes += 1;
        let home = home_of(self.epoch.directory.name(user), self.params.shards);
        owned.stage = Stage::Attaching(Member { user, home, certificate });
        let login = Login { user, connection: owned.key, certificate };
        self.outbox.send(home, Message::Attach { login, epoch: self.epoch.number, address: None });
    }

    /// The home has taken the connection in: the client is told its address.
    pub(super) fn attached(&mut self, now: Instant, connection: ConnectionKey, address: IpAddr) {
        let Some(mut owned) = self.connections.take_exact(connection) else { return };
        if let Stage::Attaching(member) = owned.stage {
            self.welcome(now, &mut owned, member, address);
            touch(&mut self.touched, &mut owned);
        }
        self.connections.put_back(owned);
    }

    fn welcome(&mut self, now: Instant, owned: &mut Owned, member: Member, address: IpAddr) {
        let user = member.user;
        // The home may be an epoch behind.
        if !self.epoch.directory.allows(user, address) {
            return self.goodbye(now, owned, close_code::REVOKED, "Access revoked");
        }
        let assignment = Assignment::new(self.params.tunnel, address).to_json();
        if !send_on_first_stream(&mut owned.link.connection, &assignment) {
            return self.goodbye(now, owned, close_code::ESTABLISHMENT_FAILED, "Session establishment failed");
        }
        let limit = self.epoch.directory.user(user).and_then(|user| user.limit);
        owned.stage = Stage::Attached { member, address, limited: limit.is_some() };
        if let Some(limit) = limit {
            self.join_allowance(&member, limit);
        }
        self.tell(Event::Attached { user, connection: owned.key, address });
        self.follow_path(now, owned);
    }

    /// The home wants the connection closed.
    pub(super) fn close_for(&mut self, now: Instant, connection: ConnectionKey, reason: CloseReason, epoch: u64) {
        let Some(mut owned) = self.connections.take_exact(connection) else { return };
        if let Some(Member { user, .. }) = owned.member() {
            match reason {
                CloseReason::PoolExhausted => self.tell(Event::PoolExhausted { user }),
                CloseReason::PoolReserved => self.tell(Event::PoolReserved { user }),
                CloseReason::TooManyConnections => self.tell(Event::TooManyConnections { user }),
                CloseReason::Revoked | CloseReason::Superseded => {}
            }
        }
        let (code, reason) = match reason {
            CloseReason::PoolExhausted | CloseReason::PoolReserved => {
                (close_code::ESTABLISHMENT_FAILED, "Session establishment failed")
            }
            CloseReason::TooManyConnections => (close_code::ESTABLISHMENT_FAILED, "Too many connections"),
            CloseReason::Revoked => (close_code::REVOKED, "Access revoked"),
            CloseReason::Superseded => (close_code::SUPERSEDED, "Superseded by a newer connection"),
        };
        self.goodbye_of(epoch, now, &mut owned, code, reason);
        self.connections.put_back(owned);
    }

    /// Closes every connection, and takes no new ones.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopping = true;
        for slot in self.connections.slots() {
            let Some(mut owned) = self.connections.take(slot) else { continue };
            self.goodbye(now, &mut owned, close_code::SHUTDOWN, "Server shutdown");
            self.connections.put_back(owned);
        }
    }

    /// Closes a connection from this side.
    pub(super) fn goodbye(&mut self, now: Instant, owned: &mut Owned, code: u32, reason: &'static str) {
        self.goodbye_of(self.epoch.number, now, owned, code, reason);
    }

    /// Likewise, because another epoch wants it.
    fn goodbye_of(&mut self, epoch: u64, now: Instant, owned: &mut Owned, code: u32, reason: &'static str) {
        if !owned.link.connection.is_closed() {
            owned.link.connection.close(now, VarInt::from_u32(code), Bytes::from_static(reason.as_bytes()));
        }
        self.leave(owned, epoch, &format!("closed by the gateway: {reason} (code {code:#04x})"));
        touch(&mut self.touched, owned);
    }

    /// The other side has closed a connection, or it has died.
    fn lost(&mut self, owned: &mut Owned, reason: &ConnectionError) {
        // What TLS refused it had to compute first, as opposed to what was not there yet.
        let cost = match reason {
            ConnectionError::TransportError(_) => COST_OF_FAILURE,
            _ => COST_OF_HALF,
        };
        let reason = match reason {
            ConnectionError::ApplicationClosed(close) => {
                let said = excerpt(&close.reason);
                format!("closed by the client: {said} (code {:#04x})", close.error_code.into_inner())
            }
            other => excerpt(other.to_string().as_bytes()),
        };
        self.leave_at(owned, self.epoch.number, &reason, cost);
    }

    /// Ends a pending handshake at once, so that another one finds room: nothing of it stays. A client that has heard of it is told, since its
    /// packets have an ID by now that serves for nothing else. One that has not will repeat its Initial, and so begin anew.
    pub(super) fn give_way(&mut self, now: Instant, slot: u32) {
        let Some(mut owned) = self.connections.take(slot) else { return };
        self.counters.drops.count(DropReason::HandshakeGaveWay);
        if owned.link.connection.stats().udp_tx.datagrams > 0 {
            owned.link.connection.close(now, VarInt::from_u32(close_code::ESTABLISHMENT_FAILED), Bytes::new());
            let mut last_words = Vec::new();
            if let Some(transmit) = owned.link.poll_transmit(now, 1, &mut last_words) {
                self.respond(transmit, &last_words);
            }
        }
        self.leave(&mut owned, self.epoch.number, "gave way to another handshake");
        self.endpoint.handle_event(owned.link.handle, EndpointEvent::drained());
        self.forget(owned);
    }

    fn leave(&mut self, owned: &mut Owned, epoch: u64, reason: &str) {
        self.leave_at(owned, epoch, reason, COST_OF_HALF);
    }

    /// Likewise, where a handshake whose ClientHello has not been taken costs `cost`.
    fn leave_at(&mut self, owned: &mut Owned, epoch: u64, reason: &str, cost: Duration) {
        match std::mem::replace(&mut owned.stage, Stage::Closed) {
            Stage::Handshaking { place, .. } => {
                self.admission.release(place);
                let cost = if place.has_hello() { COST_OF_FAILURE } else { cost };
                self.failures.count(self.now, owned.link.connection.remote_address().ip(), cost);
                self.tell(Event::HandshakeFailed { reason: reason.to_owned() });
            }
            stage @ (Stage::Attaching(member) | Stage::Attached { member, .. }) => {
                let Member { user, home, .. } = member;
                if let Stage::Attached { limited: true, .. } = stage {
                    self.leave_allowance(user, owned.key);
                }
                self.outbox.send(home, Message::Detach { user, connection: owned.key });
                if let Stage::Attached { address, .. } = stage {
                    self.forget_mtu(owned, address);
                    self.tell(Event::Detached { user, connection: owned.key, reason: reason.to_owned(), epoch });
                }
            }
            Stage::Closed => {}
        }
    }
}

/// SHA-256 of the client's certificate.
fn fingerprint_of_peer(connection: &Connection) -> Option<Fingerprint> {
    let identity = connection.crypto_session().peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(Fingerprint::of(chain.first()?))
}

/// Writes `message` on a new unidirectional stream, whole, and finishes it.
fn send_on_first_stream(connection: &mut Connection, message: &[u8]) -> bool {
    let Some(stream) = connection.streams().open(Dir::Uni) else { return false };
    let mut stream = connection.send_stream(stream);
    stream.write(message) == Ok(message.len()) && stream.finish().is_ok()
}
