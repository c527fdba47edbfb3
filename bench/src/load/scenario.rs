//! What a load shall be: users, their connections, their traffic, and what happens to them meanwhile.
//!
//! Scenarios are TOML files, read by serde; experiments make them in code.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, de};
use tollgate_config::rate;

use super::flow::TRAIN_PACKETS_MAX;
use super::logins::Handshake;
use super::message::INNER_BYTES_MIN;
use crate::deploy::GatewayPlan;

/// The network of their outer addresses has room for so many, and for rebinding.
pub const CONNECTIONS_MAX: u32 = 16_000;
/// Both ends keep some kilobytes for each.
const FLOWS_MAX: u64 = 120_000;
const CONNECTION_FLOWS_MAX: u16 = 64;
const GROUPS_MAX: usize = 32;
const DURATION_MAX: Duration = Duration::from_secs(6 * 86_400);

/// A whole load. `bench/README.md` says what the keys mean, `bench/scenarios/` has examples.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// The file's name, without its ending.
    #[serde(skip)]
    pub name: String,
    /// After every connection is up.
    #[serde(deserialize_with = "duration")]
    pub duration: Duration,
    pub gateway: GatewayPlan,
    pub users: UserPlan,
    pub ramp: RampPlan,
    pub harness: HarnessPlan,
    pub trouble: Impairment,
    pub traffic: Vec<TrafficPlan>,
    pub demand: Demands,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserPlan {
    pub count: u32,
    pub connections: u32,
    pub absent: u32,
    pub handshake: Handshake,
    /// As users files have it (`80 mbps`).
    pub limit: Option<String>,
    #[serde(deserialize_with = "duration")]
    pub keep_alive: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RampPlan {
    pub handshakes_max: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HarnessPlan {
    pub threads: u16,
    /// Empty for those that the gateway leaves.
    pub cpus: Vec<usize>,
    pub seed: u64,
}

/// What happens to connections while traffic runs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Impairment {
    pub churn_per_second: f64,
    pub churn_idle_only: bool,
    pub loss: f64,
    pub rebinds_per_second: f64,
}

/// A group of traffic; a connection belongs to at most one. Connections beyond those that groups ask for are idle.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrafficPlan {
    pub name: String,
    pub kind: TrafficKind,
    /// In a file 0 stands for all that are left.
    pub connections: u32,
    /// Of each connection, each with its own port.
    pub flows: u16,
    pub direction: Direction,
    pub size: Size,
    pub rate: f64,
    pub train: u16,
    pub window_bytes: u32,
    pub answer_bytes: Option<u16>,
}

/// When packets are sent, in each direction of each flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficKind {
    /// As many as the window lets: the receiver acknowledges.
    Bulk,
    /// At an even rate, whatever becomes of them.
    #[default]
    Constant,
    /// Requests at an even rate, each answered. Round trips are counted from when a request was due.
    Request,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From clients to the network behind the gateway.
    Up,
    /// From there to clients.
    Down,
    #[default]
    Both,
}

impl Direction {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Up => "up",
            Direction::Down => "down",
            Direction::Both => "both ways",
        }
    }
}

/// Lengths of inner packets in bytes, IP header included.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "\"mtu\", \"imix\", a number of bytes, or numbers of bytes in turn: [100, 100, 1400]")]
pub enum Size {
    Named(SizeName),
    Fixed(u16),
    InTurn(Vec<u16>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeName {
    Mtu,
    /// The "simple IMIX", mixed: 7 of 64 bytes, 4 of 576, 1 of the MTU.
    Imix,
}

impl Size {
    pub fn lengths(&self, mtu_bytes: u16) -> Vec<u16> {
        match self {
            Size::Named(SizeName::Mtu) => vec![mtu_bytes],
            Size::Named(SizeName::Imix) => vec![64, 576, 64, 64, 576, 64, mtu_bytes, 64, 576, 64, 576, 64],
            Size::Fixed(bytes) => vec![*bytes],
            Size::InTurn(lengths) => lengths.clone(),
        }
    }
}

impl Default for Size {
    fn default() -> Self {
        Size::Named(SizeName::Mtu)
    }
}

/// What must hold, beside the accounts and an undamaged order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Demands {
    /// `None` for no losses where nothing makes them, else no bound.
    pub loss_max: Option<f64>,
    pub bytes_per_churned_connection_max: Option<f64>,
    pub descriptors_growth_max: Option<u64>,
    pub all_connected: bool,
}

impl Scenario {
    /// One connection each of `users`, for `duration`, without traffic. Losses are counted and not forbidden.
    pub fn new(name: &str, users: u32, duration: Duration) -> Scenario {
        Scenario {
            name: name.to_owned(),
            duration,
            users: UserPlan { count: users, ..UserPlan::default() },
            demand: Demands { loss_max: Some(1.0), ..Demands::default() },
            ..Scenario::default()
        }
    }

