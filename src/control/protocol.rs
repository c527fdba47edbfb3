//! What an operator and a running gateway say to each other: one JSON object a line each way, an [`Answer`] to each [`Request`], in order.
//!
//! Keys that a side does not know are ignored, and keys may be left out where a default is named, so that either side may be the newer one.
//!
//! This module knows no deadline.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gateway::State;

/// Longest request, in bytes, the end of the line not counted.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// Longest answer, in bytes, the end of the line not counted. All problems of a configuration that is broken everywhere fit in.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1024;

/// What an operator wants. On the line: `{"order":"reload"}`, `{"order":"reload","force":true}`, `{"order":"kick","user":"alice"}`,
/// `{"order":"drain","within_ms":600000,"rate_per_s":200}`, `{"order":"resume"}`, `{"order":"status"}`,
/// `{"order":"upgrade","program":"/usr/local/bin/tollgate","within_ms":600000}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Request {
    /// Read the configuration again and put it in force.
    Reload {
        /// Whether also if few of the users in force would remain.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Close a user's connections.
    Kick {
        /// The user's name.
        user: String,
    },
    /// Take no new clients, and send those that are there away at an even pace.
    Drain {
        /// After so many milliseconds whoever is left goes at once.
        within_ms: u64,
        /// Clients in a second; without it the last one goes at the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate_per_s: Option<u32>,
    },
    /// Take clients again.
    Resume,
    /// Have another process take over, and send the clients of this one away.
    Upgrade {
        /// The program, an absolute path; without one what this process was started with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<PathBuf>,
        /// After so many milliseconds whoever is left goes at once.
        within_ms: u64,
        /// Clients in a second; without it the last one goes at the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate_per_s: Option<u32>,
    },
    /// Say how the gateway stands.
    Status,
}

/// What came of it. On the line: `{"done":true,"lines":["..."],"epoch":3,"closed_connections":2,"took_ms":1.5}`, or
/// `{"done":false,"lines":["..."]}` with every reason why not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the order was carried out, on every shard.
    pub done: bool,
    /// For people: what was done, or each reason why not.
    #[serde(default)]
    pub lines: Vec<String>,
    /// The number of the epoch in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Connections that were closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_connections: Option<u64>,
    /// What the gateway is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Clients that have logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
    /// How many milliseconds it takes until all have been sent away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drains_for_ms: Option<u64>,
    /// The process that serves from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// From the order to its acknowledgement by the last shard, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<f64>,
}

impl Answer {
    /// A refusal.
    pub fn refused(reasons: Vec<String>) -> Self {
        Answer { lines: reasons, ..Answer::default() }
    }
}

/// `message` as it goes on the line.
///
/// # Panics
///
/// Never: requests and answers can always be written.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("strings and numbers can always be written");
    line.push(b'\n');
    line
}

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
    fn both_sides_ignore_what_they_do_not_know() {
        let request: Request = serde_json::from_str(r#"{"order":"kick","user":"alice","politely":true}"#).unwrap();
        assert_eq!(request, Request::Kick { user: "alice".into() });
        let answer: Answer = serde_json::from_str(r#"{"done":true,"mood":"good"}"#).unwrap();
        assert_eq!(answer, Answer { done: true, ..Answer::default() });
        for (line, force) in [(r#"{"order":"reload"}"#, false), (r#"{"order":"reload","force":true}"#, true)] {
            let request: Request = serde_json::from_str(line).unwrap();
            assert_eq!(request, Request::Reload { force });
            assert_eq!(encode(&request), [line.as_bytes(), b"\n"].concat());
        }
        let unknown = serde_json::from_str::<Request>(r#"{"order":"dance"}"#).unwrap_err().to_string();
        assert!(unknown.contains("dance") && unknown.contains("reload"), "{unknown}");
    }

    #[test]
    fn what_is_written_is_read() {
        let answer = Answer { done: true, lines: vec!["a\nb".into()], epoch: Some(3), ..Answer::default() };
        let line = encode(&answer);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<Answer>(&line).unwrap(), answer);
        let request = Request::Kick { user: "Zoë \"z\"".into() };
        assert_eq!(serde_json::from_slice::<Request>(&encode(&request)).unwrap(), request);
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
