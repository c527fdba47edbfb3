//! The link to the other process of the gateway, while there are two: what the cores of both say to each other, and the control planes, over one Unix
//! stream socket.
//!
//! A frame is a length (4), a place (2) and so many bytes: a message for the core at that place, or the control plane's words. Two threads do all
//! reading and writing, so that no core ever waits for the other process. Whatever one core says to another stays in order; between other pairs there is
//! no order. What goes wrong ends the link, because a message that is missing is worse than a process that is: the other one then takes over what it can.

mod core;
mod end;
mod link;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

pub use end::SiblingEnd;
pub use link::{Said, SiblingLink};

/// Of a frame, before its bytes.
const HEAD_BYTES: usize = 6;
/// The place of the control plane.
const CONTROL_PLANE: u16 = u16::MAX;

/// The socket, shared by all who use it.
#[derive(Debug)]
struct Line {
    stream: UnixStream,
    /// Why it is of no use any more, for people.
    ended: OnceLock<String>,
}

impl Line {
    /// Ends the link, if nobody has done so before. What the other process has sent is still read.
    fn end(&self, reason: impl Into<String>) {
        if self.ended.set(reason.into()).is_ok() {
            // It fails where the other process has closed it already.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.get().is_some()
    }
}

/// Says `words` to the control plane at the other end of `stream`, on which no link has begun here.
///
/// # Errors
///
/// Those of the socket.
pub fn say(mut stream: &UnixStream, words: &[u8]) -> io::Result<()> {
    let mut frame = Vec::new();
    push_frame(&mut frame, CONTROL_PLANE, words);
    stream.write_all(&frame)
}

/// Adds a frame to those in `frames`.
fn push_frame(frames: &mut Vec<u8>, place: u16, bytes: &[u8]) {
    // Whoever makes `bytes` keeps to the bound of a message.
    frames.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    frames.extend_from_slice(&place.to_be_bytes());
    frames.extend_from_slice(bytes);
}
