//! The gateway's own file, `server.toml`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tollgate_shards::Rate;

use crate::connection::{self, Connection};
use crate::control::{self, Control};
use crate::data_path::{self, DataPath};
use crate::document::{self, Report, Table};
use crate::error::ConfigError;
use crate::protocol::{self, ServerTls};
use crate::sessions::{self, Sessions};
use crate::shards::{self, Shards};
use crate::users::{Defaults, USERS_FILE_BYTES_MAX, UsersFile};
use crate::value::{self, LogFilter};

/// Longest server or client file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

const DEFAULT_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 55555);
const INTERVAL_S_MAX: u64 = 86_400;

/// The gateway's configuration, checked.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// A name for the tunnel, for people.
    pub name: String,
    /// The TUN interface's name; `None` to let the kernel choose.
    pub interface_name: Option<String>,
    /// Where to receive QUIC. The port is never 0.
    pub bind: SocketAddr,
    /// Whether other programs may share the port. The shards share it in any case.
    pub reuse_socket: bool,
    /// The tunnel network; the host part is the server's own inner address, and at least one address is left for clients.
    pub tunnel_network: IpNet,
    /// Where the users were read from.
    pub users_file: PathBuf,
    /// The users.
    pub users: UsersFile,
    /// Whether clients are kept from reaching each other.
    pub isolate_clients: bool,
    /// The limit of users that have none of their own; `None` for no limit.
    pub default_bandwidth_limit: Option<Rate>,
    /// Certificate, key and key exchange.
    pub tls: ServerTls,
    /// QUIC and the UDP socket.
    pub connection: Connection,
    /// What to log.
    pub log: LogFilter,
    /// The metrics endpoint.
    pub metrics: Metrics,
    /// Cores.
    pub shards: Shards,
    /// How packets are moved.
    pub data_path: DataPath,
    /// Bounds of users' sessions.
    pub sessions: Sessions,
    /// How the running gateway is told what to do.
    pub control: Control,
    /// Environment variables that begin like ours, but that a container platform set, or that name nothing at all.
    pub ignored_variables: Vec<String>,
    /// What is valid but was hardly meant so, each in a line.
    pub warnings: Vec<String>,
}

/// The table `[metrics]`. Checked, but not served yet: the shell says so where `enabled` is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Whether an endpoint is wanted.
    pub enabled: bool,
    /// Where it listens. The port is never 0.
    pub bind: SocketAddr,
    /// How often the figures of connections are renewed; 1 s to a day.
    pub reporting_interval: Duration,
    /// How long the figures of a connection that is gone are kept; `None` for ever.
    pub idle_timeout: Option<Duration>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            enabled: false,
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
            reporting_interval: Duration::from_secs(5),
            idle_timeout: Some(Duration::from_secs(300)),
        }
    }
}

impl ServerConfig {
    /// Reads the file at `path`, overridden by `env`, and the users file that it names. Relative paths are relative to the working
    /// directory.
    ///
    /// A variable `QUINCY_KEY` or `QUINCY_TABLE__KEY` overrides a key; the prefix `TOLLGATE_` does the same and wins.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or anything in it is wrong: see [`ConfigError`].
    pub fn load(path: &Path, env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let (mut config, ignored) = document::load(path, FILE_BYTES_MAX, env, Self::read)?;
        config.ignored_variables = ignored.variables;
        config.warnings.extend(ignored.warnings);
        config.warnings.extend(config.without_effect());
        Ok(config)
    }

    /// What is set and has no effect, in a line each.
    fn without_effect(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.reuse_socket {
            let reason = "the shards of one gateway share the port, and no other process may";
            warnings.push(format!("reuse_socket = true has no effect: {reason}"));
        }
        if self.metrics.enabled {
            let instead = "for now SIGUSR1 prints the counters of every shard";
            warnings.push(format!("[metrics] enabled = true has no effect: no endpoint is served yet, {instead}"));
        }
        warnings
    }

    fn read(mut root: Table<'_>, report: &mut Report<'_>) -> Option<Self> {
        let name = read_name(&mut root, report);
        let interface_name = root.parsed(report, "interface_name", value::INTERFACE, value::interface);
        let bind = read_socket_address(&mut root, report, "bind_address", "bind_port", DEFAULT_BIND);
        let reuse_socket = root.boolean(report, "reuse_socket").unwrap_or(false);
        let isolate_clients = root.boolean(report, "isolate_clients").unwrap_or(true);
        let tunnel_network = read_network(&mut root, report);
        let default_bandwidth_limit = root.parsed(report, "default_bandwidth_limit", value::RATE, value::rate);
        let sessions = sessions::read(root.table(report, "sessions"), report);
        let defaults = Defaults { limit: default_bandwidth_limit, sessions };
        let users = read_users(&mut root, report, tunnel_network, defaults);
        let expected = "write a table [protocol] with mode = \"tls\", certificate_file and certificate_key_file";
        root.require(report, "protocol", expected);
        let tls = if root.is_set(report, "protocol") {
            protocol::read_server(root.table(report, "protocol"), report)
        } else {
            None
        };
        let inner_v6 = tunnel_network.is_some_and(|network| network.addr().is_ipv6());
        let connection = connection::read(root.table(report, "connection"), report, inner_v6);
        let log = read_log(root.table(report, "log"), report);
        let metrics = read_metrics(root.table(report, "metrics"), report);
        let shards = shards::read(root.table(report, "shards"), report);
        let data_path = data_path::read(root.table(report, "data_path"), report);
        let control = control::read(root.table(report, "control"), report, bind);
        root.finish(report);
        let (users_file, users) = users?;
        Some(ServerConfig {
            name: name?,
            interface_name,
            bind,
            reuse_socket,
            tunnel_network: tunnel_network?,
            users_file,
            users,
            isolate_clients,
            default_bandwidth_limit,
            tls: tls?,
            connection,
            log,
            metrics,
            shards,
            data_path,
            sessions,
            control,
            ignored_variables: Vec::new(),
            warnings: Vec::new(),
        })
    }
}

