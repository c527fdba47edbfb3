//! Counting instructions: a build of this program runs under callgrind, which counts within [`measured`] and nowhere else.
//!
//! What would make the count differ from run to run is kept out: the child has no environment, its seeds are fixed and its time is virtual.
//! Keys are random, but AES and the exchange of keys take the same instructions for all of them.

use std::env;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::fixture::Case;

/// [`measured`], as callgrind knows it.
const MEASURED: &str = "*engine::callgrind::measured*";
/// Rounds before the count begins: buffers grow, and symbols are bound.
const WARM_UP_ROUNDS: u32 = 2;
/// The exit status of a program that does not know an argument, here the name of a benchmark.
const USAGE: i32 = 2;

/// valgrind with its tool callgrind.
#[derive(Debug)]
pub struct Callgrind {
    program: PathBuf,
    /// Its name and version.
    pub version: String,
}

impl Callgrind {
    pub fn find() -> Result<Self> {
        let paths = env::var_os("PATH").unwrap_or_default();
        let program = env::split_paths(&paths).map(|folder| folder.join("valgrind")).find(|path| path.is_file());
        let program = program.context("valgrind is not installed: apt-get install valgrind")?;
        let version = crate::programs::stated_version(&program)?;
        Ok(Callgrind { program, version })
    }

    /// Instructions of `case` in the build `program` for each unit of its work; `None` where that build has no such benchmark.
    pub fn count(&self, program: &Path, case: &Case) -> Result<Option<f64>> {
        let folder = TempDir::with_prefix("tollgate-bench-").context("no folder for callgrind's output")?;
        let counts = folder.path().join("counts");
        let output = Command::new(&self.program)
            .args(["--quiet", "--tool=callgrind", "--collect-atstart=no"])
            .arg(format!("--toggle-collect={MEASURED}"))
            .arg(format!("--callgrind-out-file={}", counts.display()))
            .arg(program)
            .args(["engine", "--measure", case.name])
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        if output.status.code() == Some(USAGE) {
            return Ok(None);
        }
        let [said, error] =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).trim().to_owned());
        ensure!(output.status.success(), "{} under callgrind: {}: {error}", case.name, output.status);
        let units: u64 = said.parse().with_context(|| format!("{}: '{said}' is no number of units", case.name))?;
        let text = fs::read_to_string(&counts).context("callgrind wrote no counts")?;
        let instructions = total(&text).context("callgrind's counts are not what was expected of it")?;
        ensure!(instructions > 0, "callgrind counted nothing: does {} have symbols?", program.display());
        Ok(Some(instructions as f64 / units as f64))
    }
}

/// The child's part: does the work of `case` until there is enough, and prints how many units were measured.
pub fn measure(case: &Case) -> Result<()> {
    let mut fixture = (case.make)()?;
    for _ in 0..WARM_UP_ROUNDS {
        fixture(&mut |work| work())?;
    }
    let mut units = 0;
    while units < case.units {
        units += fixture(&mut measured)?;
    }
    println!("{units}");
    Ok(())
}

/// What is counted. A function of its own, since callgrind begins and ends with one.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
    // Something is left to do after the work, or this function would end before it.
    black_box(work);
}

/// The sum of all that was counted, in the format of callgrind's output (Callgrind Format Specification, `totals`).
fn total(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals:"))?.split_whitespace().next()?.parse().ok()
}
