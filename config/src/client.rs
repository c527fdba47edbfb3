//! The client's file, `client.toml`.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use crate::connection::{self, Connection};
use crate::document::{self, Report, Table};
use crate::error::ConfigError;
use crate::protocol::{self, ClientTls};
use crate::server::{FILE_BYTES_MAX, read_log};
use crate::value::{self, LogFilter};

/// Most routes, and most DNS servers, of a client.
const LIST_MAX: usize = 4096;

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

/// The client's configuration, checked.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The server to connect to.
    pub server: ServerAddress,
    /// Certificates, key and key exchange.
    pub tls: ClientTls,
    /// QUIC and the UDP socket.
    pub connection: Connection,
    /// What the client sets up on its machine.
    pub network: Network,
    /// What to log.
    pub log: LogFilter,
    /// Environment variables that begin like ours, but that a container platform set, or that name nothing at all.
    pub ignored_variables: Vec<String>,
    /// What is valid but was hardly meant so, each in a line.
    pub warnings: Vec<String>,
}

/// The table `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// Networks to reach through the tunnel besides the tunnel network; host bits are clear.
    pub routes: Vec<IpNet>,
    /// DNS servers to use while connected.
    pub dns_servers: Vec<IpAddr>,
    /// The TUN interface's name; `None` to let the kernel choose.
    pub interface_name: Option<String>,
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
        let (mut config, ignored) = document::load(path, FILE_BYTES_MAX, env, Self::read)?;
        config.ignored_variables = ignored.variables;
        config.warnings.extend(ignored.warnings);
        Ok(config)
    }

    fn read(mut root: Table<'_>, report: &mut Report<'_>) -> Option<Self> {
        let expected = "write host and port, for example \"vpn.example.org:55555\" or \"[2001:db8::1]:55555\"";
        root.require(report, "connection_string", expected);
        let server = root.parsed(report, "connection_string", expected, server_address);
        let expected = "write a table [protocol] with mode = \"tls\", trusted_certificate_paths, \
                        client_certificate_file and client_certificate_key_file";
        root.require(report, "protocol", expected);
        let tls = if root.is_set(report, "protocol") {
            protocol::read_client(root.table(report, "protocol"), report)
        } else {
            None
        };
        let connection_place = root.place_of("connection");
        let connection = connection::read(root.table(report, "connection"), report, false);
        if connection.keep_alive_interval >= connection.connection_timeout {
            let what = format!(
                "is {}, not less than connection.connection_timeout_s, which is {}",
                connection.keep_alive_interval.as_secs(),
                connection.connection_timeout.as_secs()
            );
            let remedy = "lower this one or raise connection.connection_timeout_s: silence would end the connection";
            report.wrong(connection_place, "connection.keep_alive_interval_s", what, remedy);
        }
        let network = read_network(root.table(report, "network"), report);
        let log = read_log(root.table(report, "log"), report);
        root.finish(report);
        Some(ClientConfig {
            server: server?,
            tls: tls?,
            connection,
            network,
            log,
            ignored_variables: Vec::new(),
            warnings: Vec::new(),
        })
    }
}

fn server_address(text: &str) -> Result<ServerAddress, String> {
    let text = text.trim();
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let port = if rest.ends_with(']') || !rest.contains(':') { ":55555" } else { "" };
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

fn read_network(mut table: Table<'_>, report: &mut Report<'_>) -> Network {
    let expected = "write a network in CIDR notation, for example \"198.18.64.0/24\"";
    let routes = bounded(&mut table, report, "routes", expected, |text| {
        let network = text.trim().parse::<IpNet>();
        network.map(|network| network.trunc()).map_err(|_| "which is not a network in CIDR notation".to_owned())
    });
    let dns_servers = bounded(&mut table, report, "dns_servers", "write an IP address", |text| {
        text.trim().parse().map_err(|_| "which is not an IP address".to_owned())
    });
    let interface_name = table.parsed(report, "interface_name", value::INTERFACE, value::interface);
    table.finish(report);
    Network { routes, dns_servers, interface_name }
}

fn bounded<T>(
    table: &mut Table<'_>,
    report: &mut Report<'_>,
    key: &str,
    expected: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let list = table.list(report, key, expected, parse).unwrap_or_default();
    if let Some((place, _)) = list.get(LIST_MAX) {
        let what = format!("has {} elements", list.len());
        report.wrong(place.clone(), &format!("network.{key}"), what, format!("list at most {LIST_MAX}"));
    }
    list.into_iter().map(|(_, value)| value).collect()
}
