//! Sessions that end at a deadline. Each connection has a timer for all of its deadlines, which is late only where packets have come meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::action::Event;
use super::data::DataPlane;
use super::told::End;
use crate::deadlines::{SessionLimits, SessionTimes};
use crate::ids::UserIndex;
use crate::quic::close_code;
use crate::quic::connections::ClientConnection;
use crate::quic::peer;

const DAY: Duration = Duration::from_secs(86_400);
/// From so many days before its end on, a certificate is told of.
const TOLD_DAYS: u32 = 30;
/// Users whose certificates are told of at once.
const TOLD_MAX: usize = 16;

impl DataPlane {
    /// Somebody has logged in.
    pub(super) fn begin_session(&mut self, slot: u32) {
        let Some(client) = self.quic.connections.at(slot) else { return };
        let until = peer::certificate_until(&client.tunnel.connection);
        let until = until.and_then(|until| self.quic.wall_clock.instant(until, self.now));
        client.deadlines = Some(SessionTimes::new(self.now, until));
        let told = certificate_ends(client, &self.quic.session_limits, self.now);
        if let Some((user, days)) = told {
            self.outbox.tell(Event::CertificateEnds { user, days }, None);
        }
    }

    /// The session on the connection in `slot` is that old: it began on another connection, whose place this one has.
    pub(super) fn resume_session(&mut self, slot: u32, age_ms: u64) {
        let began = self.now.checked_sub(Duration::from_millis(age_ms));
        if let Some(client) = self.quic.connections.at(slot)
            && let (Some(deadlines), Some(began)) = (&mut client.deadlines, began)
        {
            deadlines.began = deadlines.began.min(began);
        }
    }

    /// How long the session on the connection in `slot` has lasted.
    pub(super) fn session_age_ms(&mut self, slot: u32) -> u64 {
        let deadlines = self.quic.connections.at(slot).and_then(|client| client.deadlines);
        deadlines.map_or(0, |deadlines| self.now.saturating_duration_since(deadlines.began).as_millis() as u64)
    }

    /// Other limits hold from now on, for sessions that there are too.
    pub(super) fn limit_sessions(&mut self, limits: SessionLimits) {
        if limits != self.quic.session_limits {
            self.quic.session_limits = limits;
            self.quic.connections.apply(&limits);
        }
        let ending = self.quic.connections.iter().filter_map(|client| certificate_ends(client, &limits, self.now));
        // Each user once, for the certificate that ends first.
        let mut users = BTreeMap::new();
        for (user, days) in ending {
            users.entry(user).and_modify(|first: &mut u64| *first = days.min(*first)).or_insert(days);
        }
        for (user, days) in users.into_iter().take(TOLD_MAX) {
            self.outbox.tell(Event::CertificateEnds { user, days }, None);
        }
    }

    /// Closes the connection in `slot`, if its session is over.
    pub(super) fn end_session(&mut self, slot: u32) {
        let limits = self.quic.session_limits;
        let end = self.quic.connections.at(slot).and_then(|client| client.session_end(&limits));
        if let Some((at, why)) = end
            && at <= self.now
        {
            self.accounts.counters.session_ends.count(why);
            self.end(None, slot, (close_code::SESSION_OVER, why.words()), End::Session(why));
        }
    }
}

/// Whose certificate ends in how many days, where that is near and means something.
fn certificate_ends(client: &ClientConnection, limits: &SessionLimits, now: Instant) -> Option<(UserIndex, u64)> {
    let user = client.identity()?.user;
    let until = client.deadlines?.certificate_until.filter(|_| limits.ends_with_certificate)?;
    let left = until.saturating_duration_since(now);
    (left < TOLD_DAYS * DAY).then(|| (user, left.as_secs() / DAY.as_secs()))
}
