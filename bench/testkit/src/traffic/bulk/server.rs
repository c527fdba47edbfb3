//! The far end of bulk transfers: a thread that accepts, and one for each connection.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{
    DEADLINE_MAX, Direction, accept_request,
    pattern::{Pattern, Verifier},
    pump::{self, Watch},
};
use crate::LabError;

/// Connections served at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 256;

/// How long a new connection may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the accepting thread looks whether it shall stop.
const STOP_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Serves bulk transfers until it is dropped.
#[derive(Debug)]
pub struct BulkServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    halted: AtomicBool,
    moved: AtomicU64,
}

impl BulkServer {
    /// Serves the connections of `listener`, in the network namespace in which it was opened.
    ///
    /// # Errors
    ///
    /// When the listener cannot be set up.
    pub fn start(listener: TcpListener) -> Result<Self, LabError> {
        let ready = listener.set_nonblocking(true).and_then(|()| listener.local_addr());
        let address = ready.map_err(|error| LabError::traffic("bulk server", "listen", error))?;
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let acceptor = Some(thread::spawn(move || accept_all(&listener, &serving)));
        Ok(Self { address, shared, acceptor })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes sent and received so far, over all connections.
    pub fn moved_bytes(&self) -> u64 {
        self.shared.moved.load(Ordering::Relaxed)
    }
}

impl Drop for BulkServer {
    fn drop(&mut self) {
        self.shared.halted.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        self.acceptor.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    while !shared.halted.load(Ordering::Relaxed) {
        connections.retain(|thread| !thread.is_finished());
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&STOP_INTERVAL)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => break,
        }
        // A failure concerns the one connection only.
        let Ok((socket, _)) = listener.accept() else { continue };
        if connections.len() < CONNECTIONS_MAX {
            let shared = Arc::clone(shared);
            // What goes wrong here is seen and told by the other end.
            connections.push(thread::spawn(move || drop(serve(socket, &shared))));
        }
    }
    connections.into_iter().for_each(|thread| drop(thread.join()));
}

fn serve(mut socket: TcpStream, shared: &Shared) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    pump::prepare(&socket)?;
    let within = |time: Duration| Watch {
        deadline: Instant::now() + time.min(DEADLINE_MAX),
        halted: &shared.halted,
        moved: &shared.moved,
    };
    let request = accept_request(&mut socket, &within(REQUEST_TIMEOUT))?;
    let pattern = Pattern::new(request.seed);
    let watch = within(request.deadline);
    match request.direction {
        Direction::Upload => {
            let outcome = pump::receive(&mut socket, Verifier::new(&pattern), &watch)?;
            socket.write_all(&outcome.encode())
        }
        Direction::Download => pump::send(&mut socket, &pattern, &request, &watch),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_connection_that_asks_for_nothing_known_is_closed() {
        let server = BulkServer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let mut socket = TcpStream::connect(server.address()).unwrap();
        socket.write_all(&[b'x'; super::super::Request::BYTES]).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        assert!(answer.is_empty());
        assert_eq!(server.moved_bytes(), 0);
    }

    #[test]
    fn dropping_the_server_ends_its_connections() {
        let server = BulkServer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let mut socket = TcpStream::connect(server.address()).unwrap();
        // Wait until it is served, so that the drop has a connection to end.
        socket.write_all(b"x").unwrap();
        drop(server);
        let ended = socket.read(&mut [0; 1]);
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
}
