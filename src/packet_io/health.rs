//! What the errors of a descriptor's calls say about it: an error of one call is forgotten, a descriptor that is out of order is given up.

use std::io;
use std::time::{Duration, Instant};

/// How long a descriptor is left alone after errors in a row: it is always ready, and would be asked again at once.
const REST: Duration = Duration::from_millis(10);
/// Errors in a row, with rests between, after which a descriptor is out of order: half a second.
const ERRORS_MAX: u32 = 50;

/// Descriptors that are out of order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The UDP socket.
    pub udp: bool,
    /// The TUN queue.
    pub tun: bool,
}

impl Lost {
    /// Whether at least one descriptor is lost.
    pub fn any(self) -> bool {
        self.udp || self.tun
    }
}

/// How the reads of one descriptor went.
#[derive(Debug, Default)]
pub(super) struct Health {
    errors_in_a_row: u32,
    rests_until: Option<Instant>,
}

impl Health {
    /// A read went well.
    #[inline]
    pub fn succeeded(&mut self) {
        self.errors_in_a_row = 0;
    }

    /// A read failed. Returns whether the descriptor is out of order.
    #[cold]
    pub fn failed(&mut self, error: &io::Error, now: Instant) -> bool {
        self.errors_in_a_row += 1;
        if self.errors_in_a_row > 1 {
            self.rests_until = Some(now + REST);
        }
        is_final(error.raw_os_error()) || self.errors_in_a_row >= ERRORS_MAX
    }

    /// Until when to leave it alone, if that is after `now`.
    #[inline]
    pub fn rests_until(&self, now: Instant) -> Option<Instant> {
        self.rests_until.filter(|until| *until > now)
    }
}

/// Whether no later call can go better: the descriptor is closed or shut down, its device is gone, or the kernel has taken the socket out of
/// its group (ECONNABORTED: somebody destroyed it).
pub(super) fn is_final(errno: Option<i32>) -> bool {
    matches!(
        errno,
        Some(
            libc::EBADF | libc::EBADFD | libc::ENOTSOCK | libc::EPIPE | libc::ECONNABORTED | libc::ENODEV | libc::ENXIO
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_one_call_is_forgotten_and_one_that_stays_is_not() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        for errno in [libc::ENOMEM, libc::ENOBUFS, libc::ENETDOWN, libc::EPERM, libc::ECONNREFUSED, libc::EIO] {
            assert!(!health.failed(&io::Error::from_raw_os_error(errno), now));
            assert_eq!(health.rests_until(now), None);
            health.succeeded();
        }
        let error = io::Error::from_raw_os_error(libc::ENOMEM);
        let mut errors = 1;
        while !health.failed(&error, now) {
            errors += 1;
            now = health.rests_until(now).unwrap_or(now);
        }
        assert_eq!(errors, ERRORS_MAX);
    }

    #[test]
    fn a_descriptor_that_is_closed_is_out_of_order_at_once() {
        for errno in [libc::EBADF, libc::EBADFD, libc::ECONNABORTED, libc::EPIPE] {
            assert!(Health::default().failed(&io::Error::from_raw_os_error(errno), Instant::now()));
        }
    }
}
