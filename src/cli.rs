//! Commands and their options.
//!
//! This module starts things and prints; it does none of the work.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use crossbeam_channel::select;
use tollgate_config::{ClientConfig, LogFilter, ServerConfig};
use tracing::{debug, info, warn};
use tracing_subscriber::EnvFilter;

use crate::gateway::Gateway;
use crate::signals::{Signal, signals};

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
    /// Reads Quincy's server.toml and users.toml as they are, and a table [shards] of its own. SIGUSR1 prints the counters of every shard as
    /// one line of JSON on standard output. Needs root, or CAP_NET_ADMIN for the TUN device and CAP_BPF for steering.
    Serve(ServerFile),
    /// Connect this machine to a gateway, and stay connected, until SIGINT or SIGTERM.
    ///
    /// Reads Quincy's client.toml as it is. Brings up a TUN interface, routes and DNS, and takes them away again.
    Connect(ClientFile),
    /// Validate a configuration file and print what it amounts to, secrets masked.
    Check(CheckedFile),
    /// Make and inspect certificates.
    #[command(subcommand)]
    Identity(crate::identity::Command),
    /// Show a gateway and two clients at work, in network namespaces of their own, with nothing to set up.
    ///
    /// Measures ping and bulk TCP both ways and prints one table. Nothing is left behind.
    Demo(crate::demo::Options),
}

/// Where a gateway's configuration is.
#[derive(Debug, Args)]
struct ServerFile {
    /// The configuration file.
    #[arg(long, visible_alias = "config-path", value_name = "FILE", default_value = "server.toml")]
    config: PathBuf,
    #[command(flatten)]
    environment: Environment,
}

/// What to check.
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

#[derive(Debug, Args)]
struct Environment {
    /// Environment variables that begin with this override keys of the file, as in QUINCY_CONNECTION__MTU=1300; those that begin with
    /// TOLLGATE_ do so always, and win.
    #[arg(long, value_name = "PREFIX", default_value = QUINCY_PREFIX)]
    env_prefix: String,
}

const QUINCY_PREFIX: &str = "QUINCY_";

impl Environment {
    /// The variables as the configuration knows them. Only what is valid UTF-8 can name a key.
    fn variables(&self) -> impl Iterator<Item = (String, String)> + '_ {
        std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            if name.starts_with("TOLLGATE_") {
                return Some((name, value));
            }
            Some((format!("{QUINCY_PREFIX}{}", name.strip_prefix(&self.env_prefix)?), value))
        })
    }
}

impl ServerFile {
    fn load(&self) -> Result<ServerConfig, tollgate_config::ConfigError> {
        ServerConfig::load(&self.config, self.environment.variables())
    }
}

impl ClientFile {
    fn load(&self) -> Result<ClientConfig, tollgate_config::ConfigError> {
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
            Command::Serve(file) => serve(&file.load()?),
            Command::Connect(file) => {
                let config = file.load()?;
                start_log(&config.log, &config.ignored_variables);
                Ok(crate::connect::run(&config, &signals()?)?)
            }
            Command::Check(file) => check(&file),
            Command::Identity(command) => Ok(command.run()?),
            Command::Demo(options) => Ok(crate::demo::run(&options)?),
        }
    }
}

fn serve(config: &ServerConfig) -> anyhow::Result<()> {
    start_log(&config.log, &config.ignored_variables);
    if config.reuse_socket {
        warn!("reuse_socket has no effect: the shards of one gateway share the port, and no other process may");
    }
    let signals = signals()?;
    let gateway = Gateway::start(config)?;
    loop {
        select! {
            recv(signals) -> signal => match signal? {
                Signal::Report => println!("{}", gateway.status().to_json()),
                Signal::Stop => break,
            },
            recv(gateway.ended()) -> _ => break,
        }
    }
    for line in gateway.status().to_string().lines() {
        info!("{line}");
    }
    info!("stopping: every client is told");
    Ok(gateway.stop()?)
}

fn check(file: &CheckedFile) -> anyhow::Result<()> {
    let effective = if file.client {
        let config = ClientConfig::load(&file.config, file.environment.variables())?;
        crate::tls::client(&config.tls)?;
        config.effective()
    } else {
        let config = ServerConfig::load(&file.config, file.environment.variables())?;
        crate::tls::server(&config.tls)?;
        config.effective()
    };
    println!("# {} is valid. Effective configuration:", file.config.display());
    println!("{effective}");
    Ok(())
}

/// Writes the log to standard error; `RUST_LOG` wins over the configuration. Begins with what was ignored.
fn start_log(filter: &LogFilter, ignored_variables: &[String]) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter.as_str()));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .init();
    for variable in ignored_variables {
        // Not a warning: an orchestrator's own variables may begin like ours. One that resembles a setting is an error before this.
        debug!(variable, "this environment variable names no setting and is ignored");
    }
}