    /// Reads the scenario in the file `path`.
    pub fn load(path: &Path) -> Result<Scenario> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut scenario = Scenario::parse(&text).with_context(|| path.display().to_string())?;
        scenario.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(scenario)
    }

    fn parse(text: &str) -> Result<Scenario> {
        let mut scenario: Scenario = toml::from_str(text)?;
        let mut left = scenario.connections();
        for plan in &mut scenario.traffic {
            if plan.connections == 0 {
                plan.connections = left;
            }
            left = left.saturating_sub(plan.connections);
            if plan.name.is_empty() {
                plan.name = format!("{:?}", plan.kind).to_lowercase();
            }
        }
        scenario.check()?;
        Ok(scenario)
    }

    /// Connections in all.
    pub fn connections(&self) -> u32 {
        self.users.count.saturating_mul(self.users.connections)
    }

    /// Inner MTU in bytes.
    pub fn mtu_bytes(&self) -> u16 {
        self.gateway.mtu_bytes
    }

    /// The share of packets that may be lost; `None` for no bound.
    pub fn loss_max(&self) -> Option<f64> {
        let Impairment { churn_per_second, loss, rebinds_per_second, .. } = self.trouble;
        let is_calm = churn_per_second + loss + rebinds_per_second == 0.0 && self.users.limit.is_none();
        self.demand.loss_max.or(is_calm.then_some(0.0))
    }

    /// Adds a group of `connections` with a flow each that offers `bits_per_second` in all, both ways together, in trains of so many full packets.
    pub fn add_constant(&mut self, name: &str, connections: u32, bits_per_second: f64, train: u16) {
        let packet_bits = f64::from(self.mtu_bytes()) * 8.0;
        let rate = bits_per_second / packet_bits / (2.0 * f64::from(connections));
        self.traffic.push(TrafficPlan { rate, train, ..TrafficPlan::new(name, connections, TrafficKind::Constant) });
    }

    /// All bounds. Whether CPUs exist is for the run to find out.
    fn check(&self) -> Result<()> {
        let connections = self.connections();
        ensure!(
            (1..=CONNECTIONS_MAX).contains(&connections),
            "`users`: {connections} connections, but 1 to {CONNECTIONS_MAX} are possible"
        );
        ensure!((1..=DURATION_MAX.as_secs()).contains(&self.duration.as_secs()), "`duration` is not 1 s to 6 d");
        if let Some(limit) = &self.users.limit
            && let Err(what) = rate(limit)
        {
            bail!("`users.limit` is {limit:?}, {what}");
        }
        ensure!(
            self.users.keep_alive < self.gateway.idle_timeout,
            "`users.keep_alive` must be shorter than `gateway.idle_timeout`, or the gateway gives silent connections up"
        );
        ensure!((1..=64).contains(&self.harness.threads), "`harness.threads` is not 1 to 64");
        ensure!(u32::from(self.harness.threads) <= connections, "`harness.threads`: more threads than connections");
        ensure!((0.0..=0.5).contains(&self.trouble.loss), "`trouble.loss` is a share, 0 to 0.5");
        ensure!(self.traffic.len() <= GROUPS_MAX, "`traffic`: at most {GROUPS_MAX} groups are possible");
        let wanted: u64 = self.traffic.iter().map(|plan| u64::from(plan.connections)).sum();
        ensure!(
            wanted <= u64::from(connections) && self.traffic.iter().all(|plan| plan.connections > 0),
            "`traffic`: groups ask for {wanted} connections or one for none, of {connections}"
        );
        let flows: u64 = self.traffic.iter().map(|plan| u64::from(plan.connections) * u64::from(plan.flows)).sum();
        ensure!(flows <= FLOWS_MAX, "`traffic`: {flows} flows in all, but at most {FLOWS_MAX} are possible");
        let check =
            |plan: &TrafficPlan| plan.check(self.mtu_bytes()).with_context(|| format!("`traffic` {}", plan.name));
        self.traffic.iter().try_for_each(check)
    }
}

impl TrafficPlan {
    /// A group of connections with one flow each, of full packets both ways.
    pub fn new(name: &str, connections: u32, kind: TrafficKind) -> TrafficPlan {
        TrafficPlan { name: name.to_owned(), connections, kind, ..TrafficPlan::default() }
    }

