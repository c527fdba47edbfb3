//! The programs that are measured: where they are, and of which version.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `tollgate serve`.
    Tollgate,
    /// `quincy-server`.
    Quincy,
}

/// A gateway that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    pub kind: Kind,
    pub name: &'static str,
    pub program: PathBuf,
}

/// Which gateways take part.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct GatewayOptions {
    /// Tollgate's program [default: `tollgate` in the folder of this program].
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Measure another gateway too, in turn with Tollgate.
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    /// The peer's program [default: the first in $TOLLGATE_PEERS, .peers/bin and $PATH].
    #[arg(long, value_name = "PATH")]
    peer_binary: Option<PathBuf>,
}

/// A gateway that speaks the clients' protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    /// quincy-server.
    Quincy,
    /// Another build of Tollgate, which --peer-binary names.
    Baseline,
}

impl GatewayOptions {
    /// Ours, then the peer if there is one.
    pub fn find(&self) -> Result<Vec<Gateway>> {
        let mut gateways = vec![Gateway::tollgate(self.gateway.as_deref())?];
        let program = self.peer_binary.as_deref();
        match self.peer {
            Some(Peer::Quincy) => gateways.push(Gateway::quincy(program)?),
            Some(Peer::Baseline) => {
                let program =
                    program.context("--peer baseline needs --peer-binary, the path of the other build of Tollgate")?;
                let program = executable(program, "--peer-binary")?;
                gateways.push(Gateway { kind: Kind::Tollgate, name: "baseline", program });
            }
            None => {}
        }
        Ok(gateways)
    }
}

impl Gateway {
    /// The one at `given`, or beside this program.
    pub fn tollgate(given: Option<&Path>) -> Result<Self> {
        let program = match given {
            Some(given) => executable(given, "--gateway")?,
            None => {
                let own = env::current_exe().context("cannot tell where this program is")?.with_file_name("tollgate");
                let release = if cfg!(debug_assertions) { "" } else { " --release" };
                executable(&own, "--gateway").with_context(|| format!("build it with cargo build{release}"))?
            }
        };
        Ok(Gateway { kind: Kind::Tollgate, name: "tollgate", program })
    }

    pub fn quincy(given: Option<&Path>) -> Result<Self> {
        let program = find("quincy-server", given, "--peer-binary")?;
        Ok(Gateway { kind: Kind::Quincy, name: "quincy-server", program })
    }

    /// A gateway by name, or by path: `quincy-server` at the end of it tells a peer from ours.
    pub fn named(text: &str) -> Result<Self> {
        match text {
            "tollgate" => Gateway::tollgate(None),
            "quincy-server" => Gateway::quincy(None),
            path if path.ends_with("quincy-server") => Gateway::quincy(Some(Path::new(path))),
            path => Gateway::tollgate(Some(Path::new(path))),
        }
    }

    /// Its name and version.
    pub fn version(&self) -> Result<String> {
        match self.kind {
            Kind::Quincy => embedded_version(&self.program, self.name),
            Kind::Tollgate if self.name == "tollgate" => stated_version(&self.program),
            Kind::Tollgate => Ok(format!("{} {}", self.name, stated_version(&self.program)?)),
        }
    }
}

/// The absolute path of `program`: `given`, the value of `option`, or the first in `$TOLLGATE_PEERS`, `.peers/bin` and `$PATH`.
pub fn find(program: &str, given: Option<&Path>, option: &str) -> Result<PathBuf> {
    if let Some(given) = given {
        return executable(given, option);
    }
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/../.peers/bin").into();
    let lists = [env::var_os("TOLLGATE_PEERS"), Some(workspace), env::var_os("PATH")].into_iter().flatten();
    let folders = lists.flat_map(|list| env::split_paths(&list).collect::<Vec<_>>());
    let mut places = folders.filter(|folder| !folder.as_os_str().is_empty()).map(|folder| folder.join(program));
    match places.find(|path| is_executable(path)) {
        Some(path) => Ok(std::path::absolute(path)?),
        None => bail!(
            "{program} is in none of $TOLLGATE_PEERS, .peers/bin and $PATH: install it with bench/install-peers.sh, or give its path with \
             {option}"
        ),
    }
}

/// A command for `program` that logs plainly and has nothing of this process's environment: it could override settings.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("NO_COLOR", "1").env("RUST_LOG", "info");
    command
}

/// What `program` says to `--version`.
pub fn stated_version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    match String::from_utf8_lossy(&output.stdout).lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => bail!("{} does not answer to --version ({})", program.display(), output.status),
    }
}

/// The name and version of one of Quincy's programs, which have no `--version`: the paths of their sources, which they contain for panic
/// messages, have it in them.
pub fn embedded_version(program: &Path, name: &str) -> Result<String> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    Ok(format!("{name} {}", version_in(&bytes, name).unwrap_or_else(|| "of unknown version".to_owned())))
}

fn version_in(bytes: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let start = format!("/{name}-");
    let mut folders = text.split(&start).skip(1).filter_map(|rest| Some(rest.split_once('/')?.0));
    let is_version = |folder: &&str| {
        folder.starts_with(|c: char| c.is_ascii_digit())
            && folder.chars().all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c))
    };
    folders.find(is_version).map(str::to_owned)
}

fn executable(path: &Path, option: &str) -> Result<PathBuf> {
    if !is_executable(path) {
        bail!("{option} is {}, which is not an executable file", path.display());
    }
    Ok(std::path::absolute(path)?)
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_in_one_line_with_the_remedy() {
        let error = find("no-such-program", None, "--peer-binary").unwrap_err().to_string();
        assert!(error.contains("bench/install-peers.sh") && error.lines().count() == 1, "{error}");
        let error = find("x", Some(Path::new("/nowhere/x")), "--client").unwrap_err().to_string();
        assert_eq!(error, "--client is /nowhere/x, which is not an executable file");
        assert_eq!(Gateway::named("/bin/true").unwrap().kind, Kind::Tollgate);
    }

    #[test]
    fn a_version_is_found_in_the_paths_of_sources() {
        let bytes = b"\0/quincy-server-x/\0/registry/quincy-server-3.1.1/src/main.rs\0";
        assert_eq!(version_in(bytes, "quincy-server").as_deref(), Some("3.1.1"));
        assert_eq!(version_in(b"/quincy-server-3", "quincy-server"), None);
    }
}
