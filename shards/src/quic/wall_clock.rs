//! The time of day, which address validation tokens carry (RFC 9000, section 8.1.3), as it was told at the start and goes on with `now`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use quinn_proto::TimeSource;

/// A clock that stands still until it is set. An atomic only because one handle is inside the endpoint and one outside; nothing is shared.
#[derive(Clone)]
pub struct WallClock {
    start: SystemTime,
    started: Instant,
    elapsed_ns: Arc<AtomicU64>,
}

impl WallClock {
    pub fn new(start: SystemTime, now: Instant) -> Self {
        WallClock { start, started: now, elapsed_ns: Arc::default() }
    }

    pub fn set(&self, now: Instant) {
        let elapsed_ns = now.saturating_duration_since(self.started).as_nanos() as u64;
        self.elapsed_ns.store(elapsed_ns, Ordering::Relaxed);
    }

    /// When it will be `time`, where it is `now`: at once if that is past, `None` if it is too far to tell.
    pub fn instant(&self, time: SystemTime, now: Instant) -> Option<Instant> {
        let left = time.duration_since(self.now()).unwrap_or_default();
        now.checked_add(left)
    }
}

impl TimeSource for WallClock {
    fn now(&self) -> SystemTime {
        self.start + Duration::from_nanos(self.elapsed_ns.load(Ordering::Relaxed))
    }
}
