//! The gateway's files and its process: started on CPUs of its own, observed from outside, stopped.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::Deserialize;
use tempfile::TempDir;
use tollgate::gateway::Status;
use tollgate_testkit::deploy::{ConfigFile, Identity};
use tollgate_testkit::{Namespace, Process, SERVICE_V4, TUNNEL_V4};

use super::scratch;
use crate::programs::{self, Gateway, Kind};

/// How long a gateway may take to start: it reads up to 60,000 users.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a gateway may take to stop: it tells every client.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gateway may take to say how it stands, when it has more to do than it can.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// How the line of counters begins.
const STATUS_LINE: &str = "{\"shards\":";
/// Handshakes that may be pending at a gateway, of all sources and of one: how many are is the scenario's business.
const PENDING_HANDSHAKES_MAX: u32 = 16_384;
/// Buffers of the gateway's UDP sockets, in bytes: a burst of thousands of clients fits.
const SOCKET_BUFFER_BYTES: u32 = 16 << 20;
/// What Tollgate logs of itself without a line for each client, which would cost it time.
const TERSE_LOG: &str = "warn,tollgate::gateway=info,tollgate::gateway::core=warn";

/// How a gateway is started.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayPlan {
    /// Shards of Tollgate.
    pub shards: u16,
    /// The CPUs it may use; empty for the first that this process may use.
    pub cpus: Vec<usize>,
    /// Inner MTU in bytes.
    #[serde(rename = "mtu")]
    pub mtu_bytes: u16,
    /// How long a connection may be silent.
    #[serde(deserialize_with = "crate::load::scenario::duration")]
    pub idle_timeout: Duration,
    /// How often its metrics are scraped, each second of traffic; 0 where they are not served. Of Tollgate.
    pub scrapes: u32,
}

impl Default for GatewayPlan {
    fn default() -> Self {
        GatewayPlan { shards: 1, cpus: Vec::new(), mtu_bytes: 1400, idle_timeout: Duration::from_secs(30), scrapes: 0 }
    }
}

/// A folder with everything that a gateway reads, and its key file. The certificate is for [`SERVICE_V4`].
#[derive(Debug)]
pub struct GatewayFiles(Arc<TempDir>);

impl GatewayFiles {
    /// Writes them, with the users file `users`. `serve` says in the gateway's file by which handshake they log in, if not by TLS.
    pub fn write(plan: &GatewayPlan, users: &str, serve: impl FnOnce(ConfigFile) -> ConfigFile) -> Result<Self> {
        let folder = scratch::folder()?;
        Identity::generate("gateway", &[&SERVICE_V4.to_string()])?.write(folder.path(), "server")?;
        let path = folder.path().join("users.toml");
        fs::write(&path, users).with_context(|| format!("cannot write {}", path.display()))?;
        let inner = Ipv4Addr::from_bits(TUNNEL_V4.network().to_bits() + 1);
        serve(ConfigFile::gateway(folder.path()))
            .set("tunnel_network", format!("{inner}/{}", TUNNEL_V4.prefix_len()))
            .set("connection.mtu", plan.mtu_bytes)
            .set("log.level", "info")
            .set("connection.connection_timeout_s", plan.idle_timeout.as_secs_f64().ceil() as i64)
            .set("connection.send_buffer_size", SOCKET_BUFFER_BYTES)
            .set("connection.recv_buffer_size", SOCKET_BUFFER_BYTES)
            .set("connection.max_pending_handshakes", PENDING_HANDSHAKES_MAX)
            .set("connection.max_pending_handshakes_per_source", PENDING_HANDSHAKES_MAX)
            .write(&folder.path().join("server.toml"))?;
        Ok(GatewayFiles(folder))
    }

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// The certificate that clients are to trust.
    pub fn certificate(&self) -> PathBuf {
        self.folder().join("server_cert.pem")
    }
}

/// A running gateway. It is killed when this value is dropped.
#[derive(Debug)]
pub struct RunningGateway {
    pub kind: Kind,
    pub process: Process,
}

/// A gateway's use of the machine, and what it says of itself, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewaySample {
    /// CPU time so far, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    pub descriptors: u64,
    /// Its own counters; `None` of a peer.
    pub status: Option<Status>,
}

