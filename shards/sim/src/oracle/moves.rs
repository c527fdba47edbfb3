//! A client that claims to be elsewhere has the gateway send there: to all the addresses that it claims, no more than three times what came from there
//! (RFC 9000, section 9.3.1), and a datagram. It changes its address a few times a second.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::Violation;
use crate::plan::{Feature, Plan};
use crate::schedule::Time;

const AMPLIFICATION_MAX: u64 = 3;
/// One datagram is not covered by what came, and one more in so much time.
const DATAGRAM_BYTES_MAX: u64 = 1472;
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);
/// Changes of its address that a connection has at once, by docs/limits.md, and two datagrams that answer what belongs to none; and one for each pause.
const CHANGES_BURST: u32 = 4 + 2;
const CHANGE_PAUSE: Duration = Duration::from_millis(500);

/// Beside these every connection lasts, and addresses change by no other cause. What belongs to none is answered wherever it comes from.
const LASTING: [Feature; 18] = [
    Feature::Feints,
    Feature::Ticks,
    Feature::Loss,
    Feature::Jitter,
    Feature::Duplication,
    Feature::Reordering,
    Feature::Congestion,
    Feature::Misrouting,
    Feature::MeshDelay,
    Feature::MeshLoss,
    Feature::Limits,
    Feature::Pools,
    Feature::Ipv6,
    Feature::Peers,
    Feature::Bursts,
    Feature::Frames,
    Feature::Layouts,
    Feature::Oversize,
];

#[derive(Debug, Default)]
pub struct Moves {
    /// Whether changes of addresses are counted.
    counts_changes: bool,
    /// Who claims each address that is nobody's.
    claims: FxHashMap<SocketAddr, u32>,
    devices: BTreeMap<u32, Device>,
}

/// What went to all the addresses that a device claims, and came from there.
#[derive(Debug)]
struct Device {
    since: Time,
    received_bytes: u64,
    sent_bytes: u64,
    /// So many connections may have a datagram free.
    sessions: BTreeSet<u64>,
    /// Where the gateway has sent last of all that it claims, and how often that has changed.
    last: Option<SocketAddr>,
    changes: u32,
}

impl Moves {
    pub(super) fn new(plan: &Plan) -> Self {
        let others = plan.features.without(&LASTING);
        Moves { counts_changes: others.names().is_empty(), ..Moves::default() }
    }

    /// A datagram of a device's session is under way to the gateway from an address that is not its own.
    pub(crate) fn claims(&mut self, now: Time, (device, session): (u32, u64), address: SocketAddr, bytes: usize) {
        self.claims.insert(address, device);
        let device = self.devices.entry(device).or_insert_with(|| Device {
            since: now,
            received_bytes: 0,
            sent_bytes: 0,
            sessions: BTreeSet::new(),
            last: None,
            changes: 0,
        });
        device.received_bytes += bytes as u64;
        device.sessions.insert(session);
    }

    /// The gateway sends to some address.
    pub(super) fn sent(&mut self, now: Time, to: SocketAddr, bytes: usize) -> Result<(), Violation> {
        let Some(&claimant) = self.claims.get(&to) else { return Ok(()) };
        let Some(device) = self.devices.get_mut(&claimant) else { return Ok(()) };
        device.sent_bytes += bytes as u64;
        device.changes += u32::from(device.last.replace(to) != Some(to));
        let pauses = (now - device.since).as_nanos() / CHANGE_PAUSE.as_nanos();
        if self.counts_changes && device.changes > CHANGES_BURST * device.sessions.len() as u32 + pauses as u32 {
            let what =
                format!("device {claimant} has changed its address {} times since {} s", device.changes, device.since);
            return Err(Violation::new("moves", what));
        }
        let forgiven = 1 + (now - device.since).as_nanos() / FORGIVEN_AFTER.as_nanos();
        let free_bytes = device.sessions.len() as u64 * forgiven as u64 * DATAGRAM_BYTES_MAX;
        if device.sent_bytes <= AMPLIFICATION_MAX * device.received_bytes + free_bytes {
            return Ok(());
        }
        let Device { sent_bytes, received_bytes, .. } = device;
        let what =
            format!("{sent_bytes} bytes went where device {claimant} claims to be, {received_bytes} came from there");
        Err(Violation::new("moves", what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::default() + Duration::from_millis(ms)
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 19, 128, 1], port))
    }

    #[test]
    fn what_goes_to_claimed_addresses_is_covered_by_what_came_from_there() {
        let mut moves = Moves::default();
        (0..2).for_each(|port| moves.claims(at(0), (3, 1), address(port), 100));
        assert!(moves.sent(at(0), address(0), 1200).is_ok());
        assert!(moves.sent(at(0), address(1), 872).is_ok() && moves.sent(at(0), address(1), 1).is_err());
        assert!(moves.sent(at(0), address(7), 1 << 20).is_ok(), "nobody claims that");
    }

    #[test]
    fn a_connection_changes_its_address_a_few_times_a_second() {
        let mut moves = Moves { counts_changes: true, ..Moves::default() };
        (0..20).for_each(|port| moves.claims(at(0), (3, 1), address(port), 1200));
        let mut sent = |ms, port| moves.sent(at(ms), address(port), 1).is_ok();
        assert!((0..6).all(|port| sent(0, port)) && sent(0, 5));
        assert!(sent(500, 6) && !sent(500, 7));
    }
}
