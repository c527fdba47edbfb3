//! Which CPU each shard runs on, by the machine's topology.
//!
//! glommio reads the topology and pins the executors; plain threads get the same CPUs. Where the topology cannot be read, each CPU counts as a
//! core of its own. This module starts nothing.

use std::collections::BTreeMap;
use std::io;

use glommio::{CpuLocation, CpuSet};
use tollgate_config::{Cpus, ShardCount};
use tollgate_shards::SHARDS_MAX;

use super::GatewayError;

/// The CPU of each shard.
///
/// # Errors
///
/// If the configuration names a CPU that this process may not use.
pub fn place(count: ShardCount, cpus: Option<&Cpus>) -> Result<Vec<usize>, GatewayError> {
    let affinity = rustix::thread::sched_getaffinity(None).map_err(io::Error::from)?;
    let allowed: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| affinity.is_set(cpu)).collect();
    let (cpus, auto_count) = match cpus {
        None => (allowed.clone(), allowed.len()),
        Some(Cpus::List(cpus)) => (cpus.iter().map(|&cpu| usize::from(cpu)).collect(), cpus.len()),
        Some(order) => arrange(locate(&allowed), order),
    };
    if let Some(&cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(GatewayError::Cpu { cpu, allowed: list(&allowed) });
    }
    let count = match count {
        ShardCount::Auto => auto_count.min(usize::from(SHARDS_MAX)),
        ShardCount::Fixed(count) => usize::from(count.get()),
    };
    Ok(cpus.into_iter().cycle().take(count).collect())
}

fn locate(cpus: &[usize]) -> Vec<CpuLocation> {
    let online = CpuSet::online();
    let of = |&cpu: &usize| {
        let known = online.as_ref().ok().and_then(|online| online.iter().find(|location| location.cpu == cpu));
        known.cloned().unwrap_or(CpuLocation { cpu, core: cpu, package: 0, numa_node: 0 })
    };
    cpus.iter().map(of).collect()
}

/// The CPUs at `locations` in `order`, and the number of shards where that is not configured.
fn arrange(mut locations: Vec<CpuLocation>, order: &Cpus) -> (Vec<usize>, usize) {
    locations.sort_by_key(|at| (at.numa_node, at.package, at.core, at.cpu));
    // The place of each CPU among the threads of its core, and of each core in its NUMA node.
    let (mut threads, mut cores) = (BTreeMap::new(), BTreeMap::new());
    let mut placed: Vec<_> = locations
        .iter()
        .map(|at| {
            let thread = threads.entry((at.numa_node, at.package, at.core)).or_insert(0);
            let core = cores.entry(at.numa_node).or_insert(0);
            *thread += 1;
            *core += usize::from(*thread == 1);
            (*thread, *core, at)
        })
        .collect();
    let mut auto_count = placed.len();
    match order {
        Cpus::Cores => {
            placed.sort_by_key(|(thread, _, _)| *thread);
            auto_count = threads.len();
        }
        Cpus::Spread => placed.sort_by_key(|(thread, core, at)| (*thread, *core, at.numa_node)),
        Cpus::Pack | Cpus::List(_) => {}
    }
    (placed.into_iter().map(|(_, _, at)| at.cpu).collect(), auto_count)
}

/// `cpus`, for people.
pub fn list(cpus: &[usize]) -> String {
    cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two NUMA nodes of two cores of two threads each, numbered as Linux does: all first threads, then all second ones.
    fn machine() -> Vec<CpuLocation> {
        (0..8).map(|cpu| CpuLocation { cpu, core: cpu % 4, package: cpu % 4 / 2, numa_node: cpu % 4 / 2 }).collect()
    }

    #[test]
    fn cores_come_before_their_second_threads_and_numa_nodes_together_or_in_turn() {
        for (order, expected) in [
            (Cpus::Cores, ([0, 1, 2, 3, 4, 5, 6, 7], 4)),
            (Cpus::Spread, ([0, 2, 1, 3, 4, 6, 5, 7], 8)),
            (Cpus::Pack, ([0, 4, 1, 5, 2, 6, 3, 7], 8)),
        ] {
            let mut locations = machine();
            locations.reverse();
            let (cpus, auto_count) = arrange(locations, &order);
            assert_eq!((&cpus[..], auto_count), (&expected.0[..], expected.1), "{order:?}");
        }
    }

    #[test]
    fn what_the_process_may_not_use_is_left_out() {
        let mut locations = machine();
        locations.retain(|at| ![0, 3, 5].contains(&at.cpu));
        assert_eq!(
            arrange(locations, &Cpus::Cores),
            (vec![4, 1, 2, 7, 6], 4),
            "second threads stand in for first ones"
        );
    }

    #[test]
    fn every_cpu_of_this_machine_has_its_place_in_each_order() {
        let all = place(ShardCount::Auto, None).unwrap();
        for order in [Cpus::Spread, Cpus::Pack] {
            let mut placed = place(ShardCount::Auto, Some(&order)).unwrap();
            placed.sort_unstable();
            assert_eq!(placed, all);
        }
        let cores = place(ShardCount::Auto, Some(&Cpus::Cores)).unwrap();
        assert!(!cores.is_empty() && cores.iter().all(|cpu| all.contains(cpu)), "{cores:?}");
        // More shards than CPUs go round.
        let first = Cpus::List(vec![all[0] as u16]);
        assert_eq!(place(ShardCount::Fixed(2.try_into().unwrap()), Some(&first)).unwrap(), [all[0]; 2]);
    }
}
