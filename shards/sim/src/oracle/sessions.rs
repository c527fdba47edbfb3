//! Homes, owners, allocator and the book of the oracles agree on who is connected.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tollgate_shards::inspect::Login;
use tollgate_shards::{ConnectionKey, Fingerprint, UserIndex};

use super::Violation;
use crate::gateway::Gateway;
use crate::world::World;

/// With no message under way, homes' members are the owners' logged-in connections, and every shard has the same routes to them.
pub(super) fn agree(world: &World) -> Result<(), Violation> {
    let mut owned: BTreeMap<ConnectionKey, (UserIndex, Option<IpAddr>)> = BTreeMap::new();
    let mut members = BTreeMap::new();
    let mut users = BTreeSet::new();
    for core in &world.gateway.cores {
        let logged_in = core.shard().inspect().owned().into_iter();
        owned.extend(logged_in.filter_map(|(connection, user, address)| Some((connection, (user?, address)))));
        for member in core.shard().inspect().members() {
            let Login { user, connection, .. } = member.login;
            users.insert(user);
            if members.insert(connection, (user, member.address())).is_some() {
                return Err(violation(format!("{connection:?} is a member of two sessions")));
            }
        }
    }
    same("owned connections and members of sessions", &owned, &members)?;
    let attached: BTreeMap<_, _> =
        world.oracle.attached().map(|(connection, user, address)| (connection, (user, Some(address)))).collect();
    within_limits(world, &attached)?;
    owned.retain(|_, (_, address)| address.is_some());
    same("owned connections and what was told of them", &owned, &attached)?;
    let routes: BTreeMap<_, _> = attached.iter().filter_map(|(&key, (_, address))| Some(((*address)?, key))).collect();
    for core in &world.gateway.cores {
        same("routes and connections", &core.shard().inspect().routes().into_iter().collect(), &routes)?;
    }
    let counted: u64 = world.gateway.cores.iter().map(|core| core.shard().counters().connections).sum();
    if counted != members.len() as u64 {
        return Err(violation(format!("homes count {counted} connections and have {}", members.len())));
    }
    let holdings = world.gateway.cores.iter().flat_map(|core| core.shard().inspect().holdings());
    same(
        "addresses held and connections",
        &holdings.map(|(address, held)| (address, held.login.connection)).collect(),
        &routes,
    )?;
    let counted: u64 = world.gateway.cores.iter().map(|core| core.shard().counters().users).sum();
    if counted != users.len() as u64 {
        return Err(violation(format!("homes count {counted} users, {} are connected", users.len())));
    }
    Ok(())
}

/// No user has more connections than the snapshot in force allows, nor more than one if it has one address.
fn within_limits(
    world: &World,
    attached: &BTreeMap<ConnectionKey, (UserIndex, Option<IpAddr>)>,
) -> Result<(), Violation> {
    let mut counts: BTreeMap<UserIndex, u32> = BTreeMap::new();
    attached.values().for_each(|(user, _)| *counts.entry(*user).or_default() += 1);
    for (user, count) in counts {
        for user in world.gateway.snapshots().filter_map(|snapshot| snapshot.users.user(user)) {
            let limit = user.connection_limit.map_or(u32::MAX, |limit| limit.connections_max.get());
            let is_fixed = matches!(user.pool.as_slice(), [range] if range.first() == range.last());
            let count_max = if is_fixed { limit.min(1) } else { limit };
            if count > count_max {
                return Err(violation(format!("{} has {count} connections, {count_max} are allowed", user.name)));
            }
        }
    }
    Ok(())
}

fn same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    left: &BTreeMap<K, V>,
    right: &BTreeMap<K, V>,
) -> Result<(), Violation> {
    let mut keys: BTreeSet<&K> = left.keys().collect();
    keys.extend(right.keys());
    match keys.into_iter().find(|key| left.get(key) != right.get(key)) {
        Some(key) => {
            let (left, right) = (left.get(key), right.get(key));
            Err(violation(format!("{what} disagree about {key:?}: {left:?} and {right:?}")))
        }
        None => Ok(()),
    }
}

/// Whoever has an address logged in with a certificate that is good for that by some snapshot that may still be in force.
pub(super) fn certificates_allowed(gateway: &Gateway) -> Result<(), Violation> {
    let members = gateway.cores.iter().flat_map(|core| core.shard().inspect().members());
    let shown: BTreeMap<ConnectionKey, Fingerprint> =
        members.map(|member| (member.login.connection, member.login.credential)).collect();
    for (connection, user, address) in gateway.cores.iter().flat_map(|core| core.shard().inspect().owned()) {
        let (Some(user), Some(_)) = (user, address) else { continue };
        let Some(certificate) = shown.get(&connection) else { continue };
        if !gateway.snapshots().any(|snapshot| snapshot.users.find(certificate) == Some(user)) {
            let what =
                format!("{connection:?} of {user:?} is attached by {certificate}, which is not good for that any more");
            return Err(violation(what));
        }
    }
    Ok(())
}

/// Nobody is left, nor anything of anybody's.
pub(super) fn none(world: &World) -> Result<(), Violation> {
    agree(world)?;
    for core in &world.gateway.cores {
        let counters = core.shard().counters();
        let index = core.shard().index();
        let left = [
            ("connections of its users", counters.connections),
            ("users", counters.users),
            ("connections that it owns", core.shard().owned_connections() as u64),
            ("addresses held", core.shard().addresses_held().unwrap_or(0)),
            ("routes", core.shard().inspect().routes().len() as u64),
            ("users' tokens or waiting packets", core.shard().inspect().user_queues() as u64),
            ("handshakes", core.shard().inspect().handshakes_admitted() as u64),
        ];
        if let Some((what, count)) = left.into_iter().find(|(_, count)| *count > 0) {
            let owned = core.shard().inspect().owned();
            return Err(violation(format!("{count} {what} are left at the end with {index:?}: {owned:?}")));
        }
    }
    // A dead home, and one that has handed over, tells nobody where its users' addresses no longer are; the mesh carries what is steered wrongly.
    if world.gateway.restarts == 0 && !world.is_upgraded() && world.gateway.steered() > 0 {
        return Err(violation(format!("{} addresses are still steered at the end", world.gateway.steered())));
    }
    match world.messages_under_way() {
        0 => Ok(()),
        messages => Err(violation(format!("{messages} messages are under way at the end"))),
    }
}

fn violation(what: String) -> Violation {
    Violation::new("sessions", what)
}
