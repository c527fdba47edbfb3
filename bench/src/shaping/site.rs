//! One run's surroundings: fresh namespaces, a gateway, a client of a limited user, and a server behind the gateway.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tollgate::identity::Identity;
use tollgate::lab::bulk::{self, BulkPlan, BulkReport, BulkServer};
use tollgate::lab::ping::{PingPlan, PingReport, ping};
use tollgate::lab::{Process, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use super::PING_INTERVAL;
use super::counters::Counts;
use crate::cpus;
use crate::deployment::{Contender, FilesPlan, Gateway, GatewayFiles, PORT};
use crate::results::Direction;
use crate::scenario::StartedGateway;

/// The client's TUN interface.
pub(super) const CLIENT_TUN: &str = "quincy0";
/// For how long bulk runs before anything is measured: until the burst, a second of the rate, is used up and TCP has found its window.
pub(super) const WARM_UP_MAX: Duration = Duration::from_secs(3);

const MTU_BYTES: u16 = 1400;
/// How long a gateway or client may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the client may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long bulk goes on after the last ping.
const TAIL: Duration = Duration::from_millis(300);
/// How long a transfer may take beyond its duration: a deep queue is slow to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the last ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// The files of gateway and client.
#[derive(Debug)]
pub(super) struct SiteFiles(GatewayFiles);

/// What runs where.
#[derive(Debug)]
pub(super) struct Programs {
    client: PathBuf,
    gateway_cpus: Vec<usize>,
    load_cpus: Vec<usize>,
}

/// A gateway with a limited user's client connected to it.
#[derive(Debug)]
pub(super) struct Site {
    // The processes end before their namespaces go.
    client: Process,
    gateway: Gateway,
    server: BulkServer,
    topology: Topology,
    load_cpus: Vec<usize>,
}

/// Bulk traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bulk {
    /// Which way.
    pub(super) direction: Direction,
    /// Whether TCP is capable of ECN at both ends.
    pub(super) ecn: bool,
    /// TCP's congestion control.
    pub(super) congestion: String,
    /// How long it runs before the first ping.
    pub(super) warm_up: Duration,
    /// For how long there are pings, in seconds.
    pub(super) seconds: u16,
}

/// What a run found.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) pings: PingReport,
    pub(super) counts: Counts,
    pub(super) bulk_bits_per_second: f64,
    /// For how long there was counted.
    pub(super) seconds: f64,
    pub(super) corrupt_at_byte: Option<u64>,
}

/// Bytes that the receiver had at a moment.
type Arrivals = Vec<(Instant, u64)>;

impl SiteFiles {
    /// Writes them, for a user limited to `mbps` megabits a second.
    ///
    /// # Errors
    ///
    /// When there is no place for temporary files.
    pub(super) fn write(mbps: u16) -> Result<Self> {
        let user = Identity::generate("alice", &[])?;
        let users = format!(
            "[users.alice]\nauthorized_certs = [\"{}\"]\nbandwidth_limit = \"{mbps} mbps\"\n",
            user.fingerprint
        );
        let plan = FilesPlan { users: &users, mtu_bytes: MTU_BYTES, idle_timeout: Duration::from_secs(30) };
        let files = SiteFiles(GatewayFiles::write(&plan)?);
        user.write(&files.path("alice_cert.pem"), &files.path("alice_key.pem"), false)?;
        let path = files.client_config();
        fs::write(&path, files.client_text()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.folder().join(name)
    }

    fn client_config(&self) -> PathBuf {
        self.path("client.toml")
    }

    fn client_text(&self) -> String {
        let folder = self.0.folder().display();
        let trusted = self.0.certificate();
        format!(
            r#"connection_string = "{SERVICE_V4}:{PORT}"

[protocol]
mode = "tls"
trusted_certificate_paths = ["{trusted}"]
client_certificate_file = "{folder}/alice_cert.pem"
client_certificate_key_file = "{folder}/alice_key.pem"

[connection]
mtu = {MTU_BYTES}

[network]
routes = ["198.19.0.0/24"]
interface_name = "{CLIENT_TUN}"

[log]
level = "info"
"#,
            trusted = trusted.display()
        )
    }
}

impl Programs {
    /// The gateway on the first of `cpus`, client, sender, receiver and pings on the others, if there are any.
    ///
    /// # Errors
    ///
    /// When there is no CPU.
    pub(super) fn on(client: PathBuf, cpus: &[usize]) -> Result<Self> {
        let (first, others) = cpus.split_first().context("no CPU may be used")?;
        let load_cpus = if others.is_empty() { cpus.to_vec() } else { others.to_vec() };
        Ok(Programs { client, gateway_cpus: vec![*first], load_cpus })
    }

