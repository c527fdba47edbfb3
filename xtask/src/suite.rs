//! Running the tests, and their sum.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{cargo, command};

/// The program that runs tests beside each other. CI installs this version.
const NEXTEST: &str = "cargo install cargo-nextest --version 0.9.143 --locked --debug";

/// How many tests passed, failed and were skipped.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// What needs nothing but Linux: each package's tests as `cargo test` runs them.
pub fn plain(root: &Path, rest: &[String]) -> Result<()> {
    let arguments = ["test", "--workspace", "--locked", "--"].map(str::to_owned);
    cargo(root, arguments.iter().chain(rest))
}

/// All tests. Their sum is the last line that is printed.
pub fn full(root: &Path, rest: &[String]) -> Result<()> {
    let installed = command(root).args(["nextest", "--version"]).output();
    ensure!(installed.is_ok_and(|output| output.status.success()), "cargo-nextest is missing: {NEXTEST}");
    // Most of them wait most of the time; those that do not, run alone.
    let threads = 3 * std::thread::available_parallelism().map_or(1, usize::from);
    let mut tests = command(root);
    tests.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast", "--run-ignored", "all"]);
    tests.arg(format!("--test-threads={threads}")).args(rest);
    let mut documentation = command(root);
    documentation.args(["test", "--workspace", "--locked", "--doc", "--no-fail-fast", "--"]).args(rest);
    let mut sum = Sum::default();
    let mut all_succeeded = true;
    for mut command in [tests, documentation] {
        // nextest reports on standard error, cargo on standard output.
        let (reports, writer) = std::io::pipe().context("cannot make a pipe")?;
        command.stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
        let mut child = command.spawn().context("cannot run cargo")?;
        // Its ends of the pipe: what is read ends with the child.
        drop(command);
        for line in BufReader::new(reports).lines().map_while(Result::ok) {
            // Whoever reads may have gone; the tests go on.
            let _ = writeln!(std::io::stdout(), "{line}");
            sum = sum.and(&line);
        }
        all_succeeded &= child.wait()?.success();
    }
    println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.skipped);
    ensure!(all_succeeded && sum.passed > 0, "not all tests passed");
    Ok(())
}

impl Sum {
    /// Adds what a line of a report says: nextest's only summary, or that of the documentation's tests of a package.
    fn and(self, line: &str) -> Self {
        // What is indented is the output of a test that failed: it is in the summary already.
        let summary = line.split_once("Summary [").map(|(_, counts)| counts);
        let Some(counts) = summary.or_else(|| line.strip_prefix("test result: ")) else { return self };
        let number = |kind: &str| {
            let words: Vec<&str> = counts.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
            let place = words.iter().position(|word| *word == kind);
            place.and_then(|place| words[place.checked_sub(1)?].parse::<u64>().ok()).unwrap_or(0)
        };
        Sum {
            passed: self.passed + number("passed"),
            failed: self.failed + number("failed") + number("timed"),
            skipped: self.skipped + number("skipped") + number("ignored"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added_up() {
        let lines = [
            "     Summary [ 363.200s] 900 tests run: 896 passed (3 slow, 1 leaky), 3 failed, 1 timed out, 20 skipped",
            "test result: ok. 3 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "test a::passed ... ok",
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 64 filtered out; finished in 0.14s",
        ];
        let sum = lines.iter().fold(Sum::default(), |sum, line| sum.and(line));
        assert_eq!(sum, Sum { passed: 899, failed: 4, skipped: 22 });
    }
}
