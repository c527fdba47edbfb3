//! Tunnels between real programs: fresh namespaces, a gateway pinned to CPUs of its own, a client, and a server behind the gateway.
//!
//! Nothing is kept from run to run but configuration files: not even what the kernel remembers of TCP peers.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tollgate_testkit::bulk::{BulkPlan, BulkReport, BulkServer, Direction, Progress, transfer};
use tollgate_testkit::deploy::{ConfigFile, Identity, service, user_entry};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::wait::eventually;
use tollgate_testkit::{Namespace, Process, SERVER_V4, Topology, TopologyPlan};

use crate::deploy::{GatewayFiles, GatewayPlan, RunningGateway};
use crate::load::experiment::{Experiment, Series};
use crate::measure::cpus;
use crate::programs::{self, Gateway};

/// How long a gateway or client may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transfer may take beyond its duration: a deep queue is slow to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// The client that gateways of Quincy's protocol have.
const CLIENT: &str = "quincy-client";

#[derive(Debug, clap::Args)]
pub struct TunnelOptions {
    #[command(flatten)]
    pub series: Series,
    /// The program of the client, quincy-client [default: the first in $TOLLGATE_PEERS, .peers/bin and $PATH].
    #[arg(long, value_name = "PATH")]
    client: Option<PathBuf>,
}

/// What tunnels are made of: the client's program, files of a gateway and of the client of its one user, and where programs run.
pub struct Tunnels {
    client: PathBuf,
    files: GatewayFiles,
    pub gateway_cpus: Vec<usize>,
    pub load_cpus: Vec<usize>,
}

/// A gateway with a client connected to it. The processes end before their namespaces go.
pub struct Tunnel<'a> {
    pub client: Process,
    pub gateway: RunningGateway,
    pub server: BulkServer,
    pub topology: Topology,
    tunnels: &'a Tunnels,
}

impl TunnelOptions {
    /// The experiment begins. `settings` are further lines of the user's, as `bandwidth_limit = "1 mbps"`; the gateway runs on `cpus.0`,
    /// everything else on `cpus.1`.
    pub fn start(&self, plan: &str, settings: &str, cpus: (Vec<usize>, Vec<usize>)) -> Result<(Experiment, Tunnels)> {
        let client = programs::find(CLIENT, self.client.as_deref(), "--client")?;
        let experiment = self.series.start_with(Some(programs::embedded_version(&client, CLIENT)?), plan)?;
        let user = Identity::generate("alice", &[])?;
        let files =
            GatewayFiles::write(&GatewayPlan::default(), &user_entry("alice", &user.fingerprint, settings), |file| {
                file
            })?;
        user.write(files.folder(), "alice")?;
        ConfigFile::client(files.folder(), "alice", &service())
            .set("connection.mtu", 1400)
            .set("log.level", "info")
            .write(&files.folder().join("client.toml"))?;
        let (gateway_cpus, load_cpus) = cpus;
        Ok((experiment, Tunnels { client, files, gateway_cpus, load_cpus }))
    }
}

impl Tunnels {
    /// Starts `gateway` and quincy-client, and waits until the tunnel carries packets.
    pub fn start(&self, gateway: &Gateway) -> Result<Tunnel<'_>> {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() })?;
        let (plan, cpus) = (GatewayPlan::default(), &self.gateway_cpus);
        let gateway = RunningGateway::start(gateway, &plan, cpus, &self.files, &topology.gateway)?;
        let mut command = programs::command(&self.client);
        command.arg("--config-path").arg(self.files.folder().join("client.toml"));
        let client = topology.clients[0].namespace.spawn_pinned(command, &self.load_cpus)?;
        client.wait_for_line("Added routes", START_TIMEOUT)?;
        let serve = || -> Result<BulkServer> {
            cpus::pin(&self.load_cpus)?;
            let listener = TcpListener::bind(SocketAddr::new(SERVER_V4.into(), 0));
            Ok(BulkServer::start(listener.context("cannot listen behind the gateway")?)?)
        };
        let server = topology.network.run(serve)?;
        let tunnel = Tunnel { client, gateway, server, topology, tunnels: self };
        let plan = PingPlan { count: 1, timeout: Duration::from_millis(200), ..PingPlan::new(SERVER_V4.into()) };
        let answered = || tunnel.run(|| Ok(ping(&plan)?)).is_ok_and(|report| report.received == 1);
        ensure!(eventually(START_TIMEOUT, answered), "the tunnel answers no ping\n{}", tunnel.last_lines());
        Ok(tunnel)
    }
}

impl Tunnel<'_> {
    /// The namespace of the client.
    pub fn inside(&self) -> &Namespace {
        &self.topology.clients[0].namespace
    }

    /// Runs `action` beside the client, on the CPUs of the load.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.inside().run(|| cpus::pin(&self.tunnels.load_cpus).and_then(|()| action()))
    }

    /// Moves bytes through the tunnel for `duration`. Corrupt ones are no error: see [`BulkReport::corrupt_at`].
    pub fn bulk(
        &self,
        direction: Direction,
        duration: Duration,
        progress: impl FnMut(Progress) + Send,
    ) -> Result<BulkReport> {
        let plan = BulkPlan {
            duration: Some(duration),
            deadline: duration + DRAIN_TIMEOUT,
            ..BulkPlan::new(self.server.address(), direction, u64::MAX)
        };
        let report = self.run(|| Ok(transfer(&plan, progress)?)).with_context(|| self.last_lines())?;
        let BulkReport { bytes, seconds, .. } = report;
        ensure!(
            bytes > 0 && seconds >= duration.as_secs_f64(),
            "a transfer of {} s ended after {seconds:.1} s and {bytes} bytes\n{}",
            duration.as_secs(),
            self.last_lines()
        );
        Ok(report)
    }

    /// Stops the client, then the gateway.
    pub fn stop(mut self) -> Result<()> {
        // quincy-client says goodbye on an interrupt only.
        self.client.signal(Signal::INT)?;
        self.client.wait(STOP_TIMEOUT)?;
        self.gateway.stop()
    }

    fn last_lines(&self) -> String {
        let [client, gateway] =
            [&self.client, &self.gateway.process].map(|it| format!("{}, {}", it.name(), it.last_lines()));
        format!("{client}\n{gateway}")
    }
}
