//! Receiving: one `recvmmsg` for a batch of messages, each an aggregate of up to 64 KiB where the kernel could merge.
//!
//! Every message lands in a 64 KiB buffer of its own, and what it filled is handed out without a copy. A buffer whose handed-out parts
//! are all gone is used again, so that nothing is allocated while the machine keeps up; a part that is kept pins its 64 KiB. Of such
//! buffers there are [`LENT_MAX`] at most: beyond, each datagram is handed out in memory of its own.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use bytes::BytesMut;
use tollgate_shards::Received;

use super::cmsg::{CONTROL_BYTES, Control};
use super::sockaddr::{RAW_ADDRESS_BYTES, RawAddress};
use super::udp::UdpSocket;

/// Room for one message, in bytes: more than any UDP payload or aggregate.
pub const SLOT_BYTES: usize = 64 * 1024;

/// Buffers beside those of the batch that may stay out because a part of them is kept: 4 MiB.
pub const LENT_MAX: usize = 64;

/// What one call of [`UdpSocket::receive`] brought.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveOutcome {
    /// Messages taken from the kernel; as many as the batch holds means that there may be more.
    pub messages: usize,
    /// Datagrams handed out in them.
    pub datagrams: usize,
    /// Bytes handed out in them.
    pub bytes: usize,
    /// Messages dropped because they or their control messages did not fit.
    pub truncated: usize,
}

/// What a batch has received since it was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveCounters {
    /// `recvmmsg` calls that brought something.
    pub calls: u64,
    /// Messages handed out, aggregates counted once.
    pub messages: u64,
    /// Datagrams in these messages.
    pub datagrams: u64,
    /// Bytes in these messages.
    pub bytes: u64,
    /// Messages dropped because they or their control messages did not fit.
    pub truncated: u64,
    /// Messages dropped because they were empty or from no IP address.
    pub unusable: u64,
    /// Buffers allocated, the first of each slot included. Growth means that the machine pins what it received.
    pub buffers: u64,
    /// Messages handed out as copies, because too many buffers were out.
    pub copied: u64,
}

/// The buffers that a shard receives into, for at most `messages_max` messages a call.
pub struct ReceiveBatch {
    slots: Vec<BytesMut>,
    /// Buffers of which some part was kept, as they were last seen.
    lent: Vec<BytesMut>,
    addresses: Vec<RawAddress>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    /// Messages of the last call that are not handed out, the one that is being handed out included.
    at_hand: Range<usize>,
    counters: ReceiveCounters,
}

