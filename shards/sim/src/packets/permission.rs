//! Where an inner packet may go, by a reference model that shares no code with the engine.
//!
//! Each packet is judged when it is made: it may leave through the TUN, or arrive at the client that has its destination, or go nowhere, and
//! then for which reason. What arrives elsewhere was delivered without right; what is counted under a reason that no packet gave was dropped
//! without right.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use tollgate_shards::{DropReason, Snapshot};

use super::{Origin, Place};
use crate::gateway::{GATEWAYS, Gateway};
use crate::plan::Plan;
use crate::schedule::Time;

/// What an inner packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Out through the TUN.
    Network,
    /// To the client that has its destination, from the network or from another client.
    Client { is_relayed: bool },
    /// To be dropped for this reason.
    Nowhere(DropReason),
}

#[derive(Debug)]
pub struct Permission {
    tunnel: IpNet,
    isolation: Isolation,
    /// Whether some user has had a limit.
    has_limits: bool,
    /// Packets beside those that are followed, by the reason for which each is to be dropped.
    forged: BTreeMap<DropReason, u64>,
}

/// Whether clients are kept apart. While an order is under way, some shards may and others may not.
#[derive(Debug)]
struct Isolation {
    /// Since when all shards keep them apart.
    certain_since: Option<Time>,
    /// When some shard last did; in the future while it may.
    possible_until: Option<Time>,
}

const FOREVER: Time = Time { ns: u64::MAX };

impl Permission {
    pub fn new(plan: &Plan) -> Self {
        let isolated = plan.isolate_clients;
        Permission {
            tunnel: plan.tunnel,
            isolation: Isolation {
                certain_since: isolated.then(Time::default),
                possible_until: isolated.then_some(FOREVER),
            },
            has_limits: plan.users.iter().any(|user| user.limit.is_some()),
            forged: BTreeMap::new(),
        }
    }

    /// What a client's packet is for. `leased` is the address that the gateway gave it.
    pub fn way_up(&self, leased: IpAddr, source: IpAddr, destination: IpAddr) -> Way {
        if source != leased {
            return Way::Nowhere(DropReason::ForgedSource);
        }
        // IPv6 has none.
        let is_broadcast = destination.is_ipv4() && destination == self.tunnel.broadcast();
        if destination == self.tunnel.addr() {
            Way::Network
        } else if is_broadcast {
            Way::Nowhere(DropReason::Multicast)
        } else if self.tunnel.contains(&destination) {
            // To itself as well, and does not arrive.
            Way::Client { is_relayed: true }
        } else if is_group(destination) {
            Way::Nowhere(DropReason::Multicast)
        } else if is_of_one_host_or_link(destination) {
            Way::Nowhere(DropReason::Unroutable)
        } else if GATEWAYS.iter().any(|gateway| gateway.ip() == destination) {
            Way::Nowhere(DropReason::OuterAddress)
        } else {
            Way::Network
        }
    }

    /// Snapshots that may be in force have changed.
    pub fn snapshots_change(&mut self, now: Time, gateway: &Gateway) {
        let (mut all, mut some) = (true, false);
        for snapshot in gateway.snapshots() {
            all &= snapshot.isolate_clients;
            some |= snapshot.isolate_clients;
        }
        self.isolation.certain_since = self.isolation.certain_since.or(Some(now)).filter(|_| all);
        self.isolation.possible_until = match (some, self.isolation.possible_until) {
            (true, _) => Some(FOREVER),
            (false, until) => until.map(|until| until.min(now)),
        };
    }

    /// A snapshot is about to be in force.
    pub fn given(&mut self, snapshot: &Snapshot) {
        self.has_limits |= snapshot.users.users().any(|(_, user)| user.limit.is_some());
        if snapshot.isolate_clients {
            self.isolation.possible_until = Some(FOREVER);
        } else {
            self.isolation.certain_since = None;
        }
    }

    /// A packet was made that nobody follows, and that is to be dropped for this reason.
    pub fn forged(&mut self, reason: DropReason) {
        *self.forged.entry(reason).or_default() += 1;
    }

    pub fn has_forged(&self) -> bool {
        !self.forged.is_empty()
    }

    /// A packet has arrived.
    pub(super) fn arrives(&self, at: Place, sent: &Origin) -> Result<(), String> {
        let since = self.isolation.certain_since;
        match (sent.way, at) {
            (Way::Network, Place::Tun) | (Way::Client { is_relayed: false }, Place::Client(_)) => Ok(()),
            (Way::Client { is_relayed: true }, Place::Client(_)) => match since.filter(|since| sent.made >= *since) {
                Some(since) => {
                    Err(format!("it was made at {} s, and clients are kept apart since {since} s", sent.made))
                }
                None => Ok(()),
            },
            (way, at) => Err(format!("it arrived at {at:?}, but its way is {way:?}")),
        }
    }

    /// No reason of the rules has been counted more often than packets gave it.
    pub(super) fn only_rightly_dropped(
        &self,
        drops: impl Iterator<Item = (DropReason, u64)>,
        lost: impl Iterator<Item = (Way, Time)>,
    ) -> Result<(), String> {
        let mut given = self.forged.clone();
        for (way, made) in lost {
            let reason = match way {
                Way::Nowhere(reason) => reason,
                Way::Client { is_relayed: true }
                    if self.isolation.possible_until.is_some_and(|until| made <= until) =>
                {
                    DropReason::Isolated
                }
                Way::Network | Way::Client { .. } => continue,
            };
            *given.entry(reason).or_default() += 1;
        }
        for (reason, packets) in drops {
            let packets_max = match reason {
                DropReason::ForgedSource
                | DropReason::Isolated
                | DropReason::Multicast
                | DropReason::OuterAddress
                | DropReason::Unroutable
                | DropReason::Malformed => given.get(&reason).copied().unwrap_or(0),
                DropReason::OverLimit | DropReason::QueueDelay | DropReason::WaitedTooLong if !self.has_limits => 0,
                _ => continue,
            };
            if packets > packets_max {
                return Err(format!("{packets} packets were dropped as {}, {packets_max} should be", reason.name()));
            }
        }
        Ok(())
    }
}

/// Groups (RFC 1112, RFC 4291) and the limited broadcast (RFC 919).
fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// Never routed: this network (RFC 1122, section 3.2.1.3), the host itself, one link (RFC 3927, RFC 4291).
fn is_of_one_host_or_link(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    is_link_local || address.is_loopback() || address.is_unspecified()
}
