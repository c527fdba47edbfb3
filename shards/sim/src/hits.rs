//! Where runs have been: how often each drop reason, message between shards, event, close cause and state was seen. What no run comes to, no run
//! proves anything about.

mod expected;

use std::collections::BTreeMap;

use tollgate_shards::inspect::{LeaseGrant, Refusal, STATES};
use tollgate_shards::{
    CloseCause, CloseReason, Command, ControlMessage, Counters, DropReason, Event, HandshakeOutcome, Message,
    PacketMessage, SessionEnd, Shard, WakeReason, close_code,
};

pub use expected::Tally;

/// A kind of thing, and one of the kind.
pub type Name = (&'static str, &'static str);

/// How often each thing was seen in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hits {
    seen: BTreeMap<Name, u64>,
    /// Passes with messages so far.
    passes: u64,
}

/// So many passes with messages it takes for one after which the states are looked at.
const LOOKED_AT_EVERY: u64 = 8;

/// Names every variant once: for the list of all, and for the one that is seen.
macro_rules! kinds {
    ($list:ident, $of:ident($type:ty): $($pattern:pat => $name:literal,)*) => {
        const $list: &[&str] = &[$($name),*];

        fn $of(it: &$type) -> &'static str {
            match it {
                $($pattern => $name,)*
            }
        }
    };
}

use ControlMessage as M;
kinds! { CONTROL_MESSAGES, control_message(ControlMessage):
    M::Login { address: None, .. } => "login",
    M::Login { address: Some(_), .. } => "login_again",
    M::Gone { .. } => "gone",
    M::AllocateAddress { .. } => "allocate_address",
    M::AddressAllocated { address: Ok(_), .. } => "address_allocated",
    M::AddressAllocated { address: Err(Refusal::Exhausted), .. } => "address_refused_exhausted",
    M::AddressAllocated { address: Err(Refusal::Reserved), .. } => "address_refused_reserved",
    M::ReleaseAddress { .. } => "release_address",
    M::HoldAddress { .. } => "hold_address",
    M::Admit { .. } => "admit",
    M::Close { reason: CloseReason::PoolExhausted, .. } => "close_pool_exhausted",
    M::Close { reason: CloseReason::PoolReserved, .. } => "close_pool_reserved",
    M::Close { reason: CloseReason::Superseded, .. } => "close_superseded",
    M::Close { reason: CloseReason::TooManyConnections, .. } => "close_too_many_connections",
    M::Close { reason: CloseReason::Revoked, .. } => "close_revoked",
    M::Close { reason: CloseReason::Moved, .. } => "close_moved",
    M::Close { reason: CloseReason::OverQuota, .. } => "close_over_quota",
    M::Route { .. } => "route",
    M::Unroute { .. } => "unroute",
    M::RoutesTold => "routes_told",
    M::LeaseWanted(_) => "lease_wanted",
    M::Tokens(LeaseGrant { recall: false, .. }) => "tokens",
    M::Tokens(LeaseGrant { recall: true, .. }) => "tokens_recalled",
    M::LeaseClosed(_) => "lease_closed",
    M::Barrier { .. } => "barrier",
    M::Level { .. } => "level",
    M::Yielded { .. } => "yielded",
    M::Remembered { .. } => "remembered",
    M::Limit { .. } => "limit",
    M::Restarted { .. } => "restarted",
    M::Reattached { .. } => "reattached",
    M::Held { .. } => "held",
}

kinds! { PACKET_MESSAGES, packet_message(PacketMessage):
    PacketMessage::Hairpin { .. } => "hairpin",
    PacketMessage::Frame(_) => "frame",
    PacketMessage::Datagram(_) => "datagram",
}

const LOADS: &[&str] = &["load"];

