//! Counting instructions: this program runs itself under callgrind, which counts within [`measured`] and nowhere else.
//!
//! What would make the count differ from run to run is kept out: the child has no environment, its seeds are fixed and its time is virtual.
//! Keys are random, but AES and the exchange of keys take the same instructions for all of them.

use std::env;
use std::fs;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::fixture::{Case, Fixture, round};

/// [`measured`], as callgrind knows it.
const MEASURED: &str = "*engine::callgrind::measured*";
/// Rounds before the count begins: buffers grow, and symbols are bound.
const WARM_UP_ROUNDS: u32 = 2;

/// valgrind with its tool callgrind.
#[derive(Debug)]
pub struct Callgrind {
    program: PathBuf,
    /// Its name and version.
    pub version: String,
}

impl Callgrind {
    /// Looks for it.
    pub fn find() -> Result<Self> {
        let paths = env::var_os("PATH").unwrap_or_default();
        let program = env::split_paths(&paths)
            .map(|folder| folder.join("valgrind"))
            .find(|path| path.is_file())
            .context("valgrind is not installed: apt-get install valgrind")?;
        let output = Command::new(&program).arg("--version").output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "{} does not tell its version: install valgrind anew", program.display());
        Ok(Callgrind { program, version })
    }

    /// Instructions of `case` for each unit of its work.
    pub fn count(&self, case: &Case) -> Result<f64> {
        let folder = TempDir::with_prefix("tollgate-bench-").context("no folder for callgrind's output")?;
        let counts = folder.path().join("counts");
        let output = Command::new(&self.program)
            .args(["--quiet", "--tool=callgrind", "--collect-atstart=no"])
            .arg(format!("--toggle-collect={MEASURED}"))
            .arg(format!("--callgrind-out-file={}", counts.display()))
            .arg(env::current_exe().context("this program's own path is not known")?)
            .args(["engine", "--measure", case.name])
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let units = units_of(&output).with_context(|| format!("{} under callgrind", case.name))?;
        let text = fs::read_to_string(&counts).context("callgrind wrote no counts")?;
        let instructions = total_of(&text).context("callgrind's counts are not what was expected of it")?;
        ensure!(instructions > 0, "callgrind counted nothing: does this program have symbols? It must not be stripped");
        Ok(instructions as f64 / units as f64)
    }
}

/// The child's part: does the work of `case` until there is enough, and prints how many units were measured.
pub fn measure(case: &Case) -> Result<()> {
    let mut fixture = (case.make)()?;
    for _ in 0..WARM_UP_ROUNDS {
        round(&mut *fixture, &mut |fixture| fixture.work())?;
    }
    let mut units = 0;
    while units < case.units {
        units += round(&mut *fixture, &mut measured)?;
    }
    crate::measure::record::print(&format!("{units}\n"))
}

/// What is counted. A function of its own, since callgrind begins and ends with one.
#[inline(never)]
fn measured(fixture: &mut dyn Fixture) -> u64 {
    // Something is left to do after the work, or this function would end before it.
    black_box(fixture.work())
}

fn units_of(output: &Output) -> Result<u64> {
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, error.lines().last().unwrap_or("it said nothing"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let units = text.trim().parse().ok().filter(|&units| units > 0);
    units.with_context(|| format!("'{}' is no number of units", text.trim()))
}

/// The sum of all that was counted, in the format of callgrind's output (Callgrind Format Specification, `totals`).
fn total_of(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals:"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_from_callgrinds_output() {
        assert_eq!(total_of("version: 1\nevents: Ir\nfn=(1) x\n0 5\ntotals: 1234\n"), Some(1234));
        assert_eq!(total_of("version: 1\nsummary: 12\n"), None);
        assert_eq!(total_of("totals: many\n"), None);
    }
}
