//! `tollgate-bench gateway`: two gateways in turn, each pinned to one CPU, how they compare, and how far ours is from the machine's floor.

mod contender;
mod quincy;
mod site;
mod summary;
mod table;
mod tunnel;
mod uapi;
mod wireguard;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tollgate::lab;

use self::contender::{Contender, Kind, Placement, WireguardProgram};
use self::quincy::Deployment;
use self::site::Site;
use self::summary::WORKS;
use crate::cpus::{self, CpuList};
use crate::floor::{Round, Rounds};
use crate::peers::{self, Places};
use crate::progress::Progress;
use crate::record::{self, Output};
use crate::results::{Finding, GatewayResult, Interval95, Pair, Transfer};

const CLIENT: &str = "quincy-client";

/// For how long each pair of the floor's stages is measured before each pair of runs.
const FLOOR_SLOT: Duration = Duration::from_millis(100);

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The gateway to compare Tollgate with.
    #[arg(long, value_enum, default_value_t = Peer::Quincy)]
    peer: Peer,
    /// For how many seconds to move data up, then down, then both ways: 1 to 600.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// How many times each gateway runs: 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: u16,
    /// The CPU that the gateways are pinned to, by number [default: the first that may be used].
    #[arg(long, value_name = "C")]
    cpu: Option<usize>,
    /// The CPUs that client, sender and receiver are pinned to, like 1,4-7 [default: all but the gateway's].
    #[arg(long, value_name = "LIST")]
    load_cpus: Option<CpuList>,
    /// Tollgate's program [default: `tollgate` in the folder of this program].
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// The peer's program [default: the first in $TOLLGATE_PEERS, .peers/bin and $PATH].
    #[arg(long, value_name = "PATH")]
    peer_binary: Option<PathBuf>,
    /// The program of the client that speaks Quincy's protocol, quincy-client [default: as the peer's].
    #[arg(long, value_name = "PATH")]
    client: Option<PathBuf>,
    /// Fail if Tollgate needs more CPU per gigabyte than this many times the peer's: if the whole 95 % interval of a median ratio lies above.
    #[arg(long, value_name = "X", value_parser = ratio)]
    ratio_max: Option<f64>,
    #[command(flatten)]
    output: Output,
}

/// Gateways that Tollgate can be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    /// quincy-server.
    Quincy,
    /// boringtun-cli, WireGuard in Rust, with itself as the client.
    Boringtun,
    /// gotatun, WireGuard in Rust, with itself as the client.
    Gotatun,
    /// wireguard-go, WireGuard in Go, with itself as the client.
    WireguardGo,
    /// Another build of Tollgate, which --peer-binary names: what a change costs.
    Baseline,
}

impl Peer {
    fn program(self) -> &'static str {
        match self {
            Peer::Quincy => "quincy-server",
            Peer::Boringtun => "boringtun-cli",
            Peer::Gotatun => "gotatun",
            Peer::WireguardGo => "wireguard-go",
            Peer::Baseline => "baseline",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Peer::Quincy => Kind::Quincy,
            Peer::Boringtun => Kind::Wireguard(WireguardProgram::Boringtun),
            Peer::Gotatun => Kind::Wireguard(WireguardProgram::Gotatun),
            Peer::WireguardGo => Kind::Wireguard(WireguardProgram::WireguardGo),
            Peer::Baseline => Kind::Tollgate,
        }
    }
}

/// Everything that was looked up before the first run.
#[derive(Debug)]
struct Setup {
    ours: Contender,
    peer: Contender,
    /// Names and versions: ours, the peer, and what they have as clients.
    versions: [String; 2],
    clients: [String; 2],
    placement: Placement,
    seconds: u16,
}

/// Compares, prints each run and the table on standard output, and writes the JSON file. Progress goes to standard error.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What is missing, in one line with the remedy; the first transfer that failed; or, after all results, that bytes were corrupted.
pub fn run(options: &Options) -> Result<()> {
    let setup = Setup::find(options)?;
    let recording = options.output.start(setup.programs())?;
    lab::prepare()?;
    lab::require_tun()?;
    let deployment = Deployment::write()?;
    record::print(&format!("{}{}", recording.heading(), setup.heading(options.pairs)))?;
    let result = setup.compare(&deployment, options.pairs)?;
    record::print(&format!("\n{}", table::Table(&result)))?;
    let corrupt = corrupt_transfers(&result);
    let dearer = options.ratio_max.map_or(Ok(Vec::new()), |ratio_max| dearer_works(&result, ratio_max))?;
    recording.write(Finding::Gateway(result))?;
    if !corrupt.is_empty() {
        bail!("bytes were corrupted: {}", corrupt.join("; "));
    }
    if !dearer.is_empty() {
        bail!("dearer than --ratio-max allows: {}", dearer.join("; "));
    }
    Ok(())
}

