//! The machine's DNS servers while the tunnel is up, by way of systemd-resolved.
//!
//! Where there is no `resolvectl`, nothing is changed: rewriting /etc/resolv.conf would outlive a client that is killed.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tracing::warn;

/// How long `resolvectl` may take; it asks a service over a bus.
const TIMEOUT: Duration = Duration::from_secs(3);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// DNS servers set for an interface, until dropped.
#[derive(Debug)]
pub struct Dns {
    resolvectl: PathBuf,
    interface: String,
    /// Whether the interface is gone, and its settings with it.
    gone: bool,
}

impl Dns {
    /// Makes `servers` those of the whole machine, asked by way of `interface`. Says in the log why not, where it cannot be done: a tunnel
    /// without its DNS servers is of use still.
    pub fn set(interface: &str, servers: &[IpAddr]) -> Option<Dns> {
        if servers.is_empty() {
            return None;
        }
        let Some(resolvectl) = find("resolvectl") else {
            warn!(
                "network.dns_servers is ignored: there is no resolvectl (systemd-resolved) on this machine; set its DNS servers by hand"
            );
            return None;
        };
        let dns = Dns { resolvectl, interface: interface.to_owned(), gone: false };
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
        // The domain `~.` stands for all names.
        for (verb, arguments) in [("dns", &servers[..]), ("domain", &["~."])] {
            if let Err(error) = dns.run(verb, arguments) {
                warn!(%error, "resolvectl {verb} failed: see whether systemd-resolved runs, or take network.dns_servers out");
                break;
            }
        }
        Some(dns)
    }

    /// Forgets the settings, which went with their interface. Another one of its name may have its own.
    pub fn forget(mut self) {
        self.gone = true;
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> io::Result<()> {
        let mut command = Command::new(&self.resolvectl);
        command.arg(verb).arg(&self.interface).args(arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {TIMEOUT:?}")));
            }
            thread::sleep(POLL_INTERVAL);
        };
        if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        if let Err(error) = self.run("revert", &[]) {
            // The settings go with the interface anyway.
            warn!(%error, "resolvectl revert failed");
        }
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories).map(|directory| directory.join(program)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
