//! Who misses a guard: programs that are built once, with a switch for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::switches::VARIABLE;
use crate::command;
use crate::worktree::share_dependencies;

const SIMULATOR: &str = "tollgate-sim";
/// How long a finder may take, in seconds.
const FINDER_S_MAX: &str = "300";
/// The status of `timeout` when that is over.
const TIMED_OUT: i32 = 124;

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finder {
    program: Program,
    arguments: Vec<String>,
    call: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Program {
    Simulator,
    /// The tests within a library, by its crate.
    Library(String),
    /// A folder or file of `tests`, whichever package has it.
    Test(String),
}

/// What a finder says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    Missed,
    Hangs,
}

impl Finder {
    /// The finder that a line in front of a patch names.
    pub fn parse(call: &str) -> Result<Finder> {
        let words: Vec<_> = call.split_whitespace().collect();
        let (program, arguments) = match words[..] {
            [SIMULATOR, ref arguments @ ..] => (Program::Simulator, arguments),
            ["cargo", "test", "-p", package, "--lib", "--", ref rest @ ..] => {
                (Program::Library(package.replace('-', "_")), rest)
            }
            ["cargo", "test", "-p", _, "--test", name, "--", ref rest @ ..]
            | ["cargo", "test", "--test", name, "--", ref rest @ ..] => (Program::Test(name.to_owned()), rest),
            _ => anyhow::bail!("nobody is called {call}"),
        };
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        Ok(Finder { program, arguments, call: call.to_owned() })
    }

    /// Whether `part` is in its call.
    pub fn is_called(&self, part: &str) -> bool {
        self.call.contains(part)
    }

    pub fn is_simulator(&self) -> bool {
        self.program == Program::Simulator
    }
}

impl fmt::Display for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.call)
    }
}

/// Finders that can be asked.
pub struct Finders {
    /// Each program, and the folder of its package.
    programs: BTreeMap<Program, (PathBuf, PathBuf)>,
    /// How they are called.
    calls: Vec<Finder>,
}

impl Finders {
    /// Builds what is wanted of the tree at `worktree`.
    pub fn build<'a>(worktree: &Path, target: &Path, wanted: impl Iterator<Item = &'a Finder>) -> Result<Finders> {
        let calls: Vec<_> = wanted.cloned().collect();
        let mut programs = BTreeMap::new();
        share_dependencies(worktree, &worktree.join("../../debug"), &target.join("debug"))?;
        let mut cargo = |arguments: &[&str]| {
            let mut cargo = command(worktree);
            cargo.args(arguments).args(["--workspace", "--locked", "--message-format=json-render-diagnostics"]);
            cargo.env("CARGO_TARGET_DIR", target);
            programs.extend(built(&mut cargo)?);
            Ok::<_, anyhow::Error>(())
        };
        let kinds: BTreeSet<_> = calls.iter().map(|finder| &finder.program).collect();
        let tests = kinds.iter().filter_map(|program| match program {
            Program::Test(name) => Some(["--test", &name[..]]),
            _ => None,
        });
        let mut arguments: Vec<_> = tests.flatten().collect();
        if kinds.iter().any(|program| matches!(program, Program::Library(_))) {
            arguments.push("--lib");
        }
        if kinds.contains(&Program::Simulator) {
            cargo(&["build", "--bin", SIMULATOR])?;
        }
        if !arguments.is_empty() {
            cargo(&[&["test", "--no-run"], &arguments[..]].concat())?;
        }
        Ok(Finders { programs, calls })
    }

    /// Finders that fail although no guard is gone find nothing.
    pub fn rest(&self) -> Result<()> {
        let mut asked = BTreeSet::new();
        for finder in self.calls.iter().filter(|finder| asked.insert(&finder.call)) {
            let verdict = self.ask(finder, "")?;
            ensure!(verdict == Verdict::Nothing, "{finder}: {verdict:?} although no guard is gone");
        }
        Ok(())
    }

    /// Has a finder say whether something is missing while the guard called `out` is gone.
    pub fn ask(&self, finder: &Finder, out: &str) -> Result<Verdict> {
        let (program, folder) = self.programs.get(&finder.program).with_context(|| format!("{finder} is not built"))?;
        let mut limited = Command::new("timeout");
        limited.arg(FINDER_S_MAX).arg(program).args(&finder.arguments).current_dir(folder).env(VARIABLE, out);
        if finder.is_simulator() {
            limited.args(["--failures", "1", "--no-shrink"]);
        }
        let output = limited.output().with_context(|| format!("cannot run {finder}"))?;
        Ok(match output.status.code() {
            Some(0) => Verdict::Nothing,
            Some(TIMED_OUT) => Verdict::Hangs,
            _ => Verdict::Missed,
        })
    }
}

/// What cargo says of something that it has built.
#[derive(Deserialize)]
struct Artifact {
    target: Target,
    executable: PathBuf,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

/// Runs a build. Returns its programs, and the folders of their packages.
fn built(cargo: &mut Command) -> Result<Vec<(Program, (PathBuf, PathBuf))>> {
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{cargo:?}: {}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stdout);
    let artifacts = told.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    Ok(artifacts.filter_map(Artifact::program).collect())
}

impl Artifact {
    fn program(self) -> Option<(Program, (PathBuf, PathBuf))> {
        let Target { kind, name } = self.target;
        let program = match kind.first()?.as_str() {
            "bin" if name == SIMULATOR => Program::Simulator,
            "lib" => Program::Library(name),
            "test" => Program::Test(name),
            _ => return None,
        };
        Some((program, (self.executable, self.manifest_path.parent()?.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finder_is_the_simulator_or_some_tests() {
        let program = |call: &str| Finder::parse(call).map(|finder| (finder.program, finder.arguments.join(" "))).ok();
        let simulator = Some((Program::Simulator, "--seeds 0..9".to_owned()));
        assert_eq!(program("tollgate-sim --seeds 0..9"), simulator);
        let library = Some((Program::Library("tollgate_shards".to_owned()), "pool".to_owned()));
        assert_eq!(program("cargo test -p tollgate-shards --lib -- pool"), library);
        let test = Some((Program::Test("memory".to_owned()), "--ignored gaps".to_owned()));
        assert_eq!(program("cargo test --test memory -- --ignored gaps"), test);
        assert_eq!(program("cargo test gaps"), None);
    }
}
