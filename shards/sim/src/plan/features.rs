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
    /// The kernel hands on super-packets of UDP and checksums to be completed; clients send fragments and damaged packets.
    Frames,
    /// Strangers flood the gateway with handshakes that come to nothing.
    Floods,
    /// Links have a rate, and a queue that fills.
    Queues,
    /// What links carry at most changes.
    PathChanges,
    /// Bits of datagrams flip on links.
    Corruption,
    /// Links carry nothing for a while, one way or both.
    Blackouts,
    /// Many clients lose the gateway at once, one way or both.
    Partitions,
    /// Links differ by direction.
    Asymmetry,
    /// TCP connections.
    Tcp,
    /// Shards have little memory.
    Memory,
    /// Around each shard is the shell's core, over a kernel whose buffers fill and whose descriptors break.
    Shell,
    /// Clients cheat their own QUIC.
    Cheats,
    /// Clients take nothing any more, while packets for them go on.
    Stalls,
    /// Clients send inner packets of every kind that must not arrive.
    Malformed,
    /// The gateway has several addresses outside, and those of some clients are of IPv6.
    OuterAddresses,
    /// Clients share outer addresses, and NATs give them each other's ports.
    Nats,
    /// Cores stop for a while, one or all of them.
    Pauses,
    /// Clocks of shards differ, stand still and leap.
    Clocks,
    /// Strangers at one address have the gateway begin handshakes that fail, one after the other.
    Failures,
    /// Clients take apart what they have to say in their handshakes, and go on with it.
    Crumbs,
    /// Packets that are too large for their clients come in numbers, and some may be fragmented.
    Large,
    /// Somebody beside the path answers clients' first packets with Version Negotiation.
    Negotiation,
    /// The kernel refuses to send for a while, as where a firewall or a route is in the way.
    Refusals,
    /// The gateway serves Noise beside TLS, and some clients have keys instead of certificates.
    Noise,
    /// At the end the gateway stops, instead of its clients leaving it.
    Stop,
    /// Users change while they log in.
    Races,
    /// TCP connections of the calm carry megabytes.
    Bulk,
    /// Clients that cheat feign to be elsewhere.
    Feints,
    /// Reloads come from the text of configuration files, some of which are wrong.
    Files,
    /// Connection IDs have another layout: longer, or with a balancer's server ID.
    Layouts,
    /// The gateway drains, and takes clients again.
    Drain,
    /// A second process takes over from the first one, and either may be killed.
    Upgrade,
    /// Sessions end at deadlines, and some certificates do.
    Expiry,
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
pub struct Features(u64);

impl Features {
    pub const ALL: Features = Features(u64::MAX);
    /// Those that there were when `tests/facts.txt` was recorded.
    pub const RECORDED: Features = Features((1 << Feature::Forgery as u64) - 1);

    /// Exactly `features`.
    pub fn of(features: &[Feature]) -> Self {
        Features(features.iter().fold(0, |bits, &feature| bits | 1 << feature as u64))
    }

    /// Whether `feature` is among them.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u64 != 0
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

    /// These and `others`.
    #[must_use]
    pub fn or(self, others: Features) -> Self {
        Features(self.0 | others.0)
    }

    /// These without what cannot happen beside. While the gateway is upgraded, none of its shards dies alone, and it does not stop by order.
    /// The shell's mesh loses what finds no room, its cores stop together and have one clock, and its sockets one address. Without the shell nobody
    /// asks the kernel to send.
    #[must_use]
    pub(super) fn possible(self) -> Self {
        if self.has(Feature::Upgrade) {
            self.without(&[Feature::Shell, Feature::Refusals, Feature::Restart, Feature::Stop])
        } else if self.has(Feature::Shell) {
            self.without(&[Feature::MeshLoss, Feature::OuterAddresses, Feature::Pauses, Feature::Clocks])
        } else {
            self.without(&[Feature::Refusals])
        }
    }

    /// The names of the features, as on the command line.
    pub fn names(self) -> Vec<String> {
        Feature::all().filter(|&feature| self.has(feature)).map(Feature::name).collect()
    }
}

/// How often a feature is on, of a thousand runs.
pub(super) fn chance(feature: Feature) -> u32 {
    match feature {
        Feature::Memory | Feature::Large | Feature::Noise | Feature::Stop | Feature::Drain => 150,
        Feature::Failures | Feature::Crumbs | Feature::Negotiation => 60,
        Feature::Floods | Feature::Cheats | Feature::Stalls | Feature::Malformed | Feature::Feints => 120,
        Feature::Bulk => 120,
        Feature::Shell | Feature::Races | Feature::Layouts => 200,
        Feature::Upgrade | Feature::Expiry => 150,
        Feature::Tcp => 300,
        Feature::Ipv6 | Feature::Scarcity | Feature::Oversize | Feature::Strangers => 250,
        Feature::Queues | Feature::Corruption | Feature::PathChanges => 250,
        Feature::Files | Feature::OuterAddresses | Feature::Nats | Feature::Pauses | Feature::Clocks => 250,
        Feature::Blackouts | Feature::Partitions | Feature::Asymmetry => 250,
        Feature::MeshDelay | Feature::Limits => 700,
        _ => 500,
    }
}
