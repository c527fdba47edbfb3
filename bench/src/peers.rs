//! Finding the programs to compare, and telling their versions. Quincy's are not started for that.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The largest program that is searched for its version, in bytes.
const PROGRAM_BYTES_MAX: u64 = 512 << 20;

/// The gateway's program, beside this one.
const GATEWAY: &str = "tollgate";

/// The script that installs the peers.
const INSTALL: &str = "bench/install-peers.sh";

/// Peers that the script installs only when told to.
const WIREGUARD: [&str; 3] = ["boringtun-cli", "gotatun", "wireguard-go"];

/// Where peers' programs may be, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    folders: Vec<PathBuf>,
}

impl Places {
    /// `$TOLLGATE_PEERS`, `.peers/bin` of the workspace that this program was built in, and `$PATH`.
    pub fn of_this_process() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
        Places::new(env::var_os("TOLLGATE_PEERS"), workspace, env::var_os("PATH"))
    }

    fn new(peers: Option<OsString>, workspace: &Path, path: Option<OsString>) -> Self {
        let named = peers.filter(|folder| !folder.is_empty()).map(PathBuf::from);
        let path = path.unwrap_or_default();
        // An empty entry of PATH stands for the working directory, which nobody means here.
        let on_path = env::split_paths(&path).filter(|folder| !folder.as_os_str().is_empty());
        Places { folders: named.into_iter().chain([workspace.join(".peers/bin")]).chain(on_path).collect() }
    }

    /// The absolute path of `program`: `given`, the value of `option`, or else the first of that name in these places.
    ///
    /// # Errors
    ///
    /// In one line: `given` is not an executable file; or there is none in any place, and how to install it.
    pub fn find(&self, program: &str, given: Option<&Path>, option: &str) -> Result<PathBuf> {
        if let Some(given) = given {
            return named(given, option);
        }
        let found = self.folders.iter().map(|folder| folder.join(program)).find(|path| is_executable(path));
        let Some(found) = found else {
            let told = if WIREGUARD.contains(&program) { " --wireguard" } else { "" };
            bail!(
                "{program} is in none of $TOLLGATE_PEERS, .peers/bin and $PATH: install it with {INSTALL}{told}, or give its path with {option}"
            );
        };
        Ok(std::path::absolute(found)?)
    }
}

/// The absolute path of the gateway's program: `given`, the value of `option`, or else the one in the folder of the running program.
///
/// # Errors
///
/// In one line: it is not an executable file, and how to build it.
pub fn own_gateway(given: Option<&Path>, option: &str) -> Result<PathBuf> {
    if let Some(given) = given {
        return named(given, option);
    }
    let own = env::current_exe().context("cannot tell where this program is")?;
    let gateway = own.with_file_name(GATEWAY);
    if !is_executable(&gateway) {
        let release = if cfg!(debug_assertions) { "" } else { " --release" };
        bail!("{} is missing: build it with cargo build{release}, or give its path with {option}", gateway.display());
    }
    Ok(gateway)
}

/// What `program` says to `--version`.
///
/// # Errors
///
/// When it cannot be started, or does not answer with a line.
pub fn stated_version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => bail!("{} does not answer to --version ({})", program.display(), output.status),
    }
}

/// The name and version of one of Quincy's programs; "NAME of unknown version" when it bears none.
///
/// They have no `--version`. But the paths of their sources, which they contain for panic messages, have the version in them.
///
/// # Errors
///
/// When it cannot be read.
pub fn embedded_version(program: &Path, name: &str) -> Result<String> {
    let read = || -> io::Result<Vec<u8>> {
        let length = fs::metadata(program)?.len();
        if length > PROGRAM_BYTES_MAX {
            return Err(io::Error::other(format!("it has {length} bytes, more than {PROGRAM_BYTES_MAX}")));
        }
        fs::read(program)
    };
    let bytes = read().with_context(|| format!("cannot read {}", program.display()))?;
    let version = version_in(&bytes, name).unwrap_or_else(|| "of unknown version".to_owned());
    Ok(format!("{name} {version}"))
}

