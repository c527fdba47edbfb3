//! The gateway's own file, `server.toml`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tollgate_shards::{Limit, Rate, Users};
use zeroize::Zeroizing;

use crate::bind::DEFAULT_BIND;
use crate::connection::{self, Connection};
use crate::connection_ids::ConnectionIds;
use crate::control::Control;
use crate::data_path::DataPath;
use crate::document::{self, FILE_BYTES_MAX, Report};
use crate::environment::Ignored;
use crate::error::ConfigError;
use crate::host::HostSettings;
use crate::kind::{FilePlace, Kind, interface, listen, path, port, rate, switch, text};
use crate::log::Logging;
use crate::metrics::Metrics;
use crate::open::{Open, open_file};
use crate::protocol::{self, ServerProtocol};
use crate::records::{AUDIT_FILE_NAME, Audit, EVENTS_FILE_NAME, Events};
use crate::schema::{Declared, LIVE, RESTART, Section, table};
use crate::sessions::Sessions;
use crate::shards::{KEY_FILE_NAME, Shards};
use crate::table::Table;
use crate::usage::{Quotas, USAGE_FILE_NAME, Usage};
use crate::users::{self, Credentials, Defaults, USERS_FILE_BYTES_MAX, UsersFile};

table! {
    /// The gateway's configuration, checked.
    #[derive(Debug, Clone)]
    pub struct ServerConfig of Quincy {
        /// A name for people.
        "name" => name: String = String::new(), name(), LIVE.required("\"example\"");
        /// Name of the TUN interface. With %d once, the kernel puts the first free number there.
        "interface_name" => interface_name: Option<String> = None, interface(), RESTART.in_example("\"tollgate0\"");
        /// Where QUIC (UDP) is received. "::" listens on IPv6 and IPv4.
        "bind_address" => bind_address: IpAddr = DEFAULT_BIND.ip(), listen(), RESTART;
        /// The UDP port where QUIC is received.
        "bind_port" => bind_port: u16 = DEFAULT_BIND.port(), port(), RESTART;
        /// Whether other programs may share the port too. The gateway's own shards always share it.
        "reuse_socket" => reuse_socket: bool = false, switch(),
            RESTART.without_effect("the shards of one gateway share the port, and no other process may");
        /// The gateway's own address inside the tunnel, with the prefix length of the network that clients get addresses from. The network's own,
        /// the broadcast and this address are never handed out.
        "tunnel_network" => tunnel_network: IpNet = IpNet::default(), network(), RESTART.required("\"198.18.0.1/24\"");
        /// Who may connect.
        "users_file" => users_file: PathBuf = PathBuf::new(),
            path("write the path of the users file, for example users_file = \"users.toml\""), LIVE.required("\"users.toml\"");
        /// Whether clients are kept from reaching each other through the gateway.
        "isolate_clients" => isolate_clients: bool = true, switch(), LIVE;
        /// Limit of every user that has none of its own, over all its connections and both directions, in decimal multiples of a bit a second.
        "default_bandwidth_limit" => default_bandwidth_limit: Option<Rate> = None, rate().optional("no limit"), LIVE.in_example("\"100 mbps\"");
    }
    and {
        /// The users.
        users: Arc<Users> = Arc::default();
        /// What each of them can log in with, in their order in the file.
        credentials: Arc<[Credentials]> = Arc::default();
        /// The bursts of users who have one of their own.
        bursts: Arc<HashMap<String, Duration>> = Arc::default();
        /// The quotas of users who have some of their own.
        quotas: Arc<HashMap<String, Quotas>> = Arc::default();
        /// The handshakes that are served.
        protocol: ServerProtocol = ServerProtocol::initial();
        /// QUIC and the UDP socket.
        connection: Connection = Connection::initial();
        /// What to log.
        log: Logging = Logging::default();
        /// The metrics endpoint.
        metrics: Metrics = Metrics::initial();
        /// Cores.
        shards: Shards = Shards::initial();
        /// What connection IDs look like.
        connection_ids: ConnectionIds = ConnectionIds::initial();
        /// How packets are moved.
        data_path: DataPath = DataPath::initial();
        /// Bounds of users' sessions.
        sessions: Sessions = Sessions::initial();
        /// What is kept of what users have carried.
        usage: Usage = Usage::initial();
        /// Who has connected, left, been refused and given orders.
        audit: Audit = Audit::initial();
        /// When sessions have begun and ended.
        events: Events = Events::initial();
        /// What is set up on the machine.
        host: HostSettings = HostSettings::initial();
        /// How the running gateway is told what to do.
        control: Control = Control::initial();
        /// Environment variables that begin like ours, but that a container platform set, or that name nothing at all.
        ignored_variables: Vec<String> = Vec::new();
        /// What is valid but was hardly meant so, each in a line.
        warnings: Vec<String> = Vec::new();
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
        Self::load_with(path, env, &open_file)
    }

    /// The same, of files that `open` opens.
    ///
    /// # Errors
    ///
    /// As [`ServerConfig::load`].
    pub fn load_with(
        path: &Path,
        env: impl Iterator<Item = (String, String)>,
        open: &Open<'_>,
    ) -> Result<Self, ConfigError> {
        let users = |path: &Path| document::read(path, USERS_FILE_BYTES_MAX, open);
        let read = |root: Table<'_>, report: &mut Report<'_>| Self::read_file(root, report, &users);
        Ok(Self::with_ignored(document::load(path, FILE_BYTES_MAX, env, open, read)?))
    }

    /// The same of `server`, the text of a server file, and of `users`, that of whatever users file it names. Nothing is read.
    ///
    /// # Errors
    ///
    /// If anything in them is wrong: see [`ConfigError`].
    pub fn from_texts(server: &str, users: &str) -> Result<Self, ConfigError> {
        let users = |_: &Path| Ok(Zeroizing::new(users.to_owned()));
        let read = |root: Table<'_>, report: &mut Report<'_>| Self::read_file(root, report, &users);
        Ok(Self::with_ignored(document::load_text(Path::new("server.toml"), server, std::iter::empty(), read)?))
    }

    fn with_ignored((mut config, ignored): (Self, Ignored)) -> Self {
        config.ignored_variables = ignored.variables;
        config.warnings.extend(ignored.warnings);
        config.warnings.extend(config.without_effect());
        config
    }

    /// The limit of the user `name` where the user's rate is another one than the file's: with the burst that the files say.
    pub fn limit(&self, name: &str, rate: Rate) -> Limit {
        let mut user = self.sessions.user;
        user.burst = self.bursts.get(name).copied().unwrap_or(user.burst);
        self.sessions.limit(&user, rate)
    }

    /// What the user `name` may carry.
    pub fn quotas(&self, name: &str) -> Quotas {
        self.quotas.get(name).copied().unwrap_or(self.usage.quotas)
    }

    /// Whether any user has a quota.
    pub fn has_quotas(&self) -> bool {
        !self.usage.quotas.are_none() || self.quotas.values().any(|quotas| !quotas.are_none())
    }

    /// Where to receive QUIC. The port is never 0.
    pub fn bind(&self) -> SocketAddr {
        SocketAddr::new(self.bind_address, self.bind_port)
    }

    /// Every key with its value.
    pub(crate) fn sections(&self) -> Vec<Section> {
        let mut sections = vec![self.section("")];
        sections.extend(self.protocol.sections());
        sections.extend([
            self.connection.section("connection"),
            self.log.section(),
            self.metrics.section("metrics"),
            self.shards.section("shards"),
            self.connection_ids.section("connection_ids"),
            self.data_path.section("data_path"),
            self.sessions.table(),
            self.usage.table(),
            self.audit.section("audit"),
            self.events.section("events"),
            self.host.section("host"),
            self.control.section("control"),
        ]);
        sections
    }

    fn read_file(mut root: Table<'_>, report: &mut Report<'_>, read_users: &ReadUsers<'_>) -> Self {
        let mut config = ServerConfig::initial();
        config.read_keys(&mut root, report);
        config.sessions = Sessions::read_table(root.table(report, "sessions"), report);
        config.usage = Usage::read_table(root.table(report, "usage"), report);
        let UsersFile { users, credentials, bursts, quotas, warnings } = config.read_users(&root, report, read_users);
        (config.users, config.credentials, config.warnings) = (users, credentials, warnings);
        (config.bursts, config.quotas) = (bursts, quotas);
        config.protocol = protocol::read_server(&mut root, report);
        let inner_v6 = config.tunnel_network.addr().is_ipv6();
        config.connection = connection::read(root.table(report, "connection"), report, inner_v6);
        config.log = Logging::read(root.table(report, "log"), report);
        config.metrics = Metrics::read(root.table(report, "metrics"), report);
        config.shards = Shards::read(root.table(report, "shards"), report);
        if !config.shards.key_file.is_configured {
            config.shards.key_file = FilePlace::unconfigured(report.state_folder(), KEY_FILE_NAME);
        }
        let ids = root.table(report, "connection_ids");
        config.connection_ids = ConnectionIds::read_table(ids, report, config.shards.count);
        config.data_path = DataPath::read(root.table(report, "data_path"), report);
        if !config.usage.file.is_configured {
            config.usage.file = FilePlace::unconfigured(report.state_folder(), USAGE_FILE_NAME);
        }
        config.audit = Audit::read(root.table(report, "audit"), report);
        config.events = Events::read(root.table(report, "events"), report);
        let records = [(&mut config.audit.file, AUDIT_FILE_NAME), (&mut config.events.file, EVENTS_FILE_NAME)];
        for (file, name) in records.into_iter().filter(|(file, _)| !file.is_configured) {
            *file = FilePlace::unconfigured(report.state_folder(), name);
        }
        config.host = HostSettings::read(root.table(report, "host"), report);
        let control = Control::read(root.table(report, "control"), report);
        config.control = control.locate(report.runtime_folder(), config.bind());
        root.finish(report);
        config
    }

    fn read_users(&self, root: &Table<'_>, report: &mut Report<'_>, read: &ReadUsers<'_>) -> UsersFile {
        let path = &self.users_file;
        let taken = match root.taken("users_file") {
            Some(taken) if !report.is_wrong("users_file") => taken,
            _ => return UsersFile::default(),
        };
        let text = match read(path) {
            Ok(text) => text,
            Err(error) => {
                for problem in error.problems() {
                    let what = format!("names {path:?}, which {}", problem.what);
                    let remedy = format!("{} (a relative path starts at the working directory)", problem.remedy);
                    report.wrong(taken.value.clone(), "users_file", what, remedy);
                }
                return UsersFile::default();
            }
        };
        // Users cannot be judged without the network whose addresses they have.
        if report.is_wrong("tunnel_network") {
            return UsersFile::default();
        }
        let (sessions, &Usage { enabled: keeps_usage, quotas, .. }) = (self.sessions, &self.usage);
        let defaults = Defaults { limit: self.default_bandwidth_limit, sessions, quotas, keeps_usage };
        users::parse(path, &text, self.tunnel_network, defaults).unwrap_or_else(|error| {
            report.absorb(error);
            UsersFile::default()
        })
    }
}

