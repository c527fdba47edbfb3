//! What may happen in a run, or not.

use clap::ValueEnum;

/// Something that may happen in a run, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[repr(u32)]
pub enum Feature {
    /// Links lose datagrams.
    Loss,
    /// Links' delays vary.
    Jitter,
    /// Links deliver datagrams twice.
    Duplication,
    /// Links deliver datagrams out of order.
    Reordering,
    /// Links mark datagrams with "congestion experienced".
    Congestion,
    /// Clients' outer addresses and ports change.
    Rebinding,
    /// The kernel gives datagrams and frames to the wrong shards.
    Misrouting,
    /// Messages between shards take time.
    MeshDelay,
    /// Messages between shards that may be lost are.
    MeshLoss,
    /// Users have rates.
    Limits,
    /// Users have addresses of their own.
    Pools,
    /// Users have as many connections as allowed and no more.
    ConnectionLimits,
    /// The tunnel network has hardly more addresses than there are clients.
    Scarcity,
    /// The tunnel network is of IPv6.
    Ipv6,
    /// Clients talk to each other.
    Peers,
    /// Traffic comes in bursts.
    Bursts,
    /// Packets are too large.
    Oversize,
    /// Clients say goodbye and come back.
    Close,
    /// Clients vanish without a word and come back.
    Vanish,
    /// Time goes by in large steps, so that batches are large.
    Ticks,
    /// The users, and what may change with them, are replaced.
    Reload,
    /// Users are kicked.
    Kick,
    /// Shards die and are started anew.
    Restart,
    /// Clients send from addresses that are not theirs, and to addresses that lead nowhere.
    Forgery,
    /// Shards have room for few connections and handshakes.
    Bounds,
    /// Strangers send datagrams that they made up or overheard.
    Strangers,
}

impl Feature {
    pub fn all() -> impl Iterator<Item = Feature> {
        Feature::value_variants().iter().copied()
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_owned()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    pub const ALL: Features = Features(u32::MAX);

    /// Exactly `features`.
    pub fn of(features: &[Feature]) -> Self {
        Features(features.iter().fold(0, |bits, &feature| bits | 1 << feature as u32))
    }

    /// Whether `feature` is among them.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u32 != 0
    }

    /// These but `features`.
    #[must_use]
    pub fn without(self, features: &[Feature]) -> Self {
        Features(self.0 & !Features::of(features).0)
    }

    /// Those of these that are among `others`.
    #[must_use]
    pub fn and(self, others: Features) -> Self {
        Features(self.0 & others.0)
    }

    /// The names of the features, as on the command line.
    pub fn names(self) -> Vec<String> {
        Feature::all().filter(|&feature| self.has(feature)).map(Feature::name).collect()
    }
}

/// How often a feature is on, of a thousand runs.
pub(super) fn chance(feature: Feature) -> u32 {
    match feature {
        Feature::Ipv6 | Feature::Scarcity | Feature::Oversize | Feature::Strangers => 250,
        Feature::MeshDelay | Feature::Limits => 700,
        _ => 500,
    }
}
