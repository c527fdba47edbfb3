//! Gateways that speak Quincy's protocol, ours among them: their configuration files, and a tunnel with `quincy-client` as the client.
//!
//! All such gateways read the same files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tollgate::identity::Identity;
use tollgate::lab::{SERVICE_V4, Topology};

use super::contender::{Contender, Kind, Placement, bare_command};
use super::tunnel::{START_TIMEOUT, Tunnel};
use crate::scratch::ScratchFolder;

const PORT: u16 = 55_555;

/// The files of gateway and client, in a folder that goes when this value does.
#[derive(Debug)]
pub(super) struct Deployment {
    folder: ScratchFolder,
}

/// Starts `contender` and its client, and waits until the client has its address.
pub(super) fn connect(
    topology: &Topology,
    deployment: &Deployment,
    contender: &Contender,
    placement: &Placement,
) -> Result<Tunnel> {
    let wait: Duration = START_TIMEOUT;
    let command = gateway_command(contender, deployment);
    let gateway = topology.gateway.spawn_pinned(command, &[placement.gateway_cpu])?;
    gateway.wait_for_line(ready_line(contender.kind), wait)?;
    let mut command = bare_command(&contender.client);
    command.arg("--config-path").arg(deployment.path("client.toml"));
    let client = topology.clients[0].namespace.spawn_pinned(command, &placement.load_cpus)?;
    let tunnel = Tunnel { gateway, client, sockets: Vec::new() };
    tunnel.client.wait_for_line("Added routes", wait).with_context(|| tunnel.last_lines())?;
    Ok(tunnel)
}

/// The command that runs `contender` on the files of `deployment`.
fn gateway_command(contender: &Contender, deployment: &Deployment) -> Command {
    let mut command = bare_command(&contender.program);
    let config = deployment.path("quincy.toml");
    match contender.kind {
        // What the peer's files lack: the defaults are files of this machine, which are not ours to make.
        Kind::Tollgate => {
            command.arg("serve").arg("--config").arg(config);
            command.env("TOLLGATE_SHARDS__KEY_FILE", deployment.path("keys"));
            command.env("TOLLGATE_CONTROL__SOCKET", deployment.path("control"));
        }
        _ => {
            command.arg("--config-path").arg(config);
        }
    }
    command
}

/// What a gateway logs once it takes clients.
fn ready_line(kind: Kind) -> &'static str {
    match kind {
        Kind::Tollgate => "listening on",
        _ => "Starting connection handler",
    }
}

impl Deployment {
    /// Writes identities and configuration files.
    ///
    /// # Errors
    ///
    /// When there is no place for temporary files.
    pub(super) fn write() -> Result<Self> {
        let deployment = Deployment { folder: ScratchFolder::new()? };
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
    fn folder(&self) -> &Path {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(command: &Command) -> Vec<String> {
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn both_gateways_read_the_same_files() {
        let deployment = Deployment::write().unwrap();
        let command = |kind| {
            let (program, client) = ("/bin/true".into(), "/bin/true".into());
            gateway_command(&Contender { kind, name: "", program, client }, &deployment)
        };
        let (ours, peers) = (command(Kind::Tollgate), command(Kind::Quincy));
        assert_eq!(arguments(&ours).last(), arguments(&peers).last());
        let key_file =
            ours.get_envs().find(|(name, _)| *name == "TOLLGATE_SHARDS__KEY_FILE").and_then(|(_, value)| value);
        assert!(key_file.is_some_and(|path| Path::new(path).starts_with(deployment.folder())));
        let folder = deployment.folder().to_owned();
        drop((ours, peers, deployment));
        assert!(!folder.exists());
    }
}
