//! Which shard a new client is sent to: one that has no more clients than any other, where nothing has happened for so long that all shards know.

use std::time::Duration;

use tollgate_shards::ShardIndex;

use super::Violation;
use crate::plan::{Feature, LayoutPlan, Plan};
use crate::schedule::Time;

/// Loads are told within 100 ms and what was sent somewhere counts for a second; a client that comes again within 3 s is sent where it was.
const QUIET: Duration = Duration::from_secs(4);
/// A shard that has died may be a home: its users' logins take longer.
const QUIET_AFTER_DEATH: Duration = Duration::from_secs(12);
/// So many places must be free, so that room does not matter.
const ROOM: usize = 16;

#[derive(Debug)]
pub struct Placement {
    pub is_judged: bool,
    connections_max: usize,
    layout: LayoutPlan,
    /// Clients of each shard that have an address, as the shards have told.
    clients: Vec<usize>,
    /// Since when nothing has happened.
    quiet_since: Time,
}

impl Placement {
    pub fn new(plan: &Plan) -> Self {
        // Loads may get lost, or are late; strangers are sent somewhere too, and not all of them are answered.
        let others = [
            Feature::MeshLoss,
            Feature::Pauses,
            Feature::Clocks,
            Feature::Shell,
            Feature::Floods,
            Feature::Strangers,
            Feature::Failures,
        ];
        Placement {
            is_judged: plan.shards > 1 && !others.iter().any(|&feature| plan.features.has(feature)),
            connections_max: plan.limits.connections_max,
            layout: plan.layout.clone(),
            clients: vec![0; usize::from(plan.shards)],
            quiet_since: Time::default(),
        }
    }

    pub fn attached(&mut self, now: Time, owner: ShardIndex) {
        if let Some(clients) = self.clients.get_mut(usize::from(owner.0)) {
            *clients += 1;
        }
        self.happens(now);
    }

    pub fn detached(&mut self, now: Time, owner: ShardIndex) {
        if let Some(clients) = self.clients.get_mut(usize::from(owner.0)) {
            *clients = clients.saturating_sub(1);
        }
        self.happens(now);
    }

    pub fn died(&mut self, now: Time, shard: ShardIndex) {
        if let Some(clients) = self.clients.get_mut(usize::from(shard.0)) {
            *clients = 0;
        }
        self.happens(now + QUIET_AFTER_DEATH);
    }

    fn happens(&mut self, now: Time) {
        self.quiet_since = self.quiet_since.max(now);
    }

    /// The gateway sends a Retry, while handshakes are under way or not. Returns whether it was judged.
    pub fn retried(&mut self, now: Time, retry: &[u8], has_handshakes: bool) -> Result<bool, Violation> {
        let is_quiet = now.since_start() >= self.quiet_since.since_start() + QUIET;
        self.happens(now);
        let most = self.clients.iter().max().copied().unwrap_or_default();
        if !self.is_judged || !is_quiet || has_handshakes || most + ROOM > self.connections_max {
            return Ok(false);
        }
        let Some(owner) = self.owner_of(retry) else { return Ok(false) };
        let least = self.clients.iter().min().copied().unwrap_or_default();
        if self.clients[owner] == least {
            return Ok(true);
        }
        Err(Violation::new(
            "placement",
            format!("shard {owner} gets another client, while shards have {:?}", self.clients),
        ))
    }

    /// The shard that the source connection ID of a Retry leads to (RFC 9000, section 17.2.5).
    fn owner_of(&self, retry: &[u8]) -> Option<usize> {
        let destination_bytes = usize::from(*retry.get(5)?);
        let id = retry.get(6 + destination_bytes + 1..)?;
        self.layout.shard_of(id, self.clients.len() as u16).map(usize::from)
    }
}
