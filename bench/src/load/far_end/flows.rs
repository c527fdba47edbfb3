//! The flows of one thread, by who opened them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use slab::Slab;
use tollgate_shards::TimerEntry;

use super::super::packet::{V4_OVERHEAD_BYTES, V6_OVERHEAD_BYTES};
use super::super::sink::Sink;
use super::super::sizes::{INNER_BYTES_MIN, SizesError};
use super::super::source::{SendSpecError, Source, phase};
use super::super::wire::{FarCounts, FlowSpec, HEADER_BYTES};
use super::{LIFETIME_MAX, LINGER};

/// Where a flow's messages come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// The near end.
    pub remote: SocketAddr,
    /// The address of ours that it speaks to, where the socket has several.
    pub local_ip: Option<IpAddr>,
}

/// A flow's name: no other sender can speak in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    address: u128,
    port: u16,
    flow: u32,
}

/// The far end of a flow.
#[derive(Debug)]
pub(super) struct Flow {
    key: Key,
    pub peer: Peer,
    pub flow: u32,
    pub group: u8,
    run: u64,
    pub sink: Sink,
    pub source: Option<Source>,
    /// How many of its source's stalls are in the totals.
    pub stalls_counted: u64,
    answers_sent: u64,
    /// 0 for the request's own length.
    answer_bytes: u16,
    pub acknowledge: bool,
    /// From then on nothing but answers is sent.
    pub stop_at: Instant,
    /// From then on nobody is expected to ask any more.
    pub remove_at: Instant,
    pub is_closed: bool,
    /// Whether it waits for its turn to send.
    pub is_ready: bool,
    /// Whether it waits for the time of a credit.
    pub is_credit_timed: bool,
    /// When its source is to be asked.
    pub armed: TimerEntry,
    /// When it is to be stopped or removed.
    pub expiry: TimerEntry,
}

/// Why there will be no such flow, in words for the near end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the far end has {0} flows already: use fewer, or several far ends")]
    TooMany(usize),
    #[error(transparent)]
    Send(#[from] SendSpecError),
    #[error("an answer of {0} bytes: {error}", error = SizesError::Short(*.0))]
    Answer(u16),
    #[error("a lifetime of {0} ms is too long: at most {max} ms is right", max = LIFETIME_MAX.as_millis())]
    Lifetime(u64),
}

/// All flows, at most `flows_max`, each in a slot of its own.
#[derive(Debug)]
pub(super) struct Flows {
    flows_max: usize,
    slots: Slab<Flow>,
    by_key: FxHashMap<Key, u32>,
}

impl Flow {
    fn new(now: Instant, key: Key, peer: Peer, group: u8, spec: &FlowSpec) -> Result<Flow, Refusal> {
        let lifetime = Duration::from_millis(spec.lifetime_ms);
        if lifetime > LIFETIME_MAX {
            return Err(Refusal::Lifetime(spec.lifetime_ms));
        }
        if spec.answer_bytes != 0 && spec.answer_bytes < INNER_BYTES_MIN {
            return Err(Refusal::Answer(spec.answer_bytes));
        }
        let source = spec.down.as_ref().map(|down| Source::new(down, now + phase(down, key.flow))).transpose()?;
        let stop_at = now + lifetime;
        Ok(Flow {
            key,
            peer,
            flow: key.flow,
            group,
            run: spec.run,
            sink: Sink::new(),
            source,
            stalls_counted: 0,
            answers_sent: 0,
            answer_bytes: spec.answer_bytes,
            acknowledge: spec.acknowledge,
            stop_at,
            remove_at: stop_at + LINGER,
            is_closed: false,
            is_ready: false,
            is_credit_timed: false,
            armed: TimerEntry::default(),
            expiry: TimerEntry::default(),
        })
    }

    /// The number of the next answer.
    pub fn take_number(&mut self) -> u64 {
        match &mut self.source {
            Some(source) => source.take_number(),
            None => {
                self.answers_sent += 1;
                self.answers_sent - 1
            }
        }
    }

    /// What it counted so far.
    pub fn counts(&self) -> FarCounts {
        self.sink.counts(self.source.as_ref().map_or(self.answers_sent, Source::sequence))
    }

    /// The payload of an answer to a request with `payload_bytes`, in bytes.
    pub fn answer_payload_bytes(&self, payload_bytes: usize) -> usize {
        match self.answer_bytes {
            0 => payload_bytes,
            inner_bytes => self.peer.payload_bytes(inner_bytes),
        }
    }
}

impl Peer {
    /// What an inner packet to or from it is longer than its UDP payload, in bytes.
    pub fn overhead_bytes(&self) -> usize {
        if self.remote.is_ipv6() { V6_OVERHEAD_BYTES } else { V4_OVERHEAD_BYTES }
    }

    /// The UDP payload of an inner packet of `inner_bytes`, in bytes. In IPv6, the shortest packets come out longer.
    pub fn payload_bytes(&self, inner_bytes: u16) -> usize {
        usize::from(inner_bytes).saturating_sub(self.overhead_bytes()).max(HEADER_BYTES)
    }

    fn key(&self, flow: u32) -> Key {
        let address = match self.remote.ip() {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        Key { address, port: self.remote.port(), flow }
    }
}

impl Flows {
    pub fn new(flows_max: usize) -> Flows {
        Flows { flows_max, slots: Slab::new(), by_key: FxHashMap::default() }
    }

    /// Makes the flow, or finds that it is there already. Returns its slot, and whether it is new. A flow of the same name from an
    /// earlier run gives way.
    pub fn open(
        &mut self,
        now: Instant,
        peer: Peer,
        flow: u32,
        group: u8,
        spec: &FlowSpec,
    ) -> Result<(u32, bool), Refusal> {
        let key = peer.key(flow);
        if let Some(slot) = self.find(&peer, flow)
            && self.slots[slot as usize].run == spec.run
        {
            return Ok((slot, false));
        }
        let new = Flow::new(now, key, peer, group, spec)?;
        if let Some(slot) = self.find(&peer, flow) {
            // Its queue entries stay, and are found to be of no use when their time comes.
            let old = &mut self.slots[slot as usize];
            let (is_ready, is_credit_timed) = (old.is_ready, old.is_credit_timed);
            let (armed, expiry) = (old.armed, old.expiry);
            *old = Flow { is_ready, is_credit_timed, armed, expiry, ..new };
            return Ok((slot, true));
        }
        if self.slots.len() >= self.flows_max {
            return Err(Refusal::TooMany(self.slots.len()));
        }
        let slot = self.slots.insert(new) as u32;
        self.by_key.insert(key, slot);
        Ok((slot, true))
    }

    /// The slot of the flow that `peer` has opened under this number.
    #[inline]
    pub fn find(&self, peer: &Peer, flow: u32) -> Option<u32> {
        self.by_key.get(&peer.key(flow)).copied()
    }

    /// The flow in `slot`.
    #[inline]
    pub fn at(&mut self, slot: u32) -> Option<&mut Flow> {
        self.slots.get_mut(slot as usize)
    }

    /// Forgets the flow in `slot`.
    pub fn remove(&mut self, slot: u32) {
        if let Some(flow) = self.slots.try_remove(slot as usize) {
            self.by_key.remove(&flow.key);
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }
}
