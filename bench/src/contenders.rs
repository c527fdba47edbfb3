//! Which gateways take part in a benchmark, from the command line: ours, and peers in turn with it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::deployment::{Contender, Kind};
use crate::peers::{self, Places};

/// Ours, as programs and tables name it.
const OURS: &str = "tollgate";
/// The peer, likewise.
const QUINCY: &str = "quincy-server";

/// Ours, and perhaps a peer.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ContenderOptions {
    /// Tollgate's program [default: `tollgate` in the folder of this program].
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Measure this gateway too, in turn with Tollgate.
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    /// The peer's program [default: the first in $TOLLGATE_PEERS, .peers/bin and $PATH].
    #[arg(long, value_name = "PATH", requires = "peer")]
    peer_binary: Option<PathBuf>,
}

/// Gateways that Tollgate can be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// quincy-server.
    Quincy,
}

impl ContenderOptions {
    /// Ours, then the peer if there is to be one.
    ///
    /// # Errors
    ///
    /// Which program is missing, in one line with the remedy.
    pub fn find(&self) -> Result<Vec<Contender>> {
        let mut contenders = vec![ours(self.gateway.as_deref())?];
        if let Some(Peer::Quincy) = self.peer {
            contenders.push(quincy(self.peer_binary.as_deref(), "--peer-binary")?);
        }
        Ok(contenders)
    }
}

/// Tollgate: the program `given` with `--gateway`, or the one beside this one.
///
/// # Errors
///
/// In one line: it is missing, and how to build it.
pub fn ours(given: Option<&Path>) -> Result<Contender> {
    Ok(Contender::tollgate(peers::own_gateway(given, "--gateway")?))
}

/// The gateway that `--gateway TEXT` means: `tollgate`, `quincy-server`, or the path of one of the two, which its file name tells apart.
///
/// # Errors
///
/// In one line: it is missing, and where it was looked for.
pub fn named(text: &str) -> Result<Contender> {
    let path = Path::new(text);
    let is_quincy = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("quincy"));
    let given = text.contains('/').then_some(path);
    match (is_quincy, given) {
        (true, given) => quincy(given, "--gateway"),
        (false, None) if text != OURS => ours(Some(path)),
        (false, given) => ours(given),
    }
}

/// Name and version of `contender`, as far as it tells.
///
/// # Errors
///
/// When its program cannot be read or started.
pub fn version(contender: &Contender) -> Result<String> {
    match contender.kind {
        Kind::Tollgate => peers::stated_version(&contender.program),
        Kind::Quincy => peers::embedded_version(&contender.program, QUINCY),
    }
}

fn quincy(given: Option<&Path>, option: &str) -> Result<Contender> {
    Ok(Contender::quincy(Places::of_this_process().find(QUINCY, given, option)?))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_path_tells_by_its_file_name_which_gateway_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let kind = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            let found = named(path.to_str().unwrap()).unwrap();
            assert_eq!(found.program, path);
            (found.kind, found.name)
        };
        assert_eq!(kind("quincy-server"), (Kind::Quincy, "quincy-server"));
        assert_eq!(kind("tollgate-next"), (Kind::Tollgate, "tollgate"));
    }

    #[test]
    fn what_is_no_gateway_is_refused_in_a_line() {
        for wrong in ["/nowhere/quincy-server", "/nowhere/tollgate", "strongswan"] {
            let error = named(wrong).unwrap_err().to_string();
            let expected = format!("--gateway is {wrong}, which is not an executable file");
            assert_eq!(error, expected);
        }
    }
}
