//! The operator's side of the control socket.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};

use super::protocol::{
    ANSWER_BYTES_MAX, Answer, LineError, Lines, MessageError, NO_ORDER, Next, Place, Request, decode, encode,
};

/// How long a gateway may take from the connection to the answer: it may have a long file of users to read, and other orders before this
/// one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for an upgrade, which the gateway gives up before.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a gateway may not know an order of this program.
const OLDER: &str = "the gateway that runs is older than this program: `tollgate upgrade` brings it up to date";

/// How often a gateway is tried whose queue of connections is full.
const CONNECT_RETRY: Duration = Duration::from_millis(20);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no socket at the path.
    #[error(
        "no gateway runs with the control socket {}: start it with `tollgate serve`; if one runs with another file, or ran before its port \
         was changed here, name its socket by --socket", path.display()
    )]
    NoSocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The socket of a gateway that has died.
    #[error(
        "no gateway runs with the control socket {}: the one that made it ended without a goodbye; start it with `tollgate serve`",
        path.display()
    )]
    Dead {
        /// The path of the socket.
        path: PathBuf,
    },
    /// Somebody else's gateway.
    #[error("the control socket {} is not for this user: run as root, or as the user whom the gateway runs as", path.display())]
    Forbidden {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The socket cannot be connected to for another reason.
    #[error("the control socket {}: {source}; name a gateway's socket by --socket", path.display())]
    Connect {
        /// The path of the socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The gateway accepted the connection but did not answer in time.
    #[error(
        "the gateway at {}{} has not answered within {ANSWER_TIMEOUT:?}: it is stopped, overloaded or out of descriptors; whether the order \
         will be carried out is not known",
        path.display(), .process.map(|process| format!(" (process {process})")).unwrap_or_default()
    )]
    Silent {
        /// The path of the socket.
        path: PathBuf,
        /// The ID of the gateway's process, where the kernel tells it.
        process: Option<i32>,
    },
    /// What the gateway says is no answer, or it has ended.
    #[error("the gateway at {} does not answer: {reason}; its log may say why", path.display())]
    NoAnswer {
        /// The path of the socket.
        path: PathBuf,
        /// What came in place of an answer.
        reason: String,
    },
}

/// Has the gateway that listens at `path` carry out `request`, and waits for its answer.
///
/// # Errors
///
/// If there is no gateway, or no answer.
pub fn ask(path: &Path, request: &Request) -> Result<Answer, AskError> {
    let deadline = Instant::now() + answer_timeout(request);
    let mut stream = connect_by(path, deadline).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::TimedOut => AskError::Silent { path, process: None },
            io::ErrorKind::NotFound => AskError::NoSocket { path },
            io::ErrorKind::ConnectionRefused => AskError::Dead { path },
            io::ErrorKind::PermissionDenied => AskError::Forbidden { path },
            _ => AskError::Connect { path, source },
        }
    })?;
    let no_answer = |reason: String| AskError::NoAnswer { path: path.to_owned(), reason };
    let process = sockopt::socket_peercred(&stream).ok().map(|peer| peer.pid.as_raw_nonzero().get());
    stream.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(|error| no_answer(error.to_string()))?;
    // A gateway that refuses to listen says why before it closes.
    let written = stream.write_all(&encode(request));
    let line = match line_by(&stream, deadline) {
        Ok(Some(line)) => line,
        Err(LineError::Late(_)) => return Err(AskError::Silent { path: path.to_owned(), process }),
        Ok(None) => return Err(no_answer(written.map_or_else(|e| e.to_string(), |()| "it has ended".to_owned()))),
        Err(error) => return Err(no_answer(error.to_string())),
    };
    decode_answer(&line).map_err(|error| no_answer(format!("what it says is no answer ({error})")))
}

/// Asks until no row is missing: `request` has where the rows begin.
///
/// # Errors
///
/// If there is no gateway, or no answer.
pub fn ask_for_all(path: &Path, request: impl Fn(Option<Place>) -> Request) -> Result<Answer, AskError> {
    let mut all = ask(path, &request(None))?;
    while let Some(next) = all.next.take() {
        let more = ask(path, &request(Some(next)))?;
        if !more.done {
            return Ok(more);
        }
        let Answer { users, connections, usage, next, .. } = more;
        all.users = all.users.map(|rows| [rows, users.unwrap_or_default()].concat());
        all.connections = all.connections.map(|rows| [rows, connections.unwrap_or_default()].concat());
        all.usage = all.usage.map(|rows| [rows, usage.unwrap_or_default()].concat());
        all.next = next;
    }
    Ok(all)
}

/// The answer in `line`. Where a gateway does not know an order, it is told why that may be.
fn decode_answer(line: &[u8]) -> Result<Answer, MessageError> {
    let mut answer: Answer = decode(line)?;
    if answer.lines.first().is_some_and(|line| line.starts_with(NO_ORDER)) {
        answer.lines.push(OLDER.to_owned());
    }
    Ok(answer)
}

/// An upgrade may wait for a process that takes its time to start.
fn answer_timeout(request: &Request) -> Duration {
    match request {
        Request::Upgrade { .. } => UPGRADE_TIMEOUT,
        _ => ANSWER_TIMEOUT,
    }
}

/// The answer's line, or `None` if the gateway closes without one.
fn line_by(stream: &UnixStream, deadline: Instant) -> Result<Option<Vec<u8>>, LineError> {
    let mut lines = Lines::new(ANSWER_BYTES_MAX);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LineError::Late(ANSWER_TIMEOUT));
        }
        stream.set_read_timeout(Some(left))?;
        match lines.next(stream)? {
            Next::Line(line) => return Ok(Some(line)),
            Next::End => return Ok(None),
            Next::Partial => {}
        }
    }
}

/// Connects, but waits for a gateway that accepts nobody no longer than until `deadline`.
fn connect_by(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::AGAIN) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Err(Errno::AGAIN) => thread::sleep(CONNECT_RETRY),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let ask = |path: &Path| ask(path, &Request::Reload { force: false }).unwrap_err().to_string();
        let missing = ask(&path);
        assert!(missing.contains("no gateway runs") && missing.contains("tollgate serve"), "{missing}");
        drop(UnixListener::bind(&path).unwrap());
        let dead = ask(&path);
        assert!(dead.contains("without a goodbye"), "{dead}");
        assert!(!missing.contains('\n') && !dead.contains('\n'));
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        for (said, expected) in [("", "it has ended"), ("good morning\n", "no answer")] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("control");
            let listener = UnixListener::bind(&path).unwrap();
            let other = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = Lines::new(1000);
                while matches!(lines.next(&stream).unwrap(), Next::Partial) {}
                stream.write_all(said.as_bytes()).unwrap();
            });
            let error = ask(&path, &Request::Reload { force: false }).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            other.join().unwrap();
        }
    }
}
