//! No congestion control outside: for tunnels whose inner traffic controls its own.
//!
//! A tunnel whose packets are of TCP and QUIC needs no second controller around theirs (RFC 9484, section 12.2, on DATAGRAM frames; RFC 9221,
//! section 5.4): packets that the path loses are missed by the inner sender, which slows down. An outer controller slows all flows of a
//! client down for each loss of any, and holds packets in a queue where no inner sender sees them.
//!
//! This module does not know what the packets are. It never takes a loss for a sign of anything.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::congestion::{Controller, ControllerFactory};

/// Bytes that may be on their way to a client that acknowledges nothing: 100 ms of 1.3 Gb/s, 10 ms of 13 Gb/s. It bounds what is remembered
/// of packets under way.
pub const IN_FLIGHT_BYTES_MAX: u64 = 16 << 20;

/// Makes [`Uncontrolled`] connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct UncontrolledConfig;

/// A window that nothing changes.
#[derive(Debug, Clone, Copy)]
struct Uncontrolled;

impl ControllerFactory for UncontrolledConfig {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Uncontrolled)
    }
}

impl Controller for Uncontrolled {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _is_persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        IN_FLIGHT_BYTES_MAX
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        IN_FLIGHT_BYTES_MAX
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_loss_narrows_the_window() {
        let now = Instant::now();
        let mut controller = Arc::new(UncontrolledConfig).build(now, 1450);
        assert_eq!(controller.initial_window(), IN_FLIGHT_BYTES_MAX);
        controller.on_congestion_event(now, now, true, 1 << 20);
        assert_eq!((controller.window(), controller.clone_box().window()), (IN_FLIGHT_BYTES_MAX, IN_FLIGHT_BYTES_MAX));
    }
}
