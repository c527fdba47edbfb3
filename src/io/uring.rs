//! Whether this process may use io_uring, which containers forbid (seccomp), administrators switch off (`kernel.io_uring_disabled`), and old
//! kernels have not whole.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Entries of the ring that is made to ask.
const ENTRIES: u32 = 2;
/// `IORING_REGISTER_PROBE` of `linux/io_uring.h`.
const REGISTER_PROBE: libc::c_uint = 8;
/// `IO_URING_OP_SUPPORTED` of `linux/io_uring.h`.
const OP_SUPPORTED: u16 = 1;
/// Operations of Linux 5.6, up to `IORING_OP_RECV`: what an executor asks for.
const OPS_WANTED: usize = 28;
const OPS_MAX: usize = 256;

/// Why there is no io_uring.
#[derive(Debug, thiserror::Error)]
pub enum UringRefusal {
    /// A system call was refused.
    #[error("{call} is refused: {source}")]
    Call {
        /// The name of the system call.
        call: &'static str,
        /// What the kernel, or a filter before it, said.
        source: io::Error,
    },
    /// The kernel is too old.
    #[error("this kernel's io_uring lacks operations of Linux 5.6")]
    Incomplete,
}

/// `struct io_uring_params` of `linux/io_uring.h`, whose parts do not matter here.
#[repr(C)]
struct Params([u32; 30]);

/// `struct io_uring_probe` of `linux/io_uring.h`.
#[repr(C)]
struct Probe {
    last_op: u8,
    ops_len: u8,
    reserved: [u16; 7],
    ops: [Op; OPS_MAX],
}

/// `struct io_uring_probe_op` of `linux/io_uring.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Op {
    op: u8,
    reserved: u8,
    flags: u16,
    reserved2: u32,
}

/// Makes a ring, asks what it can do, enters it, and closes it: a filter may forbid each of these calls.
///
/// # Errors
///
/// The first refusal.
pub fn probe() -> Result<(), UringRefusal> {
    let mut params = Params([0; 30]);
    // SAFETY: the kernel reads and writes one `io_uring_params`, which lives through the call; zero is a value for all of it.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut params) };
    let ring = libc::c_int::try_from(ring).unwrap_or(-1);
    if ring < 0 {
        return Err(refused("io_uring_setup"));
    }
    // SAFETY: `ring` was just opened and belongs to nobody else.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let mut probe = Probe {
        last_op: 0,
        ops_len: 0,
        reserved: [0; 7],
        ops: [Op { op: 0, reserved: 0, flags: 0, reserved2: 0 }; OPS_MAX],
    };
    // SAFETY: the kernel writes at most `OPS_MAX` operations into `probe`, which has room for them and lives through the call.
    let done = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), REGISTER_PROBE, &raw mut probe, OPS_MAX)
    };
    if done < 0 {
        return Err(refused("io_uring_register"));
    }
    // SAFETY: submits nothing and waits for nothing; there is no signal mask.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            0u32,
            0u32,
            0u32,
            std::ptr::null::<libc::sigset_t>(),
            0usize,
        )
    };
    if done < 0 {
        return Err(refused("io_uring_enter"));
    }
    let complete = probe.ops[..OPS_WANTED].iter().all(|op| op.flags & OP_SUPPORTED != 0);
    if complete { Ok(()) } else { Err(UringRefusal::Incomplete) }
}

fn refused(call: &'static str) -> UringRefusal {
    UringRefusal::Call { call, source: io::Error::last_os_error() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_the_kernels() {
        assert_eq!((size_of::<Params>(), size_of::<Probe>()), (120, 16 + 8 * OPS_MAX));
        // Where it is allowed at all, an executor starts, which is what was asked.
        if probe().is_ok() {
            let executor = glommio::LocalExecutorBuilder::default().io_memory(65536).make();
            assert!(executor.is_ok() || executor.err().is_some_and(|error| error.to_string().contains("memlock")));
        }
    }
}
