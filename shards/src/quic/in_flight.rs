//! What is remembered of packets that clients have not acknowledged (RFC 9002, appendix A.1), bounded for each connection and over all.
//!
//! A controller's window is in bytes, so it bounds neither the records of small packets nor those of thousands of connections.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};

/// What the record of a packet takes, in bytes, in a tree whose nodes are half full.
const RECORD_BYTES: usize = 224;
/// Records of one connection: at full size 22 MB on their way.
const PACKETS_MAX: u64 = 16 * 1024;
/// Records that each connection may have, however many there are in all.
const PACKETS_MIN: u64 = 64;

/// The records of all connections of a shard.
#[derive(Debug, Clone)]
pub struct InFlight {
    /// An atomic only because the controllers that hold it may be sent; one shard writes it.
    packets: Arc<AtomicU64>,
    packets_max: u64,
}

impl InFlight {
    /// None yet, and room for so many bytes of them.
    pub fn new(bytes_max: usize) -> Self {
        InFlight { packets: Arc::default(), packets_max: (bytes_max / RECORD_BYTES) as u64 }
    }

    pub fn bytes(&self) -> usize {
        self.packets.load(Ordering::Relaxed) as usize * RECORD_BYTES
    }

    /// Replaces a connection's share.
    fn replace(&self, before: u64, now: u64) {
        let packets = self.packets.load(Ordering::Relaxed).wrapping_add(now).wrapping_sub(before);
        self.packets.store(packets, Ordering::Relaxed);
    }

    /// Those of a connection that has none yet.
    fn of_connection(&self) -> Arc<Records> {
        Arc::new(Records { in_flight: self.clone(), packets: AtomicU64::new(0) })
    }

    /// How many one connection may have now.
    fn share(&self) -> u64 {
        if self.packets.load(Ordering::Relaxed) < self.packets_max { PACKETS_MAX } else { PACKETS_MIN }
    }
}

/// The records of one connection, whose path before a migration has a controller too: packets that are on their way are remembered once.
struct Records {
    in_flight: InFlight,
    /// An atomic like all of them.
    packets: AtomicU64,
}

impl Records {
    fn set(&self, packets: u64) {
        self.in_flight.replace(self.packets.swap(packets, Ordering::Relaxed), packets);
    }

    fn are_too_many(&self) -> bool {
        self.packets.load(Ordering::Relaxed) >= self.in_flight.share()
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Makes controllers whose window closes when too much is remembered.
pub struct BoundedConfig {
    /// Makes what controls the congestion.
    pub inner: Arc<dyn ControllerFactory + Send + Sync>,
    /// The records of all; each connection's alone where there is none.
    pub in_flight: Option<InFlight>,
}

impl ControllerFactory for BoundedConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.inner.clone().build(now, current_mtu);
        let in_flight = self.in_flight.clone().unwrap_or_else(|| InFlight::new(usize::MAX));
        Box::new(Bounded {
            inner,
            records: in_flight.of_connection(),
            is_open: Arc::default(),
            sent: 0,
            acknowledged: None,
        })
    }
}

/// Lets a connection that is over say so, however much is on its way: a CONNECTION_CLOSE is nothing that congestion control holds back (RFC 9002,
/// section 3), but quinn-proto does where more was to be sent, and hears no acknowledgement any more.
pub fn open(controller: &dyn Controller) {
    if let Ok(bounded) = controller.clone_box().into_any().downcast::<Bounded>() {
        bounded.is_open.store(true, Ordering::Relaxed);
    }
}

/// A controller and how many packets are remembered.
pub struct Bounded {
    /// What controls the congestion.
    pub inner: Box<dyn Controller>,
    records: Arc<Records>,
    /// Whether its connection is over. An atomic, and shared, because it is reached through a copy only.
    is_open: Arc<AtomicBool>,
    /// The last packet number sent.
    sent: u64,
    /// The largest acknowledged: what came before that is acknowledged or lost (RFC 9002, section 6.1). `None` before the first packet on the path: on
    /// one that is new to a connection, numbers go on.
    acknowledged: Option<u64>,
}

