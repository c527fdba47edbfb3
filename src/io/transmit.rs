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

    /// Lets `poll` write a run into an empty buffer, and keeps it when `poll` says what it is. Returns whether a run was added: not
    /// when the batch is full, and then `poll` is not called.
    pub fn fill(&mut self, poll: impl FnOnce(&mut Vec<u8>) -> Option<Transmit>) -> bool {
        let Some(run) = self.runs.get_mut(self.filled) else { return false };
        run.buf.clear();
        let Some(mut transmit) = poll(&mut run.buf) else { return false };
        transmit.bytes = transmit.bytes.min(run.buf.len());
        transmit.segment_bytes = transmit.segment_bytes.clamp(1, transmit.bytes.max(1));
        run.transmit = transmit;
        run.sent_bytes = 0;
        run.singly = false;
        self.filled += 1;
        true
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
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use tollgate_shards::{Ecn, Received};

    use super::super::testnet::{Ethernet, in_network_namespace};
    use super::super::udp::tests::set_option;
    use super::super::{Poller, ReceiveBatch, UdpGroup, UdpOptions, Wake};
    use super::*;

    fn bind(address: &str) -> UdpSocket {
        UdpGroup::bind(address.parse().unwrap(), 1, &UdpOptions::default()).unwrap().pop().unwrap()
    }

    fn run(remote: SocketAddr, bytes: usize, segment_bytes: usize) -> Transmit {
        Transmit { remote, local_ip: None, ecn: None, bytes, segment_bytes }
    }

    /// Adds a run of bytes that count up from `first`.
    fn fill(batch: &mut TransmitBatch, transmit: Transmit, first: u8) {
        assert!(batch.fill(|buf| {
            assert!(buf.is_empty());
            buf.extend((0..transmit.bytes).map(|index| first.wrapping_add(index as u8)));
            Some(transmit)
        }));
    }

    fn receive(socket: &UdpSocket, datagrams: usize) -> Vec<Received> {
        let mut batch = ReceiveBatch::new(16);
        let (mut got, mut count) = (Vec::new(), 0);
        for _ in 0..1000 {
            count += socket.receive(&mut batch, &mut |received| got.push(received)).unwrap().datagrams;
            if count >= datagrams {
                assert_eq!(count, datagrams);
                return got;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{count} of {datagrams} datagrams arrived");
    }

    fn assert_run(received: &Received, bytes: usize, segment_bytes: usize, first: u8) {
        assert_eq!((received.data.len(), received.segment_bytes), (bytes, segment_bytes));
        for (index, byte) in received.data.iter().enumerate() {
            assert_eq!(*byte, first.wrapping_add(index as u8), "byte {index}");
        }
    }

    #[test]
    fn a_run_arrives_whole_with_its_boundaries_source_and_ecn() {
        let (server, client) = (bind("0.0.0.0:0"), bind("0.0.0.0:0"));
        let to = SocketAddr::from(([127, 0, 0, 3], server.local_address().port()));
        let mut batch = TransmitBatch::new(4);
        let local_ip = Some("127.0.0.2".parse().unwrap());
        fill(&mut batch, Transmit { local_ip, ecn: Some(Ecn::Ect0), ..run(to, 40 * 1200 + 300, 1200) }, 7);
        let outcome = client.send(&mut batch);
        assert_eq!(outcome, SendOutcome { sends: 1, datagrams: 41, ..SendOutcome::default() });
        let got = receive(&server, 41);
        assert_eq!(got.len(), 1, "one aggregate");
        assert_run(&got[0], 40 * 1200 + 300, 1200, 7);
        assert_eq!(got[0].remote, SocketAddr::from(([127, 0, 0, 2], client.local_address().port())));
        assert_eq!(got[0].local_ip, Some("127.0.0.3".parse().unwrap()));
        assert_eq!(got[0].ecn, Some(Ecn::Ect0));
        let counters = batch.counters();
        assert_eq!((counters.data_sends, counters.data_datagrams, counters.calls), (1, 41, 1));
    }

    #[test]
    fn a_dual_stack_socket_speaks_both_families_and_answers_what_it_received() {
        let server = bind("[::]:0");
        for (client, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let client = bind(client);
            let to = SocketAddr::new(to.parse().unwrap(), server.local_address().port());
            let mut batch = TransmitBatch::new(1);
            fill(&mut batch, Transmit { ecn: Some(Ecn::Ce), ..run(to, 3000, 1000) }, 1);
            assert_eq!(client.send(&mut batch).datagrams, 3);
            let got = receive(&server, 3).pop().unwrap();
            assert_run(&got, 3000, 1000, 1);
            assert_eq!((got.remote, got.local_ip, got.ecn), (client.local_address(), Some(to.ip()), Some(Ecn::Ce)));
            let answer = Transmit { local_ip: got.local_ip, ecn: Some(Ecn::Ect1), ..run(got.remote, 2500, 1000) };
            fill(&mut batch, answer, 9);
            assert_eq!(server.send(&mut batch).datagrams, 3);
            let got = receive(&client, 3).pop().unwrap();
            assert_run(&got, 2500, 1000, 9);
            assert_eq!((got.remote, got.ecn), (to, Some(Ecn::Ect1)));
        }
    }

    #[test]
    fn runs_of_different_sizes_and_receivers_go_in_one_call_and_in_order() {
        let (one, two, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let mut batch = TransmitBatch::new(8);
        let sizes = [(14140, 1414), (52, 52), (2000, 1000), (600, 60), (1, 1)];
        for (index, (bytes, segment)) in sizes.into_iter().enumerate() {
            let to = if index == 2 { two.local_address() } else { one.local_address() };
            fill(&mut batch, run(to, bytes, segment), index as u8);
        }
        let outcome = client.send(&mut batch);
        assert_eq!((outcome.sends, outcome.datagrams, batch.counters().calls), (5, 24, 1));
        assert_eq!((batch.counters().data_sends, batch.counters().data_datagrams), (2, 12));
        assert!(batch.is_empty());
        let got = receive(&one, 22);
        let expected = [(14140, 1414, 0), (52, 52, 1), (600, 60, 3), (1, 1, 4)];
        assert_eq!(got.len(), expected.len());
        for (received, (bytes, segment, first)) in got.iter().zip(expected) {
            assert_run(received, bytes, segment, first);
        }
        assert_run(&receive(&two, 2)[0], 2000, 1000, 2);
    }

    #[test]
    fn a_run_of_very_many_datagrams_goes_in_pieces_that_every_kernel_takes() {
        let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let mut batch = TransmitBatch::new(2);
        fill(&mut batch, run(server.local_address(), 150 * 40 + 7, 40), 3);
        let outcome = client.send(&mut batch);
        assert_eq!((outcome.sends, outcome.datagrams, batch.counters().calls), (3, 151, 1));
        let data: Vec<u8> = receive(&server, 151).iter().flat_map(|received| received.data.to_vec()).collect();
        assert!(data.iter().enumerate().all(|(index, byte)| *byte == 3u8.wrapping_add(index as u8)));
        assert_eq!((data.len(), batch.counters().gso_refused), (6007, 0));
    }

    #[test]
    fn buffers_are_used_again() {
        let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let mut batch = TransmitBatch::new(2);
        let mut places = std::collections::BTreeSet::new();
        for _ in 0..50 {
            for _ in 0..2 {
                fill(&mut batch, run(server.local_address(), 1000, 1000), 0);
            }
            places.extend(batch.runs.iter().map(|run| (run.buf.as_ptr(), run.buf.capacity())));
            assert!(batch.is_full() && !batch.fill(|_| panic!("polled though full")));
            assert_eq!(client.send(&mut batch).sends, 2);
        }
        assert_eq!(places.len(), 2);
    }

    #[test]
    fn a_run_that_cannot_be_sent_is_dropped_and_the_others_are_not() {
        let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let mut batch = TransmitBatch::new(8);
        fill(&mut batch, run(server.local_address(), 3000, 1000), 0);
        // Of the other family, to no port, empty, too long for the network.
        fill(&mut batch, run("[::1]:9".parse().unwrap(), 3000, 1000), 0);
        fill(&mut batch, run("127.0.0.1:0".parse().unwrap(), 2000, 1000), 0);
        fill(&mut batch, run(server.local_address(), 0, 1), 0);
        fill(&mut batch, run(server.local_address(), 65530, 65530), 0);
        fill(&mut batch, run(server.local_address(), 4000, 1000), 5);
        let outcome = client.send(&mut batch);
        assert_eq!(
            outcome,
            SendOutcome { sends: 2, datagrams: 7, dropped: 3 + 2 + 1, blocked: false, error: Some(libc::EMSGSIZE) }
        );
        assert_eq!(batch.counters().errors, 4);
        let got = receive(&server, 7);
        assert_run(&got[0], 3000, 1000, 0);
        assert_run(&got[1], 4000, 1000, 5);
    }

    #[test]
    fn a_refused_run_goes_as_single_datagrams_and_proof_switches_segmentation_off() {
        let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let mut batch = TransmitBatch::new(8);
        // The kernel refuses to segment without checksums: EINVAL.
        set_option(&client, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
        for sent in 1..=u64::from(GSO_REFUSALS_MAX) + 2 {
            fill(&mut batch, run(server.local_address(), 3500, 1000), sent as u8);
            assert_eq!(client.send(&mut batch).datagrams, 4);
            let got = receive(&server, 4);
            let data: Vec<u8> = got.iter().flat_map(|received| received.data.to_vec()).collect();
            assert!(data.iter().enumerate().all(|(index, byte)| *byte == (sent as u8).wrapping_add(index as u8)));
            assert_eq!(batch.counters().gso_refused, sent.min(u64::from(GSO_REFUSALS_MAX)));
        }
        assert!(!client.gso.get());
    }

    #[test]
    fn segmentation_that_works_in_between_keeps_it_on() {
        let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let mut batch = TransmitBatch::new(8);
        for _ in 0..2 * GSO_REFUSALS_MAX {
            for refuse in [1, 0] {
                set_option(&client, libc::SOL_SOCKET, libc::SO_NO_CHECK, refuse);
                fill(&mut batch, run(server.local_address(), 2000, 1000), 0);
                assert_eq!(client.send(&mut batch).datagrams, 2);
            }
        }
        assert!(client.gso.get());
        assert_eq!(batch.counters().gso_refused, u64::from(2 * GSO_REFUSALS_MAX));
    }

    #[test]
    fn a_run_from_an_address_that_is_not_ours_proves_nothing_against_segmentation() {
        let (server, client) = (bind("127.0.0.1:0"), bind("0.0.0.0:0"));
        let mut batch = TransmitBatch::new(8);
        let local_ip = Some("198.18.255.1".parse().unwrap());
        for _ in 0..2 * GSO_REFUSALS_MAX {
            fill(&mut batch, Transmit { local_ip, ..run(server.local_address(), 2000, 1000) }, 0);
            assert_eq!(client.send(&mut batch).dropped, 2);
        }
        assert!(client.gso.get());
    }

    #[test]
    fn a_full_socket_keeps_the_rest_until_it_is_writable_again() {
        in_network_namespace(|| {
            // Packets to a neighbour that does not answer wait in the kernel, at the sender's expense.
            let mut ethernet = Ethernet::create();
            let remote: SocketAddr = "198.18.9.2:9".parse().unwrap();
            let options = UdpOptions { send_buffer_bytes: 8192, ..UdpOptions::default() };
            let client = UdpSocket::for_remote(remote, &options).unwrap();
            let poller = Poller::new(Some(&client), None, &Wake::new().unwrap()).unwrap();
            let mut batch = TransmitBatch::new(4);
            for first in 0..4 {
                fill(&mut batch, run(remote, 12_000, 1200), first);
            }
            let outcome = client.send(&mut batch);
            assert!(outcome.blocked && outcome.sends > 0 && outcome.dropped == 0, "{outcome:?}");
            let waiting = batch.len();
            assert_eq!(waiting, 4 - outcome.sends);
            assert!(waiting > 0 && !batch.is_full(), "the runs that went make room");
            assert_eq!(batch.runs[0].buf[0], outcome.sends as u8, "in order");
            assert_eq!(client.send(&mut batch), SendOutcome { blocked: true, ..SendOutcome::default() });
            poller.want_udp(true, true).unwrap();
            assert!(!poller.wait(Some(Duration::ZERO)).unwrap().udp_writable);
            ethernet.answer_arp();
            while !batch.is_empty() {
                assert!(poller.wait(Some(Duration::from_secs(5))).unwrap().udp_writable);
                client.send(&mut batch);
            }
            assert_eq!((batch.counters().datagrams, batch.counters().dropped), (40, 0));
        });
    }
}
