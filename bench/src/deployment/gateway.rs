//! The gateway's process: started on CPUs of its own, observed from outside, stopped.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tollgate::gateway::Status;
use tollgate::lab::{Namespace, Process};

use super::GatewayFiles;
use crate::scenario::StartedGateway;

/// How long a gateway may take to start: it reads up to 60,000 users.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a gateway may take to stop: it tells every client.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a gateway may take to say how it stands, when it has more to do than it can.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// How the line of counters begins.
const STATUS_LINE: &str = "{\"shards\":";
/// How many of a gateway's last lines go into an error.
const LAST_LINES_MAX: usize = 15;

/// Variables with these beginnings would override settings of a gateway.
const OVERRIDE_PREFIXES: [&str; 2] = ["QUINCY_", "TOLLGATE_"];

/// What Tollgate logs of itself without a line for each client, which would cost it time.
const TERSE_LOG: &str = "warn,tollgate::gateway=info,tollgate::gateway::core=warn";

/// A kind of gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `tollgate serve`, or a program with the same command line.
    Tollgate,
    /// `quincy-server`.
    Quincy,
}

/// A gateway that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// What it is.
    pub kind: Kind,
    /// Its name in tables.
    pub name: &'static str,
    /// Its program.
    pub program: PathBuf,
    /// Further arguments.
    pub arguments: Vec<String>,
}

/// A running gateway. It is killed when this value is dropped.
#[derive(Debug)]
pub struct Gateway {
    kind: Kind,
    process: Process,
    cpus: usize,
    log: Option<PathBuf>,
}

/// A gateway's use of the machine, and what it says of itself, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewaySample {
    /// CPU time so far, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Its own counters; `None` of a peer.
    pub status: Option<Status>,
}

impl Contender {
    /// `tollgate serve`.
    pub fn tollgate(program: PathBuf) -> Self {
        Contender { kind: Kind::Tollgate, name: "tollgate", program, arguments: Vec::new() }
    }

    /// `quincy-server`.
    pub fn quincy(program: PathBuf) -> Self {
        Contender { kind: Kind::Quincy, name: "quincy-server", program, arguments: Vec::new() }
    }

