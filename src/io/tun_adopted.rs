//! TUN devices that were made beforehand: which of them may be taken, and how they are left.

use std::os::fd::{AsRawFd, OwnedFd};

use super::tun::{QUEUE_FLAGS, TunError, refusal};
use crate::netlink::Netlink;

/// A device that was made beforehand. When this value is dropped, the next user finds it as it was: without offloads, which change what is
/// read, and without steering.
pub(super) struct Adopted {
    queue: OwnedFd,
    is_left: bool,
}

impl Adopted {
    pub(super) fn of(queue: &OwnedFd, name: &str) -> Result<Self, TunError> {
        let queue = queue.try_clone().map_err(|error| refusal(name, "duplicating a queue's descriptor", error))?;
        Ok(Adopted { queue, is_left: false })
    }

    /// Leaves it as it is.
    pub(super) fn leave(mut self) {
        self.is_left = true;
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        let no_program: libc::c_int = -1;
        // SAFETY: TUNSETOFFLOAD takes its argument by value; TUNSETSTEERINGEBPF reads one int, which lives through the call. Neither can fail
        // in a way that would matter to a process that is done with the device.
        unsafe {
            libc::ioctl(self.queue.as_raw_fd(), libc::TUNSETOFFLOAD, 0 as libc::c_ulong);
            libc::ioctl(self.queue.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const no_program);
        }
    }
}

/// The flags to open the existing device `name` with, if it is one to adopt: made to stay (`ip tuntap add`), and used by nobody.
pub(super) fn adoption_flags(name: &str, queues: usize) -> Result<libc::c_int, TunError> {
    let taken = || TunError::Taken { name: name.to_owned() };
    let link = Netlink::open().and_then(|mut netlink| netlink.tun_link(name));
    let link =
        link.ok().flatten().filter(|link| link.is_tun && link.is_persistent && !link.is_in_use).ok_or_else(taken)?;
    match (link.is_multi_queue, queues) {
        (true, _) => Ok(QUEUE_FLAGS | libc::IFF_MULTI_QUEUE),
        (false, 1) => Ok(QUEUE_FLAGS),
        (false, _) => Err(TunError::SingleQueue { name: name.to_owned(), queues }),
    }
}
