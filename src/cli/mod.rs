//! Commands and their options.

mod operator;
mod pages;
mod tables;
mod usage;
mod values;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use tollgate_config::{ClientConfig, ClientProtocol, ConfigError, Logging, Open, ServerConfig, open_file};
use tracing::{info, warn};

use self::operator::Operator;
use self::tables::Sort;
use self::values::{clients_per_s, drain_time, interval, limit};
use crate::control::{Control, Request, Sockets};
use crate::gateway::{Gateway, KeyFile, LimitOrder, refuse};
use crate::handshakes::{Served, Spoken, shut_out, who_can_come_in};
use crate::host::{Host, Load, Named, Split, split};
use crate::log::{Log, say_last};
use crate::output::{print, with_causes};
use crate::signals::terminal_signals;
use crate::tls::Doubt;
use crate::upgrade::{Introduction, Listeners, Program, take_over_input};
use crate::usage::{Day, Period};

/// A QUIC VPN gateway for Linux that scales by the core. Speaks the protocol of Quincy 3: its clients connect unchanged.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGINT or SIGTERM.
    ///
    /// Reads Quincy's server.toml and users.toml as they are, and tables of its own. SIGHUP reloads them, as `tollgate reload` does. SIGUSR1
    /// prints the counters of every shard as one line of JSON on standard output. Needs root, or CAP_NET_ADMIN for the TUN device and
    /// CAP_BPF for steering.
    Serve {
        #[command(flatten)]
        file: ServerFile,
        /// Take over from the gateway that has started this process.
        #[arg(long, hide = true)]
        successor: bool,
    },
    /// Have a running gateway read its configuration again and put it in force, without a break.
    ///
    /// It is checked whole first and put in force on all shards at once, or not at all. Users, certificates and keys, limits, isolation and
    /// the log's level can change; what a reload cannot change is refused by name. When this command ends well, no packet passes any more that the
    /// new configuration forbids.
    Reload {
        /// Also if fewer than half of the users in force would remain, whom it would cut off at once.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        operator: Operator,
    },
    /// Close all connections of a user at a running gateway. Whoever is still in its users file may log in again.
    Kick {
        /// The user's name.
        user: String,
        #[command(flatten)]
        operator: Operator,
    },
    /// Show on a terminal what a running gateway does: shards, users by traffic, and drops by reason.
    ///
    /// Up is from clients, down is to clients. Figures of shards are of inner packets, those of users of UDP payload. Keys: q ends, s sorts users.
    Top {
        /// How often it is asked, as in 500ms or 2s.
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
        interval: Duration,
        #[command(flatten)]
        operator: Operator,
    },
    /// Follow the connections of a user at a running gateway: round trips, losses, window, queue and rates, a line whenever they change.
    ///
    /// Until SIGINT, or the time is up. Times are UTC. With --json each line is an object, with the keys of `connections --json`.
    Trace {
        /// The user's name.
        user: String,
        /// How long, as in 30s or 10m.
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        length: Option<Duration>,
        /// How often to look, as in 500ms or 2s. Figures are no newer than a tenth of a second.
        #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = interval)]
        interval: Duration,
        /// Also write qlog's events of QUIC (recovery metrics, ends) to this file, for the tools that draw them.
        #[arg(long, value_name = "FILE")]
        qlog: Option<PathBuf>,
        #[command(flatten)]
        operator: Operator,
    },
    /// Give a user of a running gateway another limit, at once and without the users file.
    ///
    /// It holds over all of the user's connections, those that are there included, through reloads and upgrades, until --file takes it back or the
    /// gateway is restarted. `status` and `users` show it.
    Limit {
        /// The user's name.
        user: String,
        /// The limit, as in "10 mbps" or 2gbps, or none.
        #[arg(value_name = "RATE", required_unless_present = "file", value_parser = limit)]
        rate: Option<LimitOrder>,
        /// Go back to what the files say.
        #[arg(long, conflicts_with = "rate")]
        file: bool,
        #[command(flatten)]
        operator: Operator,
    },
    /// Have a running gateway log more, or less, at once and without its file.
    ///
    /// It holds until --file takes it back, a reload brings another [log] level, or the gateway is upgraded or restarted. `status` shows it. Where
    /// RUST_LOG is set for the gateway, that governs, and the order is refused.
    LogLevel {
        /// As in [log] level: debug, or info,tollgate_shards=debug, for example.
        #[arg(value_name = "FILTER", required_unless_present = "file")]
        filter: Option<String>,
        /// Go back to what the file says.
        #[arg(long, conflicts_with = "filter")]
        file: bool,
        #[command(flatten)]
        operator: Operator,
    },
    /// Have a running gateway take no new clients, and send those that are there away at an even pace.
    ///
    /// They are told to come back, elsewhere if they can: `tollgate connect` goes to the next gateway of its list. Ends when all are gone, or the
    /// time is up; the gateway goes on, without clients. Another `drain` changes the pace, `resume` takes it back.
    Drain {
        /// The time after which whoever is left goes at once, as in 90s, 10m or 1h.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = drain_time)]
        within: Duration,
        /// Clients in a second, as in 200/s; without it, so many that the last one goes at the end of the time.
        #[arg(long, value_name = "RATE", value_parser = clients_per_s)]
        rate: Option<u32>,
        #[command(flatten)]
        operator: Operator,
    },
    /// Have a gateway that drains take clients again.
    Resume(Operator),
    /// Have a running gateway replaced by a new program or with a new configuration, without a break.
    ///
    /// The gateway starts another process, which takes all new clients as soon as it is ready. The old one keeps the clients that it has: those who
    /// come back by themselves are sent over at once, all others stay until the time is up. Both have one pool of addresses and one limit for each
    /// user. What `reload` refuses may change, but for the addresses, the tunnel network, the interface and [connection_ids]. If the new process does
    /// not get ready, the old one goes on.
    Upgrade {
        /// The new program; without it, the path that the gateway was started with.
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
        /// The time after which whoever is left at the old process goes at once, as in 90s, 10m or 1h.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = drain_time)]
        within: Duration,
        /// How many of the clients that come back by themselves (those of `tollgate connect`) go in a second. All others stay to the end.
        #[arg(long, value_name = "RATE", default_value = "200/s", value_parser = clients_per_s)]
        rate: u32,
        #[command(flatten)]
        operator: Operator,
    },
    /// Say how a running gateway stands: what it is about, and how many clients it has.
    ///
    /// With --json also all counters of every shard.
    Status {
        /// End with status 1 unless the gateway takes new clients: for probes of readiness.
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        operator: Operator,
    },
    /// Say which users are online at a running gateway: with how many connections, since when, and what these have carried.
    ///
    /// Bytes and packets are UDP payload and datagrams, as the quincy_* metrics count them, of the connections that are there now.
    Users {
        /// In which order.
        #[arg(long, value_enum, default_value_t = Sort::Name)]
        sort: Sort,
        #[command(flatten)]
        operator: Operator,
    },
    /// Say which connections a running gateway has: whose, with which inner address, on which shard, and what each has carried.
    ///
    /// A client's address on the outside is shown only where [log] level, or `tollgate log-level`, has it in the log too: at debug.
    Connections {
        /// Only those of this user.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// In which order.
        #[arg(long, value_enum, default_value_t = Sort::Name)]
        sort: Sort,
        #[command(flatten)]
        operator: Operator,
    },
    /// Say what users have carried at a gateway that keeps it ([usage] in its file), connections that are gone included.
    ///
    /// In all, or by day or month (UTC). Bytes and packets are UDP payload and datagrams, as `users` counts them.
    Usage {
        /// Only this user.
        user: Option<String>,
        /// Each day apart; days are kept for 400 days.
        #[arg(long, conflicts_with = "month")]
        day: bool,
        /// Each month apart.
        #[arg(long)]
        month: bool,
        /// Only from this day on, as in 2026-11-28.
        #[arg(long, value_name = "DATE")]
        since: Option<Day>,
        /// Print one line of comma-separated values for each row.
        #[arg(long, conflicts_with = "json")]
        csv: bool,
        /// Forget what the user has carried so far.
        #[arg(long, requires = "user", conflicts_with_all = ["day", "month", "since", "csv"])]
        forget: bool,
        #[command(flatten)]
        operator: Operator,
    },
    /// Connect this machine to a gateway, and stay connected, until SIGINT or SIGTERM.
    ///
    /// Reads Quincy's client.toml as it is. Brings up a TUN interface, routes and DNS, and takes them away again.
    Connect(ClientFile),
    /// Validate a configuration file and print what it amounts to, secrets masked.
    Check(CheckedFile),
    /// Say what this machine lacks for the gateway to work, and what costs it speed, each with the command that mends it.
    ///
    /// Looks at forwarding, filters, offloads and MTU of the links to clients, buffers, cores, clock and the gateway's certificate. Changes nothing.
    /// Run it as root: some answers are root's. Exit status 1 where something is missing.
    Doctor {
        #[command(flatten)]
        file: ServerFile,
        /// Print an object of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the script by which a shell completes commands and options of this program.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the man pages of all commands into a folder.
    Man {
        /// The folder, as /usr/local/share/man/man1; it is made where it is not there.
        folder: PathBuf,
    },
    /// Make and inspect certificates, and make Noise keys.
    #[command(subcommand)]
    Identity(crate::identity::Command),
    /// Show a gateway and two clients at work, in network namespaces of their own, with nothing to set up.
    ///
    /// Measures ping and bulk TCP both ways and prints one table. Nothing is left behind.
    #[cfg(feature = "demo")]
    Demo(crate::demo::Options),
}