/// A positive number.
fn ratio(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|ratio: &f64| ratio.is_finite() && *ratio > 0.0)
        .ok_or_else(|| "must be a number above 0".into())
}

/// The kinds of work whose 95 % interval of the ratio lies above `ratio_max` as a whole, in words.
fn dearer_works(result: &GatewayResult, ratio_max: f64) -> Result<Vec<String>> {
    let mut dearer = Vec::new();
    for work in WORKS {
        let interval = Interval95::of_median(summary::cpu_ratios(&result.pairs, work))
            .with_context(|| format!("--ratio-max needs {} pairs or more", Interval95::FIGURES_MIN))?;
        if interval.low > ratio_max {
            let Interval95 { low, high } = interval;
            dearer.push(format!("{}: {low:.3} to {high:.3}, and {ratio_max} is allowed", table::name(work)));
        }
    }
    Ok(dearer)
}

impl Setup {
    fn find(options: &Options) -> Result<Self> {
        let places = Places::of_this_process();
        let gateway = peers::own_gateway(options.gateway.as_deref(), "--gateway")?;
        let peer_name = options.peer.program();
        if options.peer == Peer::Baseline && options.peer_binary.is_none() {
            bail!("--peer baseline needs --peer-binary, the path of the other build of Tollgate");
        }
        if options.ratio_max.is_some() && usize::from(options.pairs) < Interval95::FIGURES_MIN {
            bail!("--ratio-max needs --pairs {} or more", Interval95::FIGURES_MIN);
        }
        let peer = places.find(peer_name, options.peer_binary.as_deref(), "--peer-binary")?;
        let client = places.find(CLIENT, options.client.as_deref(), "--client")?;
        let client_version = peers::embedded_version(&client, CLIENT)?;
        let kind = options.peer.kind();
        let (peer_version, peer_client, peer_client_version) = match kind {
            Kind::Wireguard(_) => {
                wireguard::require_socket_folder(peer_name)?;
                let version = peers::stated_version(&peer)?;
                (version.clone(), peer.clone(), version)
            }
            Kind::Tollgate => {
                (format!("{peer_name} {}", peers::stated_version(&peer)?), client.clone(), client_version.clone())
            }
            Kind::Quincy => (peers::embedded_version(&peer, peer_name)?, client.clone(), client_version.clone()),
        };
        Ok(Setup {
            versions: [peers::stated_version(&gateway)?, peer_version],
            clients: [client_version, peer_client_version],
            ours: Contender { kind: Kind::Tollgate, name: "tollgate", program: gateway, client },
            peer: Contender { kind, name: peer_name, program: peer, client: peer_client },
            placement: placement(options)?,
            seconds: options.seconds,
        })
    }

    /// Names and versions of all programs, each once.
    fn programs(&self) -> Vec<String> {
        let mut programs = self.versions.to_vec();
        let clients = self.clients.iter().filter(|client| !self.versions.contains(client));
        programs.extend(clients.cloned());
        programs.dedup();
        programs
    }

    /// What is compared, and the heading of the runs' table.
    fn heading(&self, pairs: u16) -> String {
        let Placement { gateway_cpu, load_cpus } = &self.placement;
        let [our_client, peer_client] = &self.clients;
        format!(
            "{} (client {our_client}) and {} (client {peer_client}) in turn, {pairs} pair{}\n\
             gateways pinned to CPU {gateway_cpu}; client, sender and receiver to CPU {}\n\
             bulk TCP up, down, both ways at once, {} s each; CPU time of the gateway per gigabyte of payload, payload per second\n\n{}\n",
            self.ours.name,
            self.peer.name,
            if pairs == 1 { "" } else { "s" },
            cpus::list(load_cpus),
            self.seconds,
            table::run_heading()
        )
    }

