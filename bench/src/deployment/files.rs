//! A gateway's files, which Tollgate and Quincy's server both read.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tollgate::identity::Identity;
use tollgate::lab::{SERVICE_V4, TUNNEL_V4};

use super::{GATEWAY_TUN, PORT};
use crate::scratch::ScratchFolder;

/// Handshakes that may be pending at a gateway, of all sources and of one: how many are is the scenario's business.
const PENDING_HANDSHAKES_MAX: u32 = 16_384;

/// Buffers of the gateway's UDP sockets, in bytes: a burst of thousands of clients fits.
const SOCKET_BUFFER_BYTES: u32 = 16 << 20;

/// What the files shall say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilesPlan<'a> {
    /// The users file, as text.
    pub users: &'a str,
    /// Inner MTU in bytes.
    pub mtu_bytes: u16,
    /// How long a connection may be silent; in full seconds, rounded up.
    pub idle_timeout: Duration,
}

/// A folder with everything that a gateway reads, and its key file. It goes when this value does, and on an interrupt.
#[derive(Debug)]
pub struct GatewayFiles {
    folder: ScratchFolder,
}

impl GatewayFiles {
    /// Writes them. The gateway's certificate is for [`SERVICE_V4`].
    ///
    /// # Errors
    ///
    /// When there is no place for temporary files.
    pub fn write(plan: &FilesPlan<'_>) -> Result<Self> {
        let files = GatewayFiles { folder: ScratchFolder::new()? };
        Identity::generate("gateway", &[&SERVICE_V4.to_string()])?.write(
            &files.certificate(),
            &files.path("server_key.pem"),
            false,
        )?;
        files.put("users.toml", plan.users)?;
        files.put("quincy.toml", &files.config_text(plan))?;
        Ok(files)
    }

    /// The gateway's configuration.
    pub fn config(&self) -> PathBuf {
        self.path("quincy.toml")
    }

    /// The certificate that clients are to trust, PEM.
    pub fn certificate(&self) -> PathBuf {
        self.path("server_cert.pem")
    }

    /// Where Tollgate keeps its keys.
    pub fn key_file(&self) -> PathBuf {
        self.path("keys")
    }

    /// Where Tollgate takes orders.
    pub fn control_socket(&self) -> PathBuf {
        self.path("control")
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

    fn config_text(&self, plan: &FilesPlan<'_>) -> String {
        let folder = self.folder().display();
        let server = Ipv4Addr::from_bits(TUNNEL_V4.network().to_bits() + 1);
        let prefix_length = TUNNEL_V4.prefix_len();
        let idle_s = plan.idle_timeout.as_secs() + u64::from(plan.idle_timeout.subsec_nanos() > 0);
        format!(
            r#"name = "bench"
bind_address = "0.0.0.0"
bind_port = {PORT}
tunnel_network = "{server}/{prefix_length}"
interface_name = "{GATEWAY_TUN}"
users_file = "{folder}/users.toml"

[protocol]
mode = "tls"
certificate_file = "{folder}/server_cert.pem"
certificate_key_file = "{folder}/server_key.pem"

[connection]
mtu = {mtu_bytes}
connection_timeout_s = {idle_s}
send_buffer_size = {SOCKET_BUFFER_BYTES}
recv_buffer_size = {SOCKET_BUFFER_BYTES}
max_pending_handshakes = {PENDING_HANDSHAKES_MAX}
max_pending_handshakes_per_source = {PENDING_HANDSHAKES_MAX}

[log]
level = "info"
"#,
            mtu_bytes = plan.mtu_bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tollgate_config::ServerConfig;

    use super::*;
    use crate::identities::Identities;

    #[test]
    fn tollgate_reads_the_files_and_they_go_with_the_value() {
        let identities = Identities::generate(3, |_| ()).unwrap();
        let users = identities.users_file(Some("8 mbps"), 2);
        let idle_timeout = Duration::from_millis(1500);
        let files = GatewayFiles::write(&FilesPlan { users: &users, mtu_bytes: 1280, idle_timeout }).unwrap();
        let config = ServerConfig::load(&files.config(), [].into_iter()).unwrap();
        assert_eq!(config.users.directory.len(), 5);
        assert_eq!((config.connection.mtu_bytes, config.connection.connection_timeout.as_secs()), (1280, 2));
        assert_eq!(config.bind.port(), PORT);
        assert_eq!(config.tunnel_network.to_string(), "198.19.128.1/17");
        assert_eq!(config.connection.pending_handshakes_per_source_max, 16_384);
        let key = fs::metadata(files.path("server_key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let folder = files.folder().to_owned();
        drop(files);
        assert!(!folder.exists());
    }
}