    fn client_command(&self, config: &Path) -> Command {
        let mut command = Command::new(&self.client);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUINCY_")) {
            command.env_remove(name);
        }
        command.arg("--config-path").arg(config).env("NO_COLOR", "1").env("RUST_LOG", "info");
        command
    }
}

impl Site {
    /// Builds the namespaces, starts `contender` and the client, and waits until the tunnel carries packets.
    ///
    /// # Errors
    ///
    /// Whatever did not start, with its last lines.
    pub(super) fn start(files: &SiteFiles, contender: &Contender, programs: &Programs) -> Result<Self> {
        let Programs { gateway_cpus, load_cpus, .. } = programs;
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() })?;
        let gateway = Gateway::start(contender, &StartedGateway::default(), gateway_cpus, &files.0, &topology.gateway)?;
        let command = programs.client_command(&files.client_config());
        let client = topology.clients[0].namespace.spawn_pinned(command, load_cpus)?;
        client.wait_for_line("Added routes", START_TIMEOUT)?;
        let serve = || -> Result<BulkServer> {
            cpus::pin(load_cpus)?;
            let listener = TcpListener::bind(SocketAddr::new(SERVER_V4.into(), 0));
            Ok(BulkServer::start(listener.context("cannot listen behind the gateway")?)?)
        };
        let server = topology.network.run(serve)?;
        let site = Site { client, gateway, server, topology, load_cpus: load_cpus.clone() };
        site.wait_for_tunnel()?;
        Ok(site)
    }

    /// Runs bulk traffic, and pings meanwhile. Stops client and gateway.
    ///
    /// # Errors
    ///
    /// When the transfer broke off, no ping was answered, or a program ended. Corrupt bytes are no error.
    pub(super) fn measure(mut self, bulk: &Bulk) -> Result<Measured> {
        let Site { gateway, server, topology, load_cpus, .. } = &mut self;
        for namespace in [&topology.clients[0].namespace, &topology.network] {
            // Set, not left alone: by default a kernel accepts ECN and does not ask for it, and a namespace has the machine's congestion
            // control. BBR neither fills queues nor heeds marks.
            namespace.sysctl("net/ipv4/tcp_ecn", if bulk.ecn { "1" } else { "0" })?;
            namespace.sysctl("net/ipv4/tcp_congestion_control", &bulk.congestion)?;
        }
        let (topology, server, load_cpus) = (&*topology, &*server, &*load_cpus);
        let mut read = || Counts::read(topology, bulk.direction, gateway.sample()?.status.as_ref());
        let (pings, counts, [from, until], report, arrivals) = thread::scope(|scope| -> Result<_> {
            let transfer = scope.spawn(|| bulk.transfer(topology, server, load_cpus));
            thread::sleep(bulk.warm_up);
            let (before, from) = (read()?, Instant::now());
            let pings = bulk.ping(topology, load_cpus)?;
            let (after, until) = (read()?, Instant::now());
            let (report, arrivals) = transfer.join().unwrap_or_else(|payload| panic::resume_unwind(payload))?;
            Ok((pings, after.since(&before), [from, until], report, arrivals))
        })?;
        if pings.received == 0 {
            bail!("none of {} pings was answered while bulk traffic ran", pings.sent);
        }
        let measured = Measured {
            pings,
            counts,
            bulk_bits_per_second: rate(&arrivals, from, until).context("no bulk traffic arrived")?,
            seconds: (until - from).as_secs_f64(),
            corrupt_at_byte: report.corrupt_at.map(|(_, offset)| offset),
        };
        self.stop()?;
        Ok(measured)
    }

    fn stop(mut self) -> Result<()> {
        // quincy-client says goodbye on an interrupt only.
        self.client.signal(Signal::INT)?;
        self.client.wait(STOP_TIMEOUT)?;
        self.gateway.stop()
    }

    fn wait_for_tunnel(&self) -> Result<()> {
        let plan = PingPlan { count: 1, timeout: Duration::from_millis(200), ..PingPlan::new(SERVER_V4.into()) };
        let deadline = Instant::now() + START_TIMEOUT;
        while self.topology.clients[0].namespace.run(|| ping(&plan))?.received == 0 {
            if Instant::now() >= deadline {
                bail!("no ping was answered through the tunnel in {} s", START_TIMEOUT.as_secs());
            }
        }
        Ok(())
    }
}