/// Where a gateway's configuration is.
#[derive(Debug, Clone, Args)]
struct ServerFile {
    /// The configuration file.
    #[arg(long, visible_alias = "config-path", value_name = "FILE", default_value = "server.toml")]
    config: PathBuf,
    #[command(flatten)]
    environment: Environment,
}

/// The file that `check` reads.
#[derive(Debug, Args)]
struct CheckedFile {
    /// The configuration file.
    #[arg(long, visible_alias = "config-path", value_name = "FILE", default_value = "server.toml")]
    config: PathBuf,
    /// The file is a client's, not a gateway's.
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    environment: Environment,
}

/// Where a client's configuration is.
#[derive(Debug, Args)]
struct ClientFile {
    /// The configuration file.
    #[arg(long, visible_alias = "config-path", value_name = "FILE", default_value = "client.toml")]
    config: PathBuf,
    #[command(flatten)]
    environment: Environment,
}

#[derive(Debug, Clone, Args)]
struct Environment {
    /// Environment variables that begin with this override keys of the file, as in QUINCY_CONNECTION__MTU=1300; those that begin with
    /// TOLLGATE_ do so always, and win.
    #[arg(long, value_name = "PREFIX", default_value = QUINCY_PREFIX)]
    env_prefix: String,
}

const QUINCY_PREFIX: &str = "QUINCY_";

