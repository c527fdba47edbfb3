//! Moving a stream's bytes through a socket, bounded in time.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{
    pattern::{Pattern, Verifier},
    request::{Outcome, Request},
};

const BUFFER_BYTES: usize = 256 * 1024;

/// How long a read or write may sleep before it looks at the watch.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// What ends a transfer early, and what shows its progress.
pub(super) struct Watch<'a> {
    pub(super) deadline: Instant,
    pub(super) halted: &'a AtomicBool,
    pub(super) moved: &'a AtomicU64,
}

impl Watch<'_> {
    /// The time left, or an error when there is none.
    pub(super) fn remaining(&self) -> io::Result<Duration> {
        if self.halted.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer was ended"));
        }
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(remaining) }
    }

    fn count(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Makes a socket's reads and writes look at the watch now and then.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_read_timeout(Some(SLEEP_MAX))?;
    socket.set_write_timeout(Some(SLEEP_MAX))
}

/// Sends the stream that the request describes.
pub(super) fn send(socket: &mut impl Write, pattern: &Pattern, request: &Request, watch: &Watch<'_>) -> io::Result<()> {
    let end = request.duration.map(|duration| Instant::now() + duration);
    let mut offset = 0;
    while offset < request.bytes && end.is_none_or(|end| Instant::now() < end) {
        let pieces = pattern.pieces(offset, request.bytes - offset);
        match pieces.with_slices(|slices| socket.write_vectored(slices)) {
            Ok(sent) => {
                offset += sent as u64;
                watch.count(sent);
            }
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error),
        }
        watch.remaining()?;
    }
    Ok(())
}

/// Receives and verifies a stream until its end.
pub(super) fn receive(socket: &mut impl Read, mut verifier: Verifier<'_>, watch: &Watch<'_>) -> io::Result<Outcome> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(Outcome { received_bytes: verifier.offset(), corrupt_at: verifier.corrupt_at() }),
            Ok(length) => {
                verifier.take(&buffer[..length]);
                watch.count(length);
            }
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error),
        }
        watch.remaining()?;
    }
}

/// Fills `bytes`.
pub(super) fn receive_exact(socket: &mut (impl Read + ?Sized), bytes: &mut [u8], watch: &Watch<'_>) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match socket.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => filled += length,
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error),
        }
        watch.remaining()?;
    }
    Ok(())
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