// SAFETY: the raw pointers in `vectors` and `headers` are only followed by the kernel within `receive`, which first points all of
// them into this value's own buffers; between calls they are dead.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    /// Room for `messages_max` messages (at least 1, at most 1,024) of [`SLOT_BYTES`], allocated when first used.
    pub fn new(messages_max: usize) -> ReceiveBatch {
        let messages_max = messages_max.clamp(1, 1024);
        ReceiveBatch {
            slots: vec![BytesMut::new(); messages_max],
            lent: Vec::new(),
            addresses: vec![RawAddress::EMPTY; messages_max],
            controls: vec![Control::EMPTY; messages_max],
            vectors: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; messages_max],
            headers: vec![EMPTY_HEADER; messages_max],
            at_hand: 0..0,
            counters: ReceiveCounters::default(),
        }
    }

    /// Forgets what was received and not handed out, because handing out did not come to its end. Returns how many datagrams that are.
    pub fn forget(&mut self) -> usize {
        // One that was being handed out as copies is still full.
        self.slots.iter_mut().for_each(BytesMut::clear);
        std::mem::take(&mut self.at_hand)
            .map(|index| {
                let (header, bytes) = (&self.headers[index], self.headers[index].msg_len as usize);
                let info = self.controls[index].parse(header.msg_hdr.msg_controllen as _);
                bytes.div_ceil(info.segment_bytes.map_or(bytes, |segment| segment.min(bytes)).max(1))
            })
            .sum()
    }

    /// What was received since the batch was made.
    pub fn counters(&self) -> ReceiveCounters {
        self.counters
    }

    /// Memory of the batch's own buffers and of those that are out, in bytes.
    pub fn held_bytes(&self) -> usize {
        (self.slots.len() + self.lent.len()) * SLOT_BYTES
    }

    /// Whether as many buffers are out as may be, should all of this batch stay out as well.
    fn lends_no_more(&self) -> bool {
        self.lent.len() + self.slots.len() > LENT_MAX.max(self.slots.len())
    }

    /// Points every header at its slot's buffer, address and control messages.
    fn prepare(&mut self) {
        // What has come back is freed, but for what takes the place of a slot that is out now.
        let mut returned: Vec<BytesMut> = self.lent.extract_if(.., |lent| lent.try_reclaim(SLOT_BYTES)).collect();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !slot.try_reclaim(SLOT_BYTES) {
                let free = returned.pop().unwrap_or_else(|| {
                    self.counters.buffers += 1;
                    BytesMut::with_capacity(SLOT_BYTES)
                });
                let out = std::mem::replace(slot, free);
                if out.capacity() > 0 {
                    self.lent.push(out);
                }
            }
            self.vectors[index] =
                libc::iovec { iov_base: slot.spare_capacity_mut().as_mut_ptr().cast(), iov_len: SLOT_BYTES };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.addresses[index]).cast();
            header.msg_namelen = RAW_ADDRESS_BYTES as libc::socklen_t;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_controllen = CONTROL_BYTES as _;
            header.msg_flags = 0;
        }
    }

    /// Hands out message `index`, which the kernel has filled.
    fn hand_out(&mut self, index: usize, sink: &mut impl FnMut(Received), outcome: &mut ReceiveOutcome) {
        let header = &self.headers[index];
        let bytes = header.msg_len as usize;
        // Without all of its control messages an aggregate cannot be told from one long datagram.
        if header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            outcome.truncated += 1;
            return;
        }
        let remote = self.addresses[index].load(header.msg_hdr.msg_namelen as usize);
        let Some(remote) = remote.filter(|_| bytes > 0) else {
            self.counters.unusable += 1;
            return;
        };
        let lends_no_more = self.lends_no_more();
        let info = self.controls[index].parse(header.msg_hdr.msg_controllen as _);
        let segment_bytes = info.segment_bytes.map_or(bytes, |segment| segment.min(bytes));
        let slot = &mut self.slots[index];
        // SAFETY: the slot was empty with room for `SLOT_BYTES`, and the kernel has written the first `bytes` (at most as many) of them.
        unsafe { slot.set_len(bytes.min(SLOT_BYTES)) };
        outcome.datagrams += bytes.div_ceil(segment_bytes);
        outcome.bytes += bytes;
        self.counters.messages += 1;
        let mut hand_out = |segment_bytes, data| {
            sink(Received { remote, local_ip: info.local_ip, ecn: info.ecn, segment_bytes, data });
        };
        if lends_no_more {
            self.counters.copied += 1;
            slot.chunks(segment_bytes).for_each(|datagram| hand_out(datagram.len(), BytesMut::from(datagram)));
            slot.clear();
        } else {
            hand_out(segment_bytes, slot.split());
        }
    }
}

