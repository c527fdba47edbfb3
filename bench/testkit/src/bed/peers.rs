//! Quincy's own programs, which the tests connect with. They are not part of this repository.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate as lab;

/// Where Quincy's programs are.
#[derive(Debug, Clone)]
pub struct Peers {
    folder: PathBuf,
}

impl Peers {
    /// Finds them in `$TOLLGATE_PEERS` or `.peers/bin`. Without them, or without the right to make namespaces, the test is to end at once:
    /// a line says why.
    ///
    /// # Panics
    ///
    /// If something is missing on a machine that must have it: in CI, or with `TOLLGATE_REQUIRE_PEERS=1`.
    pub fn find() -> Option<Self> {
        let folder = env::var_os("TOLLGATE_PEERS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.peers/bin"), PathBuf::from);
        let peers = Peers { folder };
        if !gateways_can_run() {
            return None;
        }
        if !peers.client().is_file() {
            let remedy = "cargo install quincy-client@3.1.1 quincy-identity@3.1.1 --locked --root .peers";
            skip(&format!("{} is missing; {remedy}", peers.client().display()));
            return None;
        }
        Some(peers)
    }

    /// The client.
    pub fn client(&self) -> PathBuf {
        self.folder.join("quincy-client")
    }

    /// The maker of certificates.
    pub fn identity(&self) -> PathBuf {
        self.folder.join("quincy-identity")
    }
}

/// Whether there is the right to make namespaces, and a TUN driver. Without them the test is to end at once: a line says why.
///
/// # Panics
///
/// If they are missing on a machine that must have them, as in [`Peers::find`].
pub fn gateways_can_run() -> bool {
    lab::privileges().and_then(|()| lab::require_tun()).map_err(|missing| skip(&missing.to_string())).is_ok()
}

fn skip(missing: &str) {
    assert!(!is_required(), "nothing may be skipped here: {missing}");
    // Past the test runner, which keeps what passing tests print to itself.
    let _ = writeln!(std::io::stderr(), "skipped: {missing}");
}

/// Whether nothing may be skipped on this machine.
pub fn is_required() -> bool {
    let set = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    set("CI", "true") || set("TOLLGATE_REQUIRE_PEERS", "1")
}
