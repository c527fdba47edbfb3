//! A wake-up from one thread to another that sleeps in a [`Poller`](super::Poller).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// An eventfd: any thread may notify, one thread sleeps and drains. Any number of notifications before a drain are one.
///
/// Signalling costs the sender a system call, so the parties should agree in memory on who sleeps before they use it.
#[derive(Debug)]
pub struct Wake {
    fd: OwnedFd,
}

impl Wake {
    /// Opens the eventfd; it fails only when descriptors or memory run out.
    pub fn new() -> io::Result<Wake> {
        Ok(Wake { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Wakes the sleeper, now or when it next goes to sleep.
    pub fn notify(&self) {
        // The only failure is a full counter (EAGAIN), and then the sleeper is as good as awake.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Forgets the notifications so far, and says whether there were any.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.fd, &mut count) {
                Err(Errno::INTR) => continue,
                read => return read.is_ok(),
            }
        }
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_notifications_are_one() {
        let wake = Wake::new().unwrap();
        assert!(!wake.drain(), "nothing yet");
        wake.notify();
        wake.notify();
        assert!(wake.drain());
        assert!(!wake.drain());
    }
}
