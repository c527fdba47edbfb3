//! Merging consecutive packets of a flow into super-packets for the TUN queue.
//!
//! This is the counterpart of [`split`](mod@super::split): a run of TCP segments becomes a TSO frame, a run of UDP datagrams a USO frame,
//! every other packet a frame of its own. No payload is copied.
//!
//! **Within a flow nothing is ever reordered.** Frames come out in the order in which their first packets came in. Of each flow at
//! most one run is open, and it is the flow's newest frame: a packet that cannot join it closes it for good and starts a frame behind
//! it. What cannot be assigned to a flow (a fragment, a packet with IPv6 extension headers or another protocol) closes all runs between
//! the same addresses.
//!
//! Only packets whose checksums are right are merged: the kernel makes the segments' checksums anew, and must not bless damage.
//!
//! **Acknowledgements are thinned.** A client whose kernel got single packets from its tunnel acknowledges every other one, and each of these
//! acknowledgements would cost a TUN write and the sender's TCP a turn. Of those that a flow sends in a row, a later one goes in the place of an
//! earlier one that it supersedes (RFC 3449, section 5.2.1), as if the client's kernel had got super-packets: no acknowledgement covers more than
//! one of those would.

use bytes::{Buf, Bytes};
use zerocopy::{FromBytes, IntoBytes};

use super::checksum::Sum;
use super::flow::{self, MERGEABLE_HEADERS_BYTES_MAX, PSH, Segment};
use super::frame::Frame;
use super::headers::{Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use super::inner::{InnerPacket, protocol};
use super::split::{TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET};
use super::vnet::{self, HEADER_BYTES, VnetHeader};

/// Longest inner packet of a frame, in bytes: what the length field of IPv4 can say.
pub const INNER_BYTES_MAX: usize = 65535;
/// Most packets merged into one frame. Linux takes 128 datagrams (`UDP_MAX_SEGMENTS`), older kernels 64; a frame is also written with
/// one `writev`, which takes 1024 parts.
pub const SEGMENTS_MAX: usize = 64;

/// Most bytes that one acknowledgement covers when it goes in the place of others: a super-packet.
const ACKED_BYTES_MAX: usize = 65536;

/// The virtio header of a frame that is one finished packet.
const PLAIN: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// What a [`Coalescer`] may do and hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeLimits {
    /// Whether the TUN queue takes TSO frames (`TUN_F_TSO4` and `TUN_F_TSO6`).
    pub tso: bool,
    /// Whether the TUN queue takes USO frames (`TUN_F_USO4` and `TUN_F_USO6`).
    pub uso: bool,
    /// Whether acknowledgements that others supersede are left out.
    pub thins_acks: bool,
    /// Most runs open at once. With more flows than that in turn, runs are closed early; 0 merges nothing.
    pub runs_max: usize,
    /// Most frames held until they are polled. At least 1.
    pub frames_max: usize,
}

