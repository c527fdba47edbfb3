//! Which shard a new client is sent to: one that has no more clients than any other, where nothing has happened for so long that all shards know.

use std::collections::BTreeMap;
use std::time::Duration;

use tollgate_shards::{ShardIndex, Shards};

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
    is_judged: bool,
    connections_max: usize,
    layout: LayoutPlan,
    /// The shards that new clients are sent to, each with those of its clients that have an address, as it has told.
    among: Shards,
    clients: BTreeMap<ShardIndex, usize>,
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
            is_judged: !others.iter().any(|&feature| plan.features.has(feature)),
            connections_max: plan.limits.connections_max,
            layout: plan.layout.clone(),
            among: Shards::alone(plan.shards),
            clients: BTreeMap::new(),
            quiet_since: Time::default(),
        }
    }

    pub fn attached(&mut self, now: Time, owner: ShardIndex) {
        *self.clients.entry(owner).or_default() += 1;
        self.happens(now);
    }

    pub fn detached(&mut self, now: Time, owner: ShardIndex) {
        self.clients.entry(owner).and_modify(|clients| *clients = clients.saturating_sub(1));
        self.happens(now);
    }

    pub fn died(&mut self, now: Time, shard: ShardIndex) {
        self.clients.remove(&shard);
        self.happens(now + QUIET_AFTER_DEATH);
    }

    /// New clients are sent to the shards of another process from now on.
    pub fn moved(&mut self, now: Time, among: Shards) {
        self.among = among;
        self.happens(now + QUIET_AFTER_DEATH);
    }

    fn happens(&mut self, now: Time) {
        self.quiet_since = self.quiet_since.max(now);
    }

    /// The shard `by` sends a Retry, while handshakes are under way or not. Returns whether it was judged.
    pub fn retried(
        &mut self,
        now: Time,
        by: ShardIndex,
        retry: &[u8],
        has_handshakes: bool,
    ) -> Result<bool, Violation> {
        let is_quiet = now.since_start() >= self.quiet_since.since_start() + QUIET;
        self.happens(now);
        let clients: Vec<usize> =
            self.among.iter().map(|shard| self.clients.get(&shard).copied().unwrap_or_default()).collect();
        let most = clients.iter().max().copied().unwrap_or_default();
        let is_full = most + ROOM > self.connections_max;
        // Whoever is not among them does not know what they have.
        if !self.is_judged || !is_quiet || has_handshakes || is_full || clients.len() < 2 || !self.among.contains(by) {
            return Ok(false);
        }
        let Some(owner) = self.owner_of(retry) else { return Ok(false) };
        if self.among.contains(owner) && Some(&clients[owner.place()]) == clients.iter().min() {
            return Ok(true);
        }
        Err(Violation::new(
            "placement",
            format!("{owner:?} gets another client, while {:?} have {clients:?}", self.among),
        ))
    }

    /// The shard that the source connection ID of a Retry leads to (RFC 9000, section 17.2.5).
    fn owner_of(&self, retry: &[u8]) -> Option<ShardIndex> {
        let destination_bytes = usize::from(*retry.get(5)?);
        let id = retry.get(6 + destination_bytes + 1..)?;
        Some(ShardIndex::new(self.layout.generation_of(id)?, self.layout.shard_of(id, self.among.count)?))
    }
}
