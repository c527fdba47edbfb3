//! Files in a temporary directory, and the least that a server and a client file must hold.

use std::path::{Path, PathBuf};

use tollgate_config::{ClientConfig, ConfigError, Entry, ServerConfig};

/// A server file without its users.
pub const SERVER: &str = r#"
name = "test"
tunnel_network = "198.18.0.1/24"
[protocol]
mode = "tls"
certificate_file = "cert.pem"
certificate_key_file = "key.pem"
"#;

/// A client file.
pub const CLIENT: &str = r#"
connection_string = "vpn.example.org:55555"
[protocol]
mode = "tls"
trusted_certificate_paths = ["server.pem"]
client_certificate_file = "cert.pem"
client_certificate_key_file = "key.pem"
"#;

/// `usual`, or the least of a file in which the key at `path` means something.
pub fn base(path: &str, usual: &str) -> String {
    if path.starts_with("connection_ids.") && !["connection_ids.layout", "connection_ids.length"].contains(&path) {
        return format!("{usual}\n[connection_ids]\nlayout = \"quic_lb\"\nlength = 20\nserver_id = \"0a0b\"\n");
    }
    let (first, _) = usual.split_once("[protocol]").unwrap();
    let key = tollgate_noise::PrivateKey::parse(&("A".repeat(43) + "=")).unwrap();
    let (private, public) = (&*key.to_base64(), key.public());
    let noise = "[protocol]\nmode = \"noise\"\nprivate_key";
    let protocol = match path {
        "protocol.private_key_file" => format!("{noise}_file = \"key\"\nserver_public_key = \"{public}\"\n"),
        "protocol.private_key" if usual == SERVER => format!("{noise} = \"{private}\"\n"),
        "protocol.private_key" | "protocol.server_public_key" => {
            format!("{noise} = \"{private}\"\nserver_public_key = \"{public}\"\n")
        }
        path if path.starts_with("protocol.tls.") => {
            "[protocol.tls]\ncertificate_file = \"cert.pem\"\ncertificate_key_file = \"key.pem\"\n".to_owned()
        }
        path if path.starts_with("protocol.noise.") => "[protocol.noise]\nprivate_key_files = [\"key\"]\n".to_owned(),
        _ => return usual.to_owned(),
    };
    format!("{first}{protocol}")
}

/// A temporary directory.
pub struct Directory(tempfile::TempDir);

impl Directory {
    /// A new one, empty.
    pub fn new() -> Self {
        Directory(tempfile::tempdir().unwrap())
    }

    /// The path of the file `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and gives its path.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// The environment with these variables and no others.
pub fn env(variables: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> + use<> {
    let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    variables.iter().map(owned).collect::<Vec<_>>().into_iter()
}

/// Loads a server file. Unless it or a variable names a users file, an empty one is put in place.
pub fn load_server(text: &str, variables: &[(&str, &str)]) -> Result<ServerConfig, ConfigError> {
    load_server_with_users(text, "", variables)
}

/// Loads a server file with a users file.
pub fn load_server_with_users(
    text: &str,
    users: &str,
    variables: &[(&str, &str)],
) -> Result<ServerConfig, ConfigError> {
    let directory = Directory::new();
    let users = directory.write("users.toml", users);
    let mut variables = variables.to_vec();
    if !variables.iter().any(|(name, _)| ["TOLLGATE_USERS_FILE", "QUINCY_USERS_FILE"].contains(name)) {
        variables.push(("QUINCY_USERS_FILE", users.to_str().unwrap()));
    }
    ServerConfig::load(&directory.write("server.toml", text), env(&variables))
}

/// Loads a client file.
pub fn load_client(text: &str, variables: &[(&str, &str)]) -> Result<ClientConfig, ConfigError> {
    let directory = Directory::new();
    ClientConfig::load(&directory.write("client.toml", text), env(variables))
}

/// The name of a file without its directory.
pub fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// The variable that overrides a key.
pub fn variable(path: &str) -> String {
    format!("TOLLGATE_{}", path.to_uppercase().replace('.', "__"))
}

/// The range of a number.
pub fn range(entry: &Entry) -> Option<(u64, u64)> {
    let (_, range) = entry.expected.rsplit_once(" from ")?;
    let (from, to) = range.split_once(" to ")?;
    Some((from.parse().ok()?, to.parse().ok()?))
}