/// Has the text of the users file at a path.
type ReadUsers<'r> = dyn Fn(&Path) -> Result<Zeroizing<String>, ConfigError> + 'r;

fn name() -> Kind<String> {
    let parse = |text: &str| match text.trim() {
        "" => Err("which is empty".into()),
        name => Ok(name.to_owned()),
    };
    text("write a name for the tunnel, for example name = \"office\"", parse, String::clone)
}

fn network() -> Kind<IpNet> {
    let expected = "write the server's inner address with the network's prefix length, for example tunnel_network = \"198.18.0.1/24\"";
    text(expected, tunnel_network, IpNet::to_string)
}

fn tunnel_network(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text.trim().parse().map_err(|_| "which is not an address with a prefix length".to_owned())?;
    let (address, prefix_len_max) = (network.addr(), network.max_prefix_len() - 2);
    if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
        return Err("which no client can use: it is loopback, multicast or unspecified".into());
    }
    if network.prefix_len() == 0 {
        return Err("which is the whole address space".into());
    }
    // Network, broadcast and the server itself take three of four addresses.
    if network.prefix_len() > prefix_len_max {
        return Err(format!("which leaves no address for a client: a prefix length may be at most {prefix_len_max}"));
    }
    if address == network.network() {
        return Err("whose host part is the network's own address, not one that the server can have".into());
    }
    if address == network.broadcast() {
        return Err("whose host part is the broadcast address, not one that the server can have".into());
    }
    Ok(network)
}