impl Bulk {
    fn ping_time(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }

    /// Moves bytes until all pings are done, and notes how many had arrived when.
    fn transfer(&self, topology: &Topology, server: &BulkServer, cpus: &[usize]) -> Result<(BulkReport, Arrivals)> {
        let direction = match self.direction {
            Direction::Up => bulk::Direction::Upload,
            _ => bulk::Direction::Download,
        };
        let duration = self.warm_up + self.ping_time() + TAIL;
        let deadline = duration + DRAIN_TIMEOUT;
        let plan =
            BulkPlan { duration: Some(duration), deadline, ..BulkPlan::new(server.address(), direction, u64::MAX) };
        topology.clients[0].namespace.run(|| {
            cpus::pin(cpus)?;
            let mut arrivals = Vec::new();
            let report = bulk::transfer(&plan, |state| {
                // Of an upload this end knows only what it has sent.
                let arrived = if direction == bulk::Direction::Upload { server.moved_bytes() } else { state.bytes };
                arrivals.push((Instant::now(), arrived));
            })?;
            Ok((report, arrivals))
        })
    }

    fn ping(&self, topology: &Topology, cpus: &[usize]) -> Result<PingReport> {
        let count = self.ping_time().as_nanos() / PING_INTERVAL.as_nanos();
        let plan = PingPlan {
            count: u32::try_from(count)?,
            interval: PING_INTERVAL,
            timeout: PING_TIMEOUT,
            ..PingPlan::new(SERVER_V4.into())
        };
        topology.clients[0].namespace.run(|| {
            cpus::pin(cpus)?;
            Ok(ping(&plan)?)
        })
    }
}

/// Bits a second that arrived between two moments: from the first arrival after `from` to the last before `until`. `None` of fewer than two.
fn rate(arrivals: &Arrivals, from: Instant, until: Instant) -> Option<f64> {
    let mut inside = arrivals.iter().filter(|(at, _)| (from..=until).contains(at));
    let (first, last) = (inside.next()?, inside.next_back()?);
    let seconds = (last.0 - first.0).as_secs_f64();
    (seconds > 0.0).then(|| (last.1 - first.1) as f64 * 8.0 / seconds)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn no_pings() -> PingReport {
        let rtt_ns = hdrhistogram::Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        PingReport { sent: 0, refused: 0, received: 0, duplicates: 0, rtt_ns, rejections: Vec::new() }
    }

    #[test]
    fn the_rate_is_that_of_the_time_between() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        // A burst first, then 1000 bytes in 100 ms.
        let arrivals = vec![(at(0), 0), (at(100), 900_000), (at(200), 901_000), (at(300), 902_000), (at(400), 990_000)];
        assert_eq!(rate(&arrivals, at(50), at(350)), Some(80_000.0));
        assert_eq!(rate(&arrivals, at(150), at(250)), None);
    }

    #[test]
    fn the_gateways_user_is_limited_and_the_client_trusts_the_gateway() {
        let files = SiteFiles::write(20).unwrap();
        let config = tollgate_config::ServerConfig::load(&files.0.config(), [].into_iter()).unwrap();
        assert_eq!(config.users.directory.len(), 1);
        assert!(fs::read_to_string(files.path("users.toml")).unwrap().contains("bandwidth_limit = \"20 mbps\""));
        let client = tollgate_config::ClientConfig::load(&files.client_config(), [].into_iter());
        assert!(client.is_ok(), "{client:?}");
    }

    #[test]
    fn the_gateway_has_a_cpu_of_its_own_where_there_are_two() {
        let on = |cpus: &[usize]| Programs::on("/bin/true".into(), cpus).map(|it| (it.gateway_cpus, it.load_cpus));
        assert_eq!(on(&[1, 4, 5]).unwrap(), (vec![1], vec![4, 5]));
        assert_eq!(on(&[2]).unwrap(), (vec![2], vec![2]));
        assert!(on(&[]).is_err());
    }
}
