//! Results as files: where they came from, and how they are written and read again. Also: printing for people.

use std::env;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use crate::machine::{self, Machine};
use crate::results::{FORMAT, Finding, Provenance, Record};

/// Longest result that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 256 << 20;

/// Where results go, besides standard output.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Output {
    /// Write all figures to this file too, as JSON, which `tollgate-bench report` reads.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A benchmark that runs: where, when and with what.
#[derive(Debug)]
pub struct Recording {
    provenance: Provenance,
    json: Option<PathBuf>,
}

impl Output {
    /// The benchmark begins, with programs of these names and versions besides this one.
    ///
    /// # Errors
    ///
    /// When the file could not be written: better now than after the work.
    pub fn start(&self, versions: impl IntoIterator<Item = String>) -> Result<Recording> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(path) = &self.json {
            require_writable(path)?;
        }
        let own = format!("tollgate-bench {}", env!("CARGO_PKG_VERSION"));
        let provenance = Provenance {
            machine: Machine::here(),
            commit: machine::commit(),
            versions: [own].into_iter().chain(versions).collect(),
            command_line: env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            started_unix_seconds: started.as_secs(),
            debug_build: cfg!(debug_assertions),
        };
        if provenance.debug_build {
            eprintln!("this is a debug build: its figures say nothing about any gateway");
        }
        Ok(Recording { provenance, json: self.json.clone() })
    }
}

impl Recording {
    /// The programs, the machine and its kernel, in a line.
    pub fn heading(&self) -> String {
        let unknown = || "unknown".to_owned();
        let Provenance { machine: Machine { cpu, cpus, kernel, .. }, versions, commit, .. } = &self.provenance;
        format!(
            "{}; {}, {} CPUs, Linux {}; commit {}\n",
            versions.join(", "),
            cpu.clone().unwrap_or_else(unknown),
            cpus.map_or_else(unknown, |cpus| cpus.to_string()),
            kernel.clone().unwrap_or_else(unknown),
            commit.clone().unwrap_or_else(unknown)
        )
    }

    /// Writes what was found to the file, if there is to be one, whole or not at all. It takes the place of what was there.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, finding: Finding) -> Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        let record = Record { format: FORMAT, provenance: self.provenance.clone(), finding };
        let text = serde_json::to_string_pretty(&record)? + "\n";
        replace(path, &text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Reads the result in the file `path`.
///
/// # Errors
///
/// In one line: the file cannot be read, or is no result of this program, or is of another version.
pub fn read(path: &Path) -> Result<Record> {
    let shown = path.display();
    let length = fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.len();
    if length > RECORD_BYTES_MAX {
        bail!("{shown} has {length} bytes: a result has at most {RECORD_BYTES_MAX}");
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("{shown} is not JSON: name a file that --json of tollgate-bench wrote"))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(format) => bail!("{shown} has format {format}, but this version reads {FORMAT}: make the result anew"),
        None => bail!("{shown} is JSON, but no result: name a file that --json of tollgate-bench wrote"),
    }
    // From the text, not the value: errors then tell line and column.
    serde_json::from_str(&text).with_context(|| format!("{shown} is a damaged result: make it anew"))
}

/// Prints on standard output, which may be closed.
///
/// # Errors
///
/// When it is.
pub fn print(text: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("cannot print")
}

/// Refuses a file that could not be written, and does not make it.
fn require_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        bail!("--json is {}, which is a folder: name a file", path.display());
    }
    let made = if is_special(path) { File::options().write(true).open(path).map(drop) } else { beside(path).map(drop) };
    let Err(error) = made else { return Ok(()) };
    bail!("--json is {}, but no file can be made there ({})", path.display(), error.kind())
}

/// Whether there is something that is no regular file, such as `/dev/stdout`: written to, and never replaced.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

/// A file beside `path`, ready to take its place.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".tollgate-bench-").permissions(Permissions::from_mode(0o666)).tempfile_in(folder)
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    if is_special(path) {
        return File::options().write(true).open(path)?.write_all(text.as_bytes());
    }
    let mut file = beside(path)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::IdleResult;

    fn output(path: &Path) -> Output {
        Output { json: Some(path.to_owned()) }
    }

    #[test]
    fn what_is_written_is_read_again_with_where_it_came_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        let recording = output(&path).start(["gateway 1".to_owned()]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made before there is a result");
        let finding = || Finding::Idle(IdleResult { gateways: Vec::new() });
        recording.write(finding()).unwrap();
        recording.write(finding()).unwrap();
        let record = read(&path).unwrap();
        assert_eq!((record.format, &record.finding, &record.provenance), (FORMAT, &finding(), &recording.provenance));
        assert_eq!(record.provenance.versions[1], "gateway 1");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
        assert!(recording.heading().contains("gateway 1; "), "{}", recording.heading());
    }

    #[test]
    fn a_file_that_could_not_be_written_is_refused_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| output(path).start([]).unwrap_err().to_string();
        let error = refused(&folder.path().join("none/result.json"));
        assert!(error.starts_with("--json is ") && error.ends_with("(entity not found)"), "{error}");
        assert!(refused(folder.path()).ends_with("which is a folder: name a file"));
        Output::default().start([]).unwrap();
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        output(Path::new("/dev/null"))
            .start([])
            .unwrap()
            .write(Finding::Idle(IdleResult { gateways: vec![] }))
            .unwrap();
        assert!(is_special(Path::new("/dev/null")));
    }

    #[test]
    fn what_is_no_result_of_this_version_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        let refused = |text: &str| {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert_eq!(error.lines().count(), 1, "{error}");
            error
        };
        assert!(refused("<html>").contains("is not JSON: name a file"));
        assert!(refused("[]").contains("is JSON, but no result"));
        assert!(refused("{\"format\": 99}").contains("has format 99, but this version reads 1"));
        assert!(refused("{\"format\": 1}").contains("is a damaged result: make it anew: missing field"));
        assert!(read(&folder.path().join("none")).unwrap_err().to_string().starts_with("cannot read "));
    }
}
