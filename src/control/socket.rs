//! The gateway's side of the control socket: who may speak, how much, how long, and how many at once.
//!
//! A thread accepts, and one for each client reads its requests and writes the answers. Nobody but the control thread, which
//! [`ControlSocket::requests`] reach, carries anything out.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};
use tracing::{debug, warn};

use super::protocol::{Answer, LineError, Lines, REQUEST_BYTES_MAX, Request, encode};
use crate::io::Wake;
use crate::log::{self, Kind};

/// Clients at once. A request takes milliseconds.
pub const CLIENTS_MAX: usize = 8;

/// How long a client may take to say what it wants, and to take the answer.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait before accepting again when the system is out of something.
const RETRY: Duration = Duration::from_millis(100);

/// Of whoever runs the gateway, and of nobody else.
const SOCKET_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// The folder's, where it has to be made.
const FOLDER_MODE: u32 = 0o700;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another gateway has it.
    #[error("a gateway already listens on the control socket {}: stop it, or set [control] socket to another path", path.display())]
    InUse {
        /// The path of the socket.
        path: PathBuf,
    },
    /// Something that is not ours to remove.
    #[error("{} is not a socket: remove it, or set [control] socket to another path", path.display())]
    NotASocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("the control socket {} cannot be made: {source}; set [control] socket to a path that this user may write", path.display())]
    Unusable {
        /// The path of the socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// What somebody wants, and where the answer goes.
#[derive(Debug)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// Takes one answer; dropped without one, it tells that the gateway stops.
    pub answer: Sender<Answer>,
}

/// A listening control socket. It is removed when this value is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    identity: (u64, u64),
    requests: Receiver<Asked>,
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl ControlSocket {
    /// Listens at `path`, readable and writable for this user only, in place of what a gateway that has died left there. Makes the folder
    /// where there is none.
    ///
    /// # Errors
    ///
    /// If another gateway listens there, if there is something else, or if the system refuses.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let unusable = |source: io::Error| SocketError::Unusable { path: path.to_owned(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(unusable)?;
        }
        let wake = Arc::new(Wake::new().map_err(unusable)?);
        let listener = open(path)?;
        let metadata = fs::symlink_metadata(path).map_err(unusable)?;
        let identity = (metadata.dev(), metadata.ino());
        let (to, requests) = bounded(CLIENTS_MAX);
        let mut socket = ControlSocket { path: path.to_owned(), identity, requests, wake: wake.clone(), thread: None };
        let door = Door { listener, wake, to, present: Arc::new(()), spare: Some(spare().map_err(unusable)?) };
        let thread = thread::Builder::new().name("tollgate-control".to_owned()).spawn(move || door.watch());
        socket.thread = Some(thread.map_err(unusable)?);
        Ok(socket)
    }

    /// What clients want, in the order of their coming.
    pub fn requests(&self) -> &Receiver<Asked> {
        &self.requests
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // If it was replaced meanwhile, it is another's to remove.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
        self.wake.notify();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
    }
}

/// A socket whose file will have its mode from its first moment: Linux gives it the mode of the socket.
fn new_socket() -> rustix::io::Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    rustix::fs::fchmod(&socket, SOCKET_MODE)?;
    Ok(socket)
}

fn open(path: &Path) -> Result<UnixListener, SocketError> {
    let unusable = |errno: Errno| SocketError::Unusable { path: path.to_owned(), source: errno.into() };
    let address = SocketAddrUnix::new(path).map_err(unusable)?;
    let listener = new_socket().map_err(unusable)?;
    match bind(&listener, &address) {
        Err(Errno::ADDRINUSE) => {
            if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
                return Err(SocketError::NotASocket { path: path.to_owned() });
            }
            // Where nobody listens, nobody will again: a socket's file does not outlive its socket in any other way.
            if connect(&new_socket().map_err(unusable)?, &address) != Err(Errno::CONNREFUSED) {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            fs::remove_file(path).map_err(|source| SocketError::Unusable { path: path.to_owned(), source })?;
            bind(&listener, &address).map_err(unusable)?;
        }
        bound => bound.map_err(unusable)?,
    }
    listen(&listener, CLIENTS_MAX as i32).map_err(unusable)?;
    Ok(listener.into())
}

