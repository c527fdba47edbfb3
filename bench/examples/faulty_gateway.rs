//! A gateway with a fault of choice, for tests that the harness finds it: `faulty_gateway serve --config FILE [--leak] [--no-limits] [--no-bpf]`.
//!
//! It is Tollgate's own gateway, set up as `tollgate serve` does, and without options it is a healthy one.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use crossbeam_channel::{never, select, tick};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tollgate::gateway::Gateway;
use tollgate::signals::{Signal, signals};
use tollgate_config::ServerConfig;
use tollgate_shards::{User, Users};
use tracing_subscriber::layer::{Layer, SubscriberExt};
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

/// How often it is looked how many clients have come.
const LEAK_INTERVAL: Duration = Duration::from_millis(200);

/// Leaks memory for every client that has come, which a Retry tells.
fn leak_for_clients(gateway: &Gateway, leaked_for: &mut u64) {
    let clients = gateway.status().shards.iter().map(|shard| shard.counters.retries).sum();
    let bytes = LEAK_BYTES * (clients - *leaked_for) as usize;
    *leaked_for = clients;
    // Touched, so that it takes up memory and not only address space, and looked at, so that no optimizer takes it away.
    std::hint::black_box(Box::leak(vec![0xa5u8; bytes].into_boxed_slice()));
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
    tracing_subscriber::registry().with(log).init();
    if no_bpf {
        give_up(CapabilitySet::BPF | CapabilitySet::SYS_ADMIN)?;
    }
    let mut config = ServerConfig::load(&config, env::vars().filter(|(name, _)| name.starts_with("TOLLGATE_")))?;
    if no_limits {
        let users = config.users.directory.users().map(|(_, user)| User { limit: None, ..user.clone() });
        config.users.directory = Arc::new(Users::new(users.collect())?);
    }
    let signals = signals()?;
    let gateway = Gateway::start(&config)?;
    let looks = if leak { tick(LEAK_INTERVAL) } else { never() };
    let mut leaked_for = 0;
    loop {
        select! {
            recv(signals) -> signal => match signal? {
                Signal::Report => println!("{}", gateway.status().to_json()),
                Signal::Stop => break,
            },
            recv(looks) -> _ => leak_for_clients(&gateway, &mut leaked_for),
            recv(gateway.ended()) -> _ => break,
        }
    }
    Ok(gateway.stop()?)
}
