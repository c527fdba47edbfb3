//! The far end of datagram flows: a thread that counts what arrives, and sends it back if asked to.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::tally::{FlowCounts, Tally};
use crate::{
    LabError,
    path::aggregate::{self, AGGREGATE_BYTES_MAX, SEGMENTS_MAX},
};

/// How often the thread looks whether it shall stop.
const STOP_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// What a receiver does with what it has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramResponse {
    /// Nothing.
    Silence,
    /// It sends every datagram back to its sender, in aggregates as they came.
    Echo,
}

/// Counts the datagrams that arrive on a socket, until it is dropped.
#[derive(Debug)]
pub struct DatagramReceiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    halted: AtomicBool,
    tally: Mutex<Tally>,
}

impl DatagramReceiver {
    /// Receives on `socket`, in the network namespace in which it was opened.
    ///
    /// # Errors
    ///
    /// When the socket cannot be set up.
    pub fn start(socket: UdpSocket, response: DatagramResponse) -> Result<Self, LabError> {
        let ready = aggregate::prepare(&socket).and_then(|()| socket.local_addr());
        let address = ready.map_err(|error| LabError::traffic("datagram receiver", "set up the socket", error))?;
        let shared = Arc::new(Shared::default());
        let receiving = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || receive_all(&socket, response, &receiving)));
        Ok(Self { address, shared, thread })
    }

    /// The address that it receives on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has arrived so far, by flow number.
    pub fn counts(&self) -> BTreeMap<u32, FlowCounts> {
        self.shared.tally().counts()
    }

    /// Datagrams that belong to no known flow: others' traffic, or beyond 1024 flows.
    pub fn foreign(&self) -> u64 {
        self.shared.tally().foreign()
    }
}

impl Drop for DatagramReceiver {
    fn drop(&mut self) {
        self.shared.halted.store(true, Ordering::Relaxed);
        // A panic of the thread has been printed already.
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn receive_all(socket: &UdpSocket, response: DatagramResponse, shared: &Shared) {
    let mut buffer = vec![0; AGGREGATE_BYTES_MAX];
    while !shared.halted.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&STOP_INTERVAL)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        // An error (of an earlier send, reported here) concerns that datagram only; `None` means to wait again.
        while let Ok(Some(received)) = aggregate::receive(socket, &mut buffer) {
            let bytes = &buffer[..received.length];
            shared.tally().take(bytes, received.segment);
            if response == DatagramResponse::Echo {
                for part in bytes.chunks(received.segment * SEGMENTS_MAX) {
                    // What the kernel does not take is lost, and counted as lost by the sender.
                    let _ = aggregate::send(socket, part, received.segment, received.from);
                }
            }
        }
    }
}
