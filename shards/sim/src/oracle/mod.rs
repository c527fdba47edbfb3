//! What must hold in every run. After each step what the step touched is looked at; everything, now and then and at the end.
//!
//! The oracles keep books of their own and never change what they look at.

mod addresses;
mod budget;
mod deadlines;
mod demand;
mod ends;
mod handshakes;
mod memory;
mod moves;
mod placement;
mod proofs;
mod queues;
mod refusals;
mod replies;
mod sessions;
mod shell;
mod standing;
mod tokens;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tollgate_shards::{
    ClientEvent, Command, CommandId, ConnectionKey, Event, Fingerprint, Limits, Shard, ShardIndex, Shards, Snapshot,
    UserIndex,
};

use crate::gateway::{Core, Gateway, Order, Pending};
use crate::packets::{Arrival, Place, is_too_big_answer, source_of};
use crate::plan::Plan;
use crate::schedule::Time;
use crate::world::World;

use addresses::Addresses;
use deadlines::Expiry;
use demand::Demand;
use handshakes::Handshakes;
use memory::Memory;
use moves::Moves;
use placement::Placement;
use proofs::Proofs;
pub(crate) use proofs::Shown;
pub(crate) use queues::{frame_within_bounds, message_within_bounds, pass_within_bounds, send_within_bounds};
use refusals::Refusals;
use replies::Replies;
use standing::Standing;
use tokens::Tokens;
use waiting::Waiting;

/// A shard's tokens are audited after so many passes of whichever shards, because it takes a look at all of them.
const AUDIT_EVERY: u64 = 16;

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The name of the check that failed.
    pub oracle: &'static str,
    /// The violation, as text.
    pub what: String,
    /// When; unknown until the run is over.
    pub at: Option<Time>,
}

impl Violation {
    /// `oracle` has seen `what`.
    pub fn new(oracle: &'static str, what: String) -> Self {
        Violation { oracle, what, at: None }
    }

    /// Adds the time of the violation.
    pub(crate) fn at(self, now: Time) -> Self {
        Violation { at: Some(now), ..self }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.oracle, self.what)?;
        self.at.map_or(Ok(()), |at| write!(f, " (at {at} s)"))
    }
}

impl std::error::Error for Violation {}

pub struct Oracle {
    addresses: Addresses,
    tokens: Tokens,
    demand: Demand,
    memory: Memory,
    handshakes: Handshakes,
    waiting: Waiting,
    refusals: Refusals,
    pub(crate) placement: Placement,
    replies: Replies,
    pub(crate) standing: Standing,
    pub(crate) moves: Moves,
    pub(crate) proofs: Proofs,
    pub(crate) deadlines: Expiry,
    /// Whether a shard has died, which may hold what nobody else knows of.
    has_died: bool,
    /// For each kick that is not acknowledged: the connections that it found.
    kicked: BTreeMap<CommandId, BTreeSet<ConnectionKey>>,
    passes: u64,
    server_address: IpAddr,
}

impl Oracle {
    pub fn new(plan: &Plan, first: &Snapshot) -> Self {
        Oracle {
            addresses: Addresses::default(),
            tokens: Tokens::new(plan),
            demand: Demand::new(plan),
            memory: Memory::new(plan),
            handshakes: Handshakes::default(),
            waiting: Waiting::new(plan),
            refusals: Refusals::new(first),
            placement: Placement::new(plan),
            replies: Replies::default(),
            standing: Standing::new(plan),
            moves: Moves::new(plan),
            proofs: Proofs::new(plan),
            deadlines: Expiry::new(plan),
            has_died: false,
            kicked: BTreeMap::new(),
            passes: 0,
            server_address: plan.tunnel.addr(),
        }
    }

    /// A shard tells something.
    pub(crate) fn told(&mut self, now: Time, event: &Event, core: &Core) -> Result<(), Violation> {
        self.deadlines.told(now, event, core)?;
        match *event {
            Event::Attached { user, connection, address } => {
                addresses::allowed(core.applied(), user, connection, address)?;
                self.placement.attached(now, connection.owner);
                self.addresses.attached(user, connection, address)
            }
            Event::Detached { connection, .. } => {
                self.placement.detached(now, connection.owner);
                self.addresses.detached(connection)
            }
            Event::PoolExhausted { user } if !self.has_died => self.refusals.exhausted(user),
            _ => Ok(()),
        }
    }

