//! Tells when the wall clock was set or the machine was suspended: between two readings, more time has passed than the timers of this
//! process know of.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// When the timer would be due, in seconds since 1970: never.
const NEVER_S: i64 = 1 << 40;

/// A timer that is never due, and readable once after each jump of the clock (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`).
#[derive(Debug)]
pub struct ClockWatch(OwnedFd);

impl ClockWatch {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn open() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let never = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: NEVER_S, tv_nsec: 0 },
        };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
        Ok(ClockWatch(timer))
    }

    /// Takes note of a jump, so that the descriptor is readable only after the next one.
    pub fn drain(&self) {
        // It fails by design (ECANCELED): that there was a jump is known already.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for ClockWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
