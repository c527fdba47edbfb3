//! `tollgate-sim`: runs seeds, and says which fail.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "out here time is real, and runs share the cores"
)]

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::main(&cli::Arguments::parse())
}