kinds! { EVENTS, event(Event):
    Event::Attached { .. } => "attached",
    Event::Detached { .. } => "detached",
    Event::UnknownCredential { .. } => "unknown_credential",
    Event::PathNarrowed { is_too_narrow: false, .. } => "path_narrowed",
    Event::PathNarrowed { is_too_narrow: true, .. } => "path_too_narrow",
    Event::PoolExhausted { .. } => "pool_exhausted",
    Event::PoolReserved { .. } => "pool_reserved",
    Event::TooManyConnections { .. } => "too_many_connections",
    Event::OverQuota { .. } => "over_quota",
    Event::HandshakeFailed { .. } => "handshake_failed",
    Event::CertificateEnds { .. } => "certificate_ends",
    Event::Forgotten { .. } => "forgotten",
}

const SHUTDOWN: u64 = close_code::SHUTDOWN as u64;
const ESTABLISHMENT_FAILED: u64 = close_code::ESTABLISHMENT_FAILED as u64;
const SUPERSEDED: u64 = close_code::SUPERSEDED as u64;
const REVOKED: u64 = close_code::REVOKED as u64;
const DRAIN: u64 = close_code::DRAIN as u64;
const QUOTA: u64 = close_code::QUOTA as u64;
const UPGRADE: u64 = close_code::UPGRADE as u64;
const MISUSE: u64 = close_code::MISUSE as u64;
const SESSION_OVER: u64 = close_code::SESSION_OVER as u64;
kinds! { CLOSE_CAUSES, close_cause(CloseCause):
    CloseCause::Local => "local",
    CloseCause::Gateway { code: SHUTDOWN, .. } => "gateway_shutdown",
    CloseCause::Gateway { code: ESTABLISHMENT_FAILED, .. } => "gateway_establishment_failed",
    CloseCause::Gateway { code: SUPERSEDED, .. } => "gateway_superseded",
    CloseCause::Gateway { code: REVOKED, .. } => "gateway_revoked",
    CloseCause::Gateway { code: DRAIN, .. } => "gateway_drain",
    CloseCause::Gateway { code: MISUSE, .. } => "gateway_misuse",
    CloseCause::Gateway { code: UPGRADE, .. } => "gateway_upgrade",
    CloseCause::Gateway { code: SESSION_OVER, .. } => "gateway_session_over",
    CloseCause::Gateway { code: QUOTA, .. } => "gateway_quota",
    CloseCause::Gateway { .. } => "gateway_other",
    CloseCause::Reset => "reset",
    CloseCause::TimedOut => "timed_out",
    CloseCause::NotTaken => "not_taken",
    CloseCause::Assignment(_) => "assignment",
    CloseCause::Handshake(_) => "handshake",
    CloseCause::Version => "version",
    CloseCause::Other(_) => "other",
}

kinds! { COMMANDS, command(Command):
    Command::Stop => "stop",
    Command::Drain { .. } => "drain",
    Command::Resume => "resume",
    Command::Apply { .. } => "apply",
    Command::Kick { .. } => "kick",
    Command::HandOver { .. } => "hand_over",
    Command::TakeBack { .. } => "take_back",
    Command::PredecessorGone => "predecessor_gone",
}

kinds! { WAKES, wake(WakeReason):
    WakeReason::Connection => "connection",
    WakeReason::Tokens => "tokens",
    WakeReason::Handshake => "handshake",
    WakeReason::Load => "load",
    WakeReason::Drain => "drain",
    WakeReason::Session => "session",
}

/// The counters that only grow. The others are left to the states.
macro_rules! counters {
    ($($counter:ident,)*; $($other:ident,)*) => {
        const COUNTERS: &[&str] = &[$(stringify!($counter)),*];

        fn counted(counters: &Counters) -> impl Iterator<Item = (&'static str, u64)> {
            let Counters { $($counter,)* $($other: _),* } = *counters;
            [$((stringify!($counter), $counter)),*].into_iter()
        }
    };
}
counters! {
    up_packets, up_bytes, thinned_acks, down_packets, down_bytes, datagrams_received, datagrams_sent, relayed_packets, misrouted_frames,
    misrouted_datagrams, retries, handshakes, stateless_responses, too_big_replies, narrowed_paths, too_narrow_paths, fragmented_packets,
    own_packets, messages, forgotten_events, leases, lease_grants,
    ; connections, users, open_leases, waiting_packets, queued_packets, waits, drops, handshake_ends, session_ends,
}

