//! Tells the harness what it is built with: instruction counts can only be compared between equals.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").expect("cargo names the compiler");
    let output = Command::new(rustc).arg("--version").output().expect("the compiler tells its version");
    let compiler = String::from_utf8(output.stdout).expect("a version is text");
    println!("cargo::rustc-env=TOLLGATE_BENCH_COMPILER={}", compiler.trim());
    for name in ["PROFILE", "TARGET"] {
        println!("cargo::rustc-env=TOLLGATE_BENCH_{name}={}", env::var(name).expect("cargo sets it for build scripts"));
    }
}
