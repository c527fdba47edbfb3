//! What somebody tries who has taken a program over, in one of its threads, by a preloaded library.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::compile;

/// The attempts of a program that runs.
#[derive(Debug)]
pub struct Escapes {
    folder: TempDir,
}

impl Escapes {
    /// Compiles the library. Nothing is tried yet.
    pub fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        compile("escapes.c", &folder.path().join("escapes.so"));
        let escapes = Escapes { folder };
        fs::write(escapes.path("report"), "").unwrap();
        escapes
    }

    /// Has what `command` starts try, once it is told to.
    pub fn prepare(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.path("escapes.so"));
        command.env("ESCAPES_REPORT", self.path("report")).env("ESCAPES_ARMED", self.path("armed"));
    }

    /// The next datagram that comes sets it off.
    pub fn arm(&self) {
        fs::write(self.path("armed"), "").unwrap();
    }

    /// What was tried and the error number that it has come to, or `None` where it was done. Empty until all is tried.
    pub fn attempts(&self) -> Vec<(String, Option<i32>)> {
        let report = fs::read_to_string(self.path("report")).unwrap();
        let attempt = |line: &str| {
            let (name, result) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), result.parse().ok())
        };
        let mut attempts: Vec<_> = report.lines().map(attempt).collect();
        match attempts.pop() {
            Some((name, _)) if name == "end" => attempts,
            _ => Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