/// The listening socket and the clients that it has let in.
struct Door {
    listener: UnixListener,
    wake: Arc<Wake>,
    to: Sender<Asked>,
    /// Held once by each client that is in.
    present: Arc<()>,
    /// A descriptor that makes room for a client when there is no other: an operator gets in then of all times.
    spare: Option<OwnedFd>,
}

/// A descriptor of no use but to be closed.
fn spare() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/dev/null")?.into())
}

impl Door {
    /// Lets clients in until the wake-up.
    fn watch(mut self) {
        loop {
            self.spare = self.spare.or_else(|| spare().ok());
            let (coming, woken) = {
                let mut ready = [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&*self.wake, PollFlags::IN)];
                match poll(&mut ready, None) {
                    Ok(_) | Err(Errno::INTR) => (!ready[0].revents().is_empty(), !ready[1].revents().is_empty()),
                    Err(error) => {
                        not_served(&error.into());
                        thread::sleep(RETRY);
                        continue;
                    }
                }
            };
            if woken {
                return;
            }
            if !coming {
                continue;
            }
            match self.accept() {
                Ok(stream) => self.let_in(stream),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    not_served(&error);
                    thread::sleep(RETRY);
                }
            }
        }
    }

    /// Accepts a client, in the place of the spare descriptor where there is no other.
    fn accept(&mut self) -> io::Result<UnixStream> {
        let accepted = match self.listener.accept() {
            Err(error)
                if Errno::from_io_error(&error).is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
                    && self.spare.take().is_some() =>
            {
                self.listener.accept()
            }
            accepted => accepted,
        };
        Ok(accepted?.0)
    }

    fn let_in(&self, stream: UnixStream) {
        let turned_away = if Arc::strong_count(&self.present) > CLIENTS_MAX {
            Some(format!("the gateway has {CLIENTS_MAX} others at its control socket: try again"))
        } else if !may_enter(&stream) {
            Some("only root and the user whom the gateway runs as may control it".to_owned())
        } else {
            None
        };
        if let Some(reason) = turned_away {
            debug!(reason, "a client of the control socket was turned away");
            // It fits into the fresh socket's buffer, and nobody waits for whoever is turned away.
            let _ = stream.set_nonblocking(true).and_then(|()| write(&stream, &Answer::refused(vec![reason])));
            return;
        }
        let (to, present) = (self.to.clone(), self.present.clone());
        let serving = thread::Builder::new().name("tollgate-client".to_owned()).spawn(move || {
            let served = serve(&stream, &to);
            drop(present);
            if let Err(error) = served {
                debug!(%error, "a client of the control socket was lost");
            }
        });
        if let Err(error) = serving {
            not_served(&error);
        }
    }
}

fn not_served(error: &io::Error) {
    if log::admits(Kind::NotServed) {
        warn!("a client of the control socket was not served: {error}");
    }
}

/// The second guard: whoever has come past the file's mode.
fn may_enter(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == own)
}

/// Takes requests and gives answers until the client has said all.
fn serve(stream: &UnixStream, to: &Sender<Asked>) -> io::Result<()> {
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let mut lines = Lines::new(stream, REQUEST_BYTES_MAX);
    loop {
        let line = match lines.next(CLIENT_TIMEOUT) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(LineError::Io(error)) => return Err(error),
            Err(error) => return write(stream, &Answer::refused(vec![error.to_string()])),
        };
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => ask(request, to),
            Err(error) => Answer::refused(vec![format!("this is no order in JSON: {error}")]),
        };
        write(stream, &answer)?;
    }
}

fn ask(request: Request, to: &Sender<Asked>) -> Answer {
    let (answer, answered) = bounded(1);
    let sent = to.send(Asked { request, answer }).is_ok();
    let answer = if sent { answered.recv().ok() } else { None };
    answer.unwrap_or_else(|| Answer::refused(vec!["the gateway is stopping".to_owned()]))
}