/// The version in the first path `/NAME-VERSION/` in `bytes`.
fn version_in(bytes: &[u8], name: &str) -> Option<String> {
    let start = format!("/{name}-");
    let mut starts = bytes.windows(start.len()).enumerate().filter(|(_, window)| *window == start.as_bytes());
    starts.find_map(|(index, _)| {
        let rest = &bytes[index + start.len()..];
        let rest = &rest[..rest.len().min(32)];
        let version = std::str::from_utf8(&rest[..rest.iter().position(|byte| *byte == b'/')?]).ok()?;
        let is_version = version.starts_with(|c: char| c.is_ascii_digit())
            && version.contains('.')
            && version.chars().all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c));
        is_version.then(|| version.to_owned())
    })
}

fn named(path: &Path, option: &str) -> Result<PathBuf> {
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

    const NAME: &str = "quincy-server";

    fn put(folder: &Path, mode: u32) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(NAME);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_named_folder_comes_before_the_workspace_and_the_workspace_before_path() {
        let root = tempfile::tempdir().unwrap();
        let (named, workspace, path) = (root.path().join("named"), root.path().join("w"), root.path().join("p"));
        let places = Places::new(Some(named.clone().into()), &workspace, Some(path.clone().into()));
        let find = || places.find(NAME, None, "--peer-binary");
        let on_path = put(&path, 0o755);
        assert_eq!(find().unwrap(), on_path);
        let in_workspace = put(&workspace.join(".peers/bin"), 0o755);
        assert_eq!(find().unwrap(), in_workspace);
        let in_named = put(&named, 0o755);
        assert_eq!(find().unwrap(), in_named);
        let given = put(&root.path().join("given"), 0o755);
        assert_eq!(places.find(NAME, Some(&given), "--peer-binary").unwrap(), given);
    }

    #[test]
    fn a_file_that_is_not_executable_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let workspace = root.path().join("w");
        put(&workspace.join(".peers/bin"), 0o644);
        let on_path = put(&root.path().join("p"), 0o755);
        let places = Places::new(None, &workspace, Some(root.path().join("p").into()));
        assert_eq!(places.find(NAME, None, "--peer-binary").unwrap(), on_path);
    }

    #[test]
    fn a_missing_program_is_told_in_one_line_with_the_remedy() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::new(None, root.path(), None);
        let error = places.find(NAME, None, "--peer-binary").unwrap_err().to_string();
        assert!(error.starts_with("quincy-server is in none of "), "{error}");
        assert!(error.contains("bench/install-peers.sh") && error.lines().count() == 1, "{error}");
        let error = places.find("wireguard-go", None, "--peer-binary").unwrap_err().to_string();
        assert!(error.contains("install it with bench/install-peers.sh --wireguard, or"), "{error}");
        let error = places.find(NAME, Some(Path::new("/nowhere/x")), "--peer-binary").unwrap_err().to_string();
        assert_eq!(error, "--peer-binary is /nowhere/x, which is not an executable file");
        let error = own_gateway(None, "--gateway").unwrap_err().to_string();
        assert!(error.contains("tollgate is missing: build it with cargo build"), "{error}");
    }

    #[test]
    fn a_version_is_found_in_the_paths_of_a_programs_sources() {
        let program = b"\0/quincy-server-config/src\0/src/quincy-server-3.1.1/src/main.rs\0";
        assert_eq!(version_in(program, NAME).as_deref(), Some("3.1.1"));
        assert_eq!(version_in(b"/quincy-server-", NAME), None);
        assert_eq!(version_in(b"/quincy-server-4.0.0", NAME), None);
        assert_eq!(version_in(program, "quincy-client"), None);
    }

    #[test]
    fn a_program_that_tells_no_version_is_an_error() {
        assert!(stated_version(Path::new("/nowhere/x")).unwrap_err().to_string().contains("cannot start"));
        assert!(stated_version(Path::new("/bin/false")).unwrap_err().to_string().contains("does not answer"));
    }
}
