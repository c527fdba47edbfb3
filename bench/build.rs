//! Tells the harness what it is built with: instruction counts can only be compared between equals.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").expect("cargo names the compiler");
    let output = Command::new(rustc).arg("--version").output().expect("the compiler tells its version");
    let compiler = String::from_utf8(output.stdout).expect("a version is text");
    println!("cargo::rustc-env=TOLLGATE_BENCH_COMPILER={}", compiler.trim());
    let target = env::var("TARGET").expect("cargo sets it for build scripts");
    println!("cargo::rustc-env=TOLLGATE_BENCH_TARGET={target}");
    // Cargo itself tells only `release` from `debug`: a profile of another name has its folder below the target folder.
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it for build scripts"));
    let profile =
        folder.ancestors().nth(3).and_then(|folder| folder.file_name()).expect("target/PROFILE/build/NAME/out");
    println!("cargo::rustc-env=TOLLGATE_BENCH_PROFILE={}", profile.display());
}
