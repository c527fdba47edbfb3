//! Sending: one `sendmmsg` for a batch of runs, each cut into datagrams by `UDP_SEGMENT`.
//!
//! A run that cannot be sent is dropped and counted, as the network would have done; only a full socket keeps what is left. The
//! kernel refuses `UDP_SEGMENT` with EINVAL or EIO, but both have other causes too (a source address that is gone; one network device
//! without checksum offload among many), so a refused run is sent again as single datagrams, and the socket gives segmentation up
//! only when that has helped [`GSO_REFUSALS_MAX`] times in a row.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tollgate_shards::Transmit;

use super::cmsg::Control;
use super::receive::EMPTY_HEADER;
use super::sockaddr::{Family, RawAddress};
use super::udp::UdpSocket;

/// Datagrams from this length on count as data, shorter ones as acknowledgements and the like, in bytes.
pub const DATA_BYTES_MIN: usize = 512;

/// Capacity of a run's buffer, in bytes: more than any send.
const RUN_BYTES: usize = 64 * 1024;
/// The most datagrams of a run that go in one piece: what every kernel with `UDP_SEGMENT` takes.
const SEGMENTS_MAX: usize = 64;
/// The most messages that one `sendmmsg` is given when runs have to be sent as single datagrams.
const SINGLES_MAX: usize = 64;
/// Runs in a row that were refused with segmentation and taken without it before the socket stops trying.
const GSO_REFUSALS_MAX: u32 = 8;

/// What one call of [`UdpSocket::send`] did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SendOutcome {
    /// Messages that the kernel took: runs, or single datagrams.
    pub sends: usize,
    /// Datagrams in these sends.
    pub datagrams: usize,
    /// Datagrams dropped because the kernel refused them.
    pub dropped: usize,
    /// Whether the socket is full. The batch keeps the rest; wait until the socket is writable and send it again.
    pub blocked: bool,
    /// The error number of the last run that was dropped.
    pub error: Option<i32>,
}

/// What a batch has sent since it was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SendCounters {
    /// `sendmmsg` calls.
    pub calls: u64,
    /// Messages that the kernel took: runs, or single datagrams.
    pub sends: u64,
    /// Datagrams in these sends.
    pub datagrams: u64,
    /// Bytes in these sends.
    pub bytes: u64,
    /// Messages with datagrams of at least [`DATA_BYTES_MIN`].
    pub data_sends: u64,
    /// Datagrams in those, a shorter last one included.
    pub data_datagrams: u64,
    /// Calls that ended at a full socket.
    pub blocked: u64,
    /// Runs that the kernel refused to segment.
    pub gso_refused: u64,
    /// Runs dropped, for any reason that the kernel gave.
    pub errors: u64,
    /// Datagrams dropped with them.
    pub dropped: u64,
}

/// Runs waiting to be sent, at most `sends_max`, in recycled buffers.
pub struct TransmitBatch {
    /// `filled` of them hold runs, in the order they came.
    runs: Vec<Run>,
    filled: usize,
    /// How many of the filled ones are done.
    done: usize,
    messages: Vec<Message>,
    addresses: Vec<RawAddress>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    counters: SendCounters,
}

/// One run and how much of it is sent.
struct Run {
    buf: Vec<u8>,
    transmit: Transmit,
    sent_bytes: usize,
    /// Whether the kernel refused to segment this run.
    singly: bool,
}

/// What one message of a `sendmmsg` carries.
#[derive(Clone, Copy)]
struct Message {
    run: usize,
    bytes: usize,
    datagrams: usize,
}

// SAFETY: the raw pointers in `vectors` and `headers` are only followed by the kernel within `send`, which first points those it hands
// over into this value's own buffers; between calls they are dead.
unsafe impl Send for TransmitBatch {}