    fn compare(&self, deployment: &Deployment, count: u16) -> Result<GatewayResult> {
        let mut progress = Progress::new();
        let mut rounds = Rounds::set_up(self.placement.gateway_cpu, FLOOR_SLOT)?;
        let (mut pairs, mut floors): (Vec<Pair>, Vec<Round>) = (Vec::new(), Vec::new());
        for number in 1..=count {
            progress.step(&format!("pair {number} of {count}: the machine's floor"));
            floors.push(rounds.run()?);
            let mut run = |contender: &Contender| -> Result<Vec<Transfer>> {
                let place = format!("pair {number} of {count}: {}", contender.name);
                let run = self.run_one(deployment, contender, &place, &mut progress);
                progress.clear();
                let run = run.with_context(|| place)?;
                record::print(&format!("{}\n", table::run_line(number, contender.name, &run)))?;
                Ok(run)
            };
            // Who runs first changes from pair to pair, so that a machine that slows down or warms up favours nobody.
            let (ours, peer) = if number % 2 == 1 {
                let ours = run(&self.ours)?;
                (ours, run(&self.peer)?)
            } else {
                let peer = run(&self.peer)?;
                (run(&self.ours)?, peer)
            };
            pairs.push(Pair { ours, peer });
        }
        Ok(GatewayResult {
            ours: self.ours.name.to_owned(),
            peer: self.peer.name.to_owned(),
            clients: self.clients.clone(),
            gateway_cpu: self.placement.gateway_cpu,
            load_cpus: self.placement.load_cpus.clone(),
            seconds: self.seconds,
            summaries: summary::summaries(&pairs, &floors).context("there was no pair")?,
            pairs,
            floor: rounds.floor(),
        })
    }

    /// All kinds of work with one gateway.
    fn run_one(
        &self,
        deployment: &Deployment,
        contender: &Contender,
        place: &str,
        progress: &mut Progress,
    ) -> Result<Vec<Transfer>> {
        progress.step(&format!("{place}: connecting"));
        let site = Site::start(deployment, contender, &self.placement)?;
        let duration = Duration::from_secs(self.seconds.into());
        let mut transfer = |work| {
            let name = table::name(work);
            progress.step(&format!("{place}: {name}"));
            site.transfer(work, duration, |state| {
                progress.update(|| {
                    let megabytes = state.bytes / 1_000_000;
                    format!("{place}: {name}, {megabytes} MB in {:.1} s", state.elapsed.as_secs_f64())
                });
            })
        };
        let run = WORKS.into_iter().map(&mut transfer).collect::<Result<Vec<_>>>()?;
        site.stop()?;
        Ok(run)
    }
}

/// Where gateway and load shall run.
fn placement(options: &Options) -> Result<Placement> {
    let gateway_cpu = cpus::one(options.cpu, "--cpu")?;
    let load_cpus = match &options.load_cpus {
        Some(list) => {
            cpus::require_usable(list.numbers(), "--load-cpus")?;
            list.numbers().to_vec()
        }
        None => default_load_cpus(&cpus::usable()?, gateway_cpu),
    };
    Ok(Placement { gateway_cpu, load_cpus })
}

/// All CPUs but the gateway's, if there are others.
///
/// Alone on its CPU a gateway's time is its own. With the load on it as well, on 2 CPUs, its time per gigabyte in one direction varied by
/// 3 to 9 % from pair to pair instead of 0 to 3 %: up it was higher for the caches that it had lost, down lower for the packets that had
/// piled up while it had to wait, and then came in larger batches.
fn default_load_cpus(usable: &[usize], gateway_cpu: usize) -> Vec<usize> {
    let others: Vec<usize> = usable.iter().copied().filter(|cpu| *cpu != gateway_cpu).collect();
    if others.is_empty() { usable.to_vec() } else { others }
}

