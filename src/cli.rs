//! Commands and their options.
//!
//! This module starts things and prints; it does none of the work.

use std::path::PathBuf;
use std::sync::Once;

use clap::{Args, Parser, Subcommand};
use crossbeam_channel::{Receiver, select, unbounded};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use tollgate_config::{ClientConfig, LogFilter, ServerConfig};
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::gateway::Gateway;

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
    Serve(ConfigFile),
    /// Connect this machine to a gateway, and stay connected, until SIGINT or SIGTERM.
    ///
    /// Reads Quincy's client.toml as it is. Brings up a TUN interface, routes and DNS, and takes them away again.
    Connect(ConfigFile),
    /// Validate a configuration file and print what it amounts to, secrets masked.
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// The file is a client's, not a gateway's.
        #[arg(long)]
        client: bool,
    },
    /// Make and inspect certificates.
    #[command(subcommand)]
    Identity(crate::identity::Command),
    /// Show a gateway and two clients at work, in network namespaces of their own, with nothing to set up.
    ///
    /// Measures ping and bulk TCP both ways and prints one table. Nothing is left behind.
    Demo(crate::demo::Options),
}

/// Where the configuration is.
#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file (TOML). Every key can be overridden by an environment variable, as in
    /// QUINCY_CONNECTION__MTU=1300 or TOLLGATE_CONNECTION__MTU=1300.
    #[arg(long, visible_alias = "config-path", value_name = "FILE")]
    config: PathBuf,
}

impl ConfigFile {
    fn server(&self) -> Result<ServerConfig, tollgate_config::ConfigError> {
        ServerConfig::load(&self.config, environment())
    }

    fn client(&self) -> Result<ClientConfig, tollgate_config::ConfigError> {
        ClientConfig::load(&self.config, environment())
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
            Command::Serve(file) => serve(&file.server()?),
            Command::Connect(file) => {
                let config = file.client()?;
                start_log(&config.log);
                Ok(crate::connect::run(&config, &signals()?)?)
            }
            Command::Check { file, client } => check(&file, client),
            Command::Identity(command) => Ok(command.run()?),
            Command::Demo(options) => Ok(crate::demo::run(&options)?),
        }
    }
}

/// What somebody outside wants of a running command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End, with goodbyes.
    Stop,
    /// Say how things stand.
    Report,
}

fn serve(config: &ServerConfig) -> anyhow::Result<()> {
    start_log(&config.log);
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

fn check(file: &ConfigFile, client: bool) -> anyhow::Result<()> {
    let effective = if client {
        let config = file.client()?;
        crate::tls::client_crypto(&config.tls)?;
        config.effective()
    } else {
        let config = file.server()?;
        crate::tls::server_crypto(&config.tls)?;
        config.effective()
    };
    println!("# {} is valid. Effective configuration:", file.config.display());
    println!("{effective}");
    Ok(())
}

/// Only what is valid UTF-8 can name a key.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Writes the log to standard error; `RUST_LOG` wins over the configuration.
pub fn start_log(filter: &LogFilter) {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter.as_str()));
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    });
}

/// Signals as messages: SIGINT and SIGTERM to stop, SIGUSR1 to report.
///
/// # Errors
///
/// If the handlers cannot be installed.
pub fn signals() -> std::io::Result<Receiver<Signal>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    let (sender, receiver) = unbounded();
    std::thread::Builder::new().name("tollgate-signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let wanted = if signal == SIGUSR1 { Signal::Report } else { Signal::Stop };
            if sender.send(wanted).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
