//! Results as files and tables: where they came from, JSON for machines, Markdown for people.

use std::env;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use serde_json::json;
use tempfile::NamedTempFile;

/// Where results go, besides standard output.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Output {
    /// Write all figures to this file too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write what is printed to this file too, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Where, when and with what a result was made. What cannot be found out is left out, never guessed.
#[derive(Debug, Clone, Serialize)]
struct Provenance {
    cpu: Option<String>,
    cpus: Option<usize>,
    memory_bytes: Option<u64>,
    kernel: Option<String>,
    /// Whether interrupts are billed to whom they interrupt: figures of machines that differ in it do not compare.
    irq_time_accounting: Option<bool>,
    /// The sources' commit, with `-dirty` when they have been changed since.
    commit: Option<String>,
    /// Name and version of every program that took part.
    versions: Vec<String>,
    command_line: Vec<String>,
    started_unix_seconds: u64,
    /// Figures of such a build say nothing.
    debug_build: bool,
}

/// A benchmark that runs.
#[derive(Debug)]
pub struct Recording {
    provenance: Provenance,
    output: Output,
    text: String,
}

impl Output {
    /// The benchmark begins, with programs of these names and versions besides this one. Prints the heading. Files that could not be
    /// written are refused now, not after the work.
    pub fn start(&self, versions: impl IntoIterator<Item = String>) -> Result<Recording> {
        for path in self.json.iter().chain(&self.markdown) {
            let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if path.is_dir() || !folder.is_dir() {
                bail!("{} cannot be written: name a file in a folder that there is", path.display());
            }
        }
        let own = format!("tollgate-bench {}", env!("CARGO_PKG_VERSION"));
        let provenance = Provenance::here([own].into_iter().chain(versions).collect());
        if provenance.debug_build {
            eprintln!("this is a debug build: its figures say nothing about any gateway");
        }
        let mut recording = Recording { provenance, output: self.clone(), text: String::new() };
        recording.print(&recording.provenance.heading())?;
        Ok(recording)
    }
}

impl Recording {
    /// Prints a paragraph.
    pub fn print(&mut self, text: &impl Display) -> Result<()> {
        let text = format!("{}\n\n", text.to_string().trim_end());
        // It may be closed.
        let mut output = io::stdout().lock();
        output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("cannot print")?;
        self.text.push_str(&text);
        Ok(())
    }

    /// Writes the files that there are to be, each whole or not at all. They take the place of what was there.
    pub fn write(&self, benchmark: &str, result: &impl Serialize) -> Result<()> {
        let write =
            |path: &Path, text: &str| replace(path, text).with_context(|| format!("cannot write {}", path.display()));
        if let Some(path) = &self.output.json {
            let record = json!({ "benchmark": benchmark, "provenance": self.provenance, "result": result });
            write(path, &(serde_json::to_string_pretty(&record)? + "\n"))?;
        }
        match &self.output.markdown {
            Some(path) => write(path, &self.text),
            None => Ok(()),
        }
    }
}

impl Provenance {
    fn here(versions: Vec<String>) -> Self {
        let read = |path: &str| fs::read_to_string(path).ok().filter(|text| !text.trim().is_empty());
        let field = |path: &str, name: &str| {
            let text = read(path)?;
            let found = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
            Some(found.1.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let kernel = read("/proc/sys/kernel/osrelease").map(|release| release.trim().to_owned());
        let config = kernel.as_ref().and_then(|release| read(&format!("/boot/config-{release}")));
        Provenance {
            cpu: field("/proc/cpuinfo", "model name"),
            cpus: std::thread::available_parallelism().ok().map(Into::into),
            memory_bytes: memory.and_then(|kib| Some(kib.strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)),
            irq_time_accounting: config.map(|text| text.contains("CONFIG_IRQ_TIME_ACCOUNTING=y")),
            kernel,
            commit: commit(),
            versions,
            command_line: env::args_os().map(|argument| recorded(&argument)).collect(),
            started_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            debug_build: cfg!(debug_assertions),
        }
    }

    fn heading(&self) -> String {
        let cpus = self.cpus.map(|cpus| cpus.to_string());
        let [cpu, cpus, kernel, commit] =
            [&self.cpu, &cpus, &self.kernel, &self.commit].map(|text| text.as_deref().unwrap_or("unknown"));
        format!("{}; {cpu}, {cpus} CPUs, Linux {kernel}; commit {commit}", self.versions.join(", "))
    }
}

fn commit() -> Option<String> {
    let arguments = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"];
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// A table in Markdown, all columns but the first `names` aligned to the right.
pub fn table<Row: IntoIterator<Item = String>>(
    names: usize,
    heading: &[&str],
    rows: impl IntoIterator<Item = Row>,
) -> Table {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(heading);
    table.column_iter_mut().skip(names).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    for row in rows {
        table.add_row(row);
    }
    table
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    // A device is written to, and never replaced.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return File::options().write(true).open(path)?.write_all(text.as_bytes());
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// An argument as results keep it: of a path from the root, which tells of one machine only, the last part.
fn recorded(argument: &OsStr) -> String {
    let path = Path::new(argument);
    let kept = path.file_name().filter(|_| path.is_absolute()).unwrap_or(argument);
    kept.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_recorded_command_line_holds_a_path_of_a_machine() {
        assert_eq!(recorded(OsStr::new("/usr/bin/tollgate-bench")), "tollgate-bench");
        assert_eq!(recorded(OsStr::new("bench/scenarios/short.toml")), "bench/scenarios/short.toml");
        let results = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("results")).unwrap();
        let texts = results.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
        let texts: Vec<_> = texts.filter(|text| text.contains("\"command_line\"")).collect();
        assert!(texts.len() > 5 && texts.iter().all(|text| !text.contains("\"/")));
    }

    #[test]
    fn results_are_written_with_where_they_came_from_and_replace_older_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name));
        let output = Output { json: path("a.json"), markdown: path("a.md") };
        for number in [1, 2] {
            let mut recording = output.start(["gateway 1".to_owned()]).unwrap();
            recording.print(&table(1, &["what", "count"], [["a".to_owned(), number.to_string()]])).unwrap();
            recording.write("load", &number).unwrap();
        }
        let read = |name| fs::read_to_string(folder.path().join(name)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&read("a.json")).unwrap();
        assert_eq!((&json["benchmark"], &json["result"]), (&json!("load"), &json!(2)));
        assert_eq!(json["provenance"]["versions"][1], "gateway 1");
        assert!(read("a.md").ends_with("| what | count |\n|------|-------|\n| a    |     2 |\n\n"), "{}", read("a.md"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left over");
        let nowhere = Output { json: path("none/a.json"), markdown: None };
        assert!(nowhere.start([]).unwrap_err().to_string().contains("cannot be written: name a file"));
        Output { json: Some("/dev/null".into()), markdown: None }.start([]).unwrap().write("x", &1).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file(), "a device is not replaced");
    }
}
