//! Queues take no memory that is not theirs.
//!
//! The rule of docs/limits.md, as it holds: a packet is queued if then all queues of its shard hold no more than what all else leaves of the shard's
//! memory, as of the last pass, or a quarter of it where that is more. Nothing is thrown away because something else has grown since. A connection's
//! first packet may keep a whole piece of memory, which is counted when the pass is over. So what queues hold grows only while it is theirs, and by
//! a piece for each connection beyond.
//!
//! Of that, quinn-proto is handed an eighth of the shard's memory, and beyond it a little of each connection, or a packet.
//!
//! Records of packets that clients have not acknowledged have a quarter, and beyond it some for each connection. Packets keep so many chunks of the
//! pool, and no more.

use std::collections::BTreeMap;

use tollgate_shards::{DropReason, Drops, Held, Shard, ShardIndex};

use super::Violation;
use crate::plan::{Feature, Plan};

/// Queues may have a part of the memory in any case.
const QUEUES_SHARE: u64 = 4;
/// What else there is changes within a pass, by less than a part of the memory.
const CHANGE_SHARE: u64 = 8;
/// What the first packet that waits for a connection may keep.
const PIECE_BYTES: u64 = 16 * 1024;
/// What quinn-proto may be handed, by docs/limits.md, and beyond it of each connection: so many bytes.
const HANDED_SHARE: u64 = 8;
const HANDED_BYTES_MIN: usize = 4 * 1024;
/// Records, by docs/limits.md: what they may take, and beyond it each connection; and what one takes.
const RECORDS_SHARE: u64 = 4;
const RECORDS_MIN: u64 = 64;
const RECORD_BYTES: u64 = 224;
/// Of those that only acknowledge, which no window holds back, quinn-proto remembers so many of each connection.
const ACKNOWLEDGING_MAX: u64 = 1000;
/// Chunks of the pool, by docs/limits.md, and the one that is being filled.
const CHUNKS_BYTES_MAX: u64 = 33 * 128 * 1024;
/// What the last packet costs beside its bytes.
const PACKET_BYTES: u64 = 256;

#[derive(Debug)]
pub struct Memory {
    /// Whether shards have little enough to be looked at.
    is_scarce: bool,
    /// What the queues of each shard held after its last pass, and what was theirs.
    last: BTreeMap<ShardIndex, (u64, u64)>,
}

impl Memory {
    pub(super) fn new(plan: &Plan) -> Self {
        Memory { is_scarce: plan.features.has(Feature::Memory), last: BTreeMap::new() }
    }

    pub(super) fn died(&mut self, shard: ShardIndex) {
        self.last.remove(&shard);
    }

    /// A shard's pass is over.
    pub(super) fn after_pass(&mut self, shard: &Shard) -> Result<(), Violation> {
        let held = shard.held();
        if held.packet_chunks_bytes > CHUNKS_BYTES_MAX {
            return Err(Violation::new(
                "memory",
                format!("{:?} keeps more chunks than it may: {held:?}", shard.index()),
            ));
        }
        if !self.is_scarce {
            return Ok(());
        }
        self.queues_within_bounds(shard, &held)?;
        handed_within_bounds(shard, &held)?;
        // Packets of a send are counted when it is made; a connection that has just moved has two paths.
        let connections = shard.owned_connections() as u64;
        let records = RECORD_BYTES * (RECORDS_MIN * (connections + 2) + ACKNOWLEDGING_MAX * connections);
        if held.unacknowledged_bytes <= held.limit_bytes / RECORDS_SHARE + records {
            return Ok(());
        }
        Err(Violation::new("memory", format!("{:?} has more records than it may: {held:?}", shard.index())))
    }

    fn queues_within_bounds(&mut self, shard: &Shard, held: &Held) -> Result<(), Violation> {
        let limit = held.limit_bytes;
        let queues = held.queued_bytes + held.waiting_bytes;
        let others = held.total_bytes() - queues;
        let theirs = limit.saturating_sub(others).max(limit / QUEUES_SHARE);
        let (before, theirs_before) = self.last.insert(shard.index(), (queues, theirs)).unwrap_or((0, theirs));
        let pieces = shard.owned_connections() as u64 * PIECE_BYTES;
        let granted = (theirs.max(theirs_before) + limit / CHANGE_SHARE).min(limit);
        let queues_max = before.max(granted + pieces) + PACKET_BYTES;
        if queues <= queues_max {
            return Ok(());
        }
        let what = format!("{:?} has {queues} bytes in queues, {queues_max} are allowed: {held:?}", shard.index());
        Err(Violation::new("memory", what))
    }

    /// Nobody loses packets to memory of which there is enough.
    pub(super) fn at_end(&self, drops: &Drops) -> Result<(), Violation> {
        match drops.of(DropReason::MemoryLimit) {
            packets if packets > 0 && !self.is_scarce => {
                Err(Violation::new("memory", format!("{packets} packets were dropped where memory is not scarce")))
            }
            _ => Ok(()),
        }
    }
}

/// A packet is shorter than what each connection may have been handed in any case.
fn handed_within_bounds(shard: &Shard, held: &Held) -> Result<(), Violation> {
    let inspect = shard.inspect();
    let beyond = inspect.handed_bytes().map(|bytes| bytes.saturating_sub(HANDED_BYTES_MIN) as u64);
    let (beyond, beyond_max) = (beyond.sum::<u64>(), held.limit_bytes / HANDED_SHARE);
    if beyond <= beyond_max {
        return Ok(());
    }
    let what = format!("{:?} has handed on {beyond} bytes, {beyond_max} are allowed: {held:?}", shard.index());
    Err(Violation::new("memory", what))
}

/// Whoever is gone keeps no memory.
pub(super) fn none(shard: &Shard) -> Result<(), Violation> {
    let held = shard.held();
    let of_clients = held.queued_bytes + held.waiting_bytes + held.connections_bytes + held.unacknowledged_bytes;
    if of_clients == 0 {
        return Ok(());
    }
    Err(Violation::new("memory", format!("{:?} keeps memory of clients who are gone: {held:?}", shard.index())))
}
