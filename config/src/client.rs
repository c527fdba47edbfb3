//! The client's file, `client.toml`.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use crate::bind::DEFAULT_BIND;
use crate::connection::{self, Connection};
use crate::document::{self, FILE_BYTES_MAX, Report};
use crate::error::ConfigError;
use crate::kind::{Kind, interface, text};
use crate::log::Logging;
use crate::open::open_file;
use crate::protocol::{self, ClientProtocol};
use crate::schema::{Declared, RESTART, Section, table};
use crate::table::Table;

/// Most routes, and most DNS servers, of a client.
const LIST_MAX: usize = 4096;
/// Most gateways of a client.
const SERVERS_MAX: usize = 64;

/// Where a server is: the host is also the name that its certificate must bear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// A DNS name or an IP address, without brackets.
    pub host: String,
    /// The UDP port, never 0.
    pub port: u16,
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

table! {
    /// The client's configuration, checked.
    #[derive(Debug, Clone)]
    pub struct ClientConfig of Quincy {
        /// The gateway: a name that its certificate bears, or its address, and its port. Of several, the client stays with the first that takes it.
        "connection_string" => servers: Vec<ServerAddress> = Vec::new(), server().one_or_list(SERVERS_MAX), RESTART.required("\"vpn.example.org:55555\"");
    }
    and {
        /// The handshake that the gateway is spoken to with.
        protocol: ClientProtocol = ClientProtocol::initial();
        /// QUIC and the UDP socket.
        connection: Connection = Connection::initial();
        /// What the client sets up on its machine.
        network: Network = Network::initial();
        /// What to log.
        log: Logging = Logging::default();
        /// Environment variables that begin like ours, but that a container platform set, or that name nothing at all.
        ignored_variables: Vec<String> = Vec::new();
        /// What is valid but was hardly meant so, each in a line.
        warnings: Vec<String> = Vec::new();
    }
}

table! {
    /// What the client sets up on its machine.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Network of Quincy {
        /// Networks to reach through the tunnel besides the tunnel network itself.
        "routes" => routes: Vec<IpNet> = Vec::new(), routes(), RESTART.in_example("[\"198.18.64.0/24\"]");
        /// DNS servers to use while connected.
        "dns_servers" => dns_servers: Vec<IpAddr> = Vec::new(), dns_servers(), RESTART;
        /// Name of the TUN interface. With %d once, the kernel puts the first free number there.
        "interface_name" => interface_name: Option<String> = None, interface(), RESTART.example("\"tollgate0\"");
    }
}

impl ClientConfig {
    /// Reads the file at `path`, overridden by `env`. Relative paths in it are relative to the working directory.
    ///
    /// A variable `QUINCY_KEY` or `QUINCY_TABLE__KEY` overrides a key; the prefix `TOLLGATE_` does the same and wins.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or anything in it is wrong: see [`ConfigError`].
    pub fn load(path: &Path, env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let (mut config, ignored) = document::load(path, FILE_BYTES_MAX, env, &open_file, Self::read_file)?;
        config.ignored_variables = ignored.variables;
        config.warnings.extend(ignored.warnings);
        Ok(config)
    }

    /// Every key with its value.
    pub(crate) fn sections(&self) -> Vec<Section> {
        vec![
            self.section(""),
            self.protocol.section(),
            self.connection.section("connection"),
            self.network.section("network"),
            self.log.section(),
        ]
    }

    fn read_file(mut root: Table<'_>, report: &mut Report<'_>) -> Self {
        let mut config = ClientConfig::initial();
        config.read_keys(&mut root, report);
        config.protocol = protocol::read_client(&mut root, report);
        let connection = root.table(report, "connection");
        let place = connection.place();
        config.connection = connection::read(connection, report, false);
        let Connection { keep_alive_interval, connection_timeout, .. } = config.connection;
        if keep_alive_interval >= connection_timeout {
            let what = format!(
                "is {}, not less than connection.connection_timeout_s, which is {}",
                keep_alive_interval.as_secs(),
                connection_timeout.as_secs()
            );
            let remedy = "lower this one or raise connection.connection_timeout_s: silence would end the connection";
            report.wrong(place, "connection.keep_alive_interval_s", what, remedy);
        }
        config.network = Network::read(root.table(report, "network"), report);
        config.log = Logging::read(root.table(report, "log"), report);
        root.finish(report);
        config
    }
}

fn server() -> Kind<ServerAddress> {
    let expected = "write host and port, for example \"vpn.example.org:55555\" or \"[2001:db8::1]:55555\"";
    text(expected, server_address, ServerAddress::to_string)
}

fn routes() -> Kind<Vec<IpNet>> {
    let parse = |text: &str| {
        let network = text.trim().parse::<IpNet>();
        network.map(|network| network.trunc()).map_err(|_| "which is not a network in CIDR notation".to_owned())
    };
    let expected = "write a network in CIDR notation, for example \"198.18.64.0/24\"";
    text(expected, parse, IpNet::to_string).list(LIST_MAX)
}

fn dns_servers() -> Kind<Vec<IpAddr>> {
    let parse = |text: &str| text.trim().parse().map_err(|_| "which is not an IP address".to_owned());
    text("write an IP address", parse, IpAddr::to_string).list(LIST_MAX)
}

fn server_address(text: &str) -> Result<ServerAddress, String> {
    let text = text.trim();
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let port = if rest.ends_with(']') || !rest.contains(':') {
            format!(":{}", DEFAULT_BIND.port())
        } else {
            String::new()
        };
        return Err(format!("which is a URL: leave {scheme}:// and what follows the port out, as in \"{rest}{port}\""));
    }
    let Some((host, port)) = text.rsplit_once(':') else { return Err("which has no port".into()) };
    let port = match port.parse::<u16>() {
        Ok(port) if port > 0 => port,
        _ => return Err(format!("where {port:?} is not a port from 1 to 65535")),
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(host) if host.parse::<IpAddr>().is_ok_and(|host| host.is_ipv6()) => host,
        Some(host) => return Err(format!("where {host:?} is not an IPv6 address")),
        None if host.contains(':') => return Err("where an IPv6 address lacks its brackets".into()),
        None => host,
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(is_name) {
        return Err(format!("where {host:?} is neither a DNS name nor an IP address"));
    }
    Ok(ServerAddress { host: host.to_owned(), port })
}
