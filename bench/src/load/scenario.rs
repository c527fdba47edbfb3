//! What a load shall be: users, their connections, their traffic, and what happens to them meanwhile.
//!
//! Scenarios are TOML files, read by serde; experiments make them in code.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, de};
use tollgate_config::rate;

use super::flow::sizes::{INNER_BYTES_MIN, SizeCycle};
use super::flow::source::{RATE_MAX, TRAIN_PACKETS_MAX};
use super::generator::CLIENT_FLOWS_MAX;
use crate::deploy::GatewayPlan;

/// Most connections of a scenario: the network of their outer addresses has room for these and for rebinding.
pub const CONNECTIONS_MAX: u32 = 16_000;
/// Most flows of all connections together: both ends keep some kilobytes for each.
const FLOWS_MAX: u64 = 120_000;
const GROUPS_MAX: usize = 32;
const DURATION_MAX: Duration = Duration::from_secs(6 * 86_400);
const WINDOW_BYTES_DEFAULT: u32 = 262_144;

/// A whole load. See `bench/scenarios/` for files, `bench/README.md` for their keys.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name, without its ending.
    #[serde(skip)]
    pub name: String,
    /// How long traffic runs, after every connection is up.
    #[serde(deserialize_with = "duration")]
    pub duration: Duration,
    #[serde(default)]
    pub gateway: GatewayPlan,
    pub users: UserPlan,
    #[serde(default)]
    pub ramp: RampPlan,
    #[serde(default)]
    pub harness: HarnessPlan,
    #[serde(default)]
    pub trouble: Impairment,
    /// Groups of traffic; a connection belongs to at most one. Connections beyond those that groups ask for are idle.
    #[serde(default)]
    pub traffic: Vec<TrafficPlan>,
    #[serde(default)]
    pub demand: Demands,
}

/// Users and their connections.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserPlan {
    /// Users who connect.
    pub count: u32,
    /// Connections of each.
    #[serde(default = "one")]
    pub connections: u32,
    /// Users in the gateway's file who never connect.
    #[serde(default)]
    pub absent: u32,
    /// The bandwidth limit of each, as users files have it (`80 mbps`).
    pub limit: Option<String>,
    /// How often a silent client says that it is there.
    #[serde(default = "ten_seconds", deserialize_with = "duration")]
    pub keep_alive: Duration,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RampPlan {
    /// New connections a second; `None` for as fast as they come.
    pub per_second: Option<f64>,
    /// Handshakes in progress at once, at most.
    pub handshakes_max: u32,
}

/// The load generator.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HarnessPlan {
    /// Threads for clients.
    pub threads: u16,
    /// CPUs for all threads of the harness; empty for those that the gateway leaves.
    pub cpus: Vec<usize>,
    /// All that is drawn by chance (losses, churn, who gets which traffic) follows from this.
    pub seed: u64,
}

/// What happens to connections while traffic runs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Impairment {
    /// Connections that end and are made anew, a second, over all clients.
    pub churn_per_second: f64,
    /// Whether that happens only to idle connections.
    pub churn_idle_only: bool,
    /// The share of outer datagrams that are lost on purpose, each way.
    pub loss: f64,
    /// Outer addresses that change, a second, over all clients.
    pub rebinds_per_second: f64,
}

/// A group of traffic.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "TrafficTable")]
pub struct TrafficPlan {
    pub name: String,
    /// Connections with this traffic; in a file that says nothing, all that are left.
    pub connections: u32,
    /// Flows of each connection, each with its own port.
    pub flows: u16,
    pub kind: TrafficKind,
    /// Of [`TrafficKind::Request`], requests go up and answers down.
    pub direction: Direction,
    /// Lengths of inner packets in bytes, IP header included, each with its weight; none for the MTU.
    pub sizes: Vec<(u16, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From clients to the network behind the gateway.
    Up,
    /// From there to clients.
    Down,
    Both,
}

/// When packets are sent, in each direction of each flow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TrafficKind {
    /// As many as the window lets: the receiver acknowledges, and this much may be on the way.
    Bulk { window_bytes: u32 },
    /// At an even rate, whatever becomes of them. So many fall due together, as from a sender that leaves segmentation to the kernel.
    Constant { packets_per_second: f64, train_packets: u16 },
    /// Requests at an even rate, each answered. Round trips are counted from when a request was due.
    Request { requests_per_second: f64, answer_bytes: Option<u16> },
}

/// `[[traffic]]` as it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrafficTable {
    name: Option<String>,
    kind: KindName,
    connections: Option<u32>,
    flows: Option<u16>,
    direction: Option<Direction>,
    size: Option<SizeSetting>,
    rate: Option<f64>,
    train: Option<u16>,
    window_bytes: Option<u32>,
    answer_bytes: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindName {
    Bulk,
    Constant,
    Request,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "\"imix\", a number of bytes, or numbers of bytes with their weights: [[100, 7], [1400, 1]]"
)]
enum SizeSetting {
    Mix(Imix),
    Fixed(u16),
    Weighted(Vec<(u16, u32)>),
}