impl Bounded {
    fn count(&self) {
        self.records.set(self.sent.saturating_sub(self.acknowledged.unwrap_or(self.sent)));
    }
}

impl Controller for Bounded {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.sent = last_packet_number;
        self.acknowledged.get_or_insert(last_packet_number.saturating_sub(1));
        self.count();
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.acknowledged = largest.or(self.acknowledged);
        self.count();
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.is_open.load(Ordering::Relaxed) {
            return u64::MAX;
        }
        if self.records.are_too_many() { 0 } else { self.inner.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Bounded {
            inner: self.inner.clone_box(),
            records: self.records.clone(),
            is_open: self.is_open.clone(),
            sent: self.sent,
            acknowledged: self.acknowledged,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::congestion::UncontrolledConfig;
    use crate::test_time::origin;

    fn controller(in_flight: &InFlight, now: Instant) -> Box<dyn Controller> {
        let config = BoundedConfig { inner: Arc::new(UncontrolledConfig), in_flight: Some(in_flight.clone()) };
        let mut controller = Arc::new(config).build(now, 1450);
        controller.on_sent(now, 80, 0);
        controller
    }

    #[test]
    fn on_a_path_that_is_new_only_what_was_sent_there_is_on_its_way() {
        let now = origin();
        let in_flight = InFlight::new(usize::MAX);
        let config = BoundedConfig { inner: Arc::new(UncontrolledConfig), in_flight: Some(in_flight.clone()) };
        let mut controller = Arc::new(config).build(now, 1450);
        assert_eq!(in_flight.bytes(), 0);
        controller.on_sent(now, 80, PACKETS_MAX + 5);
        assert_eq!(in_flight.bytes(), RECORD_BYTES);
        assert!(controller.window() > 0);
        controller.on_sent(now, 80, PACKETS_MAX + 7);
        assert_eq!(in_flight.bytes(), 3 * RECORD_BYTES);
        controller.on_end_acks(now, 0, false, None);
        assert_eq!(in_flight.bytes(), 3 * RECORD_BYTES, "of a path before");
    }

    #[test]
    fn the_window_closes_while_too_much_is_remembered_and_opens_with_acknowledgements() {
        let now = origin();
        let in_flight = InFlight::new(100 * RECORD_BYTES);
        let (mut first, mut second) = (controller(&in_flight, now), controller(&in_flight, now));
        first.on_sent(now, 80, 90);
        second.on_sent(now, 80, 20);
        assert_eq!((in_flight.bytes(), first.window()), (110 * RECORD_BYTES, 0), "beyond all that may be");
        assert!(second.window() > 0, "a few are anybody's");
        first.on_end_acks(now, 0, false, Some(85));
        assert!(first.window() > 0 && in_flight.bytes() == 25 * RECORD_BYTES);
        let mut copy = first.clone_box();
        assert_eq!(in_flight.bytes(), 25 * RECORD_BYTES, "the path before a migration has no packets of its own");
        copy.on_sent(now, 80, 91);
        assert_eq!(in_flight.bytes(), 26 * RECORD_BYTES);
        drop((first, second));
        assert_eq!(in_flight.bytes(), 6 * RECORD_BYTES);
        drop(copy);
        assert_eq!(in_flight.bytes(), 0);
    }

    #[test]
    fn who_controls_the_congestion_can_be_told() {
        let now = origin();
        assert!(!crate::quic::congestion::answers_marks(&*controller(&InFlight::new(usize::MAX), now)));
    }

    #[test]
    fn one_connection_is_bounded_though_all_have_room() {
        let now = origin();
        let in_flight = InFlight::new(usize::MAX);
        let mut only = controller(&in_flight, now);
        only.on_sent(now, 80, PACKETS_MAX - 1);
        assert!(only.window() > 0);
        only.on_sent(now, 80, PACKETS_MAX);
        assert_eq!(only.window(), 0);
    }
}
