//! The stage of the demo: the namespaces, the files, and the processes that run in them.
//!
//! All files are in one directory of mode 0700 under the system's temporary directory, in which the processes run, so that their
//! configurations name one another by relative paths.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use rustix::process::Signal;
use tempfile::TempDir;
use tollgate_config::ShardCount;
use tollgate_noise::{Kind, PrivateKey};

use super::interrupt::Interrupt;
use super::{DemoError, Logs};
use crate::gateway::Status;
use crate::identity::noise::NoiseKeyError;
use tollgate_testkit::deploy::{ConfigFile, GATEWAY_TUN, Identity, authorized_keys, service, user_entry};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{LabError, Namespace, Privilege, Process, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

/// The users, each with one client.
pub(super) const CLIENTS: [&str; 2] = ["alice", "bob"];

/// How long a gateway may take to start; glommio locks memory for each shard.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take until the network behind the gateway answers it. Two attempts to connect fit in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the gateway may take to report its counters; it waits 2 s for a shard itself.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a process may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait at a time, between two looks at signals and processes.
const SLICE: Duration = Duration::from_millis(100);
/// How long to pause after a look that ended at once.
const PAUSE: Duration = Duration::from_millis(10);
/// How the gateway's line of counters begins.
const COUNTERS: &str = "{\"shards\":";
/// How many of a process's last lines go into an error, counters left out.
const LAST_LINES_MAX: usize = 12;

/// Namespaces, files and processes. Dropping it kills the processes and removes the rest.
pub(super) struct Site {
    clients: Vec<Process>,
    gateway: Option<Process>,
    directory: TempDir,
    topology: Arc<Topology>,
    shards: usize,
}

impl Site {
    /// Builds the namespaces, and writes certificates and configurations. Nothing runs yet.
    pub(super) fn build(shards: ShardCount, noise: Option<Kind>) -> Result<Self, DemoError> {
        let topology = Topology::build(&TopologyPlan { clients: CLIENTS.len(), ..TopologyPlan::default() })?;
        let directory = tempfile::Builder::new()
            .prefix("tollgate-demo-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|source| DemoError::Files {
                operation: "make a directory in",
                path: std::env::temp_dir(),
                source,
            })?;
        write_files(directory.path(), shards, noise)?;
        Ok(Site { clients: Vec::new(), gateway: None, directory, topology: Arc::new(topology), shards: 0 })
    }

    /// The namespaces.
    pub(super) fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Starts the gateway, waits until it listens, and gives what it says about the kernel's part in the work.
    pub(super) fn start_gateway(&mut self, interrupt: &Interrupt) -> Result<Vec<String>, DemoError> {
        let command = self.command("serve", "server.toml")?;
        let gateway = self.gateway.insert(self.topology.gateway.spawn(command)?);
        let line = wait_for_line(gateway, 0, "listening on ", START_TIMEOUT, interrupt)?;
        self.shards = self.status(interrupt)?.shards.len();
        Ok(kernel_parts(&line))
    }

    /// Starts the clients, and waits until each has an answer from the server behind the gateway.
    pub(super) fn connect_clients(&mut self, interrupt: &Interrupt) -> Result<(), DemoError> {
        for (user, client) in CLIENTS.iter().zip(&self.topology.clients) {
            let command = self.command("connect", &format!("{user}.toml"))?;
            self.clients.push(client.namespace.spawn(command)?);
        }
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        for index in 0..CLIENTS.len() {
            while !self.is_answered(index)? {
                interrupt.check()?;
                self.check()?;
                if Instant::now() >= deadline {
                    let awaited = format!("an answer from behind the gateway to client {index}");
                    let logs = self.logs(index);
                    return Err(DemoError::Awaited { awaited, timeout: CONNECT_TIMEOUT, logs });
                }
                thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    fn is_answered(&self, index: usize) -> Result<bool, LabError> {
        let plan = PingPlan { count: 1, timeout: SLICE, ..PingPlan::new(SERVER_V4.into()) };
        Ok(self.topology.clients[index].namespace.run(|| ping(&plan))?.received > 0)
    }

    /// The gateway's counters, of every shard.
    pub(super) fn status(&mut self, interrupt: &Interrupt) -> Result<Status, DemoError> {
        let Some(gateway) = &mut self.gateway else { return Ok(Status::default()) };
        let first = gateway.line_count();
        gateway.signal(Signal::USR1)?;
        let line = wait_for_line(gateway, first, COUNTERS, REPORT_TIMEOUT, interrupt)?;
        let status: Status = serde_json::from_str(&line)?;
        let answered = status.shards.len();
        if answered < self.shards {
            return Err(DemoError::MissingShards { answered, shards: self.shards });
        }
        Ok(status)
    }

    /// CPU time that the gateway has used, in seconds.
    pub(super) fn gateway_cpu_seconds(&self) -> Result<f64, DemoError> {
        Ok(self.gateway.as_ref().map_or(Ok(0.0), Process::cpu_seconds)?)
    }

    /// Fails if a process has ended.
    pub(super) fn check(&mut self) -> Result<(), DemoError> {
        self.gateway.iter_mut().chain(&mut self.clients).try_for_each(check)
    }

    /// What gateway and client `index` said last.
    pub(super) fn logs(&self, index: usize) -> Logs {
        Logs(self.clients.get(index).into_iter().chain(&self.gateway).map(last_lines).collect())
    }

    /// How somebody at a terminal gets into each namespace.
    pub(super) fn directions(&self, privilege: Privilege) -> String {
        let own = std::process::id();
        let enter = match privilege {
            Privilege::Root => "nsenter".to_owned(),
            Privilege::UserNamespace => format!("nsenter --preserve-credentials --user=/proc/{own}/ns/user"),
        };
        let shell = |namespace: &Namespace| format!("{enter} --net=/proc/{own}/fd/{}", namespace.as_fd().as_raw_fd());
        let mut text = "everything stays up until Ctrl-C; from another terminal:\n".to_owned();
        let mut line = |who: &str, how: String| {
            let _ = writeln!(text, "  {who:<16}{how}");
        };
        for (index, (client, user)) in self.topology.clients.iter().zip(CLIENTS).enumerate() {
            line(&format!("client {index}, {user}"), format!("{} ping {SERVER_V4}", shell(&client.namespace)));
        }
        line("gateway", format!("{} ip address", shell(&self.topology.gateway)));
        line("network behind", format!("{} ip address", shell(&self.topology.network)));
        let _ = write!(text, "  {:<16}kill -USR1 {own}", "counters");
        text
    }

    /// Stops clients, then the gateway, and removes the files. All is gone afterwards, also when something fails; the first failure is told.
    pub(super) fn stop(mut self) -> Result<(), DemoError> {
        let mut outcome = Ok(());
        for process in self.clients.iter_mut().chain(&mut self.gateway) {
            outcome = outcome.and(stop(process));
        }
        let path = self.directory.path().to_owned();
        let removed = self.directory.close();
        outcome.and(removed.map_err(|source| DemoError::Files { operation: "remove", path, source }))
    }

    /// This program with another of its commands, undisturbed by the caller's environment.
    fn command(&self, name: &str, config: &str) -> Result<Command, DemoError> {
        let program = std::env::current_exe()
            .map_err(|source| DemoError::System { operation: "find the path of this program", source })?;
        let mut command = Command::new(program);
        command.args([name, "--config", config]).current_dir(self.directory.path());
        for (variable, _) in std::env::vars_os() {
            if overrides_configuration(&variable) {
                command.env_remove(variable);
            }
        }
        command.env("RUST_LOG", "info").env("NO_COLOR", "1");
        Ok(command)
    }
}

fn overrides_configuration(variable: &OsStr) -> bool {
    ["QUINCY_", "TOLLGATE_"].iter().any(|prefix| variable.as_encoded_bytes().starts_with(prefix.as_bytes()))
}

/// Certificates or Noise keys, and configurations; see the [module](self).
fn write_files(directory: &Path, shards: ShardCount, noise: Option<Kind>) -> Result<(), DemoError> {
    let here = Path::new("");
    let file = ConfigFile::gateway(here).of_tollgate(here).set("name", "demo").set("bind_address", SERVICE_V4);
    let file = match shards {
        ShardCount::Auto => file.set("shards.count", "auto"),
        ShardCount::Fixed(count) => file.set("shards.count", count),
    };
    let (file, users) = match noise {
        None => (file, write_identities(directory)?),
        Some(kind) => write_keys(directory, kind, file)?,
    };
    file.write(&directory.join("server.toml"))?;
    let path = directory.join("users.toml");
    fs::write(&path, users).map_err(|source| DemoError::Files { operation: "write", path, source })
}

/// Certificates, and the clients' configurations. Returns the users file.
fn write_identities(directory: &Path) -> Result<String, DemoError> {
    Identity::generate("gateway", &[&SERVICE_V4.to_string()])?.write(directory, "server")?;
    let mut users = String::new();
    for user in CLIENTS {
        let identity = Identity::generate(user, &[])?;
        identity.write(directory, user)?;
        users += &user_entry(user, &identity.fingerprint, "");
        client_file(user).write(&directory.join(format!("{user}.toml")))?;
    }
    Ok(users)
}

/// The clients' configurations, with Noise keys of that kind. Returns the gateway's, which was `file`, and the users file.
fn write_keys(directory: &Path, kind: Kind, file: ConfigFile) -> Result<(ConfigFile, String), DemoError> {
    let generate = || PrivateKey::generate(kind, &SystemRandom::new()).map_err(NoiseKeyError::from);
    let gateway = generate()?;
    let server = gateway.public().to_string();
    let mut users = String::new();
    for user in CLIENTS {
        let key = generate()?;
        let keys = authorized_keys([&key.public().to_string()[..]]);
        users += &format!("[users.{user}]\n{keys}\n");
        let settings = [("mode", "noise"), ("key_exchange", kind.name()), ("server_public_key", &server)];
        let file = client_file(user).with_protocol(settings).set("protocol.private_key", &key.to_base64()[..]);
        file.write(&directory.join(format!("{user}.toml")))?;
    }
    let settings = [("mode", "noise"), ("key_exchange", kind.name()), ("private_key", &gateway.to_base64())];
    Ok((file.with_protocol(settings), users))
}

fn client_file(user: &str) -> ConfigFile {
    ConfigFile::client(Path::new(""), user, &service()).set("network.interface_name", GATEWAY_TUN)
}

/// Of the gateway's line at its start, the parts about who steers and what the TUN device takes off its hands.
fn kernel_parts(line: &str) -> Vec<String> {
    let concerns = |part: &&str| part.starts_with("UDP ") || part.starts_with("TUN ");
    line.split("; ").filter(concerns).map(str::to_owned).collect()
}

fn wait_for_line(
    process: &mut Process,
    first: usize,
    pattern: &str,
    timeout: Duration,
    interrupt: &Interrupt,
) -> Result<String, DemoError> {
    let deadline = Instant::now() + timeout;
    loop {
        interrupt.check()?;
        // Without a line there is either nothing yet, or the end of the process: both are told below.
        if let Ok(line) = process.wait_for_line_from(first, pattern, SLICE) {
            return Ok(line);
        }
        check(process)?;
        if Instant::now() >= deadline {
            let awaited = format!("a line with {pattern:?} of {}", process.name());
            return Err(DemoError::Awaited { awaited, timeout, logs: Logs(vec![last_lines(process)]) });
        }
        thread::sleep(PAUSE);
    }
}

fn check(process: &mut Process) -> Result<(), DemoError> {
    match process.exit_status()? {
        Some(status) => Err(ended(process, status)),
        None => Ok(()),
    }
}

fn stop(process: &mut Process) -> Result<(), DemoError> {
    let status = process.stop(STOP_TIMEOUT)?;
    if status.success() { Ok(()) } else { Err(ended(process, status)) }
}

fn ended(process: &Process, status: std::process::ExitStatus) -> DemoError {
    // Its last words may still be on their way.
    thread::sleep(SLICE);
    DemoError::Ended { process: process.name().to_owned(), status, logs: Logs(vec![last_lines(process)]) }
}

fn last_lines(process: &Process) -> (String, Vec<String>) {
    let mut lines = process.lines();
    lines.retain(|line| !line.starts_with(COUNTERS));
    lines.drain(..lines.len().saturating_sub(LAST_LINES_MAX));
    (process.name().to_owned(), lines)
}

#[cfg(test)]
mod tests {
    use tollgate_config::{ClientConfig, ServerConfig};

    use super::*;

    #[test]
    fn the_configurations_are_valid_in_every_detail() {
        let directory = tempfile::tempdir().unwrap();
        for (number, shards) in [ShardCount::Auto, ShardCount::Fixed(3.try_into().unwrap())].into_iter().enumerate() {
            let directory = directory.path().join(number.to_string());
            fs::create_dir(&directory).unwrap();
            let noise = (number > 0).then_some(Kind::Hybrid);
            write_files(&directory, shards, noise).unwrap();
            // Relative paths start at the working directory, which tests share.
            let text = fs::read_to_string(directory.join("server.toml")).unwrap();
            let users = format!("{:?}", directory.join("users.toml"));
            fs::write(directory.join("server.toml"), text.replace("\"users.toml\"", &users)).unwrap();
            let server = ServerConfig::load(&directory.join("server.toml"), std::iter::empty()).unwrap();
            assert_eq!(server.shards.count, shards);
            for user in CLIENTS {
                ClientConfig::load(&directory.join(format!("{user}.toml")), std::iter::empty()).unwrap();
            }
        }
    }

    #[test]
    fn the_kernels_part_is_found_in_the_gateways_first_line() {
        let line = "2026-01-01T00:00:00Z  INFO listening on 198.18.0.1:55555 with 2 shards on CPU 0, 1; tunnel 198.19.128.1/24 (clients \
                    isolated) on tollgate0; UDP steered by a; TUN steered by b; TUN offloads: TSO, USO";
        assert_eq!(kernel_parts(line), ["UDP steered by a", "TUN steered by b", "TUN offloads: TSO, USO"]);
    }

    #[test]
    fn only_what_overrides_configurations_is_kept_from_them() {
        for (variable, expected) in [("TOLLGATE_BIND_PORT", true), ("QUINCY_LOG__LEVEL", true), ("PATH", false)] {
            assert_eq!(overrides_configuration(OsStr::new(variable)), expected, "{variable}");
        }
    }
}
