//! Sessions that end at a deadline: nobody stays beyond one, and nobody goes before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tollgate_shards::{ConnectionKey, Event, Fingerprint, SessionEnd, SessionLimits, Shard, ShardIndex};

use super::Violation;
use crate::gateway::Core;
use crate::identity::{Identity, end_s};
use crate::plan::{Feature, Plan};
use crate::schedule::Time;

/// Timers may be as late.
const LATE: Duration = Duration::from_millis(100);

/// What is known of a session.
#[derive(Debug, Clone, Copy)]
struct Session {
    /// When somebody was first seen to have logged in.
    began: Time,
    /// When inner packets from the client were last seen to arrive, or it logged in; and how many those were.
    heard_at: Time,
    heard: u64,
    /// When the gateway says that there were inner packets last, by its clock, and when that was seen.
    active_by_clock: Instant,
    active_at: Time,
    certificate_until: Option<Time>,
}

impl Session {
    fn end(&self, why: SessionEnd, last: Time, limits: &SessionLimits) -> Option<Time> {
        match why {
            SessionEnd::Idle => Some(last + limits.idle_max?),
            SessionEnd::Length => Some(self.began + limits.length_max?),
            SessionEnd::Certificate => self.certificate_until.filter(|_| limits.ends_with_certificate),
        }
    }
}

/// What is known of all sessions. Clocks that stand would make of every deadline a later one: where there are such, nothing is judged.
#[derive(Debug, Default)]
pub struct Expiry {
    is_judged: bool,
    /// Whether a session may go on on another connection, where it is older than it seems.
    may_move: bool,
    certificates: BTreeMap<Fingerprint, Time>,
    sessions: BTreeMap<ConnectionKey, Session>,
    /// What each shard had taken when it was last looked at.
    taken: BTreeMap<ShardIndex, Taken>,
}

impl Expiry {
    pub fn new(plan: &Plan) -> Self {
        let ends = plan.devices.iter().filter_map(|device| {
            let end = Time::default() + Duration::from_secs(end_s(device.identity)?);
            Some((Identity::cached(device.identity).fingerprint, end))
        });
        let is_judged = plan.features.has(Feature::Expiry) && !plan.features.has(Feature::Clocks);
        let may_move = plan.features.has(Feature::Upgrade);
        Expiry { is_judged, may_move, certificates: ends.collect(), ..Expiry::default() }
    }

    /// A shard tells something in a pass.
    pub fn told(&mut self, now: Time, event: &Event, core: &Core) -> Result<(), Violation> {
        let Event::Detached { connection, reason, .. } = event else { return Ok(()) };
        let session = self.sessions.remove(connection).filter(|_| self.is_judged);
        let why = SessionEnd::ALL.into_iter().find(|why| reason.contains(why.words()));
        let (Some(session), Some(why)) = (session, why) else { return Ok(()) };
        // The pass may have begun with another snapshot.
        let mut ends =
            core.applied().filter_map(|snapshot| session.end(why, session.heard_at, &snapshot.session_limits));
        if ends.any(|end| end <= now) || self.may_move && why == SessionEnd::Length {
            return Ok(());
        }
        Err(violation(format!("{connection:?} was closed too early: {reason}; {session:?}")))
    }

    /// A shard's pass is over. Its clock is `behind` by that much.
    pub fn after_pass(&mut self, now: Time, behind: Duration, core: &Core) -> Result<(), Violation> {
        if !self.is_judged {
            return Ok(());
        }
        let shard = core.shard();
        let taken = taken(shard);
        let has_taken = self.taken.insert(shard.index(), taken) != Some(taken);
        for it in shard.inspect().logged_in() {
            let fresh = Session {
                began: now,
                heard_at: now,
                heard: it.heard,
                active_by_clock: it.active_at,
                active_at: now,
                certificate_until: self.certificates.get(&it.credential).copied(),
            };
            let session = self.sessions.entry(it.connection).or_insert(fresh);
            if session.heard != it.heard {
                (session.heard, session.heard_at) = (it.heard, now);
            }
            if session.active_by_clock != it.active_at {
                if !has_taken && session.heard_at != now {
                    return Err(violation(format!("{:?} counts as active, and nothing came", it.connection)));
                }
                (session.active_by_clock, session.active_at) = (it.active_at, now);
            }
            for why in SessionEnd::ALL {
                let end =
                    core.applied().filter_map(|snapshot| session.end(why, session.active_at, &snapshot.session_limits));
                // Each of the snapshots that may hold wants it gone.
                let end = end.max().filter(|_| {
                    core.applied().all(|snapshot| session.end(why, now, &snapshot.session_limits).is_some())
                });
                if end.is_some_and(|end| now > end + LATE + behind) {
                    return Err(violation(format!("{:?} is still there ({why:?}): {session:?}", it.connection)));
                }
            }
        }
        Ok(())
    }

    /// A shard is dead.
    pub fn died(&mut self, shard: ShardIndex) {
        self.sessions.retain(|connection, _| connection.owner != shard);
    }
}

/// Counts of which one differs after every inner packet that a shard takes from anywhere; one may fall while another grows.
type Taken = [u64; 9];

fn taken(shard: &Shard) -> Taken {
    let counters = shard.counters();
    [
        counters.up_packets,
        counters.down_packets,
        counters.relayed_packets,
        counters.own_packets,
        counters.misrouted_frames,
        counters.datagrams_received,
        counters.drops.total(),
        counters.waiting_packets,
        counters.waits.classes().map(|(_, count)| count).sum(),
    ]
}

fn violation(what: String) -> Violation {
    Violation::new("deadlines", what)
}
