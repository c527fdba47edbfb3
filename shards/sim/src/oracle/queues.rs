//! Queues stay within their bounds, and what goes in comes out or is counted.

use tollgate_shards::{DropReason, Shard};

use super::Violation;
use crate::world::World;

/// Drops that are of no inner packet either, beside those of outer datagrams. Replies that are not sent are beside a drop that is counted as
/// too big; a frame that the coalescer has no room for has been counted as sent.
const NOT_INNER: [DropReason; 5] = [
    DropReason::ReplyLimit,
    DropReason::UdpSend,
    DropReason::UdpTruncated,
    DropReason::TunWrite,
    // Counted by the mesh itself, which knows datagrams from packets.
    DropReason::MeshFull,
];

/// What a shard holds after a pass, as far as it costs nothing to ask.
pub(super) fn within_bounds(shard: &Shard) -> Result<(), Violation> {
    let (waiting, waiting_max) = shard.inspect().responses_waiting();
    within("answers", shard, waiting, waiting_max)
}

/// What all shards hold.
pub(super) fn all_within_bounds(world: &World) -> Result<(), Violation> {
    for core in &world.gateway.cores {
        let limits = &world.plan.limits.waiting;
        let users = world.gateway.snapshots().flat_map(|snapshot| snapshot.users.users().map(|(user, _)| user));
        for user in users {
            let (packets, bytes) = core.shard.inspect().waiting(user);
            within("bytes that wait for tokens", &core.shard, bytes, limits.bytes_max)?;
            within("packets that wait for tokens", &core.shard, packets, limits.packets_max)?;
        }
        let limits = &world.plan.limits;
        within("handshakes", &core.shard, core.shard.inspect().handshakes_admitted(), limits.handshakes_max)?;
        within("connections", &core.shard, core.shard.owned_connections(), limits.connections_max)?;
    }
    Ok(())
}

fn within(what: &str, shard: &Shard, count: usize, count_max: usize) -> Result<(), Violation> {
    if count <= count_max {
        return Ok(());
    }
    Err(Violation::new("queues", format!("{:?} holds {count} {what}, {count_max} are allowed", shard.index())))
}

/// Inner packets that came into the gateway have left it or have been counted, once every queue is empty.
pub(super) fn balanced(world: &World) -> Result<(), Violation> {
    if world.gateway.restarts > 0 {
        return Ok(());
    }
    let mut came = world.frames_in;
    let mut gone = world.mesh.lost_packets;
    for core in &world.gateway.cores {
        let counters = core.shard.counters();
        let inner = counters.drops.iter().filter(|(reason, _)| !reason.is_outer() && !NOT_INNER.contains(reason));
        came += counters.datagrams_received + counters.own_packets;
        gone += counters.up_packets + counters.datagrams_sent + inner.map(|(_, packets)| packets).sum::<u64>();
    }
    if came != gone {
        let what = format!("{came} inner packets came into the gateway, {gone} are accounted for");
        return Err(Violation::new("balance", what));
    }
    Ok(())
}