    /// The command that runs it on `files`. What only Tollgate knows goes into its environment: a peer might not take a file with it.
    fn command(&self, plan: &StartedGateway, cpus: &[usize], files: &GatewayFiles) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in env::vars_os() {
            let is_override =
                name.to_str().is_some_and(|name| OVERRIDE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
            if is_override {
                command.env_remove(name);
            }
        }
        command.env("NO_COLOR", "1").env("RUST_LOG", if plan.log.is_some() { "info" } else { TERSE_LOG });
        match self.kind {
            Kind::Tollgate => {
                command.arg("serve").arg("--config").arg(files.config());
                command.env("TOLLGATE_SHARDS__KEY_FILE", files.key_file());
                command.env("TOLLGATE_CONTROL__SOCKET", files.control_socket());
                if let Some(shards) = plan.shards {
                    command.env("TOLLGATE_SHARDS__COUNT", shards.to_string());
                }
                if !cpus.is_empty() {
                    let list: Vec<String> = cpus.iter().map(ToString::to_string).collect();
                    command.env("TOLLGATE_SHARDS__CPUS", format!("[{}]", list.join(", ")));
                }
            }
            Kind::Quincy => {
                command.arg("--config-path").arg(files.config());
            }
        }
        command.args(&self.arguments);
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

impl Gateway {
    /// Starts `contender` in `namespace`, on `cpus` only, and waits until it takes clients.
    ///
    /// # Errors
    ///
    /// When it does not start, with its last lines.
    pub fn start(
        contender: &Contender,
        plan: &StartedGateway,
        cpus: &[usize],
        files: &GatewayFiles,
        namespace: &Namespace,
    ) -> Result<Self> {
        let process = namespace.spawn_pinned(contender.command(plan, cpus, files), cpus)?;
        let gateway = Gateway { kind: contender.kind, process, cpus: cpus.len(), log: plan.log.clone() };
        let ready = gateway.process.wait_for_line(contender.ready_line(), START_TIMEOUT);
        ready.with_context(|| format!("{} did not start", contender.name))?;
        Ok(gateway)
    }

    /// How many CPUs it may use.
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    /// CPU time so far, in seconds.
    ///
    /// # Errors
    ///
    /// When it has ended, with its last lines.
    pub fn cpu_seconds(&mut self) -> Result<f64> {
        self.require_running()?;
        Ok(self.process.cpu_seconds()?)
    }

    /// How it stands.
    ///
    /// # Errors
    ///
    /// When it has ended, or does not answer, with its last lines.
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

    /// Stops it, and writes its log where the plan wants it.
    ///
    /// # Errors
    ///
    /// When it had ended before, does not stop, ends with an error, or its log cannot be written.
    pub fn stop(mut self) -> Result<()> {
        self.require_running()?;
        let status = self.process.stop(STOP_TIMEOUT)?;
        self.write_log()?;
        // A peer may know no orderly end on SIGTERM.
        if self.kind == Kind::Tollgate && !status.success() {
            bail!("{} ended with {status}\n{}", self.process.name(), self.last_lines());
        }
        Ok(())
    }

    /// Its own counters; `None` of a peer.
    fn status(&self) -> Result<Option<Status>> {
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
        self.write_log()?;
        bail!("{} ended in the middle of the run: {status}\n{}", self.process.name(), self.last_lines())
    }

    fn write_log(&self) -> Result<()> {
        let Some(path) = &self.log else { return Ok(()) };
        let text = self.log_lines().join("\n") + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What it said, but for the counters that it was asked for.
    fn log_lines(&self) -> Vec<String> {
        let mut lines = self.process.lines();
        lines.retain(|line| !line.starts_with(STATUS_LINE));
        lines
    }

    fn last_lines(&self) -> String {
        let lines = self.log_lines();
        format!("its last lines:\n  {}", lines[lines.len().saturating_sub(LAST_LINES_MAX)..].join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::deployment::{FilesPlan, require_namespaces_or_skip};

    fn files() -> GatewayFiles {
        let idle_timeout = Duration::from_secs(30);
        GatewayFiles::write(&FilesPlan { users: "", mtu_bytes: 1400, idle_timeout }).unwrap()
    }

    fn script(text: &str) -> Contender {
        let arguments = Vec::new();
        let program = PathBuf::from(text);
        Contender { kind: Kind::Tollgate, name: "script", program, arguments }
    }

    /// A program that takes any arguments and runs `body` in a shell.
    fn program(files: &GatewayFiles, body: &str) -> Contender {
        use std::os::unix::fs::PermissionsExt;
        let path = files.folder().join("program");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        script(path.to_str().unwrap())
    }

    #[test]
    fn tollgate_is_told_of_its_shards_by_its_environment_and_the_peer_is_not() {
        let files = files();
        let plan = StartedGateway { shards: Some(4), ..StartedGateway::default() };
        let variables = |contender: Contender| -> BTreeMap<String, String> {
            let command = contender.command(&plan, &[0, 2], &files);
            let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
            command.get_envs().filter_map(|(name, value)| Some((text(name), text(value?)))).collect()
        };
        let ours = variables(Contender::tollgate("/bin/true".into()));
        assert_eq!(ours["TOLLGATE_SHARDS__COUNT"], "4");
        assert_eq!(ours["TOLLGATE_SHARDS__CPUS"], "[0, 2]");
        let config = tollgate_config::ServerConfig::load(&files.config(), ours.into_iter()).unwrap();
        assert_eq!(config.shards.cpus, Some(vec![0, 2]));
        assert_eq!(config.shards.key_file, files.key_file());
        assert_eq!(config.control.socket, files.control_socket());
        let peers = variables(Contender::quincy("/bin/true".into()));
        assert!(peers.keys().all(|name| !name.starts_with("TOLLGATE_")), "{peers:?}");
    }

    #[test]
    fn a_gateway_that_does_not_start_is_told_with_its_last_words() {
        require_namespaces_or_skip!();
        let (files, plan) = (files(), StartedGateway::default());
        let namespace = Namespace::new("gateway").unwrap();
        let start = |contender: &Contender| {
            let error = Gateway::start(contender, &plan, &[], &files, &namespace).map(drop).unwrap_err();
            format!("{error:#}")
        };
        let error = start(&script("/nowhere/gateway"));
        assert!(error.contains("gateway in gateway: cannot start"), "{error}");
        let error = start(&program(&files, "echo no such user >&2; exit 3"));
        assert!(error.contains("script did not start") && error.contains("no such user"), "{error}");
    }

    #[test]
    fn a_gateway_that_ends_in_the_middle_is_an_error_and_its_log_is_kept() {
        require_namespaces_or_skip!();
        let files = files();
        let log = files.folder().join("log");
        let plan = StartedGateway { log: Some(log.clone()), ..StartedGateway::default() };
        let namespace = Namespace::new("gateway").unwrap();
        let contender = program(&files, "echo listening on x; echo '{\"shards\":[]}'; sleep 0.2; echo fatal; exit 1");
        let mut gateway = Gateway::start(&contender, &plan, &[], &files, &namespace).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let error = loop {
            match gateway.cpu_seconds() {
                Err(error) => break error.to_string(),
                Ok(_) => assert!(std::time::Instant::now() < deadline),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(error.contains("ended in the middle of the run: exit status: 1"), "{error}");
        assert_eq!(fs::read_to_string(log).unwrap(), "listening on x\nfatal\n", "without counters");
    }
}