#[derive(Deserialize)]
enum Imix {
    #[serde(rename = "imix")]
    Simple,
}

/// What must hold, beside the accounts and an undamaged order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Demands {
    /// The share of packets that may be lost, counted drops included; `None` for none where nothing makes losses, else no bound.
    pub loss_max: Option<f64>,
    /// Growth of the gateway's memory for each connection that came and went, in bytes.
    pub bytes_per_churned_connection_max: Option<f64>,
    /// Whether every connection must come up and stay.
    pub all_connected: bool,
}

impl Scenario {
    /// One connection each of `users`, for `duration`, without traffic.
    pub fn new(name: &str, users: u32, duration: Duration) -> Scenario {
        Scenario {
            name: name.to_owned(),
            duration,
            gateway: GatewayPlan::default(),
            users: UserPlan { count: users, connections: 1, absent: 0, limit: None, keep_alive: ten_seconds() },
            ramp: RampPlan::default(),
            harness: HarnessPlan::default(),
            trouble: Impairment::default(),
            traffic: Vec::new(),
            demand: Demands::default(),
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
        scenario.complete();
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

    /// Fills in what depends on the rest of the file.
    fn complete(&mut self) {
        let (mut left, mtu_bytes) = (self.connections(), self.mtu_bytes());
        for plan in &mut self.traffic {
            if plan.connections == 0 {
                plan.connections = left;
            }
            left = left.saturating_sub(plan.connections);
            for (bytes, _) in &mut plan.sizes {
                *bytes = if *bytes == 0 { mtu_bytes } else { *bytes };
            }
        }
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
        self.traffic
            .iter()
            .try_for_each(|plan| plan.check(self.mtu_bytes()).with_context(|| format!("`traffic` {}", plan.name)))
    }
}

impl TrafficPlan {
    /// The "simple IMIX": 7 small, 4 medium, 1 large. The large one is the tunnel's MTU.
    pub fn imix(mtu_bytes: u16) -> Vec<(u16, u32)> {
        vec![(64, 7), (576, 4), (mtu_bytes, 1)]
    }

    fn check(&self, mtu_bytes: u16) -> Result<()> {
        ensure!((1..=CLIENT_FLOWS_MAX).contains(&usize::from(self.flows)), "`flows` is not 1 to {CLIENT_FLOWS_MAX}");
        SizeCycle::new(&self.sizes).context("`size`")?;
        let longest = self.sizes.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0);
        ensure!(longest <= mtu_bytes, "`size` is {longest}, but the MTU is {mtu_bytes}");
        let rate = match self.kind {
            TrafficKind::Bulk { window_bytes } => {
                ensure!((65_536..=1 << 30).contains(&window_bytes), "`window_bytes` is not 65536 to 1073741824");
                return Ok(());
            }
            TrafficKind::Constant { packets_per_second, train_packets } => {
                ensure!((1..=TRAIN_PACKETS_MAX).contains(&train_packets), "`train` is not 1 to {TRAIN_PACKETS_MAX}");
                packets_per_second
            }
            TrafficKind::Request { requests_per_second, answer_bytes } => {
                let fits = answer_bytes.is_none_or(|bytes| (INNER_BYTES_MIN..=mtu_bytes).contains(&bytes));
                ensure!(fits, "`answer_bytes` is not {INNER_BYTES_MIN} to {mtu_bytes}");
                requests_per_second
            }
        };
        ensure!((0.001..=RATE_MAX).contains(&rate), "`rate` is not 0.001 to 10,000,000 a second");
        Ok(())
    }
}

impl TryFrom<TrafficTable> for TrafficPlan {
    type Error = String;

