//! Keys are those of `quincy-identity noise`, line for line.

use std::io::Write;
use std::process::{Command, Stdio};

use aws_lc_rs::rand::SystemRandom;
use tollgate_noise::{Kind, PrivateKey};
use tollgate_test_support::peers::Peers;

/// What `quincy-identity noise` says, given `input`.
fn quincy(arguments: &[&str], input: &str) -> String {
    let mut program = Command::new(Peers::find().identity());
    let mut program = program
        .arg("noise")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("quincy-identity starts");
    program.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs Quincy's programs: cargo xtask test --full"]
fn either_program_reads_the_keys_of_the_other() {
    for (kind, name) in [(Kind::Standard, "standard"), (Kind::PostQuantum, "post-quantum"), (Kind::Hybrid, "hybrid")] {
        let theirs = quincy(&["genkey", "-k", name], "");
        let key = PrivateKey::parse(&theirs).unwrap();
        assert_eq!(key.kind(), kind);
        assert_eq!(format!("{}\n", *key.to_base64()), theirs);
        let ours = PrivateKey::generate(kind, &SystemRandom::new()).unwrap();
        for key in [key, ours] {
            assert_eq!(
                quincy(&["pubkey", "-k", name], &format!("{}\n", *key.to_base64())),
                format!("{}\n", key.public())
            );
        }
    }
}
