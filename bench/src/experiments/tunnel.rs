//! A tunnel between real programs: fresh namespaces, a gateway pinned to CPUs of its own, a client, and a server behind the gateway.
//!
//! Nothing is kept from run to run but configuration files: not even what the kernel remembers of TCP peers.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tollgate_testkit::bulk::{BulkPlan, BulkReport, BulkServer, Direction, Progress, transfer};
use tollgate_testkit::deploy::{ConfigFile, Identity, service, user_entry};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::wait::eventually;
use tollgate_testkit::{Process, SERVER_V4, Topology, TopologyPlan};

use crate::deploy::{GatewayFiles, GatewayPlan, RunningGateway};
use crate::measure::cpus;
use crate::programs::{self, Gateway};

/// How long a gateway or client may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transfer may take beyond its duration: a deep queue is slow to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const LAST_LINES_MAX: usize = 15;
/// The client that gateways of Quincy's protocol have.
pub const CLIENT: &str = "quincy-client";

/// Where programs run: the gateway, and everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub gateway_cpus: Vec<usize>,
    pub load_cpus: Vec<usize>,
}

/// The files of a gateway and of the client of its one user.
#[derive(Debug)]
pub struct TunnelFiles {
    pub gateway: GatewayFiles,
    client: PathBuf,
}

impl TunnelFiles {
    /// Writes them; `settings` are further lines of the user's, as `bandwidth_limit = "1 mbps"`.
    pub fn write(settings: &str) -> Result<Self> {
        let user = Identity::generate("alice", &[])?;
        let gateway = GatewayFiles::write(&GatewayPlan::default(), &user_entry("alice", &user.fingerprint, settings))?;
        user.write(gateway.folder(), "alice")?;
        let client = gateway.folder().join("client.toml");
        ConfigFile::client(gateway.folder(), "alice", &service())
            .set("connection.mtu", 1400)
            .set("log.level", "info")
            .write(&client)?;
        Ok(TunnelFiles { gateway, client })
    }
}

/// A gateway with a client connected to it. The processes end before their namespaces go.
#[derive(Debug)]
pub struct Tunnel {
    pub client: Process,
    pub gateway: RunningGateway,
    pub server: BulkServer,
    pub topology: Topology,
    pub load_cpus: Vec<usize>,
}

impl Tunnel {
    /// Starts `gateway` and quincy-client, and waits until the tunnel carries packets.
    pub fn start(files: &TunnelFiles, gateway: &Gateway, client: &Path, placement: &Placement) -> Result<Self> {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() })?;
        let Placement { gateway_cpus, load_cpus } = placement;
        let plan = GatewayPlan::default();
        let gateway = RunningGateway::start(gateway, &plan, gateway_cpus, &files.gateway, &topology.gateway)?;
        let mut command = programs::command(client);
        command.arg("--config-path").arg(&files.client);
        let client = topology.clients[0].namespace.spawn_pinned(command, load_cpus)?;
        client.wait_for_line("Added routes", START_TIMEOUT)?;
        let load_cpus = load_cpus.clone();
        let serve = || -> Result<BulkServer> {
            cpus::pin(&load_cpus)?;
            let listener = TcpListener::bind(SocketAddr::new(SERVER_V4.into(), 0));
            Ok(BulkServer::start(listener.context("cannot listen behind the gateway")?)?)
        };
        let server = topology.network.run(serve)?;
        let tunnel = Tunnel { client, gateway, server, topology, load_cpus };
        let plan = PingPlan { count: 1, timeout: Duration::from_millis(200), ..PingPlan::new(SERVER_V4.into()) };
        let inside = &tunnel.topology.clients[0].namespace;
        let answered = || inside.run(|| ping(&plan)).is_ok_and(|report| report.received == 1);
        ensure!(eventually(START_TIMEOUT, answered), "the tunnel answers no ping\n{}", tunnel.last_lines());
        Ok(tunnel)
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
        let moved = self.topology.clients[0].namespace.run(|| -> Result<BulkReport> {
            cpus::pin(&self.load_cpus)?;
            Ok(transfer(&plan, progress)?)
        });
        let report = moved.with_context(|| self.last_lines())?;
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
        let lines = self.client.lines();
        let last = lines[lines.len().saturating_sub(LAST_LINES_MAX)..].join("\n  ");
        format!("{} said last:\n  {last}\n{}", self.client.name(), self.gateway.last_lines())
    }
}