impl Default for MergeLimits {
    fn default() -> Self {
        MergeLimits { tso: true, uso: true, thins_acks: true, runs_max: 64, frames_max: 512 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeKind {
    /// TCP segments, a TSO frame.
    Tcp,
    /// UDP datagrams, a USO frame.
    Udp,
}

impl MergeKind {
    /// What a frame with this header was merged of; `None` where it is one packet.
    pub fn of(header: &VnetHeader) -> Option<MergeKind> {
        match header.gso_type & !vnet::GSO_ECN {
            vnet::GSO_TCPV4 | vnet::GSO_TCPV6 => Some(MergeKind::Tcp),
            vnet::GSO_UDP_L4 => Some(MergeKind::Udp),
            _ => None,
        }
    }
}

/// Merges a batch of inner packets into frames for a TUN queue.
///
/// Use: [`push`](Coalescer::push) each packet of the batch, then [`poll_frame`](Coalescer::poll_frame) until it says `None`. The first
/// poll closes all runs. Storage is kept for the next batch, so that in steady state nothing is allocated.
#[derive(Debug)]
pub struct Coalescer {
    limits: MergeLimits,
    /// Frames in the order of their creation. Those from `filled` on are storage waiting to be used.
    slots: Vec<Slot>,
    /// How many of `slots` hold a frame of this batch.
    filled: usize,
    /// How many of these were polled.
    polled: usize,
    /// At most `runs_max` runs that may still grow, at most one for each flow.
    runs: Vec<Run>,
    /// The [`flow::Flow::tag`] of each of `runs`: what a lookup reads.
    tags: Vec<u32>,
    /// Which run makes room when there are too many.
    victim: usize,
    thinned_acks: u64,
}

/// A frame that may still grow, or an acknowledgement that another may still supersede.
#[derive(Debug)]
struct Run {
    /// The first packet; of acknowledgements, the one in the frame.
    first: Segment,
    slot: usize,
    packets: usize,
    /// Of all packets; of acknowledgements, what the one in the frame acknowledges beyond the first.
    payload_bytes: usize,
}

#[derive(Debug, Default)]
struct Slot {
    payloads: Vec<Bytes>,
    carries_data: bool,
    /// Set once a second packet has joined.
    merged: Option<Merged>,
}

/// The headers of a super-packet and what is needed to finish them.
#[derive(Debug)]
struct Merged {
    /// The virtio header, not written until the frame is polled, and the headers of the first packet.
    head: [u8; HEADER_BYTES + MERGEABLE_HEADERS_BYTES_MAX],
    first: Segment,
    payload_bytes: usize,
    /// PSH of the last packet.
    push: bool,
}

impl Coalescer {
    pub fn new(limits: MergeLimits) -> Coalescer {
        let limits = MergeLimits { frames_max: limits.frames_max.max(1), ..limits };
        Coalescer {
            limits,
            slots: Vec::new(),
            filled: 0,
            polled: 0,
            runs: Vec::new(),
            tags: Vec::new(),
            victim: 0,
            thinned_acks: 0,
        }
    }

    /// Merges packets of this kind no more.
    pub fn give_up(&mut self, kind: MergeKind) {
        match kind {
            MergeKind::Tcp => self.limits.tso = false,
            MergeKind::Udp => self.limits.uso = false,
        }
    }

    /// Acknowledgements that others have gone in the place of, so far.
    pub fn thinned_acks(&self) -> u64 {
        self.thinned_acks
    }

    pub fn is_empty(&self) -> bool {
        self.polled == self.filled
    }

    /// Whether [`push`](Coalescer::push) would give its packet back. Once full, all frames must be polled before there is room again.
    pub fn is_full(&self) -> bool {
        self.filled == self.limits.frames_max && !self.is_empty()
    }

    /// Takes a packet. `inner` is what [`InnerPacket::parse`] says of it; with anything else frames come out that make no sense.
    ///
    /// # Errors
    /// Gives the packet back while the coalescer [is full](Coalescer::is_full): poll all frames, then push it again.
    pub fn push(&mut self, packet: Bytes, inner: &InnerPacket) -> Result<(), Bytes> {
        if self.is_full() {
            return Err(packet);
        }
        if self.is_empty() {
            self.recycle();
        }
        let Some(segment) = Segment::read(&packet, inner) else {
            self.close_between(&packet, inner);
            self.start_frame(packet, false);
            return Ok(());
        };
        let merges = if segment.flow.protocol == protocol::TCP { self.limits.tso } else { self.limits.uso };
        if !merges || self.limits.runs_max == 0 {
            self.start_frame(packet, segment.payload_bytes > 0);
            return Ok(());
        }
        let tag = segment.flow.tag();
        match self.find(tag, &segment) {
            Some(run) => self.join_or_close(run, packet, &segment),
            None => {
                let slot = self.start_frame(packet, segment.payload_bytes > 0);
                self.open(tag, slot, &segment);
            }
        }
        Ok(())
    }

    /// The next frame, in order of creation. It is gone with the next call, which is due also when there is no other frame.
    pub fn poll_frame(&mut self) -> Option<Frame<'_>> {
        self.runs.clear();
        self.tags.clear();
        if let Some(gone) = self.polled.checked_sub(1) {
            self.slots[gone].payloads.clear();
        }
        if self.is_empty() {
            self.recycle();
            return None;
        }
        let slot = &mut self.slots[self.polled];
        self.polled += 1;
        let header = match &mut slot.merged {
            Some(merged) => merged.finish(),
            None => &PLAIN,
        };
        Some(Frame { header, payloads: &slot.payloads, carries_data: slot.carries_data })
    }

    /// Starts over with the first slot, so that a small batch stays in few cache lines. Only when all frames were polled.
    fn recycle(&mut self) {
        if let Some(last) = self.polled.checked_sub(1) {
            self.slots[last].payloads.clear();
        }
        self.filled = 0;
        self.polled = 0;
    }

    fn start_frame(&mut self, packet: Bytes, carries_data: bool) -> usize {
        let index = self.filled;
        if index == self.slots.len() {
            self.slots.push(Slot::default());
        }
        let slot = &mut self.slots[index];
        slot.payloads.push(packet);
        slot.carries_data = carries_data;
        slot.merged = None;
        self.filled += 1;
        index
    }

    #[inline]
    fn find(&self, tag: u32, segment: &Segment) -> Option<usize> {
        let candidates = self.tags.iter().enumerate().filter(|(_, other)| **other == tag);
        candidates.map(|(run, _)| run).find(|run| self.runs[*run].first.flow == segment.flow)
    }

    /// Opens a run on the frame that was just started, if the packet allows one.
    fn open(&mut self, tag: u32, slot: usize, segment: &Segment) {
        let may_grow = segment.is_mergeable && !segment.push;
        let opens = may_grow || self.limits.thins_acks && segment.is_pure_ack();
        if !opens {
            return;
        }
        let run = Run { first: *segment, slot, packets: 1, payload_bytes: segment.payload_bytes };
        if self.runs.len() < self.limits.runs_max {
            self.runs.push(run);
            self.tags.push(tag);
            return;
        }
        self.victim = (self.victim + 1) % self.runs.len();
        self.runs[self.victim] = run;
        self.tags[self.victim] = tag;
    }

    fn close(&mut self, run: usize) {
        self.runs.swap_remove(run);
        self.tags.swap_remove(run);
    }

    /// Closes every run between the addresses of a packet that belongs to no known flow.
    fn close_between(&mut self, packet: &[u8], inner: &InnerPacket) {
        let addresses = flow::address_pair(packet, inner.is_v6());
        for run in (0..self.runs.len()).rev() {
            let flow = &self.runs[run].first.flow;
            if flow.addresses == addresses && flow.is_v6 == inner.is_v6() {
                self.close(run);
            }
        }
    }

    /// Appends a packet to its flow's run, or closes the run and starts a frame behind it.
    fn join_or_close(&mut self, index: usize, packet: Bytes, segment: &Segment) {
        let run = &mut self.runs[index];
        // A run without payload is an acknowledgement.
        if run.first.payload_bytes == 0 && run.supersede(&mut self.slots[run.slot].payloads[0], &packet, segment) {
            self.thinned_acks += 1;
            return;
        }
        if !run.admits(&self.slots[run.slot], &packet, segment) {
            let tag = self.tags[index];
            self.close(index);
            let slot = self.start_frame(packet, segment.payload_bytes > 0);
            self.open(tag, slot, segment);
            return;
        }
        run.packets += 1;
        run.payload_bytes += segment.payload_bytes;
        self.slots[run.slot].append(packet, &run.first, segment);
        let is_complete = segment.push
            || segment.payload_bytes < run.first.payload_bytes
            || run.packets == SEGMENTS_MAX
            || run.first.header_bytes + run.payload_bytes == INNER_BYTES_MAX;
        if is_complete {
            self.close(index);
        }
    }
}

impl Run {
    /// Lets an acknowledgement go in the place of the one in the frame, if it says all that that one says.
    // Kept out of the way of data, which is what merging has to be fast for.
    #[inline(never)]
    fn supersede(&mut self, in_frame: &mut Bytes, packet: &Bytes, segment: &Segment) -> bool {
        let Some(acked_bytes) = self.first.superseded_by(in_frame, segment, packet) else { return false };
        if self.payload_bytes + acked_bytes > ACKED_BYTES_MAX {
            return false;
        }
        self.payload_bytes += acked_bytes;
        self.first = *segment;
        *in_frame = packet.clone();
        true
    }

    /// Whether `packet` may join the run, whose packets so far are in `slot`. Looks at the payload last, and at the first packet's
    /// only when there is a second.
    fn admits(&self, slot: &Slot, packet: &[u8], segment: &Segment) -> bool {
        let first_headers = match &slot.merged {
            Some(merged) => &merged.head[HEADER_BYTES..],
            None => &slot.payloads[0],
        };
        self.first.is_continued_by(segment, self.packets, self.payload_bytes)
            && self.first.header_bytes + self.payload_bytes + segment.payload_bytes <= INNER_BYTES_MAX
            && self.first.options(first_headers) == segment.options(packet)
            && segment.checksums_are_valid(packet)
            && (slot.merged.is_some() || self.first.checksums_are_valid(&slot.payloads[0]))
    }
}

impl Slot {
    /// Appends the payload of `packet`, which was found to continue the run that `first` began.
    fn append(&mut self, mut packet: Bytes, first: &Segment, segment: &Segment) {
        let payloads = &mut self.payloads;
        let merged = self.merged.get_or_insert_with(|| {
            let mut head = [0; HEADER_BYTES + MERGEABLE_HEADERS_BYTES_MAX];
            head[HEADER_BYTES..][..first.header_bytes].copy_from_slice(&payloads[0][..first.header_bytes]);
            payloads[0].advance(first.header_bytes);
            Merged { head, first: *first, payload_bytes: first.payload_bytes, push: false }
        });
        merged.payload_bytes += segment.payload_bytes;
        merged.push = segment.push;
        packet.advance(segment.header_bytes);
        payloads.push(packet);
    }
}

impl Merged {
    /// Writes the virtio header, the total lengths and the partial checksum, and returns all headers.
    fn finish(&mut self) -> &[u8] {
        let Segment { flow, transport_offset, header_bytes, payload_bytes: gso_size, .. } = self.first;
        let is_tcp = flow.protocol == protocol::TCP;
        let header = VnetHeader {
            flags: vnet::NEEDS_CSUM,
            gso_type: match (is_tcp, flow.is_v6) {
                (true, false) => vnet::GSO_TCPV4,
                (true, true) => vnet::GSO_TCPV6,
                (false, _) => vnet::GSO_UDP_L4,
            },
            hdr_len: header_bytes as u16,
            gso_size: gso_size as u16,
            csum_start: transport_offset as u16,
            csum_offset: if is_tcp { TCP_CHECKSUM_OFFSET } else { UDP_CHECKSUM_OFFSET } as u16,
        };
        let total_bytes = header_bytes + self.payload_bytes;
        let transport_bytes = total_bytes - transport_offset;
        let partial_checksum = self.first.pseudo_header(transport_bytes).folded();

        let (vnet_header, inner_headers) = self.head.split_at_mut(HEADER_BYTES);
        vnet_header.copy_from_slice(header.bytes());
        let (ip, transport) = inner_headers.split_at_mut(transport_offset);
        if flow.is_v6 {
            if let Ok(ip) = Ipv6Header::mut_from_bytes(ip) {
                ip.payload_bytes = (transport_bytes as u16).into();
            }
        } else if let Ok(ip) = Ipv4Header::mut_from_bytes(ip) {
            ip.total_bytes = (total_bytes as u16).into();
            ip.checksum = 0.into();
            ip.checksum = Sum::of(ip.as_bytes()).checksum().into();
        }
        if is_tcp {
            if let Ok((tcp, _)) = TcpHeader::mut_from_prefix(transport) {
                let push = if self.push { PSH } else { 0 };
                tcp.length_and_flags = (tcp.length_and_flags.get() | push).into();
                tcp.checksum = partial_checksum.into();
            }
        } else if let Ok((udp, _)) = UdpHeader::mut_from_prefix(transport) {
            udp.bytes = (transport_bytes as u16).into();
            udp.checksum = partial_checksum.into();
        }
        &self.head[..HEADER_BYTES + header_bytes]
    }
}

#[cfg(test)]
mod tests;