impl UdpSocket {
    /// Takes what has arrived, at most `batch`'s `messages_max` messages in one system call, and hands each to `sink`.
    ///
    /// Nothing there is an outcome of 0 messages. An error is one that the kernel had stored for the socket, or a lack of memory; the
    /// next call starts afresh.
    pub fn receive(&self, batch: &mut ReceiveBatch, sink: &mut impl FnMut(Received)) -> io::Result<ReceiveOutcome> {
        batch.prepare();
        let received = loop {
            // SAFETY: `prepare` has pointed every header at live memory of the stated length, owned by `batch` and not otherwise used
            // during the call; the timeout may be null.
            let received = unsafe {
                libc::recvmmsg(
                    self.as_fd().as_raw_fd(),
                    batch.headers.as_mut_ptr(),
                    batch.headers.len() as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            if let Ok(received) = usize::try_from(received) {
                break received;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(ReceiveOutcome::default()),
                _ => return Err(error),
            }
        };
        let mut outcome = ReceiveOutcome { messages: received, ..ReceiveOutcome::default() };
        for index in 0..received {
            batch.at_hand = index..received;
            batch.hand_out(index, sink, &mut outcome);
        }
        batch.at_hand = 0..0;
        let counters = &mut batch.counters;
        counters.calls += 1;
        counters.datagrams += outcome.datagrams as u64;
        counters.bytes += outcome.bytes as u64;
        counters.truncated += outcome.truncated as u64;
        Ok(outcome)
    }
}

/// A header that points nowhere.
pub(super) const EMPTY_HEADER: libc::mmsghdr = {
    // SAFETY: all of its fields are integers and raw pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::UdpSocket as StdSocket;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::time::Duration;

    use super::super::UdpOptions;
    use super::*;

    fn pair() -> (UdpSocket, StdSocket) {
        let server = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let client = StdSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_address()).unwrap();
        (server, client)
    }

    /// Receives until `messages` have come.
    fn receive(server: &UdpSocket, batch: &mut ReceiveBatch, messages: usize) -> Vec<Received> {
        let mut got = Vec::new();
        for _ in 0..1000 {
            server.receive(batch, &mut |received| got.push(received)).unwrap();
            if got.len() >= messages {
                return got;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{} of {messages} messages arrived", got.len());
    }

    #[test]
    fn buffers_are_used_again_once_their_parts_are_gone() {
        let (server, client) = pair();
        let mut batch = ReceiveBatch::new(4);
        let mut places = BTreeSet::new();
        for round in 0..100u8 {
            for _ in 0..4 {
                client.send(&[round; 1000]).unwrap();
            }
            for received in receive(&server, &mut batch, 4) {
                assert_eq!(&received.data[..], &[round; 1000]);
                places.insert(received.data.as_ptr());
                // A machine freezes and splits what it is given.
                let mut whole = received.data.freeze();
                let part = whole.split_off(500);
                drop((whole, part));
            }
        }
        assert_eq!(batch.counters().buffers, 4, "one for each slot");
        assert!(places.len() <= 4, "{} places", places.len());
        assert_eq!(batch.counters().datagrams, 400);
    }

    #[test]
    fn what_was_not_handed_out_because_of_a_panic_is_counted_and_its_buffers_are_used_again() {
        let (server, client) = pair();
        for kept in [0, LENT_MAX] {
            let mut batch = ReceiveBatch::new(4);
            let mut parts = Vec::new();
            for _ in 0..kept {
                client.send(b"kept").unwrap();
                parts.push(receive(&server, &mut batch, 1).pop().unwrap().data);
            }
            (0..4).for_each(|_| assert_eq!(client.send(&[1; 100]).unwrap(), 100));
            let mut handed_out = 0;
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                for _ in 0..1000 {
                    let _ = server.receive(&mut batch, &mut |_| {
                        handed_out += 1;
                        if handed_out == 2 {
                            resume_unwind(Box::new("a bug"));
                        }
                    });
                    std::thread::sleep(Duration::from_millis(1));
                }
            }));
            assert!(panicked.is_err());
            // However the kernel took them, the last one handed out was the second.
            let left = batch.forget();
            drop(parts);
            let rest = receive(&server, &mut batch, 3 - left);
            assert!((1..=3).contains(&left) && rest.iter().all(|received| received.data[..] == [1; 100]), "{left}");
            assert_eq!(batch.forget(), 0);
            assert_eq!(batch.slots.iter().map(BytesMut::len).sum::<usize>(), 0);
            client.send(b"next").unwrap();
            assert_eq!(&receive(&server, &mut batch, 1)[0].data[..], b"next");
            assert_eq!(batch.held_bytes(), 4 * SLOT_BYTES, "{kept} kept: all came back");
        }
    }