/// Variables by which systemd tells a service where to keep its files (systemd.exec(5)).
const SYSTEMD_FOLDERS: [&str; 2] = ["RUNTIME_DIRECTORY", "STATE_DIRECTORY"];

impl Environment {
    /// The variables as the configuration knows them. Only what is valid UTF-8 can name a key.
    fn variables(&self) -> impl Iterator<Item = (String, String)> + '_ {
        std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            if name.starts_with("TOLLGATE_") || SYSTEMD_FOLDERS.contains(&&name[..]) {
                return Some((name, value));
            }
            Some((format!("{QUINCY_PREFIX}{}", name.strip_prefix(&self.env_prefix)?), value))
        })
    }
}

impl ServerFile {
    fn load(&self) -> Result<ServerConfig, ConfigError> {
        ServerConfig::load(&self.config, self.environment.variables())
    }

    /// Reads it again whenever it is asked to.
    fn reader(&self) -> Box<Load> {
        let file = self.clone();
        Box::new(move |open| ServerConfig::load_with(&file.config, file.environment.variables(), open))
    }
}

impl ClientFile {
    fn load(&self) -> Result<ClientConfig, ConfigError> {
        ClientConfig::load(&self.config, self.environment.variables())
    }
}

impl Cli {
    /// Runs the command that was asked for.
    ///
    /// # Errors
    ///
    /// Whatever ended it, in one line.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve { file, successor: false } => serve(&file),
            Command::Serve { file, successor: true } => succeed(&file),
            Command::Reload { force, operator } => operator.order(&Request::Reload { force }),
            Command::Kick { user, operator } => operator.order(&Request::Kick { user }),
            Command::Top { interval, operator } => operator.top(interval),
            Command::Trace { user, length, interval, qlog, operator } => operator.trace(user, length, interval, qlog),
            Command::Limit { user, rate, file: _, operator } => {
                operator.order(&Request::Limit { user, to: rate.unwrap_or(LimitOrder::File) })
            }
            Command::LogLevel { filter, file: _, operator } => operator.order(&Request::LogLevel { filter }),
            Command::Drain { within, rate, operator } => operator.drain(within, rate),
            Command::Resume(operator) => operator.order(&Request::Resume),
            Command::Upgrade { binary, within, rate, operator } => operator.upgrade(binary, within, rate),
            Command::Status { ready, operator } => operator.status(ready),
            Command::Users { sort, operator } => operator.users(sort),
            Command::Connections { user, sort, operator } => operator.connections(user.as_deref(), sort),
            Command::Usage { user: Some(user), forget: true, operator, .. } => {
                operator.order(&Request::ForgetUsage { user })
            }
            Command::Usage { user, day, month, since, csv, forget: _, operator } => {
                let period = if day { Period::Day } else { Period::Total };
                operator.usage(user.as_deref(), if month { Period::Month } else { period }, since, csv)
            }
            Command::Connect(file) => {
                let config = file.load()?;
                start_log(&config.log, &config.ignored_variables)?;
                config.warnings.iter().for_each(|warning| warn!("{warning}"));
                Ok(crate::connect::run(&config, &terminal_signals()?)?)
            }
            Command::Check(file) => check(&file),
            Command::Doctor { file, json } => doctor(&file, json),
            Command::Completions { shell } => Ok(print(&pages::completions(shell))?),
            Command::Man { folder } => Ok(pages::write_manual(&folder)?),
            Command::Identity(command) => Ok(print(&command.run()?)?),
            #[cfg(feature = "demo")]
            Command::Demo(options) => Ok(crate::demo::run(&options)?),
        }
    }
}

