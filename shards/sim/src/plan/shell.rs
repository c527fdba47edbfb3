//! How the shell around the shards is drawn.

use std::time::Duration;

use super::{Feature, Features};
use crate::random::Stream;

/// The shell around the shards, and the kernel below it.
#[derive(Debug, Clone, Copy)]
pub struct ShellPlan {
    /// Messages of a channel of the mesh.
    pub mesh_messages_max: usize,
    /// Buffers of each UDP socket, and of that for handshakes.
    pub receive_bytes_max: usize,
    pub send_bytes_max: usize,
    pub handshake_bytes_max: usize,
    /// How long the kernel takes to send what is in a send buffer.
    pub send_time: Duration,
    /// Frames of a TUN queue.
    pub tun_frames_max: usize,
    /// How long work may gather.
    pub coalesce: Duration,
    pub busy_poll: Duration,
    /// How long a turn takes, and how much longer at times.
    pub turn_cost: Duration,
    pub stall_max: Duration,
    /// Time between descriptors that break, about.
    pub breaks_every: Duration,
}

impl ShellPlan {
    pub(super) fn draw(features: Features, random: &mut Stream) -> Self {
        let stall_max = random.log_duration(Duration::from_micros(10), Duration::from_millis(10));
        ShellPlan {
            mesh_messages_max: random.log_uniform(1, 64) as usize,
            receive_bytes_max: random.log_uniform(64 << 10, 4 << 20) as usize,
            send_bytes_max: random.log_uniform(2 << 10, 256 << 10) as usize,
            handshake_bytes_max: random.log_uniform(64 << 10, 512 << 10) as usize,
            send_time: random.log_duration(Duration::from_micros(10), Duration::from_millis(5)),
            tun_frames_max: random.log_uniform(16, 1000) as usize,
            coalesce: random.pick(&[Duration::ZERO, Duration::from_micros(100), Duration::from_micros(400)]),
            busy_poll: random.pick(&[Duration::ZERO, Duration::ZERO, Duration::from_micros(50)]),
            turn_cost: random.log_duration(Duration::from_micros(2), Duration::from_micros(200)),
            stall_max: if features.has(Feature::MeshDelay) { stall_max } else { Duration::ZERO },
            breaks_every: random.log_duration(Duration::from_secs(2), Duration::from_secs(30)),
        }
    }
}