fn write(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    stream.write_all(&encode(answer))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/tollgate/control");
        (folder, path)
    }

    fn say(path: &Path, what: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(what).unwrap();
        stream
    }

    fn hear(stream: &UnixStream) -> Answer {
        let line = Lines::new(stream, 1 << 20).next(LONG).unwrap().expect("an answer");
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn the_socket_is_its_owners_alone_and_goes_with_the_gateway() {
        let (_folder, path) = folder();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let socket = ControlSocket::listen(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_has_its_mode_before_anybody_listens() {
        let (_folder, path) = folder();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let socket = new_socket().unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_a_dead_gateway_left_is_replaced_and_what_a_live_one_has_is_not() {
        let (_folder, path) = folder();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let socket = ControlSocket::listen(&path).unwrap();
        for _ in 0..2 * CLIENTS_MAX {
            let refused = ControlSocket::listen(&path).unwrap_err();
            assert!(matches!(refused, SocketError::InUse { .. }), "{refused}");
        }
        drop(socket);
        fs::write(&path, "somebody's").unwrap();
        assert!(matches!(ControlSocket::listen(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's");
    }

    #[test]
    fn another_gateways_socket_is_not_removed() {
        let (_folder, path) = folder();
        let first = ControlSocket::listen(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = ControlSocket::listen(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_that_cannot_be_is_an_error_in_one_line() {
        let (folder, _) = folder();
        fs::write(folder.path().join("file"), "").unwrap();
        for path in [folder.path().join("x".repeat(200)), folder.path().join("file/control")] {
            let error = ControlSocket::listen(&path).unwrap_err().to_string();
            assert!(error.contains("[control] socket") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn requests_reach_the_control_thread_and_answers_come_back_in_order() {
        let (_folder, path) = folder();
        let socket = ControlSocket::listen(&path).unwrap();
        let stream = say(&path, b"{\"order\":\"reload\"}\n{\"order\":\"kick\",\"user\":\"bob\"}\n");
        let mut lines = Lines::new(&stream, 1000);
        for (epoch, expected) in [(1, Request::Reload { force: false }), (2, Request::Kick { user: "bob".into() })] {
            let Asked { request, answer } = socket.requests().recv_timeout(LONG).unwrap();
            assert_eq!(request, expected);
            answer.send(Answer { done: true, epoch: Some(epoch), ..Answer::default() }).unwrap();
            let heard: Answer = serde_json::from_slice(&lines.next(LONG).unwrap().unwrap()).unwrap();
            assert_eq!(heard.epoch, Some(epoch));
        }
        drop(socket);
        // The thread that serves it is still there, but nobody behind it.
        assert_eq!(hear(&say_again(&stream)).lines, ["the gateway is stopping"]);
    }

    fn say_again(mut stream: &UnixStream) -> UnixStream {
        stream.write_all(b"{\"order\":\"reload\"}\n").unwrap();
        stream.try_clone().unwrap()
    }

    #[test]
    fn what_is_no_request_is_refused_and_reaches_nobody() {
        let (_folder, path) = folder();
        let socket = ControlSocket::listen(&path).unwrap();
        let long = vec![b'x'; REQUEST_BYTES_MAX + 1];
        for (said, expected) in [
            (&b"reload\n"[..], "no order in JSON"),
            (b"\n", "no order in JSON"),
            (b"{\"order\":\"explode\"}\n", "explode"),
            (b"\xff\xfe\n", "no order in JSON"),
            (&long, "at most 4096 bytes"),
        ] {
            let answer = hear(&say(&path, said));
            assert!(!answer.done && answer.lines.len() == 1 && answer.lines[0].contains(expected), "{answer:?}");
        }
        assert!(socket.requests().is_empty());
    }

    #[test]
    fn silent_clients_are_few_and_keep_nobody_out_for_long() {
        let (_folder, path) = folder();
        let socket = ControlSocket::listen(&path).unwrap();
        let silent: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let one_more = hear(&UnixStream::connect(&path).unwrap());
        assert!(one_more.lines[0].contains("try again"), "{one_more:?}");
        assert!(hear(&silent[0]).lines[0].contains("no whole line"));
        drop(silent);
        thread::spawn(move || {
            while let Ok(asked) = socket.requests().recv() {
                let _ = asked.answer.send(Answer { done: true, ..Answer::default() });
            }
        });
        while !hear(&say(&path, b"{\"order\":\"reload\"}\n")).done {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