fn serve(file: &ServerFile) -> anyhow::Result<()> {
    let config = file.load()?;
    let sockets = Sockets::open(&config, Listeners::default())?;
    let key_file = KeyFile::make_missing(&config.shards.key_file);
    let (mut host, log) = begin(file, &config)?;
    let control = Control::open(&config, sockets, &mut host)?;
    let gateway = Gateway::start(&config, key_file, host, control.recorder())?;
    Ok(control.run(gateway, log, file.reader())?)
}

/// Gives up all privileges and starts the log, which has what is doubtful about the configuration.
fn begin(file: &ServerFile, config: &ServerConfig) -> anyhow::Result<(Host, Log)> {
    let files = Named::of(&file.config, config, file.reader());
    let Split { mut host, left_open } = split(config, files, Program::of_this_process())?;
    let log = start_log(&config.log, &config.ignored_variables)?;
    left_open.iter().for_each(|line| info!("{line}"));
    config.warnings.iter().for_each(|warning| warn!("{warning}"));
    let doubts = doubts(config, &host.opener())?;
    doubts.iter().filter(|doubt| doubt.is_certain).for_each(|doubt| warn!("{}", doubt.text));
    Ok((host, log))
}

/// Takes over from the process that has started this one, or tells it why not.
fn succeed(file: &ServerFile) -> anyhow::Result<()> {
    let stream = take_over_input()?;
    let told = stream.try_clone()?;
    let begun = begin_succession(file, stream);
    if let Err(error) = &begun {
        refuse(&told, &with_causes(error));
    }
    let (control, gateway, log) = begun?;
    Ok(control.run(gateway, log, file.reader())?)
}

