//! The lines of a connection, in whatever pieces they come.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1024;

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line exceeds the limit.
    #[error("a line may have at most {0} bytes")]
    TooLong(usize),
    /// The line did not arrive in time.
    #[error("no whole line has come within {0:?}")]
    Late(Duration),
    /// The connection has failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The lines of a connection.
#[derive(Debug)]
pub struct Lines {
    /// What was read and not taken yet; never much more than a line.
    read: Vec<u8>,
    /// How much of it is known to hold no end of a line.
    searched: usize,
    line_bytes_max: usize,
}

/// What a connection has of its next line.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The line, without its end; the last one need not have one.
    Line(Vec<u8>),
    /// The line is not complete: read again.
    Partial,
    /// The other side has said all.
    End,
}

impl Lines {
    /// Lines of at most `line_bytes_max`.
    pub fn new(line_bytes_max: usize) -> Self {
        Lines { read: Vec::new(), searched: 0, line_bytes_max }
    }

    /// Takes the next line, after reading from `stream` at most once. A stream that has nothing now (non-blocking, or its timeout is over)
    /// makes the line [`Next::Partial`].
    ///
    /// # Errors
    ///
    /// If the line is too long, or the connection fails.
    pub fn next(&mut self, mut stream: &UnixStream) -> Result<Next, LineError> {
        if let Some(line) = self.take()? {
            return Ok(Next::Line(line));
        }
        let mut chunk = [0; CHUNK_BYTES];
        match stream.read(&mut chunk) {
            Ok(0) if self.read.is_empty() => return Ok(Next::End),
            Ok(0) => {
                self.searched = 0;
                return Ok(Next::Line(std::mem::take(&mut self.read)));
            }
            Ok(bytes) => self.read.extend_from_slice(&chunk[..bytes]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.take()?.map_or(Next::Partial, Next::Line))
    }

    fn take(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let end = self.read[self.searched..].iter().position(|byte| *byte == b'\n').map(|found| self.searched + found);
        if end.unwrap_or(self.read.len()) > self.line_bytes_max {
            return Err(LineError::TooLong(self.line_bytes_max));
        }
        let Some(end) = end else {
            self.searched = self.read.len();
            return Ok(None);
        };
        let rest = self.read.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.read, rest);
        line.truncate(end);
        self.searched = 0;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The next line of a blocking stream, or `None` at its end.
    fn line(lines: &mut Lines, stream: &UnixStream) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            match lines.next(stream)? {
                Next::Line(line) => return Ok(Some(line)),
                Next::End => return Ok(None),
                Next::Partial => {}
            }
        }
    }

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        let (here, mut there) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        there.write_all(b"one\ntwo").unwrap();
        let mut lines = Lines::new(10);
        assert_eq!(lines.next(&here).unwrap(), Next::Line(b"one".to_vec()));
        assert_eq!(lines.next(&here).unwrap(), Next::Partial);
        there.write_all(b"\n\nlast").unwrap();
        drop(there);
        for expected in [&b"two"[..], b"", b"last"] {
            assert_eq!(line(&mut lines, &here).unwrap().as_deref(), Some(expected));
        }
        assert!(line(&mut lines, &here).unwrap().is_none());
    }

    #[test]
    fn a_line_that_is_too_long_is_not_gathered() {
        for bytes in [11, 100_000] {
            let (here, mut there) = UnixStream::pair().unwrap();
            let writer = std::thread::spawn(move || there.write_all(&vec![b'x'; bytes]));
            let mut lines = Lines::new(10);
            assert!(matches!(line(&mut lines, &here), Err(LineError::TooLong(10))));
            assert!(lines.read.len() <= 10 + CHUNK_BYTES);
            drop(here);
            // The rest of it may have found the connection closed.
            let _ = writer.join().unwrap();
        }
    }
}
