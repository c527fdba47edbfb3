//! What takes a nightly compiler: its sanitizers, Miri, and the instrumentation of fuzz targets.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::run;

/// The only target that all of it is used for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Tests by AddressSanitizer: code that handles raw memory, and what parses. The C code of aws-lc is not instrumented.
const UNDER_ASAN: [&[&str]; 4] = [
    &["--package", "tollgate-shards", "--lib", "--", "packet::"],
    &["--package", "tollgate", "--lib", "--", "io::", "packet_io::", "control::protocol::", "tls::"],
    &["--package", "tollgate-config", "--tests"],
    &["--package", "tollgate-fuzz", "--tests"],
];

/// Tests by Miri: what neither calls the system nor C code. It interprets, so that only small ones end in minutes.
const UNDER_MIRI: [&[&str]; 2] = [
    &[
        "--package",
        "tollgate-shards",
        "--lib",
        "--",
        "packet::checksum",
        "packet::inner",
        "packet::vnet",
        "packet::pool",
    ],
    &["--package", "tollgate", "--lib", "--", "io::cmsg", "io::sockaddr"],
];

/// Cargo of the nightly toolchain, with a target folder of its own for `purpose`.
///
/// # Errors
///
/// When there is no such toolchain.
pub fn cargo(root: &Path, purpose: &str) -> Result<Command> {
    let mut asked = Command::new("rustup");
    asked.args(["run", "nightly", "cargo", "--version"]).current_dir(root);
    ensure!(
        succeeds(&mut asked),
        "the nightly toolchain is missing: rustup toolchain install nightly --profile minimal"
    );
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo"]).current_dir(root);
    cargo.env("CARGO_TARGET_DIR", root.join("target").join(purpose));
    Ok(cargo)
}

/// Runs tests under AddressSanitizer.
pub fn asan(root: &Path) -> Result<()> {
    for tests in UNDER_ASAN {
        let mut command = cargo(root, "asan")?;
        // Leaks are not looked for: what lives as long as the process is none.
        command.env("RUSTFLAGS", "-Zsanitizer=address").env("ASAN_OPTIONS", "detect_leaks=0");
        run(command.args(["test", "--locked", "--target", TARGET]).args(tests))?;
    }
    Ok(())
}

/// Runs tests under Miri.
pub fn miri(root: &Path) -> Result<()> {
    let is_installed = succeeds(cargo(root, "miri")?.args(["miri", "--version"]));
    ensure!(is_installed, "Miri is missing: rustup +nightly component add miri rust-src");
    for tests in UNDER_MIRI {
        let mut command = cargo(root, "miri")?;
        // Proptest keeps what has failed in a file.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "4");
        run(command.args(["miri", "test", "--locked"]).args(tests))?;
    }
    Ok(())
}

/// Whether `command` can be run and succeeds; what it says is not shown.
pub fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