    fn try_from(table: TrafficTable) -> Result<Self, String> {
        let TrafficTable { name, kind, connections, flows, direction, size, rate, train, window_bytes, answer_bytes } =
            table;
        for (key, is_set, owner) in [
            ("window_bytes", window_bytes.is_some(), KindName::Bulk),
            ("train", train.is_some(), KindName::Constant),
            ("answer_bytes", answer_bytes.is_some(), KindName::Request),
        ] {
            if is_set && kind != owner {
                return Err(format!("`{key}` means nothing for this kind of traffic: remove it"));
            }
        }
        if rate.is_some() == (kind == KindName::Bulk) {
            return Err("`rate`, how many a second each flow sends, is for all traffic but bulk".to_owned());
        }
        if kind == KindName::Request && direction.is_some_and(|direction| direction != Direction::Both) {
            return Err("`direction`: requests go up and answers down".to_owned());
        }
        let rate = rate.unwrap_or_default();
        let (default_name, kind) = match kind {
            KindName::Bulk => {
                ("bulk", TrafficKind::Bulk { window_bytes: window_bytes.unwrap_or(WINDOW_BYTES_DEFAULT) })
            }
            KindName::Constant => {
                ("constant", TrafficKind::Constant { packets_per_second: rate, train_packets: train.unwrap_or(1) })
            }
            KindName::Request => ("request", TrafficKind::Request { requests_per_second: rate, answer_bytes }),
        };
        let sizes = match size {
            // 0 stands for the MTU, which is set elsewhere in the file.
            None => vec![(0, 1)],
            Some(SizeSetting::Mix(Imix::Simple)) => TrafficPlan::imix(0),
            Some(SizeSetting::Fixed(bytes)) => vec![(bytes, 1)],
            Some(SizeSetting::Weighted(weighted)) => weighted,
        };
        Ok(TrafficPlan {
            name: name.unwrap_or_else(|| default_name.to_owned()),
            connections: connections.unwrap_or(0),
            flows: flows.unwrap_or(1),
            kind,
            direction: direction.unwrap_or(Direction::Both),
            sizes,
        })
    }
}

impl Default for RampPlan {
    fn default() -> Self {
        RampPlan { per_second: None, handshakes_max: 64 }
    }
}

impl Default for HarnessPlan {
    fn default() -> Self {
        HarnessPlan { threads: 1, cpus: Vec::new(), seed: 1 }
    }
}

impl Default for Demands {
    fn default() -> Self {
        Demands { loss_max: None, bytes_per_churned_connection_max: None, all_connected: true }
    }
}

fn one() -> u32 {
    1
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

/// A length of time as text: `500 ms`, `20 s`, `5 min`, `8 h`, `6 d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write a number and ms, s, min, h or d, for example \"20 s\"");
    let (number, unit) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let seconds = match unit.trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
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

    fn refused(text: &str) -> String {
        format!("{:#}", Scenario::parse(text).unwrap_err())
    }

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
            "duration = \"500 ms\"\n[users]\ncount = 10\n[gateway]\nmtu = 1300\n[[traffic]]\nkind = \"constant\"\nrate = 2.5\n\
             connections = 4\nsize = \"imix\"\n[[traffic]]\nkind = \"bulk\"\n",
        );
        // Half a second is too short; nothing else is wrong.
        assert!(format!("{:#}", scenario.unwrap_err()).contains("`duration`"));
        let scenario = Scenario::parse(
            "duration = \"2 min\"\n[users]\ncount = 10\n[gateway]\nmtu = 1300\n[[traffic]]\nkind = \"constant\"\nrate = 2.5\n\
             connections = 4\nsize = \"imix\"\n[[traffic]]\nkind = \"bulk\"\n",
        )
        .unwrap();
        let [calls, bulk] = &scenario.traffic[..] else { panic!() };
        assert_eq!(
            (scenario.duration.as_secs(), scenario.ramp.handshakes_max, scenario.loss_max()),
            (120, 64, Some(0.0))
        );
        assert_eq!((calls.sizes[2], calls.connections, bulk.connections), ((1300, 1), 4, 6));
        assert_eq!((bulk.kind, &bulk.sizes[..]), (TrafficKind::Bulk { window_bytes: 262_144 }, &[(1300, 1)][..]));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        let users = "[users]\ncount = 2\n";
        let start = format!("duration = \"1 s\"\n{users}");
        for (text, told) in [
            (format!("duration = 1\n{users}"), "duration"),
            (format!("duration = \"1 week\"\n{users}"), "write a number and ms"),
            ("duration = \"1 s\"\n[users]\ncount = 20000\n".to_owned(), "20000 connections"),
            (format!("{start}limit = \"much\"\n"), "`users.limit`"),
            (format!("{start}colour = 1\n"), "unknown field `colour`"),
            (format!("{start}keep_alive = \"60 s\"\n"), "`users.keep_alive`"),
            (format!("{start}[trouble]\nloss = 0.9\n"), "`trouble.loss`"),
            (format!("{start}[[traffic]]\nkind = \"bulk\"\nrate = 1.0\n"), "`rate`"),
            (format!("{start}[[traffic]]\nkind = \"request\"\nrate = 1.0\ntrain = 2\n"), "`train`"),
            (format!("{start}[[traffic]]\nkind = \"bulk\"\nconnections = 3\n"), "ask for 3 connections"),
            (format!("{start}[[traffic]]\nkind = \"bulk\"\nsize = 9000\n"), "the MTU is 1400"),
            (format!("{start}[[traffic]]\nkind = \"bulk\"\nsize = [[10, 1]]\n"), "too short"),
            (format!("{start}[[traffic]]\nkind = \"bulk\"\nsize = \"big\"\n"), "\"imix\", a number of bytes"),
        ] {
            let error = refused(&text);
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