/// What else the simulator sees.
const PACKETS: &[&str] = &["marked_up", "marked_down"];
const PLACEMENTS: &[&str] = &["judged"];

/// Everything that may be seen.
fn all() -> impl Iterator<Item = Name> {
    let lists = [
        ("message", CONTROL_MESSAGES),
        ("message", LOADS),
        ("packet message", PACKET_MESSAGES),
        ("event", EVENTS),
        ("close", CLOSE_CAUSES),
        ("command", COMMANDS),
        ("wake", WAKES),
        ("counter", COUNTERS),
        ("packet", PACKETS),
        ("placement", PLACEMENTS),
    ];
    let drops = DropReason::ALL.into_iter().map(|reason| ("drop", reason.name()));
    let handshakes = HandshakeOutcome::ALL.into_iter().map(|outcome| ("handshake", outcome.name()));
    let listed = lists.into_iter().flat_map(|(kind, names)| names.iter().map(move |&name| (kind, name)));
    let session_ends = SessionEnd::ALL.into_iter().map(|end| ("session end", end.name()));
    listed.chain(drops).chain(handshakes).chain(session_ends).chain(STATES.iter().copied())
}

impl Hits {
    fn add(&mut self, name: Name, times: u64) {
        if times > 0 {
            *self.seen.entry(name).or_default() += times;
        }
    }

    pub fn message(&mut self, message: &Message) {
        let name = match message {
            Message::Control(message) => ("message", control_message(message)),
            Message::Packet(message) => ("packet message", packet_message(message)),
            Message::Load { .. } => ("message", "load"),
        };
        self.add(name, 1);
    }

    pub fn event(&mut self, it: &Event) {
        self.add(("event", event(it)), 1);
    }

    pub fn closed(&mut self, cause: &CloseCause) {
        self.add(("close", close_cause(cause)), 1);
    }

    pub fn command(&mut self, it: &Command) {
        self.add(("command", command(it)), 1);
    }

    pub fn wake(&mut self, reason: WakeReason) {
        self.add(("wake", wake(&reason)), 1);
    }

    /// An inner packet arrived with "congestion experienced", which only the gateway's queues say.
    pub fn marked(&mut self, is_up: bool) {
        self.add(("packet", if is_up { "marked_up" } else { "marked_down" }), 1);
    }

    /// It was judged where a new client was sent.
    pub fn placed(&mut self) {
        self.add(("placement", "judged"), 1);
    }

    /// What a shard has counted in its life.
    pub fn counters(&mut self, counters: &Counters) {
        counted(counters).for_each(|(name, times)| self.add(("counter", name), times));
        SessionEnd::ALL
            .into_iter()
            .for_each(|end| self.add(("session end", end.name()), counters.session_ends.of(end)));
        for outcome in HandshakeOutcome::ALL {
            let times = counters.handshake_ends.kinds().iter().map(|(_, kind)| kind.outcomes.of(outcome)).sum();
            self.add(("handshake", outcome.name()), times);
        }
        counters.drops.iter().for_each(|(reason, packets)| self.add(("drop", reason.name()), packets));
    }

    /// A shard's pass is over, in which it had messages for others: a time of states that do not last.
    pub fn states_after_messages(&mut self, shard: &Shard) {
        self.passes += 1;
        if self.passes.is_multiple_of(LOOKED_AT_EVERY) {
            self.states(shard);
        }
    }

    /// The states that a shard is in now.
    pub fn states(&mut self, shard: &Shard) {
        shard.inspect().states().into_iter().for_each(|state| self.add(state, 1));
    }
}
