//! One run's surroundings: configuration files, fresh network namespaces, a gateway pinned to a CPU, a client, and a server behind the gateway.
//!
//! Both gateways read the same files. Nothing is kept from run to run but those: not even what the kernel remembers of TCP peers.

use std::env;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;
use tollgate::identity::Identity;
use tollgate::lab::bulk::{BulkPlan, BulkServer, Direction, Progress, transfer};
use tollgate::lab::ping::{PingPlan, ping};
use tollgate::lab::{Process, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use crate::table::Transfer;

/// How long a gateway or client may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gateway or client may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a transfer may take beyond its duration: a tunnel may be slow to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How many of a process's last lines go into an error.
const LAST_LINES_MAX: usize = 15;
const PORT: u16 = 55_555;

/// Variables with these beginnings would override settings of a gateway or client.
const OVERRIDE_PREFIXES: [&str; 2] = ["QUINCY_", "TOLLGATE_"];

/// A kind of gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `tollgate serve`.
    Tollgate,
    /// `quincy-server`.
    Quincy,
}

/// A gateway that takes part in the comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// What it is.
    pub kind: Kind,
    /// Its name in tables.
    pub name: &'static str,
    /// Its program.
    pub program: PathBuf,
}

/// The files of gateway and client, in a folder that goes when this value does.
#[derive(Debug)]
pub struct Deployment {
    folder: TempDir,
}

/// A gateway with a client connected to it.
#[derive(Debug)]
pub struct Site {
    topology: Topology,
    gateway: Process,
    client: Process,
    server: BulkServer,
}

impl Contender {
    /// The command that runs it on the files of `deployment`.
    fn command(&self, deployment: &Deployment) -> Command {
        let mut command = bare_command(&self.program);
        let config = deployment.path("quincy.toml");
        match self.kind {
            // The one setting that the peer's files lack: the default is a file of this machine, which is not ours to make.
            Kind::Tollgate => {
                command.arg("serve").arg("--config").arg(config);
                command.env("TOLLGATE_SHARDS__KEY_FILE", deployment.path("keys"))
            }
            Kind::Quincy => command.arg("--config-path").arg(config),
        };
        command
    }

    /// What it logs once it takes clients.
    fn ready_line(&self) -> &'static str {
        match self.kind {
            Kind::Tollgate => "listening on",
            Kind::Quincy => "Starting connection handler",
        }
    }
}

impl Deployment {
    /// Writes identities and configuration files.
    ///
    /// # Errors
    ///
    /// When there is no place for temporary files.
    pub fn write() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tollgate-bench-").tempdir();
        let deployment = Deployment { folder: folder.context("cannot make a temporary folder")? };
        let identity = |name: &str, sans: &[&str]| -> Result<Identity> {
            let identity = Identity::generate(name, sans)?;
            let file = |part| deployment.path(&format!("{name}_{part}.pem"));
            identity.write(&file("cert"), &file("key"), false)?;
            Ok(identity)
        };
        identity("server", &[&SERVICE_V4.to_string()])?;
        let client = identity("alice", &[])?;
        deployment.put("quincy.toml", &deployment.gateway_config())?;
        deployment.put("users.toml", &format!("[users.alice]\nauthorized_certs = [\"{}\"]\n", client.fingerprint))?;
        deployment.put("client.toml", &deployment.client_config())?;
        Ok(deployment)
    }

    /// The folder with everything in it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn gateway_config(&self) -> String {
        let folder = self.folder().display();
        format!(
            r#"name = "bench"
bind_address = "0.0.0.0"
bind_port = {PORT}
tunnel_network = "198.19.128.1/24"
users_file = "{folder}/users.toml"

[protocol]
mode = "tls"
certificate_file = "{folder}/server_cert.pem"
certificate_key_file = "{folder}/server_key.pem"

[connection]
mtu = 1400

[log]
level = "info"
"#
        )
    }

    fn client_config(&self) -> String {
        let folder = self.folder().display();
        format!(
            r#"connection_string = "{SERVICE_V4}:{PORT}"

[protocol]
mode = "tls"
trusted_certificate_paths = ["{folder}/server_cert.pem"]
client_certificate_file = "{folder}/alice_cert.pem"
client_certificate_key_file = "{folder}/alice_key.pem"

[connection]
mtu = 1400

[network]
routes = ["198.19.0.0/24"]

[log]
level = "info"
"#
        )
    }
}