impl TransmitBatch {
    /// Room for `sends_max` runs (at least 1, at most 1,024) of 64 KiB.
    pub fn new(sends_max: usize) -> TransmitBatch {
        let sends_max = sends_max.clamp(1, 1024);
        let messages_max = sends_max.max(SINGLES_MAX);
        TransmitBatch {
            runs: (0..sends_max).map(|_| Run::empty()).collect(),
            filled: 0,
            done: 0,
            messages: Vec::with_capacity(messages_max),
            addresses: vec![RawAddress::EMPTY; messages_max],
            controls: vec![Control::EMPTY; messages_max],
            vectors: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; messages_max],
            headers: vec![EMPTY_HEADER; messages_max],
            counters: SendCounters::default(),
        }
    }

    /// Runs that wait to be sent.
    pub fn len(&self) -> usize {
        self.filled - self.done
    }

    /// Whether no run waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room for another run.
    pub fn is_full(&self) -> bool {
        self.filled == self.runs.len()
    }

    /// What was sent since the batch was made.
    pub fn counters(&self) -> SendCounters {
        self.counters
    }

    /// The empty buffer of the next run, to be followed by [`TransmitBatch::push`]; `None` when the batch is full.
    pub fn buffer(&mut self) -> Option<&mut Vec<u8>> {
        let buf = &mut self.runs.get_mut(self.filled)?.buf;
        buf.clear();
        Some(buf)
    }

    /// Keeps the run that was written into the buffer and is described by `transmit`.
    pub fn push(&mut self, mut transmit: Transmit) {
        let Some(run) = self.runs.get_mut(self.filled) else { return };
        transmit.bytes = transmit.bytes.min(run.buf.len());
        transmit.segment_bytes = transmit.segment_bytes.clamp(1, transmit.bytes.max(1));
        run.transmit = transmit;
        run.sent_bytes = 0;
        run.singly = false;
        self.filled += 1;
    }

    /// Forgets all runs that wait. Returns how many datagrams they have.
    pub fn forget(&mut self) -> usize {
        let rest = |run: &Run| (run.transmit.bytes - run.sent_bytes).div_ceil(run.transmit.segment_bytes);
        let datagrams = self.runs[self.done..self.filled].iter().map(rest).sum();
        (self.filled, self.done) = (0, 0);
        datagrams
    }

    /// Lets `poll` write a run into an empty buffer, and keeps it when `poll` says what it is. Returns whether a run was added: not
    /// when the batch is full, and then `poll` is not called.
    pub fn fill(&mut self, poll: impl FnOnce(&mut Vec<u8>) -> Option<Transmit>) -> bool {
        let transmit = self.buffer().and_then(poll);
        transmit.is_some_and(|transmit| {
            self.push(transmit);
            true
        })
    }

    /// Describes what waits, as far as it fits, to the kernel; `gso` says whether runs may go in one piece. Returns the number of
    /// messages: 0 only when nothing waits.
    fn compose(&mut self, family: Family, gso: bool) -> usize {
        self.messages.clear();
        while self.done < self.filled {
            for index in self.done..self.filled {
                if !self.compose_run(index, family, gso) {
                    break;
                }
            }
            if !self.messages.is_empty() {
                break;
            }
            // The first run that waits is empty, or of a family that the socket has not.
            self.drop_run(self.done);
        }
        self.messages.len()
    }

    /// Describes run `index`, if it can be sent at all. Returns whether a further one may follow.
    fn compose_run(&mut self, index: usize, family: Family, gso: bool) -> bool {
        let run = &self.runs[index];
        let Transmit { remote, local_ip, ecn, bytes, segment_bytes } = run.transmit;
        let mut address = RawAddress::EMPTY;
        let Some(address_bytes) = address.store(remote, family) else { return false };
        let mut rest = &run.buf[run.sent_bytes..bytes];
        if rest.is_empty() {
            return false;
        }
        let whole = gso && !run.singly;
        while !rest.is_empty() {
            let slot = self.messages.len();
            if slot == self.headers.len() {
                return false;
            }
            let part_datagrams = if whole { SEGMENTS_MAX } else { 1 };
            let part_bytes = rest.len().min(segment_bytes.saturating_mul(part_datagrams));
            let (part, behind) = rest.split_at(part_bytes);
            rest = behind;
            let datagrams = part_bytes.div_ceil(segment_bytes);
            // A segment of 64 KiB or more cannot be one of several: no send is that long.
            let segment = u16::try_from(segment_bytes).ok().filter(|_| datagrams > 1);
            self.messages.push(Message { run: index, bytes: part_bytes, datagrams });
            self.addresses[slot] = address;
            let control_bytes = self.controls[slot].compose(remote.ip(), local_ip, ecn, segment);
            self.vectors[slot] = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part_bytes };
            let header = &mut self.headers[slot].msg_hdr;
            header.msg_name = (&raw mut self.addresses[slot]).cast();
            header.msg_namelen = address_bytes;
            header.msg_iov = &raw mut self.vectors[slot];
            header.msg_iovlen = 1;
            header.msg_control =
                if control_bytes == 0 { std::ptr::null_mut() } else { (&raw mut self.controls[slot]).cast() };
            header.msg_controllen = control_bytes as _;
        }
        true
    }

    /// Gives the rest of run `index` up, and all before it are done.
    fn drop_run(&mut self, index: usize) -> usize {
        let run = &mut self.runs[index];
        let rest_bytes = run.transmit.bytes - run.sent_bytes;
        let datagrams = rest_bytes.div_ceil(run.transmit.segment_bytes);
        run.sent_bytes = run.transmit.bytes;
        self.done = index + 1;
        self.counters.errors += 1;
        self.counters.dropped += datagrams as u64;
        datagrams
    }

    /// Takes note that the kernel took the first `messages` of those composed. Returns whether one of them was a segmented run, and
    /// how many were the first single datagram of a run whose segmentation it had refused.
    fn take(&mut self, messages: usize, outcome: &mut SendOutcome) -> (bool, u32) {
        let (mut segmented, mut refusals) = (false, 0);
        for message in &self.messages[..messages] {
            let run = &mut self.runs[message.run];
            segmented |= message.datagrams > 1;
            refusals += u32::from(run.singly && run.sent_bytes == 0);
            run.sent_bytes += message.bytes;
            self.done = if run.sent_bytes == run.transmit.bytes { message.run + 1 } else { message.run };
            outcome.sends += 1;
            outcome.datagrams += message.datagrams;
            self.counters.sends += 1;
            self.counters.datagrams += message.datagrams as u64;
            self.counters.bytes += message.bytes as u64;
            if run.transmit.segment_bytes >= DATA_BYTES_MIN {
                self.counters.data_sends += 1;
                self.counters.data_datagrams += message.datagrams as u64;
            }
        }
        (segmented, refusals)
    }

    /// Moves the runs that are done behind those that wait, so that their buffers can be filled again.
    fn recycle(&mut self) {
        self.runs[..self.filled].rotate_left(self.done);
        self.filled -= self.done;
        self.done = 0;
    }
}

