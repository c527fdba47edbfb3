//! A Unix socket at which a program listens for lines, of datagrams or a stream.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with};

/// The way to the listener.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    socket: Option<OwnedFd>,
    /// The number of the last line of this process.
    seq: u64,
    /// What is left of a line that the listener has a part of.
    rest: Vec<u8>,
}

impl LocalSocket {
    /// To the listener at `path`.
    pub fn new(path: &Path) -> Self {
        LocalSocket { path: path.to_owned(), socket: None, seq: 0, rest: Vec::new() }
    }

    /// Connects anew before the next line.
    pub fn reopen(&mut self) {
        if self.rest.is_empty() {
            self.socket = None;
        }
    }

    /// Sends `lines`, each the inside of an object, and takes them out as they are taken.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] while the listener takes no more. What is in `lines` then was not sent.
    pub fn write(&mut self, lines: &mut VecDeque<String>) -> io::Result<()> {
        while let Some(line) = lines.front() {
            let socket = match self.socket.take() {
                Some(socket) => socket,
                None => open(&self.path)?,
            };
            if self.rest.is_empty() {
                self.rest = format!("{{\"seq\":{},{line}}}\n", self.seq + 1).into_bytes();
            }
            match send(&socket, &self.rest, SendFlags::NOSIGNAL) {
                Ok(bytes) => {
                    self.rest.drain(..bytes);
                    self.socket = Some(socket);
                }
                Err(Errno::AGAIN) => {
                    self.socket = Some(socket);
                    return Err(Errno::AGAIN.into());
                }
                Err(error) => {
                    // The next listener gets the line whole.
                    self.rest.clear();
                    return Err(error.into());
                }
            }
            if self.rest.is_empty() {
                self.seq += 1;
                lines.pop_front();
            }
        }
        Ok(())
    }
}

/// Connects to a socket of either kind, without waiting.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let datagrams = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    match connect(&datagrams, &address) {
        Err(Errno::PROTOTYPE) => {
            let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&stream, &address)?;
            Ok(stream)
        }
        connected => Ok(connected.map(|()| datagrams)?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn lines(count: usize) -> VecDeque<String> {
        (0..count).map(|_| format!("\"a\":\"{}\"", "x".repeat(200))).collect()
    }

    fn begins(line: &str, number: usize) -> bool {
        line.starts_with(&format!("{{\"seq\":{number},\"a\":\"xx")) && line.ends_with("x\"}\n")
    }

    #[test]
    fn a_listener_of_datagrams_has_a_line_in_each_and_one_that_comes_later_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (mut socket, mut waiting) = (LocalSocket::new(&path), lines(2));
        assert_eq!(socket.write(&mut waiting).unwrap_err().kind(), io::ErrorKind::NotFound);
        for number in [1, 3] {
            let listener = UnixDatagram::bind(&path).unwrap();
            waiting.extend(lines(if number == 1 { 0 } else { 2 }));
            while socket.write(&mut waiting).is_err() {}
            let mut datagram = [0; 1000];
            for number in [number, number + 1] {
                let bytes = listener.recv(&mut datagram).unwrap();
                assert!(begins(str::from_utf8(&datagram[..bytes]).unwrap(), number));
            }
            drop(listener);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_stream_that_is_not_read_keeps_nobody_waiting_and_gets_every_line_once_when_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (mut socket, mut waiting) = (LocalSocket::new(&path), lines(5000));
        assert_eq!(socket.write(&mut waiting).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(!waiting.is_empty());
        let mut reader = BufReader::new(listener.accept().unwrap().0);
        for number in 1..=5000 {
            if let Err(error) = socket.write(&mut waiting) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            }
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(begins(&line, number), "{number}: {line}");
        }
    }
}