impl Site {
    /// Builds the namespaces, starts `contender` on CPU `cpu`, connects the client `client`, and waits until the tunnel carries packets.
    ///
    /// # Errors
    ///
    /// Whatever did not start, with its last lines.
    pub fn start(deployment: &Deployment, contender: &Contender, client: &Path, cpu: usize) -> Result<Self> {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() })?;
        let gateway = topology.gateway.spawn_pinned(contender.command(deployment), &[cpu])?;
        gateway.wait_for_line(contender.ready_line(), START_TIMEOUT)?;
        let mut command = bare_command(client);
        command.arg("--config-path").arg(deployment.path("client.toml"));
        let client = topology.clients[0].namespace.spawn(command)?;
        let listener = topology.network.run(|| TcpListener::bind(SocketAddr::new(SERVER_V4.into(), 0)));
        let server = BulkServer::start(listener.context("cannot listen behind the gateway")?)?;
        let site = Site { topology, gateway, client, server };
        site.client.wait_for_line("Added routes", START_TIMEOUT).with_context(|| site.last_lines())?;
        site.wait_for_tunnel()?;
        Ok(site)
    }

    /// Moves bytes through the tunnel for `duration`, calling `progress` now and then.
    ///
    /// # Errors
    ///
    /// When the transfer broke off or ended too early. Corrupt bytes are no error: see [`Transfer::corrupt_at_byte`].
    pub fn transfer(
        &self,
        direction: Direction,
        duration: Duration,
        progress: impl FnMut(Progress) + Send,
    ) -> Result<Transfer> {
        let plan = BulkPlan {
            duration: Some(duration),
            deadline: duration + DRAIN_TIMEOUT,
            ..BulkPlan::new(self.server.address(), direction, u64::MAX)
        };
        let before = self.gateway.cpu_seconds()?;
        let report = self.topology.clients[0].namespace.run(|| transfer(&plan, progress));
        let report = report.with_context(|| self.last_lines())?;
        let gateway_cpu_seconds = self.gateway.cpu_seconds()? - before;
        if report.bytes == 0 || report.seconds < duration.as_secs_f64() {
            bail!(
                "a transfer of {} s ended after {:.1} s and {} bytes\n{}",
                duration.as_secs(),
                report.seconds,
                report.bytes,
                self.last_lines()
            );
        }
        let corrupt_at_byte = report.corrupt_at.map(|(_, offset)| offset);
        Ok(Transfer { bytes: report.bytes, seconds: report.seconds, gateway_cpu_seconds, corrupt_at_byte })
    }

    /// Stops the client, then the gateway.
    ///
    /// # Errors
    ///
    /// When one of them does not stop; it is killed then.
    pub fn stop(mut self) -> Result<()> {
        // quincy-client says goodbye on an interrupt only.
        self.client.signal(Signal::INT)?;
        self.client.wait(STOP_TIMEOUT)?;
        self.gateway.stop(STOP_TIMEOUT)?;
        Ok(())
    }

    fn wait_for_tunnel(&self) -> Result<()> {
        let plan = PingPlan { count: 1, timeout: Duration::from_millis(200), ..PingPlan::new(SERVER_V4.into()) };
        let deadline = Instant::now() + START_TIMEOUT;
        while self.topology.clients[0].namespace.run(|| ping(&plan))?.received == 0 {
            if Instant::now() >= deadline {
                bail!(
                    "no ping was answered through the tunnel in {} s\n{}",
                    START_TIMEOUT.as_secs(),
                    self.last_lines()
                );
            }
        }
        Ok(())
    }

    /// What gateway and client said last, for an error.
    fn last_lines(&self) -> String {
        let said = |process: &Process| {
            let lines = process.lines();
            let last = lines[lines.len().saturating_sub(LAST_LINES_MAX)..].join("\n  ");
            format!("{} said last:\n  {last}", process.name())
        };
        format!("{}\n{}", said(&self.gateway), said(&self.client))
    }
}

/// A command for `program` that logs plainly and takes no settings from this process's environment.
fn bare_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let is_override =
            name.to_str().is_some_and(|name| OVERRIDE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
        if is_override {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").env("RUST_LOG", "info");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(command: &Command) -> Vec<String> {
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn both_gateways_read_the_same_files() {
        let deployment = Deployment::write().unwrap();
        let contender = |kind| Contender { kind, name: "", program: "/bin/true".into() };
        let ours = contender(Kind::Tollgate).command(&deployment);
        let peers = contender(Kind::Quincy).command(&deployment);
        assert_eq!(arguments(&ours).last(), arguments(&peers).last());
        let key_file =
            ours.get_envs().find(|(name, _)| *name == "TOLLGATE_SHARDS__KEY_FILE").and_then(|(_, value)| value);
        assert!(key_file.is_some_and(|path| Path::new(path).starts_with(deployment.folder())));
        let folder = deployment.folder().to_owned();
        drop(deployment);
        assert!(!folder.exists());
    }
}
