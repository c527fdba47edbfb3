//! `cargo xtask TASK`: the tasks of Tollgate's developers, by name. CI calls the same ones.

mod counts;
mod fuzz;
mod guards;
mod house;
mod nightly;
mod release;
mod smoke;
mod suite;
mod worktree;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

/// The tasks of Tollgate's developers, by name. CI calls the same ones.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Check what takes no test: formatting, lints, documentation, the shape of the tree
    Check,
    /// Check the shape of the tree only: imports between folders, retired names, empty comments, sizes of files, tests that run alone
    House,
    /// Run the tests that need nothing but Linux
    Test {
        /// Also run what needs root, other programs or minutes: what is missing fails
        #[arg(long)]
        full: bool,
        /// Passed on to the tests: a part of their names, for instance
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Run each benchmark in a form of seconds: it works, and its figures are right
    Smoke,
    /// Run a gateway and two clients with real traffic, and print one table
    Demo,
    /// Install the programs that tests and benchmarks compare with into .peers
    Peers,
    /// Make the clean Debian that tests install the package in, in target/debian
    Debian,
    /// Check the tree, build the program and make the packages of a release: for Debian, as an archive, as an image of a container
    Release(release::Options),
    /// Build the documentation of all crates
    Docs,
    /// Take guards out, one at a time, and see that each is missed
    Guards {
        /// Only these, by the names of their patches in xtask/guards
        names: Vec<String>,
        /// Ask only finders in whose call there is this: a test program's name, for instance
        #[arg(long, value_name = "PART", default_value = "", hide_default_value = true)]
        by: String,
        /// Only some of those that the simulator misses, for about so long
        #[arg(long, value_name = "SECONDS", conflicts_with = "names")]
        sample: Option<u64>,
    },
    /// Run the fuzz targets, and keep what they find
    Fuzz {
        /// Only these, by the names of the sources in tests/fuzz/targets
        names: Vec<String>,
        /// Run each for at least so much processor time
        #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
        seconds: u64,
        /// Then go on until so much brings nothing new
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        quiet_seconds: u64,
        /// Processes of each at once
        #[arg(long, value_name = "N", default_value_t = 1)]
        jobs: usize,
    },
    /// Run packet code, parsers and the tests of descriptors under AddressSanitizer
    Asan,
    /// Run what calls neither the system nor C code under Miri
    Miri,
    /// Count the engine's instructions for each packet, and hold them against those of another revision
    Counts {
        /// The revision to compare with, as git names it
        #[arg(long, value_name = "REV")]
        against: Option<String>,
        /// Cargo's profile for both builds
        #[arg(long, value_name = "NAME", default_value = "release")]
        profile: String,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?.to_owned();
    match Task::parse() {
        Task::Check => {
            cargo(&root, ["fmt", "--all", "--check"])?;
            cargo(&root, ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
            docs(&root)?;
            house(&root)
        }
        Task::House => house(&root),
        Task::Test { full: false, rest } => suite::plain(&root, &rest),
        Task::Test { full: true, rest } => suite::full(&root, &rest),
        Task::Smoke => smoke::all(&root),
        Task::Demo => cargo(&root, ["run", "--release", "--locked", "--", "demo"]),
        Task::Peers => run(Command::new("sh").arg("bench/install-peers.sh").current_dir(root)),
        Task::Debian => run(Command::new("sh").arg("tests/environment/debian.sh").current_dir(root)),
        Task::Release(options) => release::run_all(&root, &options),
        Task::Docs => docs(&root),
        Task::Guards { names, by, sample } => guards::run(&root, &names, &by, sample.map(Duration::from_secs)),
        Task::Fuzz { names, seconds: core_seconds, quiet_seconds: quiet_core_seconds, jobs } => {
            fuzz::run(&root, &names, &fuzz::Length { core_seconds, quiet_core_seconds, jobs })
        }
        Task::Asan => nightly::asan(&root),
        Task::Miri => nightly::miri(&root),
        Task::Counts { against, profile } => counts::run(&root, against.as_deref(), &profile),
    }
}

fn house(root: &Path) -> Result<()> {
    let faults = house::check(root)?;
    faults.iter().for_each(|fault| println!("{fault}"));
    ensure!(faults.is_empty(), "{} faults in the shape of the tree", faults.len());
    Ok(())
}

fn docs(root: &Path) -> Result<()> {
    let mut command = command(root);
    command.args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings");
    run(&mut command)
}

fn cargo(root: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
    run(command(root).args(arguments))
}

fn command(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from));
    command.current_dir(root);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} ended with {status}", command.get_program());
    }
    Ok(())
}