    /// A shard has written an inner packet, maybe a merged one, to its TUN queue.
    pub(crate) fn at_tun(&mut self, now: Time, shard: u16, packet: &[u8]) -> Result<(), Violation> {
        let source = source_of(packet).ok_or_else(|| Violation::new("addresses", "a packet of no IP".to_owned()))?;
        if source == self.server_address {
            return Ok(());
        }
        let user = self.addresses.user_at(source, ShardIndex(shard))?;
        if is_too_big_answer(packet) {
            // The gateway's own, which has a limit of its own.
            return Ok(());
        }
        self.tokens.passed(now, user, packet.len() as u64)
    }

    /// A client tells something, which has shown a credential when some snapshot was in force. `may_be_refused` is whether its Noise key may not have
    /// been listed.
    pub(crate) fn client_told(
        &self,
        event: &ClientEvent,
        plan: &Plan,
        may_be_refused: bool,
        shown: Option<(Fingerprint, u64)>,
    ) -> Result<(), Violation> {
        ends::told(event, plan.features, may_be_refused)?;
        shown.map_or(Ok(()), |shown| self.refusals.told(event, shown))
    }

    /// Inner packets have arrived at one place.
    pub(crate) fn arrived(&mut self, now: Time, at: Place, arrivals: &[Arrival], plan: &Plan) -> Result<(), Violation> {
        arrivals.iter().try_for_each(|arrival| {
            self.waiting.arrived(now, at, arrival)?;
            self.demand.arrived(now, at, arrival, plan)
        })
    }

    /// An operator wants something.
    pub(crate) fn given(&mut self, now: Time, order: &Order) {
        if let Order::Apply(snapshot) = order {
            self.tokens.limits_change(now, snapshot.version, &snapshot.users);
            self.demand.limits_change(snapshot.version, &snapshot.users);
            self.refusals.given(snapshot);
        }
    }

    /// An order is about to reach a shard. Returns the connections of this shard that it sends away, and their addresses.
    pub(crate) fn before_order(&mut self, shard: u16, command: &Command) -> Vec<(ConnectionKey, IpAddr)> {
        let here = self.addresses.attached_now().filter(|(connection, ..)| connection.owner == ShardIndex(shard));
        let sent_away = here.filter(|(_, user, _)| match command {
            Command::Kick { user: kicked, .. } => user == kicked,
            Command::Apply { snapshot, .. } => snapshot.users.user(*user).is_none(),
            Command::Stop => true,
            Command::Drain { .. } | Command::Resume => false,
            Command::HandOver { .. } | Command::TakeBack { .. } | Command::PredecessorGone => false,
        });
        let sent_away: Vec<_> = sent_away.map(|(connection, _, address)| (connection, address)).collect();
        if let Command::Kick { id, .. } = *command {
            self.kicked.entry(id).or_default().extend(sent_away.iter().map(|(connection, _)| *connection));
        }
        sent_away
    }

    /// An order has been carried out everywhere: what it forbids must be gone.
    pub(crate) fn acknowledged(&mut self, now: Time, pending: &Pending, gateway: &Gateway) -> Result<(), Violation> {
        match &pending.order {
            Order::Kick(user) => {
                let found = self.kicked.remove(&pending.id).unwrap_or_default();
                match found.into_iter().find(|&connection| self.addresses.is_attached(connection)) {
                    Some(connection) => Err(Violation::new(
                        "orders",
                        format!("{connection:?} of {user:?} is still attached after the kick was acknowledged"),
                    )),
                    None => Ok(()),
                }
            }
            Order::Apply(snapshot) => {
                self.tokens.limits_changed(now, snapshot.version);
                self.demand.limits_changed(now, snapshot.version);
                self.addresses.all_allowed(gateway)?;
                sessions::certificates_allowed(gateway)
            }
        }
    }

