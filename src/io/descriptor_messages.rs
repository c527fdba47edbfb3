//! Descriptors on a Unix socket: some with each byte (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Descriptors in one message: the kernel takes 253 (`SCM_MAX_FD`).
const DESCRIPTORS_OF_A_MESSAGE: usize = 128;

/// Sends all of `descriptors`, which stay open here.
///
/// # Errors
///
/// Those of the socket.
pub fn send(stream: BorrowedFd<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    descriptors.chunks(DESCRIPTORS_OF_A_MESSAGE).try_for_each(|some| send_with(stream, &[0], some))
}

/// Receives `expected` descriptors. `None` if some are missing.
///
/// # Errors
///
/// Those of the socket.
pub fn receive(stream: BorrowedFd<'_>, expected: usize) -> io::Result<Option<Vec<OwnedFd>>> {
    let mut all = Vec::with_capacity(expected.min(1024));
    while all.len() < expected {
        let (before, some) = (all.len(), (expected - all.len()).min(DESCRIPTORS_OF_A_MESSAGE));
        if receive_with(stream, &mut [0], &mut all)? != 1 || all.len() != before + some {
            return Ok(None);
        }
    }
    Ok(Some(all))
}

/// Sends `bytes`, with at most 128 `descriptors`.
///
/// # Errors
///
/// Those of the socket.
pub fn send_with(stream: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_OF_A_MESSAGE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives into `buffer`, and what comes with it into `descriptors`. Returns the bytes that came; 0 at the end.
///
/// # Errors
///
/// Those of the socket.
pub fn receive_with(stream: BorrowedFd<'_>, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_OF_A_MESSAGE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match rustix::net::recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    Ok(received.bytes)
}
