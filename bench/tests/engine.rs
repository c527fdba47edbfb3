//! `tollgate-bench engine` as a user has it. Without valgrind, only what it says then can be tested.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Recorded counts of this build: one of `checksum`.
fn record(path: &Path, compiler: &str, checksum: f64) {
    let text = format!(
        "allowed_share = 0.02\nvalgrind = \"valgrind-3\"\n[conditions]\ncompiler = \"{compiler}\"\nprofile = \"{}\"\n\
         target = \"{}\"\n[instructions]\nchecksum = {checksum:.1}\n",
        env!("TOLLGATE_BENCH_PROFILE"),
        env!("TOLLGATE_BENCH_TARGET"),
    );
    fs::write(path, text).unwrap();
}

fn engine(recorded: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-bench"));
    command.arg("engine").arg("--recorded").arg(recorded).args(arguments);
    command
}

fn error(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_missing_valgrind_is_named_with_its_package() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("instructions.toml");
    let output = engine(&path, &["--record"]).env("PATH", folder.path()).output().unwrap();
    assert_eq!(error(&output), "tollgate-bench: valgrind is not installed: apt-get install valgrind");
    assert!(!path.exists());
}

#[test]
fn counts_of_another_compiler_are_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("instructions.toml");
    record(&path, "rustc 1.0.0", 1.0);
    let error = error(&engine(&path, &[]).output().unwrap());
    assert!(error.contains("rustc 1.0.0") && error.contains(env!("TOLLGATE_BENCH_COMPILER")), "{error}");
}

#[test]
#[ignore = "needs valgrind: cargo xtask test --full"]
fn a_count_repeats_and_more_than_the_allowed_share_above_it_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("instructions.toml");
    let run = |recorded: f64| {
        record(&path, env!("TOLLGATE_BENCH_COMPILER"), recorded);
        engine(&path, &["--only", "checksum"]).output().unwrap()
    };
    let dear = run(1.0);
    let said = error(&dear);
    assert!(said.contains("more than 2 % above the recorded count: checksum (counted by valgrind"), "{said}");
    let table = String::from_utf8_lossy(&dear.stdout).into_owned();
    assert!(table.contains("TOO MUCH"), "{table}");
    let row = table.lines().find(|line| line.starts_with("| checksum")).unwrap();
    let count: f64 = row.split('|').nth(3).unwrap().trim().parse().unwrap();
    for (recorded, passes) in [(count, true), (count / 1.019, true), (count / 1.021, false)] {
        let output = run(recorded);
        assert_eq!(output.status.success(), passes, "{count} against {recorded}: {output:?}");
    }
}
