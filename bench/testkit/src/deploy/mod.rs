//! The files that a gateway and its clients read, and the certificates named in them.
//!
//! Gateways of Quincy's protocol read the same files, Tollgate among them.

mod identity;

use std::fs;
use std::path::Path;

use serde::Serialize;
use toml::{Table, Value};

pub use identity::Identity;

use crate::{LabError, SERVICE_V4};

/// The port that gateways listen on, Quincy's own default.
pub const PORT: u16 = 55_555;
pub const GATEWAY_TUN: &str = "tollgate0";
/// The name of a client's TUN interface, in a namespace of its own.
pub const CLIENT_TUN: &str = "quincy0";

/// A configuration file: what every deployment needs, and what [`ConfigFile::set`] changes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigFile(Table);

impl ConfigFile {
    /// A gateway's, with the certificate `server` and the users file of `folder`.
    pub fn gateway(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        ConfigFile::default()
            .set("name", "test")
            .set("bind_address", "0.0.0.0")
            .set("bind_port", PORT)
            .set("tunnel_network", "198.19.128.1/24")
            .set("interface_name", GATEWAY_TUN)
            .set("users_file", file("users.toml"))
            .set("protocol.mode", "tls")
            .set("protocol.certificate_file", file("server_cert.pem"))
            .set("protocol.certificate_key_file", file("server_key.pem"))
    }

    /// Adds what Tollgate keeps in files of its own: by default they are the machine's.
    pub fn of_tollgate(self, folder: &Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        self.set("shards.key_file", file("keys")).set("control.socket", file("control"))
    }

    /// The client's of `user`, who connects to `endpoint` (`198.18.0.1:55555`).
    pub fn client(folder: &Path, user: &str, endpoint: &str) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        ConfigFile::default()
            .set("connection_string", endpoint)
            .set("protocol.mode", "tls")
            .set("protocol.trusted_certificate_paths", vec![file("server_cert.pem")])
            .set("protocol.client_certificate_file", file(&format!("{user}_cert.pem")))
            .set("protocol.client_certificate_key_file", file(&format!("{user}_key.pem")))
            .set("network.routes", vec!["198.19.0.0/24"])
            .set("network.interface_name", CLIENT_TUN)
    }

    /// Sets a key, named with its table's: `shards.count`.
    pub fn set(mut self, key: &str, value: impl Serialize) -> Self {
        let mut names = key.split('.');
        let last = names.next_back().unwrap_or(key);
        let table = names.fold(&mut self.0, |table, name| {
            let inner = table.entry(name).or_insert_with(|| Table::new().into());
            inner.as_table_mut().unwrap_or_else(|| panic!("{name} in {key} is no table"))
        });
        let value = Value::try_from(value).unwrap_or_else(|error| panic!("{key}: {error}"));
        table.insert(last.to_owned(), value);
        self
    }

    /// Replaces the table `[protocol]`, which is that of a TLS mode at first.
    pub fn with_protocol<'s>(mut self, settings: impl IntoIterator<Item = (&'s str, &'s str)>) -> Self {
        self.0.insert("protocol".to_owned(), Table::new().into());
        settings.into_iter().fold(self, |file, (key, value)| file.set(&format!("protocol.{key}"), value))
    }

    pub fn write(&self, path: &Path) -> Result<(), LabError> {
        fs::write(path, self.to_string()).map_err(|source| LabError::cannot(path.display(), "write", source))
    }
}

impl std::fmt::Display for ConfigFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where [`ConfigFile::client`]s of IPv4 connect to.
pub fn service() -> String {
    format!("{SERVICE_V4}:{PORT}")
}

/// A user's entry in a users file; `settings` are further lines, as `bandwidth_limit = "1 mbps"`.
pub fn user_entry(name: &str, fingerprint: &str, settings: &str) -> String {
    format!("[users.{name}]\nauthorized_certs = [\"{fingerprint}\"]\n{settings}\n")
}

/// The further line of a user's entry with Noise public keys.
pub fn authorized_keys<'k>(keys: impl IntoIterator<Item = &'k str>) -> String {
    let keys: Vec<String> = keys.into_iter().map(|key| format!("\"{key}\"")).collect();
    format!("authorized_keys = [{}]\n", keys.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_set_in_their_tables_and_replace_what_was_there() {
        let file = ConfigFile::gateway(Path::new("/x")).set("shards.count", 2).set("protocol.mode", "none");
        let table: Table = file.to_string().parse().unwrap();
        assert_eq!(table["shards"]["count"].as_integer(), Some(2));
        assert_eq!(table["protocol"]["mode"].as_str(), Some("none"));
        assert_eq!(table["protocol"]["certificate_file"].as_str(), Some("/x/server_cert.pem"));
    }
}
