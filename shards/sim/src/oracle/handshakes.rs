//! Handshakes under way: none before its source has proven its address, none for longer than the time that it has, and of no source more than it
//! may have.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tollgate_shards::{ConnectionKey, Limits, Shard, ShardIndex};

use super::queues::within;
use super::{AUDIT_EVERY, Violation};
use crate::schedule::Time;

/// A Retry proves an address for so long (RFC 9000, section 8.1.3): in whole seconds, so that it may be one more.
const PROOF: Duration = Duration::from_secs(16);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Without a whole ClientHello.
const HALF: Duration = Duration::from_secs(2);
/// Timers may be as late.
const LATE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Handshakes {
    /// When the last Retry went to each address.
    retried: FxHashMap<SocketAddr, Time>,
    /// Since when each is known to be under way.
    under_way: BTreeMap<ConnectionKey, Time>,
    /// How many there were of each shard when it was last looked at, how often it was not since, and when that was.
    counts: BTreeMap<ShardIndex, (usize, u64, Time)>,
}

impl Handshakes {
    /// The gateway sends a datagram to some address.
    pub fn sent(&mut self, now: Time, to: SocketAddr, datagram: &[u8]) {
        if datagram.first().is_some_and(|first| first & 0xf0 == 0xf0) {
            self.retried.insert(to, now);
        }
    }

    /// Judges the handshakes of one shard, whose clock is behind by that much: for it, their time is over later. `is_half` says of an address whether no whole ClientHello has come from there.
    pub fn judge(
        &mut self,
        now: Time,
        behind: Duration,
        shard: &Shard,
        limits: &Limits,
        is_half: impl Fn(SocketAddr) -> bool,
    ) -> Result<(), Violation> {
        let count = shard.inspect().handshakes_admitted();
        let (count_then, passes, looked_at) = self.counts.entry(shard.index()).or_default();
        *passes += 1;
        if *count_then == count && (count == 0 || !passes.is_multiple_of(AUDIT_EVERY)) {
            *looked_at = if count == 0 { now } else { *looked_at };
            return Ok(());
        }
        *count_then = count;
        // What is new has begun since then.
        let began_after = std::mem::replace(looked_at, now);
        let late = LATE + behind;
        let under_way = shard.inspect().handshakes();
        self.forget_others(shard.index(), &under_way);
        let mut by_source: BTreeMap<(IpAddr, u8), usize> = BTreeMap::new();
        for &(key, remote) in &under_way {
            let since = *self.under_way.entry(key).or_insert(now);
            if since == now && self.retried.get(&remote).is_none_or(|&at| began_after - at > PROOF + late) {
                return Err(violation(format!("{key:?} is under way from {remote}, which has not proven to be there")));
            }
            let time_max = if is_half(remote) { HALF } else { HANDSHAKE };
            if now - since > time_max + late {
                return Err(violation(format!("{key:?} of {remote} is under way since {since} s")));
            }
            sources(remote.ip()).for_each(|source| *by_source.entry(source).or_default() += 1);
        }
        for ((network, bits), count) in by_source {
            let factor = match bits {
                56 => 2,
                48 => 4,
                _ => 1,
            };
            let count_max = (limits.handshakes_per_source_max * factor).min(limits.handshakes_max.div_ceil(2));
            within(&format!("handshakes from {network}/{bits}"), shard, count, count_max)?;
        }
        Ok(())
    }

    fn forget_others(&mut self, shard: ShardIndex, under_way: &[(ConnectionKey, SocketAddr)]) {
        self.under_way.retain(|key, _| key.owner != shard || under_way.iter().any(|(other, _)| other == key));
    }
}

fn violation(what: String) -> Violation {
    Violation::new("handshakes", what)
}

/// What one sender may have for itself: an IPv4 address, or an IPv6 prefix as hosts and sites are given them.
fn sources(address: IpAddr) -> impl Iterator<Item = (IpAddr, u8)> {
    let sources: Vec<_> = match address {
        IpAddr::V4(_) => vec![(address, 32)],
        IpAddr::V6(v6) => [64, 56, 48].map(|bits| (prefix(v6, bits), bits)).into(),
    };
    sources.into_iter()
}

fn prefix(address: Ipv6Addr, bits: u8) -> IpAddr {
    Ipv6Addr::from_bits(address.to_bits() >> (128 - bits) << (128 - bits)).into()
}
