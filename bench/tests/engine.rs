//! `tollgate-bench engine` as a user has it.

use std::process::{Command, Output};

fn engine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-bench"));
    command.arg("engine").args(arguments);
    command
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

#[test]
fn a_missing_valgrind_is_named_with_its_package() {
    let output = engine(&[]).env("PATH", "/nowhere").output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).ends_with("valgrind is not installed: apt-get install valgrind\n"), "{output:?}");
}

#[test]
#[ignore = "needs valgrind: cargo xtask test --full"]
fn a_build_costs_what_it_costs_itself() {
    let output = engine(&["--only", "checksum", "--against", env!("CARGO_BIN_EXE_tollgate-bench")]).output().unwrap();
    let text = text(&output);
    assert!(output.status.success() && text.contains("| checksum") && text.contains("+0.00 %"), "{text}");
}