/// All transfers that delivered a wrong byte, in words.
fn corrupt_transfers(result: &GatewayResult) -> Vec<String> {
    let runs = (1..)
        .zip(&result.pairs)
        .flat_map(|(number, pair)| [(number, &result.ours, &pair.ours), (number, &result.peer, &pair.peer)]);
    runs.flat_map(|(number, name, run)| {
        let words = move |(work, offset)| format!("pair {number}, {name}, {}, byte {offset}", table::name(work));
        summary::corrupt_transfers(run).map(words)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::summary::tests::pair;
    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(line: &str) -> Result<Options, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.options)
    }

    fn setup(client_of_peer: &str) -> Setup {
        let contender = |kind, name| Contender { kind, name, program: "/bin/true".into(), client: "/bin/true".into() };
        Setup {
            ours: contender(Kind::Tollgate, "tollgate"),
            peer: contender(Kind::Quincy, "quincy-server"),
            versions: ["tollgate 1".into(), "peer 2".into()],
            clients: ["client 3".into(), client_of_peer.into()],
            placement: Placement { gateway_cpu: 1, load_cpus: vec![0, 2] },
            seconds: 4,
        }
    }

    #[test]
    fn options_out_of_bounds_are_refused() {
        let options = parsed("gateway --seconds 9 --pairs 3 --cpu 1 --load-cpus 0 --peer wireguard-go").unwrap();
        assert_eq!((options.seconds, options.pairs, options.cpu, options.peer), (9, 3, Some(1), Peer::WireguardGo));
        for wrong in [
            "--seconds 0",
            "--seconds 601",
            "--pairs 0",
            "--pairs 1001",
            "--ratio-max 0",
            "--cpu all",
            "--peer none",
            "--load-cpus all",
        ] {
            let error = parsed(&format!("gateway {wrong}")).unwrap_err().to_string();
            assert!(error.contains("invalid value"), "{error}");
        }
    }

    #[test]
    fn the_load_stays_off_the_gateways_cpu_where_there_is_another() {
        assert_eq!(default_load_cpus(&[0, 1, 5], 1), [0, 5]);
        assert_eq!(default_load_cpus(&[3], 3), [3]);
    }

    #[test]
    fn the_load_goes_where_it_is_told() {
        let first = cpus::usable().unwrap()[0];
        let placed = placement(&parsed(&format!("gateway --load-cpus {first}")).unwrap()).unwrap();
        assert_eq!((placed.gateway_cpu, placed.load_cpus), (first, vec![first]));
        let error = placement(&parsed("gateway --load-cpus 1023").unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("--load-cpus names CPU 1023, but this process may use only "), "{error}");
    }

    #[test]
    fn a_bound_is_missed_only_by_a_whole_interval() {
        let result = |ratios: &[f64]| GatewayResult {
            ours: "tollgate".into(),
            peer: "baseline".into(),
            clients: [String::new(), String::new()],
            gateway_cpu: 0,
            load_cpus: Vec::new(),
            seconds: 1,
            pairs: ratios.iter().map(|&ratio| pair(ratio, 1.0)).collect(),
            summaries: Vec::new(),
            floor: None,
        };
        let dearer = |ratios: &[f64]| dearer_works(&result(ratios), 1.03).unwrap();
        assert!(dearer(&[1.02, 1.04, 1.05, 1.06, 1.07, 1.08]).is_empty(), "the interval reaches down to 1.02");
        let all = dearer(&[1.035, 1.04, 1.05, 1.06, 1.07, 1.08]);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0], "up: 1.035 to 1.080, and 1.03 is allowed");
        let error = dearer_works(&result(&[2.0; 5]), 1.03).unwrap_err().to_string();
        assert_eq!(error, "--ratio-max needs 6 pairs or more");
    }

    #[test]
    fn every_program_is_named_once() {
        assert_eq!(setup("client 3").programs(), ["tollgate 1", "peer 2", "client 3"]);
        assert_eq!(setup("peer 2").programs(), ["tollgate 1", "peer 2", "client 3"]);
        let heading = setup("peer 2").heading(1);
        assert!(
            heading.starts_with("tollgate (client client 3) and quincy-server (client peer 2) in turn, 1 pair\n"),
            "{heading}"
        );
        assert!(heading.contains("pinned to CPU 1; client, sender and receiver to CPU 0,2\n"), "{heading}");
    }

    #[test]
    fn a_corrupt_transfer_is_named() {
        let mut pairs = vec![pair(1.0, 1.0), pair(1.0, 1.0)];
        let result = |pairs: &[Pair]| GatewayResult {
            ours: "tollgate".into(),
            peer: "quincy-server".into(),
            clients: [String::new(), String::new()],
            gateway_cpu: 0,
            load_cpus: Vec::new(),
            seconds: 1,
            pairs: pairs.to_vec(),
            summaries: Vec::new(),
            floor: None,
        };
        assert!(corrupt_transfers(&result(&pairs)).is_empty());
        pairs[1].peer[2].corrupt_at_byte = Some(77);
        assert_eq!(corrupt_transfers(&result(&pairs)), ["pair 2, quincy-server, both ways, byte 77"]);
    }
}