/// The command that runs `gateway` on `files`. What only Tollgate knows goes into its environment: a peer might not take a file with it.
fn command(gateway: &Gateway, plan: &GatewayPlan, cpus: &[usize], files: &GatewayFiles) -> Command {
    let mut command = programs::command(&gateway.program);
    if gateway.kind == Kind::Tollgate {
        let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        command.arg("serve").env("RUST_LOG", TERSE_LOG);
        command.env("TOLLGATE_SHARDS__KEY_FILE", files.folder().join("keys"));
        command.env("TOLLGATE_CONTROL__SOCKET", files.folder().join("control"));
        command.env("TOLLGATE_METRICS__ENABLED", (plan.scrapes > 0).to_string());
        command.env("TOLLGATE_SHARDS__COUNT", plan.shards.to_string());
        command.env("TOLLGATE_SHARDS__CPUS", format!("[{}]", cpus.join(", ")));
    }
    command.arg("--config-path").arg(files.folder().join("server.toml"));
    command
}

impl RunningGateway {
    /// Starts `gateway` in `namespace`, on `cpus` only, and waits until it takes clients.
    pub fn start(
        gateway: &Gateway,
        plan: &GatewayPlan,
        cpus: &[usize],
        files: &GatewayFiles,
        namespace: &Namespace,
    ) -> Result<Self> {
        let process = namespace.spawn_pinned(command(gateway, plan, cpus, files), cpus)?;
        let ready = if gateway.kind == Kind::Tollgate { "listening on" } else { "Starting connection handler" };
        process.wait_for_line(ready, START_TIMEOUT).with_context(|| format!("{} did not start", gateway.name))?;
        Ok(RunningGateway { kind: gateway.kind, process })
    }

    /// CPU time so far, in seconds. Fails when it has ended, with its last lines.
    pub fn cpu_seconds(&mut self) -> Result<f64> {
        self.require_running()?;
        Ok(self.process.cpu_seconds()?)
    }

    pub fn sample(&mut self) -> Result<GatewaySample> {
        self.require_running()?;
        let status = self.status()?;
        Ok(GatewaySample {
            cpu_seconds: self.process.cpu_seconds()?,
            memory_bytes: self.process.memory_bytes()?,
            descriptors: self.process.open_descriptors()? as u64,
            status,
        })
    }

    /// Stops it. Fails when it had ended before, does not stop, or ends with an error.
    pub fn stop(mut self) -> Result<()> {
        self.require_running()?;
        let status = self.process.stop(STOP_TIMEOUT)?;
        // A peer may know no orderly end on SIGTERM.
        if self.kind == Kind::Tollgate && !status.success() {
            bail!("{} ended with {status}\n{}", self.process.name(), self.process.last_lines());
        }
        Ok(())
    }

    /// Its own counters; `None` of a peer.
    pub fn status(&self) -> Result<Option<Status>> {
        if self.kind != Kind::Tollgate {
            return Ok(None);
        }
        let first = self.process.line_count();
        self.process.signal(Signal::USR1)?;
        let line = self.process.wait_for_line_from(first, STATUS_LINE, STATUS_TIMEOUT)?;
        let status = serde_json::from_str(&line);
        Ok(Some(status.with_context(|| format!("{} does not say how it stands", self.process.name()))?))
    }

    fn require_running(&mut self) -> Result<()> {
        let Some(status) = self.process.exit_status()? else { return Ok(()) };
        bail!("{} ended in the middle of the run: {status}\n{}", self.process.name(), self.process.last_lines())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsStr;

    use tollgate_config::ServerConfig;

    use super::*;

    #[test]
    fn tollgate_is_told_of_its_shards_by_its_environment_and_the_peer_reads_the_same_file() {
        let plan =
            GatewayPlan { shards: 4, mtu_bytes: 1280, idle_timeout: Duration::from_millis(1500), ..Default::default() };
        let users =
            tollgate_testkit::deploy::user_entry("u", &format!("sha256:{:064x}", 7), "bandwidth_limit = \"8 mbps\"");
        let files = GatewayFiles::write(&plan, &users, |file| file).unwrap();
        let variables = |kind| -> BTreeMap<String, String> {
            let gateway = Gateway { kind, name: "x", program: "/bin/true".into() };
            let text = |text: &OsStr| text.to_string_lossy().into_owned();
            let command = command(&gateway, &plan, &[0, 2], &files);
            command.get_envs().filter_map(|(name, value)| Some((text(name), text(value?)))).collect()
        };
        let ours = variables(Kind::Tollgate).into_iter().filter(|(name, _)| name.starts_with("TOLLGATE_"));
        let config = ServerConfig::load(&files.folder().join("server.toml"), ours).unwrap();
        assert_eq!((config.shards.cpus, config.users.len()), (Some(tollgate_config::Cpus::List(vec![0, 2])), 1));
        assert_eq!((config.connection.mtu_bytes, config.connection.connection_timeout.as_secs()), (1280, 2));
        assert_eq!(config.tunnel_network.to_string(), "198.19.128.1/17");
        assert!(variables(Kind::Quincy).keys().all(|name| !name.starts_with("TOLLGATE_")));
    }
}
