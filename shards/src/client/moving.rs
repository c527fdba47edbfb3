//! A client that moves: asked to, it connects to the gateway anew, beside the connection that carries its packets, and goes over when the new one has
//! an address. The gateway closes the old one then, so that the address has one holder at a time.
//!
//! What is lost is what the client has sent to the old connection while the news that it is closed was on its way.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::crypto::ClientConfig as CryptoConfig;
use quinn_proto::{ConnectionEvent as EndpointEvent, ConnectionHandle, Event as ConnectionEvent, VarInt};

use super::message::Messages;
use super::{CloseCause, Tunnel};
use crate::assignment::Assignment;
use crate::io::Transmit;
use crate::notice::Notice;
use crate::quic::close_code;
use crate::quic::tunnel_connection::TunnelConnection;

/// How long a move may take. The gateway closes the old connection later than that.
const MOVE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long it may still take once the old connection is over.
const LOST_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes the handshake of a client that moves and has this address, which it shows: in TLS as a [`claim`](crate::claim) behind its certificates, in Noise
/// as an [`Announcement`](tollgate_noise::Announcement). None where it cannot.
pub type MovingHandshake = Arc<dyn Fn(IpAddr) -> Option<Arc<dyn CryptoConfig>> + Send + Sync>;

/// The connections beside the one that carries: one at a time. A gateway that asks to move again meanwhile is not heard.
#[derive(Default)]
pub struct Moving {
    /// How it connects anew, if it is one who does.
    handshake: Option<MovingHandshake>,
    next: Option<Box<Next>>,
    /// The one that says its last.
    leaving: Option<Box<TunnelConnection>>,
    /// Why the old connection is over, if it is before the new one has an address.
    lost: Option<CloseCause>,
}

/// The connection that the client goes over to.
struct Next {
    link: TunnelConnection,
    messages: Messages,
    deadline: Instant,
}

impl Moving {
    /// Whether there is nothing to do but for the connection that carries.
    pub fn is_quiet(&self) -> bool {
        self.next.is_none() && self.leaving.is_none()
    }

    pub fn handle_event(&mut self, handle: ConnectionHandle, event: EndpointEvent) {
        if let Some(link) = self.links().find(|link| link.handle == handle) {
            link.handle_event(event);
        }
    }

    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let deadline = self.next.as_ref().map(|next| next.deadline);
        // What their paths carry is not told: the end of a search there is nobody's business.
        self.links().filter_map(|link| link.connection.poll_timeout()).chain(deadline).min()
    }

    /// The next datagram that has reached a connection before it was closed.
    pub fn recv(&mut self) -> Option<Bytes> {
        self.leaving.as_mut()?.recv()
    }

    fn links(&mut self) -> impl Iterator<Item = &mut TunnelConnection> {
        self.leaving.as_deref_mut().into_iter().chain(self.next.as_mut().map(|next| &mut next.link))
    }
}

impl Tunnel {
    /// Lets the gateway ask this client to move, by a `handshake` that begins when it does.
    pub fn move_by(&mut self, handshake: MovingHandshake) {
        self.moving.handshake = Some(handshake);
    }

    pub(super) fn take_notice(&mut self, now: Instant, json: &[u8]) {
        let may_move = !self.closed && self.moving.is_quiet();
        let (Some(assignment), Some(handshake)) = (self.assignment, &self.moving.handshake) else { return };
        if may_move
            && Notice::from_json(json) == Some(Notice::Move)
            && let Some(handshake) = handshake(assignment.client_address.addr())
            && let Ok(link) = self.dial.begin(&mut self.endpoint, handshake, now)
        {
            let (messages, deadline) = (Messages::default(), now + MOVE_TIMEOUT);
            self.moving.next = Some(Box::new(Next { link, messages, deadline }));
        }
    }

    /// The connection that carries is over. Whoever is about to move waits for what comes of that, unless the gateway has sent it away.
    pub(super) fn lost(&mut self, now: Instant, cause: CloseCause) {
        let is_sent_away = |code: u64| code != u64::from(close_code::UPGRADE);
        self.moving.lost = Some(cause);
        match (&mut self.moving.next, &self.moving.lost) {
            (Some(_), &Some(CloseCause::Gateway { code, .. })) if is_sent_away(code) => self.give_up_move(now),
            (Some(next), _) => next.deadline = next.deadline.min(now + LOST_TIMEOUT),
            (None, _) => self.give_up_move(now),
        }
    }

    pub(super) fn handle_move_timeout(&mut self, now: Instant) {
        for link in self.moving.links() {
            if link.connection.poll_timeout().is_some_and(|at| at <= now) {
                link.handle_timeout(now);
            }
        }
        if self.moving.next.as_ref().is_some_and(|next| next.deadline <= now) {
            self.give_up_move(now);
        }
        if !self.moving.is_quiet() {
            self.touch(now);
        }
    }

    /// Looks at what has happened to the connections beside the one that carries.
    pub(super) fn look_at_move(&mut self, now: Instant) {
        self.exchange_of_move(now);
        let Some(next) = &mut self.moving.next else { return };
        let mut is_lost = false;
        while let Some(event) = next.link.connection.poll() {
            is_lost |= matches!(event, ConnectionEvent::ConnectionLost { .. });
        }
        match next.messages.poll(&mut next.link.connection).map(|json| json.map(|json| Assignment::from_json(&json))) {
            Ok(Some(Ok(assignment))) => self.go_over(now, assignment),
            Ok(None) if !is_lost => {}
            Ok(_) | Err(_) => self.give_up_move(now),
        }
    }

    /// The new connection has an address: it carries from now on.
    fn go_over(&mut self, now: Instant, assignment: Assignment) {
        let Some(next) = self.moving.next.take() else { return };
        let Next { link, messages, .. } = *next;
        let mut former = std::mem::replace(&mut self.link, link);
        if std::mem::take(&mut self.drained) {
            former.count(now, &mut self.counters);
        } else {
            self.leave(now, former);
        }
        self.touch(now);
        (self.messages, self.moving.lost, self.path_probe) = (messages, None, None);
        self.assigned(assignment);
    }

    /// There will be no new connection. Where the old one is over, that is how it ended.
    pub(super) fn give_up_move(&mut self, now: Instant) {
        if let Some(next) = self.moving.next.take() {
            self.leave(now, next.link);
        }
        if let Some(cause) = self.moving.lost.take() {
            self.close_because(cause);
        }
    }

    fn leave(&mut self, now: Instant, mut link: TunnelConnection) {
        link.connection.close(now, VarInt::from_u32(close_code::SHUTDOWN), Bytes::from_static(b"Client shutdown"));
        self.moving.leaving = Some(Box::new(link));
        self.touch(now);
    }

    pub(super) fn poll_transmit_of_move(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        let datagrams_max = self.send_datagrams_max;
        let transmit = self.moving.links().find_map(|link| link.poll_transmit(now, datagrams_max, usize::MAX, buf));
        if transmit.is_none() {
            self.exchange_of_move(now);
        }
        transmit
    }

    fn exchange_of_move(&mut self, now: Instant) {
        let Tunnel { moving, endpoint, counters, .. } = self;
        if let Some(mut drained) = moving.leaving.take_if(|link| link.exchange(endpoint)) {
            drained.count(now, counters);
        }
        if let Some(next) = &mut moving.next {
            // It is told of its end before the endpoint has forgotten it.
            let _ = next.link.exchange(endpoint);
        }
    }
}