impl Run {
    fn empty() -> Run {
        let nowhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        let transmit = Transmit { remote: nowhere, local_ip: None, ecn: None, bytes: 0, segment_bytes: 1 };
        Run { buf: Vec::with_capacity(RUN_BYTES), transmit, sent_bytes: 0, singly: false }
    }
}

impl UdpSocket {
    /// Sends all runs of `batch`, in their order, in one system call where nothing is refused.
    pub fn send(&self, batch: &mut TransmitBatch) -> SendOutcome {
        let mut outcome = SendOutcome::default();
        let dropped_before = batch.counters.dropped;
        loop {
            let messages = batch.compose(self.family(), self.gso.get());
            if messages == 0 {
                break;
            }
            batch.counters.calls += 1;
            // SAFETY: `compose` has pointed the first `messages` headers at live memory of the stated lengths, owned by `batch`; the
            // kernel only reads it, and writes `msg_len` of the headers.
            let taken = unsafe {
                libc::sendmmsg(
                    self.as_fd().as_raw_fd(),
                    batch.headers.as_mut_ptr(),
                    messages as libc::c_uint,
                    (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
                )
            };
            if let Ok(taken) = usize::try_from(taken) {
                let (segmented, refusals) = batch.take(taken, &mut outcome);
                self.judge_gso(segmented, refusals);
                continue;
            }
            let error = io::Error::last_os_error();
            let first = batch.messages[0];
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => {
                    outcome.blocked = true;
                    batch.counters.blocked += 1;
                    break;
                }
                Some(libc::EINVAL | libc::EIO) if first.datagrams > 1 => {
                    batch.runs[first.run].singly = true;
                    batch.counters.gso_refused += 1;
                }
                errno => {
                    outcome.error = errno;
                    batch.drop_run(first.run);
                }
            }
        }
        batch.recycle();
        outcome.dropped = (batch.counters.dropped - dropped_before) as usize;
        outcome
    }

    /// Gives segmentation up when single datagrams went where it was refused, time and again, and it never worked in between.
    fn judge_gso(&self, segmented: bool, refusals: u32) {
        let before = if segmented { 0 } else { self.gso_refusals.get() };
        self.gso_refusals.set(before + refusals);
        if self.gso_refusals.get() >= GSO_REFUSALS_MAX {
            self.gso.set(false);
        }
    }
}

#[cfg(test)]
mod tests;