fn read_name(root: &mut Table<'_>, report: &mut Report<'_>) -> Option<String> {
    let expected = "write a name for the tunnel, for example name = \"office\"";
    root.require(report, "name", expected);
    root.parsed(report, "name", expected, |text| match text.trim() {
        "" => Err("which is empty".into()),
        name => Ok(name.to_owned()),
    })
}

/// An address and a port with keys of their own.
fn read_socket_address(
    table: &mut Table<'_>,
    report: &mut Report<'_>,
    address: &str,
    port: &str,
    default: SocketAddr,
) -> SocketAddr {
    let expected = "write an IP address of this machine, \"0.0.0.0\" or \"::\" for all";
    let address = table.parsed(report, address, expected, |text| match text.trim().parse::<IpAddr>() {
        Ok(address) if address.is_multicast() => Err("which is a multicast address".into()),
        Ok(address) => Ok(address),
        Err(_) => Err("which is not an IP address".into()),
    });
    let port = table.integer(report, port, 1..=u16::MAX.into(), "a port");
    SocketAddr::new(address.unwrap_or(default.ip()), port.map_or(default.port(), |port| port as u16))
}

fn read_network(root: &mut Table<'_>, report: &mut Report<'_>) -> Option<IpNet> {
    let expected = "write the server's inner address with the network's prefix length, for example tunnel_network = \"198.18.0.1/24\"";
    root.require(report, "tunnel_network", expected);
    root.parsed(report, "tunnel_network", expected, |text| {
        let network: IpNet =
            text.trim().parse().map_err(|_| "which is not an address with a prefix length".to_owned())?;
        let address = network.addr();
        if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
            return Err("which no client can use: it is loopback, multicast or unspecified".into());
        }
        if network.prefix_len() == 0 {
            return Err("which is the whole address space".into());
        }
        // Network, broadcast and the server itself take three of four addresses.
        if network.prefix_len() > network.max_prefix_len() - 2 {
            return Err(format!(
                "which leaves no address for a client: a prefix length may be at most {}",
                network.max_prefix_len() - 2
            ));
        }
        if address == network.network() {
            return Err("whose host part is the network's own address, not one that the server can have".into());
        }
        if address == network.broadcast() {
            return Err("whose host part is the broadcast address, not one that the server can have".into());
        }
        Ok(network)
    })
}

fn read_users(
    root: &mut Table<'_>,
    report: &mut Report<'_>,
    network: Option<IpNet>,
    defaults: Defaults,
) -> Option<(PathBuf, UsersFile)> {
    let expected = "write the path of the users file, for example users_file = \"users.toml\"";
    root.require(report, "users_file", expected);
    let setting = root.take(report, "users_file")?;
    let place = setting.place.clone();
    let path = setting.parsed(report, expected, value::path)?;
    let text = match document::read(&path, USERS_FILE_BYTES_MAX) {
        Ok(text) => text,
        Err(error) => {
            for problem in error.problems() {
                let what = format!("names {path:?}, which {}", problem.what);
                let remedy = format!("{} (a relative path starts at the working directory)", problem.remedy);
                report.wrong(place.clone(), "users_file", what, remedy);
            }
            return None;
        }
    };
    match UsersFile::parse(&path, &text, network?, defaults) {
        Ok(users) => Some((path, users)),
        Err(error) => {
            report.absorb(error);
            None
        }
    }
}

/// Reads the table `[log]` of a server or a client.
pub(crate) fn read_log(mut table: Table<'_>, report: &mut Report<'_>) -> LogFilter {
    let filter = table.parsed(report, "level", value::LOG, LogFilter::parse);
    table.finish(report);
    filter.unwrap_or_default()
}

fn read_metrics(mut table: Table<'_>, report: &mut Report<'_>) -> Metrics {
    let default = Metrics::default();
    let enabled = table.boolean(report, "enabled").unwrap_or(default.enabled);
    let bind = read_socket_address(&mut table, report, "address", "port", default.bind);
    let reporting_interval = table
        .integer(report, "reporting_interval_s", 1..=INTERVAL_S_MAX, "seconds")
        .map_or(default.reporting_interval, Duration::from_secs);
    let idle_timeout = match table.integer(report, "idle_timeout_s", 0..=INTERVAL_S_MAX, "seconds (0 for ever)") {
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => default.idle_timeout,
    };
    table.finish(report);
    Metrics { enabled, bind, reporting_interval, idle_timeout }
}