    fn check(&self, mtu_bytes: u16) -> Result<()> {
        let lengths = self.size.lengths(mtu_bytes);
        let fits = |bytes: &u16| (INNER_BYTES_MIN..=mtu_bytes).contains(bytes);
        ensure!(
            !lengths.is_empty() && lengths.iter().chain(&self.answer_bytes).all(fits),
            "`size` and `answer_bytes` are {INNER_BYTES_MIN}, which the headers take, to {mtu_bytes}, the MTU"
        );
        ensure!((1..=CONNECTION_FLOWS_MAX).contains(&self.flows), "`flows` is not 1 to {CONNECTION_FLOWS_MAX}");
        ensure!((1..=TRAIN_PACKETS_MAX).contains(&self.train), "`train` is not 1 to {TRAIN_PACKETS_MAX}");
        ensure!((65_536..=1 << 30).contains(&self.window_bytes), "`window_bytes` is not 65536 to 1073741824");
        if self.kind == TrafficKind::Bulk {
            ensure!(self.rate == 0.0, "`rate` means nothing for bulk: `window_bytes` bounds it");
        } else {
            ensure!((0.001..=1e7).contains(&self.rate), "`rate` is not 0.001 to 10,000,000 a second");
        }
        let is_request = self.kind == TrafficKind::Request;
        ensure!(!is_request || self.direction == Direction::Both, "`direction`: requests go up and answers down");
        Ok(())
    }
}

impl Default for UserPlan {
    fn default() -> Self {
        UserPlan {
            count: 0,
            connections: 1,
            absent: 0,
            handshake: Handshake::default(),
            limit: None,
            keep_alive: Duration::from_secs(10),
        }
    }
}

impl Default for TrafficPlan {
    fn default() -> Self {
        TrafficPlan {
            name: String::new(),
            kind: TrafficKind::default(),
            connections: 0,
            flows: 1,
            direction: Direction::Both,
            size: Size::default(),
            rate: 0.0,
            train: 1,
            window_bytes: 262_144,
            answer_bytes: None,
        }
    }
}

impl Default for RampPlan {
    fn default() -> Self {
        RampPlan { handshakes_max: 64 }
    }
}

impl Default for HarnessPlan {
    fn default() -> Self {
        HarnessPlan { threads: 1, cpus: Vec::new(), seed: 1 }
    }
}

impl Default for Demands {
    fn default() -> Self {
        Demands {
            loss_max: None,
            bytes_per_churned_connection_max: None,
            descriptors_growth_max: None,
            all_connected: true,
        }
    }
}

/// A length of time as text: `500 ms`, `20 s`, `5 min`, `8 h`, `6 d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write a number and ms, s, min, h or d, for example \"20 s\"");
    let (number, unit) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let units = [("ms", 0.001), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86_400.0)];
    let (_, seconds) = units.into_iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds).ok().filter(|duration| !duration.is_zero()).ok_or_else(wrong)
}

/// For serde.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_a_scenario() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios"));
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let scenarios: Vec<Scenario> = files.map(|path| Scenario::load(&path).unwrap()).collect();
        assert!(scenarios.len() >= 8);
    }

    #[test]
    fn what_a_file_does_not_say_has_its_default() {
        let scenario = Scenario::parse(
            "duration = \"2 min\"\n[users]\ncount = 10\n[gateway]\nmtu = 1300\n[[traffic]]\nkind = \"constant\"\nrate = 2.5\n\
             connections = 4\nsize = \"imix\"\n[[traffic]]\nkind = \"bulk\"\n",
        )
        .unwrap();
        let [calls, bulk] = &scenario.traffic[..] else { panic!() };
        assert_eq!((scenario.duration.as_secs(), scenario.loss_max()), (120, Some(0.0)));
        assert_eq!((calls.size.lengths(1300)[6], calls.connections, bulk.connections), (1300, 4, 6));
        assert_eq!((&*bulk.name, bulk.window_bytes, bulk.size.lengths(1300)), ("bulk", 262_144, vec![1300]));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        let start = "duration = \"1 s\"\n[users]\ncount = 2\n";
        for (text, told) in [
            ("duration = \"1 week\"\n[users]\ncount = 2\n", "write a number and ms"),
            ("duration = \"500 ms\"\n[users]\ncount = 2\n", "`duration` is not 1 s to 6 d"),
            ("duration = \"1 s\"\n[users]\ncount = 20000\n", "20000 connections"),
            (&format!("{start}limit = \"much\"\n"), "`users.limit`"),
            (&format!("{start}colour = 1\n"), "unknown field `colour`"),
            (&format!("{start}keep_alive = \"60 s\"\n"), "`users.keep_alive`"),
            (&format!("{start}[trouble]\nloss = 0.9\n"), "`trouble.loss`"),
            (&format!("{start}[[traffic]]\nkind = \"bulk\"\nrate = 1.0\n"), "`rate`"),
            (&format!("{start}[[traffic]]\nkind = \"bulk\"\nconnections = 3\n"), "ask for 3 connections"),
            (&format!("{start}[[traffic]]\nkind = \"bulk\"\nsize = 9000\n"), "1400, the MTU"),
            (&format!("{start}[[traffic]]\nkind = \"bulk\"\nsize = \"big\"\n"), "\"imix\", a number of bytes"),
        ] {
            let error = format!("{:#}", Scenario::parse(text).unwrap_err());
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
