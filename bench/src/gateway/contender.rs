//! Who takes part in a comparison, and where its programs run.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Variables with these beginnings would override settings of a gateway or client.
const OVERRIDE_PREFIXES: [&str; 3] = ["QUINCY_", "TOLLGATE_", "WG_"];

/// A kind of gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `tollgate serve`.
    Tollgate,
    /// `quincy-server`.
    Quincy,
    /// A WireGuard program.
    Wireguard(WireguardProgram),
}

/// A WireGuard program in user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireguardProgram {
    /// `boringtun-cli`.
    Boringtun,
    /// `gotatun`.
    Gotatun,
    /// `wireguard-go`.
    WireguardGo,
}

/// A gateway that takes part in the comparison, and its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contender {
    /// What it is.
    pub(super) kind: Kind,
    /// Its name in tables.
    pub(super) name: &'static str,
    /// Its program.
    pub(super) program: PathBuf,
    /// Its client's program.
    pub(super) client: PathBuf,
}

/// Which CPUs programs are pinned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    /// The gateway's.
    pub(super) gateway_cpu: usize,
    /// Those of client, sender and receiver.
    pub(super) load_cpus: Vec<usize>,
}

/// A command for `program` that logs plainly and takes no settings from this process's environment.
pub(super) fn bare_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let is_override =
            name.to_str().is_some_and(|name| OVERRIDE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
        if is_override {
            command.env_remove(name);
        }
    }
    command.env("NO_COLOR", "1").env("RUST_LOG", "info");
    command
}