    #[test]
    fn a_kept_part_pins_its_buffer_and_keeps_its_contents() {
        let (server, client) = pair();
        let mut batch = ReceiveBatch::new(1);
        let mut kept = Vec::new();
        for round in 0..10u8 {
            client.send(&[round; 100]).unwrap();
            let received = receive(&server, &mut batch, 1).pop().unwrap();
            if round % 2 == 0 {
                kept.push((round, received.data));
            }
        }
        for (round, data) in kept {
            assert_eq!(&data[..], &[round; 100]);
        }
        // Every kept part costs one, and the last round's buffer is still there.
        assert_eq!(batch.counters().buffers, 6);
    }

    #[test]
    fn beyond_the_bound_each_datagram_is_a_copy_and_buffers_come_back() {
        let (server, client) = pair();
        let mut batch = ReceiveBatch::new(4);
        let mut kept = Vec::new();
        for round in 0..3 * LENT_MAX {
            client.send(&[round as u8; 100]).unwrap();
            kept.push(receive(&server, &mut batch, 1).pop().unwrap().data);
        }
        assert!(batch.held_bytes() <= (LENT_MAX + 4) * SLOT_BYTES, "{}", batch.held_bytes());
        assert!(batch.counters().copied >= LENT_MAX as u64, "{:?}", batch.counters());
        for (round, data) in kept.drain(..).enumerate() {
            assert_eq!(&data[..], &[round as u8; 100]);
        }
        let copied = batch.counters().copied;
        client.send(b"first").unwrap();
        receive(&server, &mut batch, 1);
        client.send(b"second").unwrap();
        assert_eq!(&receive(&server, &mut batch, 1)[0].data[..], b"second");
        assert_eq!(batch.held_bytes(), 4 * SLOT_BYTES, "all came back");
        assert!(batch.counters().copied <= copied + 1, "{:?}", batch.counters());
    }

    #[test]
    fn empty_datagrams_are_dropped_and_the_rest_of_the_batch_is_not() {
        let (server, client) = pair();
        let mut batch = ReceiveBatch::new(8);
        client.send(&[]).unwrap();
        client.send(b"behind").unwrap();
        let got = receive(&server, &mut batch, 1);
        assert_eq!((got.len(), &got[0].data[..], got[0].segment_bytes), (1, &b"behind"[..], 6));
        assert_eq!(batch.counters().unusable, 1);
    }

    #[test]
    fn a_message_whose_control_messages_do_not_fit_is_dropped_and_counted() {
        let (server, client) = pair();
        // The room is ample for what is asked of the kernel; so say in its place that it was not.
        let mut batch = ReceiveBatch::new(1);
        client.send(b"whole").unwrap();
        assert_eq!(receive(&server, &mut batch, 1).len(), 1);
        batch.prepare();
        batch.headers[0].msg_hdr.msg_flags = libc::MSG_CTRUNC;
        batch.headers[0].msg_len = 5;
        let mut outcome = ReceiveOutcome::default();
        batch.hand_out(0, &mut |_| panic!("handed out"), &mut outcome);
        assert_eq!(outcome.truncated, 1);
    }

    #[test]
    fn a_full_batch_says_so_and_an_idle_socket_too() {
        let (server, client) = pair();
        let mut batch = ReceiveBatch::new(2);
        for _ in 0..3 {
            client.send(b"x").unwrap();
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(server.receive(&mut batch, &mut |_| {}).unwrap().messages);
        }
        assert_eq!(seen, [2, 1, 0]);
    }
}
