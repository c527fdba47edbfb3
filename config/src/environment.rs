//! The environment's part in a configuration: which variables override which keys, and which are other programs'.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Prefix of the variables that Quincy reads too. It ignores those that name no setting, and so they are no problem here.
pub(crate) const QUINCY_PREFIX: &str = "QUINCY_";

/// Prefixes of environment variables that override settings. A later one wins over an earlier one.
const PREFIXES: [&str; 2] = [QUINCY_PREFIX, "TOLLGATE_"];

/// Where files go that need not outlive the process, unless systemd says otherwise.
pub(crate) const RUNTIME_FOLDER: &str = "/run/tollgate";

/// Where files go that are to outlive the process, unless systemd says otherwise.
pub(crate) const STATE_FOLDER: &str = "/var/lib/tollgate";

/// What is given and has no effect.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    /// Names of variables that begin like ours, and that container platforms set for services of such names.
    pub variables: Vec<String>,
    /// What was hardly meant to be without effect, each in a line.
    pub warnings: Vec<String>,
}

/// A variable that overrides a key.
pub(crate) struct Override {
    pub variable: String,
    pub value: Zeroizing<String>,
}

/// What matters of the environment.
pub(crate) struct Environment {
    /// Variables with a prefix of ours, by the path of the key that they override.
    pub overrides: BTreeMap<String, Override>,
    pub ignored: Ignored,
    pub folders: Folders,
}

/// Where files go that are not configured.
pub(crate) struct Folders {
    pub runtime: PathBuf,
    pub state: PathBuf,
}

impl Environment {
    pub(crate) fn read(env: impl Iterator<Item = (String, String)>) -> Self {
        let mut folders = Folders { runtime: RUNTIME_FOLDER.into(), state: STATE_FOLDER.into() };
        let mut ignored = Ignored::default();
        let mut found: Vec<(usize, String, Override)> = Vec::new();
        for (variable, value) in env {
            match &variable[..] {
                "RUNTIME_DIRECTORY" => folders.runtime = first_folder(&value).unwrap_or(folders.runtime),
                "STATE_DIRECTORY" => folders.state = first_folder(&value).unwrap_or(folders.state),
                _ => {}
            }
            let value = Zeroizing::new(value);
            let mut prefixes = PREFIXES.iter().enumerate();
            let Some((rank, prefix)) = prefixes.rfind(|(_, prefix)| has_prefix(&variable, prefix)) else { continue };
            let rest = &variable[prefix.len()..];
            if is_of_a_service(rest, &value) {
                ignored.variables.push(variable);
            } else if !rest.is_empty() {
                let path = rest.to_ascii_lowercase().replace("__", ".");
                found.push((rank, path, Override { variable, value }));
            }
        }
        found.sort_by_key(|(rank, ..)| *rank);
        let overrides = found.into_iter().map(|(_, path, value)| (path, value)).collect();
        Environment { overrides, ignored, folders }
    }
}

pub(crate) fn has_prefix(variable: &str, prefix: &str) -> bool {
    variable.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The first of the folders that systemd names, with colons between where there are several.
fn first_folder(value: &str) -> Option<PathBuf> {
    value.split(':').map(Path::new).find(|folder| folder.is_absolute()).map(Path::to_owned)
}

/// Whether a variable, of which `rest` follows the prefix, is one that Kubernetes sets in every container for a service of such a name: a
/// service `quincy-metrics` sets QUINCY_METRICS_SERVICE_HOST, QUINCY_METRICS_SERVICE_PORT (and that with the name of a port behind),
/// QUINCY_METRICS_PORT, QUINCY_METRICS_PORT_9090_TCP, and the last with _PROTO, _PORT and _ADDR behind.
fn is_of_a_service(rest: &str, value: &str) -> bool {
    // The service's own name may be the whole prefix.
    let rest = format!("_{}", rest.to_ascii_uppercase());
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_of_port = |rest: &str| {
        let mut words = rest.split('_');
        let number = words.next().is_some_and(|word| word.parse::<u16>().is_ok());
        number && words.next().is_some_and(|word| ["TCP", "UDP", "SCTP"].contains(&word))
    };
    rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || (rest.ends_with("_PORT") && is_address)
        || rest.match_indices("_PORT_").any(|(at, port)| is_of_port(&rest[at + port.len()..]))
}
