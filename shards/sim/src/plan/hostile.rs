//! What hostile actors may spend, and when.

use std::time::Duration;

use tollgate_shards::User;

use super::{DevicePlan, Feature, LinkPlan, Plan};

/// Somebody means harm.
pub(super) const HARM: [Feature; 6] =
    [Feature::Floods, Feature::Cheats, Feature::Stalls, Feature::Malformed, Feature::Failures, Feature::Crumbs];
/// Those of them that come after what was recorded: a plan without them is as it was before there were any.
pub(super) const LATER_HARM: [Feature; 2] = [Feature::Failures, Feature::Crumbs];
/// What makes no difference to how much arrives.
pub(super) const QUIET: [Feature; 6] =
    [Feature::Jitter, Feature::MeshDelay, Feature::Ipv6, Feature::Pools, Feature::Peers, Feature::Ticks];
/// How long a flood goes on, at most.
const FLOOD_MAX: Duration = Duration::from_secs(3);
/// How long a device cheats, at most.
const CHEAT_MAX: Duration = Duration::from_secs(4);

/// A flood of datagrams from strangers.
#[derive(Debug, Clone, Copy)]
pub struct FloodPlan {
    pub from: Duration,
    pub until: Duration,
    /// Time between its bursts.
    pub every: Duration,
    /// Datagrams at once, at most.
    pub burst: u64,
}

impl Plan {
    pub(super) fn draw_flood(&mut self) {
        let mut random = self.draws.stream("plan.floods");
        let datagrams_per_s = random.log_uniform(200, 4000);
        let burst = random.log_uniform(8, 4000);
        let from = random.duration(Duration::ZERO, self.safety / 2);
        let until = from + random.log_duration(Duration::from_millis(200), FLOOD_MAX);
        // A burst is half of the most on average.
        let every = Duration::from_secs(1) * (burst as u32).div_ceil(2) / datagrams_per_s as u32;
        self.flood = Some(FloodPlan { from, until, every, burst });
    }
}

/// Handshakes from one address that fail.
#[derive(Debug, Clone, Copy)]
pub struct FailuresPlan {
    pub from: Duration,
    pub until: Duration,
    /// Time between its bursts.
    pub every: Duration,
    /// Handshakes at once, at most.
    pub burst: u64,
    /// Of a thousand of them, so many are begun as they should be, and not gone on with.
    pub whole_permille: u32,
    /// How often each first packet with a token is sent.
    pub times: u64,
}

impl Plan {
    pub(super) fn draw_failures(&mut self) {
        let mut random = self.draws.stream("plan.failures");
        let (handshakes_per_s, burst) = (random.log_uniform(200, 800), random.log_uniform(4, 64));
        let from = random.duration(Duration::ZERO, self.safety / 2);
        let until = from + random.log_duration(Duration::from_secs(1), FLOOD_MAX);
        self.failures = Some(FailuresPlan {
            from,
            until,
            every: Duration::from_secs(1) * (burst as u32).div_ceil(2) / handshakes_per_s as u32,
            burst,
            whole_permille: random.log_uniform(10, 200) as u32,
            times: random.between(1, 4),
        });
    }
}

/// Packets for clients whose paths carry less.
#[derive(Debug, Clone, Copy)]
pub struct LargePlan {
    /// Time between bursts of them, about.
    pub every: Duration,
    /// Packets at once, at most.
    pub burst: u64,
    /// Bursts of packets that may be fragmented, of a thousand.
    pub fragmentable_permille: u32,
    /// Bursts between clients, of a thousand.
    pub relayed_permille: u32,
}

impl Plan {
    pub(super) fn draw_large(&mut self) {
        let mut random = self.draws.stream("plan.large");
        self.large = Some(LargePlan {
            every: random.log_duration(Duration::from_secs(1), Duration::from_secs(10)),
            burst: random.log_uniform(16, 4000),
            fragmentable_permille: if self.tunnel.addr().is_ipv4() { random.between(0, 1001) as u32 } else { 0 },
            relayed_permille: if self.features.has(Feature::Peers) { random.between(0, 501) as u32 } else { 0 },
        });
    }
}

/// What a device does that means harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cheat {
    /// It sends QUIC frames that no honest client does, in numbers, and sometimes from addresses that are not its own.
    Frames,
    /// It acknowledges nothing, while packets for it go on.
    NeverAcknowledges,
    /// It vanishes without a word, while packets for it go on.
    Vanishes,
    /// It sends inner packets of every kind that must not arrive.
    Forges,
    /// It goes on with its handshake, in pieces.
    Crumbles,
    /// It challenges the gateway from an address that is not its own, and is back at the next moment.
    Feigns,
    /// It sends from one address after the other that is not its own, enough to be believed.
    Wanders,
}

/// A device that means harm, and what it may spend.
#[derive(Debug, Clone, Copy)]
pub struct CheatPlan {
    pub cheat: Cheat,
    pub from: Duration,
    pub until: Duration,
    pub every: Duration,
    /// Packets at once, at most.
    pub burst: u64,
}

impl Plan {
    /// Users of their own who mean harm, each with a device.
    pub(super) fn draw_cheats(&mut self) {
        const CHEATS: [(Feature, Cheat); 7] = [
            (Feature::Cheats, Cheat::Frames),
            (Feature::Stalls, Cheat::NeverAcknowledges),
            (Feature::Stalls, Cheat::Vanishes),
            (Feature::Malformed, Cheat::Forges),
            (Feature::Crumbs, Cheat::Crumbles),
            (Feature::Feints, Cheat::Feigns),
            (Feature::Feints, Cheat::Wanders),
        ];
        if !CHEATS.iter().any(|&(feature, _)| self.features.has(feature)) {
            return;
        }
        let mut random = self.draws.stream("plan.cheats");
        for (feature, cheat) in CHEATS {
            let (from, packets_per_s) =
                (random.duration(Duration::ZERO, self.safety / 2), random.log_uniform(200, 2000));
            let (lasts, burst) = (random.log_duration(Duration::from_secs(1), CHEAT_MAX), random.log_uniform(8, 64));
            let link = LinkPlan {
                delay: random.log_duration(Duration::from_micros(50), Duration::from_millis(50)),
                ..LinkPlan::default()
            };
            if !self.features.has(feature) {
                continue;
            }
            let every = Duration::from_secs(1) * (burst as u32).div_ceil(2) / packets_per_s as u32;
            let user = self.users.len();
            self.users.push(User { name: format!("cheat{user}"), ..User::default() });
            let identity = self.devices.len() as u64;
            self.devices.push(DevicePlan {
                pause: Duration::from_millis(500),
                cheats: Some(CheatPlan { cheat, from, until: from + lasts, every, burst }),
                ..DevicePlan::steady(user, identity, link)
            });
        }
        self.certify();
    }

    /// Whether somebody means harm and all else is quiet: then others must not suffer.
    pub fn is_otherwise_quiet(&self) -> bool {
        let quiet = [&HARM[..], &QUIET[..]].concat();
        HARM.iter().any(|&feature| self.features.has(feature))
            && Feature::all().all(|feature| quiet.contains(&feature) || !self.features.has(feature))
    }

    /// The same without those who mean harm.
    #[must_use]
    pub fn without_harm(&self) -> Plan {
        let mut plan = Plan { flood: None, failures: None, ..self.clone() };
        for device in plan.devices.iter_mut().filter(|device| device.cheats.is_some()) {
            device.is_left_out = true;
        }
        plan
    }
}
