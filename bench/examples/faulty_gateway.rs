//! A gateway with a fault of choice, for tests that the harness finds it: `faulty_gateway serve --config FILE [--leak] [--no-limits] [--no-bpf]`.
//!
//! It is Tollgate's own gateway, set up as `tollgate serve` does, and without options it is a healthy one.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, Subcommand};
use crossbeam_channel::select;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tollgate::gateway::Gateway;
use tollgate::signals::{Signal, signals};
use tollgate_config::ServerConfig;
use tollgate_shards::Directory;
use tollgate_shards::directory::User;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// What is leaked for each client, in bytes.
const LEAK_BYTES: usize = 1024;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGINT or SIGTERM. SIGUSR1 prints the counters of every shard.
    Serve {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Leak 1 KiB for each client that connects.
        #[arg(long)]
        leak: bool,
        /// Take no notice of bandwidth limits.
        #[arg(long)]
        no_limits: bool,
        /// Give up the right to load eBPF programs, as where a gateway must do without: the TUN device is not steered.
        #[arg(long)]
        no_bpf: bool,
    },
}

/// Leaks memory whenever a client connects.
struct Leak;

/// Whether an event says that a client has connected.
struct IsClient(bool);

impl<S: Subscriber> Layer<S> for Leak {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut is_client = IsClient(false);
        event.record(&mut is_client);
        if is_client.0 {
            // Touched, so that it takes up memory and not only address space, and looked at, so that no optimizer takes it away.
            std::hint::black_box(Box::leak(vec![0xa5u8; LEAK_BYTES].into_boxed_slice()));
        }
    }
}

impl Visit for IsClient {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 |= field.name() == "message" && format!("{value:?}") == "client connected";
    }
}

fn give_up(rights: CapabilitySet) -> Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective.remove(rights);
    sets.permitted.remove(rights);
    Ok(set_capabilities(None, sets)?)
}

fn main() -> Result<()> {
    let Cli { command: Command::Serve { config, leak, no_limits, no_bpf } } = Cli::parse();
    let log = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_filter(EnvFilter::from_default_env());
    tracing_subscriber::registry().with(leak.then_some(Leak)).with(log).init();
    if no_bpf {
        give_up(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN)?;
    }
    let mut config = ServerConfig::load(&config, env::vars().filter(|(name, _)| name.starts_with("TOLLGATE_")))?;
    if no_limits {
        let users = config.users.directory.users().map(|(_, user)| User { limit: None, ..user.clone() });
        config.users.directory = Arc::new(Directory::new(users.collect())?);
    }
    let signals = signals()?;
    let gateway = Gateway::start(&config)?;
    loop {
        select! {
            recv(signals) -> signal => match signal? {
                Signal::Report => println!("{}", gateway.status().to_json()),
                Signal::Stop => break,
            },
            recv(gateway.ended()) -> _ => break,
        }
    }
    Ok(gateway.stop()?)
}