fn begin_succession(file: &ServerFile, stream: UnixStream) -> anyhow::Result<(Control, Gateway, Log)> {
    let (introduction, mut handed) = Introduction::receive(&stream)?;
    let config = file.load()?;
    let sockets = Sockets::open(&config, introduction.listeners(&mut handed))?;
    let (mut host, log) = begin(file, &config)?;
    let control = Control::open(&config, sockets, &mut host)?;
    let gateway = Gateway::succeed(&config, &introduction, handed, stream, host, control.recorder())?;
    Ok((control, gateway, log))
}

/// What clients will find wrong with the gateway's certificate, if it shows one.
fn doubts(config: &ServerConfig, open: &Open<'_>) -> anyhow::Result<Vec<Doubt>> {
    let doubts = config.protocol.tls.as_ref().map(|tls| crate::tls::doubts(tls, open, SystemTime::now()));
    Ok(doubts.transpose()?.unwrap_or_default())
}

fn check(file: &CheckedFile) -> anyhow::Result<()> {
    let (warnings, text) = if file.client { check_client(file)? } else { check_server(file)? };
    warnings.iter().for_each(|warning| say_last(&format!("tollgate: warning: {warning}")));
    Ok(print(&format!("# {} is valid. {text}", file.config.display()))?)
}

fn doctor(file: &ServerFile, json: bool) -> anyhow::Result<()> {
    let config = file.load()?;
    let findings = crate::doctor::examine(&config, &doubts(&config, &open_file)?);
    print(&if json { serde_json::to_string(&findings)? } else { findings.to_string() })?;
    anyhow::ensure!(
        !findings.are_grave(),
        "the gateway lacks something here: see the lines that begin with \"missing\""
    );
    Ok(())
}

/// Returns warnings, and what the configuration amounts to.
fn check_client(file: &CheckedFile) -> anyhow::Result<(Vec<String>, String)> {
    let config = ClientConfig::load(&file.config, file.environment.variables())?;
    Spoken::load(&config.protocol)?;
    let mut warnings = config.warnings.clone();
    if let ClientProtocol::Tls(tls) = &config.protocol {
        for server in &config.servers {
            for doubt in crate::tls::doubts_of_trusted(tls, &server.host, SystemTime::now())? {
                // What is wrong for all of them is said once.
                if !warnings.contains(&doubt.text) {
                    warnings.push(doubt.text);
                }
            }
        }
    }
    Ok((warnings, format!("Effective configuration:\n{}", config.effective())))
}

/// Likewise.
fn check_server(file: &CheckedFile) -> anyhow::Result<(Vec<String>, String)> {
    let config = ServerConfig::load(&file.config, file.environment.variables())?;
    let modes = Served::load(&config.protocol, &open_file)?.modes();
    let mut warnings = config.warnings.clone();
    warnings.extend(doubts(&config, &open_file)?.into_iter().map(|doubt| doubt.text));
    let names = config.users.users().map(|(_, user)| &user.name[..]);
    warnings.extend(shut_out(&modes, names.zip(&config.credentials[..])));
    let who = who_can_come_in(&modes, &config.credentials);
    Ok((warnings, format!("{who}. Effective configuration:\n{}", config.effective())))
}

fn start_log(logging: &Logging, ignored_variables: &[String]) -> anyhow::Result<Log> {
    Log::start(logging, ignored_variables).context("the log cannot be started")
}
