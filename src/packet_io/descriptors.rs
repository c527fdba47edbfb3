//! The descriptors that [`PacketIo`](super::PacketIo) works on, as traits: the kernel's are one kind, a simulated kernel's are another. All is
//! known when it is compiled; nothing is looked up for a packet.

use std::io;
use std::time::Duration;

use tollgate_shards::{Frame, Received, Transmit};

use crate::io::{
    self as kernel, Readiness, ReceiveCounters, ReceiveOutcome, SendCounters, SendOutcome, SteeringMap, TunCounters,
    WriteOutcome,
};

/// One kind of descriptors.
pub trait Descriptors: Sized {
    /// A UDP socket.
    type Udp: Udp;
    /// A queue of a TUN device.
    type Tun: Tun;
    /// What ends a sleep from outside.
    type Wake;
    /// What a machine sleeps on.
    type Poller: Poller<Self>;
    /// What steers packets to the queues of a TUN device.
    type SteeringMap: SteeringMap;

    /// Stops for a while, where nobody can say what is ready.
    fn pause(time: Duration);
}

/// A UDP socket that never blocks. What it does is said at [`kernel::UdpSocket`].
pub trait Udp {
    /// The buffers that it receives into.
    type ReceiveBatch: ReceiveBatch;
    /// Runs that wait to be sent through it.
    type TransmitBatch: TransmitBatch;

    /// Hands what has arrived to `sink`, as much as `batch` has room for.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    fn receive(&self, batch: &mut Self::ReceiveBatch, sink: &mut impl FnMut(Received)) -> io::Result<ReceiveOutcome>;

    /// Sends the runs of `batch` in their order, until the socket is full.
    fn send(&self, batch: &mut Self::TransmitBatch) -> SendOutcome;
}

/// The buffers that a socket receives into. What they do is said at [`kernel::ReceiveBatch`].
pub trait ReceiveBatch {
    /// Room for `messages_max` messages.
    fn new(messages_max: usize) -> Self;
    /// What was received since.
    fn counters(&self) -> ReceiveCounters;
    /// Their memory, with what is in use elsewhere.
    fn held_bytes(&self) -> usize;
    /// Forgets what was received and not handed out. Returns how many datagrams that are.
    fn forget(&mut self) -> usize;
}

/// Runs that wait to be sent. What they do is said at [`kernel::TransmitBatch`].
pub trait TransmitBatch {
    /// Room for `sends_max` runs.
    fn new(sends_max: usize) -> Self;
    /// Whether no run waits.
    fn is_empty(&self) -> bool;
    /// Whether there is no room for another run.
    fn is_full(&self) -> bool;
    /// The empty buffer of the next run; `None` when there is no room.
    fn buffer(&mut self) -> Option<&mut Vec<u8>>;
    /// Keeps the run that was written into the buffer.
    fn push(&mut self, transmit: Transmit);
    /// What was sent since the batch was made.
    fn counters(&self) -> SendCounters;
    /// Forgets the runs that wait. Returns how many datagrams they have.
    fn forget(&mut self) -> usize;
}

