//! The command line of Tollgate.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use tollgate::cli::Cli;
use tollgate::{log, output};

fn main() -> ExitCode {
    let code = match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::say_last(&format!("tollgate: {}", output::with_causes(&error)));
            ExitCode::FAILURE
        }
    };
    log::finish();
    code
}