    /// Some shard's clock, which has stood still for so long, leaps to where it would be.
    pub(crate) fn clock_leaps(&mut self, now: Time, by: Duration) {
        self.tokens.clock_leaps(by);
        self.demand.clock_leaps(now, by);
    }

    /// A shard is dead, and its connections with it.
    pub(crate) fn died(&mut self, now: Time, shard: ShardIndex) {
        self.has_died = true;
        self.placement.died(now, shard);
        self.addresses.died(shard);
        self.memory.died(shard);
        self.replies.died(shard);
        self.proofs.died(shard);
        self.deadlines.died(shard);
        self.kicked.values_mut().for_each(|found| found.retain(|connection| connection.owner != shard));
    }

    /// Another process has new clients from now on.
    pub(crate) fn upgraded(&mut self, now: Time, to: Shards) {
        self.placement.moved(now, to);
    }

    /// A shard whose clients are gone ends.
    pub(crate) fn ended(&mut self, shard: ShardIndex) {
        self.memory.died(shard);
    }

    /// A shard sends a run of datagrams.
    pub(crate) fn sent(&mut self, now: Time, shard: ShardIndex, to: SocketAddr, run: &[u8]) -> Result<(), Violation> {
        self.handshakes.sent(now, to, run);
        self.proofs.sent(now, shard, to, run)?;
        self.moves.sent(now, to, run.len())
    }

    /// Everything that happens to a shard at this moment has, and nothing has come out of it.
    pub(crate) fn before_pass(&self, shard: &Shard) -> Result<(), Violation> {
        queues::full_within_bounds(shard)
    }

    /// A shard's pass is over. Its clock is `behind` by that much. `is_half` says of an address whether no whole ClientHello has come from there.
    pub(crate) fn after_pass(
        &mut self,
        (now, behind): (Time, Duration),
        shard: &Shard,
        limits: &Limits,
        is_half: impl Fn(SocketAddr) -> bool,
    ) -> Result<(), Violation> {
        self.addresses.pass_ends();
        self.memory.after_pass(shard)?;
        self.replies.after_pass(now, shard)?;
        self.standing.after_pass(now, shard)?;
        self.passes += 1;
        if self.passes.is_multiple_of(AUDIT_EVERY) {
            tokens::conserved(shard)?;
        }
        self.handshakes.judge(now, behind, shard, limits, is_half)?;
        queues::within_bounds(shard, limits)
    }

    /// Who is attached, as the shards have told.
    pub fn attached(&self) -> impl Iterator<Item = (ConnectionKey, UserIndex, IpAddr)> + '_ {
        self.addresses.attached_now()
    }
}

/// Looks at everything that must hold at any time.
pub(crate) fn inspect(world: &World) -> Result<(), Violation> {
    let has_ended = |core: &Core| core.machine().is_some_and(|machine| machine.is_over());
    let is_settled = world.is_settled() && world.gateway.has_no_order();
    if world.messages_under_way() == 0 && is_settled && !world.gateway.cores.iter().any(has_ended) {
        sessions::agree(world)?;
    }
    world.gateway.cores.iter().try_for_each(|core| tokens::conserved(core.shard()))?;
    tokens::ends_agree(world)?;
    shell::nobody_oversleeps(world)?;
    queues::all_within_bounds(world)
}

/// Looks at everything that must hold when nothing is under way.
pub(crate) fn at_rest(world: &World) -> Result<(), Violation> {
    inspect(world)?;
    shell::is_steered(world)
}

/// Looks at what is left when everybody has gone.
pub(crate) fn at_end(world: &World) -> Result<(), Violation> {
    sessions::none(world)?;
    let dropped = world.packets.only_rightly_dropped(world.facts().drops.iter());
    dropped.map_err(|what| Violation::new("permission", what))?;
    world.oracle.memory.at_end(&world.facts().drops)?;
    world.gateway.cores.iter().try_for_each(|core| memory::none(core.shard()))?;
    queues::balanced(world)
}