/// A queue of a TUN device that never blocks. What it does is said at [`kernel::TunQueue`].
pub trait Tun {
    /// Reads a frame into `buf`; `None` when there is none.
    ///
    /// # Errors
    ///
    /// Those of the queue.
    fn read(&self, buf: &mut [u8]) -> io::Result<Option<usize>>;
    /// Writes a frame.
    fn write(&self, frame: &Frame<'_>) -> WriteOutcome;
    /// What went through it since it was opened.
    fn counters(&self) -> TunCounters;
}

/// What a machine sleeps on: level-triggered, over the descriptors that it was made for. What it does is said at [`kernel::Poller`].
pub trait Poller<D: Descriptors>: Sized {
    /// Watches `udp` and `tun` for input, and `wake`.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    fn new(udp: Option<&D::Udp>, tun: Option<&D::Tun>, wake: &D::Wake) -> io::Result<Self>;
    /// Watches a second socket too, for one report.
    ///
    /// # Errors
    ///
    /// Those of the poller; so with all others.
    fn watch_handshakes(&self, socket: &D::Udp) -> io::Result<()>;
    /// Asks for another report of that socket.
    fn want_handshakes(&self, socket: &D::Udp) -> io::Result<()>;
    /// Whether to report the UDP socket's input, and that it takes datagrams.
    fn want_udp(&self, input: bool, writable: bool) -> io::Result<()>;
    /// Whether to report the TUN queue's frames.
    fn want_tun(&self, wanted: bool) -> io::Result<()>;
    /// Watches the UDP socket no more.
    fn forget_udp(&mut self);
    /// Watches the TUN queue no more.
    fn forget_tun(&mut self);
    /// Sleeps until something is ready or `timeout` is over.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Readiness>;
}

/// The kernel's descriptors.
#[derive(Debug, Clone, Copy)]
pub struct Kernel;

impl Descriptors for Kernel {
    type Udp = kernel::UdpSocket;
    type Tun = kernel::TunQueue;
    type Wake = kernel::Wake;
    type Poller = kernel::Poller;
    type SteeringMap = kernel::BpfMap;

    fn pause(time: Duration) {
        std::thread::sleep(time);
    }
}

impl Udp for kernel::UdpSocket {
    type ReceiveBatch = kernel::ReceiveBatch;
    type TransmitBatch = kernel::TransmitBatch;

    fn receive(&self, batch: &mut kernel::ReceiveBatch, sink: &mut impl FnMut(Received)) -> io::Result<ReceiveOutcome> {
        self.receive(batch, sink)
    }

    fn send(&self, batch: &mut kernel::TransmitBatch) -> SendOutcome {
        self.send(batch)
    }
}

impl ReceiveBatch for kernel::ReceiveBatch {
    fn new(messages_max: usize) -> Self {
        Self::new(messages_max)
    }

    fn counters(&self) -> ReceiveCounters {
        self.counters()
    }

    fn held_bytes(&self) -> usize {
        self.held_bytes()
    }

    fn forget(&mut self) -> usize {
        self.forget()
    }
}

impl TransmitBatch for kernel::TransmitBatch {
    fn new(sends_max: usize) -> Self {
        Self::new(sends_max)
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }

    fn is_full(&self) -> bool {
        self.is_full()
    }

    fn buffer(&mut self) -> Option<&mut Vec<u8>> {
        self.buffer()
    }

    fn push(&mut self, transmit: Transmit) {
        self.push(transmit);
    }

    fn counters(&self) -> SendCounters {
        self.counters()
    }

    fn forget(&mut self) -> usize {
        self.forget()
    }
}

impl Tun for kernel::TunQueue {
    fn read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        self.read(buf)
    }

    fn write(&self, frame: &Frame<'_>) -> WriteOutcome {
        self.write(frame)
    }

    fn counters(&self) -> TunCounters {
        self.counters()
    }
}

impl Poller<Kernel> for kernel::Poller {
    fn new(udp: Option<&kernel::UdpSocket>, tun: Option<&kernel::TunQueue>, wake: &kernel::Wake) -> io::Result<Self> {
        Self::new(udp, tun, wake)
    }

    fn watch_handshakes(&self, socket: &kernel::UdpSocket) -> io::Result<()> {
        self.watch_handshakes(socket)
    }

    fn want_handshakes(&self, socket: &kernel::UdpSocket) -> io::Result<()> {
        self.want_handshakes(socket)
    }

    fn want_udp(&self, input: bool, writable: bool) -> io::Result<()> {
        self.want_udp(input, writable)
    }

    fn want_tun(&self, wanted: bool) -> io::Result<()> {
        self.want_tun(wanted)
    }

    fn forget_udp(&mut self) {
        self.forget_udp();
    }

    fn forget_tun(&mut self) {
        self.forget_tun();
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<Readiness> {
        self.wait(timeout)
    }
}
