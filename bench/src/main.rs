//! The command line of the load-test harness.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tollgate_bench::main()
}
