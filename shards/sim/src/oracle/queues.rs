//! Queues stay within their bounds, and what goes in comes out or is counted.

use tollgate_shards::{DropReason, Limits, Message, PacketMessage, Shard, Transmit};

use super::Violation;
use crate::gateway::Core;
use crate::packets::kernel::HEADER_BYTES;
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

/// What waits for one client, by docs/limits.md.
fn longest_within_bounds(world: &World, shard: &Shard) -> Result<(), Violation> {
    // The last packet may take more than its bytes.
    let queue_bytes_max = world.plan.transport.datagram_send_buffer_bytes_max + 100;
    within("bytes for one client", shard, shard.inspect().longest_backlog_bytes(), queue_bytes_max)
}

/// Answers that wait, by docs/limits.md.
const ANSWERS_MAX: usize = 256;

/// What one send may have, in bytes: the largest UDP payload over IPv4.
const UDP_PAYLOAD_BYTES_MAX: usize = 65_507;

/// What one frame may have, in packets and bytes.
const FRAME_PACKETS_MAX: usize = 64;
const INNER_BYTES_MAX: usize = 65_535;

/// What a shard holds before any of it has come out.
pub(super) fn full_within_bounds(shard: &Shard) -> Result<(), Violation> {
    within("answers", shard, shard.inspect().responses_waiting(), ANSWERS_MAX)
}

/// What a shard holds after a pass, as far as it costs nothing to ask.
pub(super) fn within_bounds(shard: &Shard, limits: &Limits) -> Result<(), Violation> {
    within("handshakes", shard, shard.inspect().handshakes_admitted(), limits.handshakes_max)?;
    within("connections", shard, shard.owned_connections(), limits.connections_max)
}

/// What a shard hands out for one system call.
pub fn send_within_bounds(transmit: &Transmit, limits: &Limits) -> Result<(), Violation> {
    let (datagrams, bytes) = (transmit.datagrams(), transmit.bytes);
    if datagrams <= limits.send_datagrams_max && bytes <= UDP_PAYLOAD_BYTES_MAX {
        return Ok(());
    }
    Err(Violation::new("queues", format!("a send of {datagrams} datagrams and {bytes} bytes")))
}

/// What a shard writes to its TUN queue at once: no more packets than a super-packet has, and no more bytes than an IP packet.
pub fn frame_within_bounds(frame: &[u8]) -> Result<(), Violation> {
    let field =
        |at: usize| frame.get(at..at + 2).map_or(0, |field| usize::from(u16::from_ne_bytes([field[0], field[1]])));
    let bytes = frame.len() - HEADER_BYTES;
    // Of a super-packet, the virtio header has the length of the headers and that of each payload.
    let (header_bytes, segment_bytes) = (field(2), field(4));
    let packets = if segment_bytes == 0 { 1 } else { (bytes - header_bytes).div_ceil(segment_bytes) };
    if packets <= FRAME_PACKETS_MAX && bytes <= INNER_BYTES_MAX {
        return Ok(());
    }
    Err(Violation::new("queues", format!("a frame of {packets} packets and {bytes} bytes")))
}

/// What a shard writes to its TUN queue in one pass, in frames: all that it has, which is no more than it may hold.
pub fn pass_within_bounds(frames: usize, shard: &Shard, limits: &Limits) -> Result<(), Violation> {
    if frames > limits.merge.frames_max {
        return Err(Violation::new("queues", format!("{frames} frames in one pass")));
    }
    if shard.inspect().has_frames() {
        return Err(Violation::new("queues", format!("frames stay at {:?} behind a pass", shard.index())));
    }
    Ok(())
}

/// What a shard says to another at once.
pub fn message_within_bounds(message: &Message, limits: &Limits) -> Result<(), Violation> {
    match message {
        Message::Packet(PacketMessage::Hairpin { packets, .. }) if packets.len() > limits.hairpin_packets_max => {
            Err(Violation::new("queues", format!("a message of {} packets", packets.len())))
        }
        _ => Ok(()),
    }
}

/// What all shards hold.
pub(super) fn all_within_bounds(world: &World) -> Result<(), Violation> {
    for core in &world.gateway.cores {
        longest_within_bounds(world, core.shard())?;
        let limits = &world.plan.limits.waiting;
        let users = world.gateway.snapshots().flat_map(|snapshot| snapshot.users.users().map(|(user, _)| user));
        for user in users {
            let (packets, bytes) = core.shard().inspect().waiting(user);
            within("bytes that wait for tokens", core.shard(), bytes, limits.bytes_max)?;
            within("packets that wait for tokens", core.shard(), packets, limits.packets_max)?;
        }
    }
    Ok(())
}

pub(super) fn within(what: &str, shard: &Shard, count: usize, count_max: usize) -> Result<(), Violation> {
    if count <= count_max {
        return Ok(());
    }
    Err(Violation::new("queues", format!("{:?} holds {count} {what}, {count_max} are allowed", shard.index())))
}

/// Inner packets that came into the gateway have left it or have been counted, once every queue is empty.
pub(super) fn balanced(world: &World) -> Result<(), Violation> {
    // The shell's mesh does not tell datagrams from packets.
    let is_lost = |core: &Core| core.machine().is_some() && core.shard().counters().drops.of(DropReason::MeshFull) > 0;
    if world.gateway.restarts > 0 || world.gateway.cores.iter().any(is_lost) {
        return Ok(());
    }
    let mut came = world.frames_in;
    let mut gone = world.mesh.lost_packets;
    let living = world.gateway.cores.iter().map(|core| core.shard().counters());
    for counters in living.chain(world.gateway.former.iter().copied()) {
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
