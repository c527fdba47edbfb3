//! No congestion control outside: for tunnels whose inner traffic controls its own.
//!
//! A tunnel of IP packets needs no second controller around those of the TCP and QUIC within (RFC 8085, section 3.1.11): what the path loses
//! is missed by its sender, which slows down. An outer controller slows all of a client's flows down for each loss of any, and holds packets in
//! a queue where no inner sender sees them. What does not control itself floods the path as it would without a tunnel.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory};

use super::in_flight::Bounded;

/// What no client can take: on a path of this rate, so many bytes a second may be on their way for its shortest round trip. It keeps a burst from
/// overflowing the receiver's buffers where a path is short.
const BYTES_PER_SECOND_MAX: u64 = 10_000_000_000 / 8;
/// On the shortest path, and before the first round trip, so many bytes may be on their way.
pub const IN_FLIGHT_BYTES_MIN: u64 = 256 << 10;
/// On the longest, so many. It bounds what is remembered of packets under way to a client that acknowledges nothing.
pub const IN_FLIGHT_BYTES_MAX: u64 = 16 << 20;

/// Makes connections that nothing but the path's length restrains.
#[derive(Debug, Clone, Copy, Default)]
pub struct UncontrolledConfig;

/// Whether `controller` slows down when packets are marked or lost. Only then may they be sent as ECN-capable (RFC 3168, section 6.1).
pub fn answers_marks(controller: &dyn Controller) -> bool {
    match controller.clone_box().into_any().downcast::<Bounded>() {
        Ok(bounded) => answers_marks(&*bounded.inner),
        Err(controller) => !controller.is::<Uncontrolled>(),
    }
}

/// A window that no loss changes.
#[derive(Debug, Clone, Copy)]
struct Uncontrolled {
    /// The round trip that the window is made for.
    shortest: Duration,
    window_bytes: u64,
}

impl ControllerFactory for UncontrolledConfig {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Uncontrolled { shortest: Duration::ZERO, window_bytes: IN_FLIGHT_BYTES_MIN })
    }
}

impl Controller for Uncontrolled {
    fn on_ack(&mut self, _now: Instant, _sent: Instant, _bytes: u64, _app_limited: bool, rtt: &RttEstimator) {
        if rtt.min() != self.shortest {
            self.shortest = rtt.min();
            self.window_bytes = window_bytes(self.shortest);
        }
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _is_persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        self.window_bytes
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        IN_FLIGHT_BYTES_MIN
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn window_bytes(round_trip: Duration) -> u64 {
    let bytes = round_trip.as_nanos() * u128::from(BYTES_PER_SECOND_MAX) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX).clamp(IN_FLIGHT_BYTES_MIN, IN_FLIGHT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time::origin;

    #[test]
    fn no_loss_narrows_the_window() {
        let now = origin();
        let mut controller = Arc::new(UncontrolledConfig).build(now, 1450);
        controller.on_congestion_event(now, now, true, 1 << 20);
        controller.on_mtu_update(1200);
        assert_eq!((controller.window(), controller.clone_box().window()), (IN_FLIGHT_BYTES_MIN, IN_FLIGHT_BYTES_MIN));
    }

    #[test]
    fn every_controller_answers_marks_but_none() {
        let now = origin();
        assert!(!answers_marks(&*Arc::new(UncontrolledConfig).build(now, 1450)));
        let cubic = Arc::new(quinn_proto::congestion::CubicConfig::default()).build(now, 1450);
        assert!(answers_marks(&*cubic));
    }

    #[test]
    fn the_window_is_what_the_fastest_path_of_that_length_holds() {
        assert_eq!(window_bytes(Duration::from_millis(1)), 1_250_000);
        assert_eq!(window_bytes(Duration::from_micros(50)), IN_FLIGHT_BYTES_MIN);
        assert_eq!(window_bytes(Duration::from_millis(200)), IN_FLIGHT_BYTES_MAX);
    }
}
