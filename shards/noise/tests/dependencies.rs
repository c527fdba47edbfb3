//! What is linked and what is not.

use std::path::Path;
use std::process::Command;

#[test]
fn the_reference_is_not_linked_into_the_gateway() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--package", "tollgate", "--locked", "--offline", "--edges", "normal", "--prefix", "none"]);
    let output = cargo.current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates = String::from_utf8(output.stdout).unwrap();
    let is_linked = |name: &str| crates.lines().any(|line| line.split(' ').next() == Some(name));
    assert!(is_linked("tollgate-noise"), "{crates}");
    for reference in ["reishi-handshake", "reishi-quinn", "ml-kem", "x25519-dalek"] {
        assert!(
            !is_linked(reference),
            "{reference}: handshake and packet protection are shards/noise's own, and faster"
        );
    }
}
