//! What must hold in every run. After each step what the step touched is looked at; everything, now and then and at the end.
//!
//! The oracles keep books of their own and never change what they look at.

mod addresses;
mod demand;
mod queues;
mod sessions;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use tollgate_shards::{Command, CommandId, ConnectionKey, Event, Shard, ShardIndex, UserIndex};

use crate::gateway::{Core, Gateway, Order, Pending};
use crate::packets::{Arrival, Place, is_too_big_answer, source_of};
use crate::plan::Plan;
use crate::schedule::Time;
use crate::world::World;

use addresses::Addresses;
use demand::Demand;
use tokens::Tokens;

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
    /// For each kick that is not acknowledged: the connections that it found.
    kicked: BTreeMap<CommandId, BTreeSet<ConnectionKey>>,
    passes: u64,
    server_address: IpAddr,
}

impl Oracle {
    pub fn new(plan: &Plan) -> Self {
        Oracle {
            addresses: Addresses::default(),
            tokens: Tokens::new(plan),
            demand: Demand::new(plan),
            kicked: BTreeMap::new(),
            passes: 0,
            server_address: plan.tunnel.addr(),
        }
    }

    /// A shard tells something.
    pub(crate) fn told(&mut self, event: &Event, core: &Core) -> Result<(), Violation> {
        match *event {
            Event::Attached { user, connection, address } => {
                addresses::allowed(core.applied(), user, connection, address)?;
                self.addresses.attached(user, connection, address)
            }
            Event::Detached { connection, .. } => self.addresses.detached(connection),
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

    /// Inner packets have arrived at one place.
    pub(crate) fn arrived(&mut self, now: Time, at: Place, arrivals: &[Arrival], plan: &Plan) -> Result<(), Violation> {
        arrivals.iter().try_for_each(|arrival| self.demand.arrived(now, at, arrival, plan))
    }

    /// An operator wants something.
    pub(crate) fn given(&mut self, now: Time, order: &Order) {
        if let Order::Apply(snapshot) = order {
            self.tokens.limits_change(now, snapshot.version, &snapshot.users);
            self.demand.limits_change(snapshot.version, &snapshot.users);
        }
    }

    /// An order is about to reach a shard. Returns the connections of this shard that it sends away, and their addresses.
    pub(crate) fn before_order(&mut self, shard: u16, command: &Command) -> Vec<(ConnectionKey, IpAddr)> {
        let here = self.addresses.attached_now().filter(|(connection, ..)| connection.owner == ShardIndex(shard));
        let sent_away = here.filter(|(_, user, _)| match command {
            Command::Kick { user: kicked, .. } => user == kicked,
            Command::Apply { snapshot, .. } => snapshot.users.user(*user).is_none(),
            Command::Stop => true,
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

    /// A shard is dead, and its connections with it.
    pub(crate) fn died(&mut self, shard: ShardIndex) {
        self.addresses.died(shard);
        self.kicked.values_mut().for_each(|found| found.retain(|connection| connection.owner != shard));
    }

    /// A shard's pass is over.
    pub(crate) fn after_pass(&mut self, shard: &Shard) -> Result<(), Violation> {
        self.addresses.pass_ends();
        self.passes += 1;
        if self.passes.is_multiple_of(AUDIT_EVERY) {
            tokens::conserved(shard)?;
        }
        queues::within_bounds(shard)
    }

    /// Who is attached, as the shards have told.
    pub fn attached(&self) -> impl Iterator<Item = (ConnectionKey, UserIndex, IpAddr)> + '_ {
        self.addresses.attached_now()
    }
}

/// Looks at everything that must hold at any time.
pub(crate) fn inspect(world: &World) -> Result<(), Violation> {
    if world.mesh.under_way == 0 && world.gateway.has_no_order() {
        sessions::agree(world)?;
    }
    world.gateway.cores.iter().try_for_each(|core| tokens::conserved(&core.shard))?;
    tokens::ends_agree(world)?;
    queues::all_within_bounds(world)
}

/// Looks at everything that must hold when nothing is under way.
pub(crate) fn at_rest(world: &World) -> Result<(), Violation> {
    inspect(world)
}

/// Looks at what is left when everybody has gone.
pub(crate) fn at_end(world: &World) -> Result<(), Violation> {
    sessions::none(world)?;
    let dropped = world.packets.only_rightly_dropped(world.facts().drops.iter());
    dropped.map_err(|what| Violation::new("permission", what))?;
    queues::balanced(world)
}
