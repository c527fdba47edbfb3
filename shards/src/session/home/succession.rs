//! Sessions that go over from the homes of one process to those of another.
//!
//! Owners tell which connections they have. Of the tokens only the former homes know: what a bucket holds goes on, and what was on lease expires.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::SessionHome;
use super::session::Session;
use crate::ids::{ShardIndex, Shards, UserIndex};
use crate::limit::lease::LeaseReport;
use crate::session::context::Context;
use crate::session::message::ControlMessage;

/// What a home that takes over others has been told so far. One entry a user in each.
#[derive(Debug, Default)]
pub struct Told {
    /// What the buckets of limited users hold, in bytes.
    levels: BTreeMap<UserIndex, u64>,
    /// What owners want, the latest of each.
    reports: BTreeMap<(UserIndex, ShardIndex), LeaseReport>,
}

impl SessionHome {
    /// A home that takes over others, and has its memory when all of `owners` have told theirs.
    pub fn succeeding(here: ShardIndex, owners: impl Iterator<Item = ShardIndex>, incarnation: u32) -> Self {
        SessionHome { awaited: owners.collect(), told: Some(Told::default()), ..SessionHome::empty(here, incarnation) }
    }

    /// A home again, whose successor is dead with all that it knew: it has its memory when all of `owners` have told theirs.
    pub fn returning(
        here: ShardIndex,
        owners: impl Iterator<Item = ShardIndex>,
        incarnation: u32,
        now: Instant,
    ) -> Self {
        let home = SessionHome::empty(here, incarnation);
        SessionHome { awaited: owners.collect(), lost_at: Some(now), ..home }
    }

    /// Tells the homes of another process what owners do not know. This one is none any more.
    pub fn tell_successors(self, context: &mut Context) {
        let SessionHome { sessions, lost_at, awaited, .. } = self;
        let is_complete = awaited.is_empty();
        let issuers = sessions.iter().filter_map(|(&user, session)| Some((user, session.issuer()?)));
        let users = context.users.clone();
        for (user, issuer) in issuers.filter(|_| is_complete) {
            let Some(name) = users.known_name(user) else { continue };
            let level_bytes = issuer.level_bytes_at(context.now);
            context.send(context.topology.home_of(name), ControlMessage::Level { user, level_bytes });
        }
        // What is missing may have been spent, by any user.
        let lost_at = if is_complete { lost_at } else { Some(context.now) };
        let lost_ms = lost_at.map(|at| context.now.saturating_duration_since(at).as_millis() as u64);
        for home in context.topology.homes() {
            context.send(home, ControlMessage::Yielded { lost_ms });
        }
    }

    /// [`ControlMessage::Level`]: what the bucket of a user held when a former home yielded.
    pub fn level_told(&mut self, user: UserIndex, level_bytes: u64) {
        if let Some(told) = self.told.as_mut().filter(|_| user != UserIndex::NOBODY) {
            told.levels.insert(user, level_bytes);
        }
    }

    /// [`ControlMessage::Yielded`]: a former home has told all, but for what it had itself lost so long ago.
    pub fn yielded(&mut self, now: Instant, lost_ms: Option<u64>) {
        let lost_at = lost_ms.map(|ms| now.checked_sub(Duration::from_millis(ms)).unwrap_or(now));
        self.lost_at = self.lost_at.max(lost_at);
    }

    /// The owners that have lived in another process are no more.
    pub fn owners_gone(&mut self, context: &mut Context, owners: Shards) {
        for owner in owners.iter() {
            self.owner_lost(context, owner);
        }
        if self.is_recovering() {
            // Of its former homes nobody tells any more.
            (self.told, self.lost_at) = (None, Some(context.now));
        }
        owners.iter().for_each(|owner| self.reported(context, owner));
    }

    /// An owner wants tokens of a home that takes over others: it is answered when that has its memory.
    pub(super) fn report_early(&mut self, report: &LeaseReport) {
        if let Some(told) = &mut self.told {
            told.reports.insert((report.user, report.lease.holder), *report);
        }
    }

    /// The home has its memory.
    pub(super) fn recover(&mut self, context: &mut Context) {
        let Some(Told { mut levels, reports }) = self.told.take() else {
            // Not before: until now owners may have spent what an earlier home had lent them.
            self.lost_at = Some(context.now);
            return self.each_session(context, |session, context| session.recover(context, None, Some(context.now)));
        };
        let lost_at = self.lost_at;
        let users: BTreeSet<_> = self.sessions.keys().chain(levels.keys()).copied().collect();
        for user in users {
            let here = self.here;
            let session = self.sessions.entry(user).or_insert_with(|| Session::new(context, user, here, lost_at));
            session.recover(context, levels.remove(&user), lost_at);
            self.reschedule(context.now, user);
        }
        reports.values().for_each(|report| self.report_lease(context, report));
    }
}
