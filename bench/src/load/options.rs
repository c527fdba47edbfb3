//! The command line of `load`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::table::LoadTable;
use crate::contenders;
use crate::progress::Progress;
use crate::record::{Output, print};
use crate::results::Finding;
use crate::scenario::{DURATION, GatewayPlan, Scenario};

/// What to load, and how.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The scenario, a TOML file: see bench/scenarios/ for examples, bench/README.md for all keys.
    #[arg(value_name = "SCENARIO")]
    scenario: PathBuf,
    /// The gateway to start, unless the scenario names one: `tollgate`, `quincy-server`, or the path of either.
    #[arg(long, value_name = "NAME|PATH", default_value = "tollgate")]
    gateway: String,
    /// Run traffic for so many seconds, in place of the scenario's duration.
    #[arg(long, value_name = "N", value_parser = seconds)]
    seconds: Option<u64>,
    #[command(flatten)]
    output: Output,
}

fn seconds(text: &str) -> Result<u64, String> {
    let bounds = DURATION.start().as_secs()..=DURATION.end().as_secs();
    let wrong = || format!("write a whole number from {} to {}", bounds.start(), bounds.end());
    text.parse().ok().filter(|seconds| bounds.contains(seconds)).ok_or_else(wrong)
}

/// Runs the scenario, prints the table, and writes the JSON file.
///
/// To be called before the process has started a thread: without root's rights it moves into a user namespace of its own.
///
/// # Errors
///
/// What kept it from running, in one line; or, after all results, that the load failed.
pub fn run(options: &Options) -> Result<()> {
    let mut scenario = Scenario::load(&options.scenario)?;
    if let Some(seconds) = options.seconds {
        scenario.duration = Duration::from_secs(seconds);
    }
    let gateway = contenders::named(&options.gateway)?;
    let versions = match scenario.gateway {
        GatewayPlan::Started(_) => vec![contenders::version(&gateway)?],
        GatewayPlan::Named(_) => Vec::new(),
    };
    let recording = options.output.start(versions)?;
    let mut progress = Progress::new();
    let result = super::run(&scenario, &gateway, &mut progress);
    progress.clear();
    let result = result?;
    print(&format!("{}{}", recording.heading(), LoadTable(&result)))?;
    let failures = result.failures.len();
    recording.write(Finding::Load(result))?;
    if failures > 0 {
        bail!("the load failed, for {failures} reason{}: see the table", if failures == 1 { "" } else { "s" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn a_duration_out_of_bounds_is_refused() {
        let parsed = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.options);
        let options = parsed("load a.toml --seconds 3 --gateway quincy-server").unwrap();
        assert_eq!((options.seconds, options.gateway.as_str()), (Some(3), "quincy-server"));
        for wrong in ["0", "x", "999999999"] {
            let error = parsed(&format!("load a.toml --seconds {wrong}")).unwrap_err().to_string();
            assert!(error.contains("write a whole number from 1 to"), "{error}");
        }
    }

    #[test]
    fn a_scenario_that_is_wrong_ends_the_command_before_anything_is_started() {
        let folder = tempfile::tempdir().unwrap();
        let scenario = folder.path().join("wrong.toml");
        std::fs::write(&scenario, "duration = 1\n[users]\ncount = 0\n").unwrap();
        let options = Options { scenario, gateway: "tollgate".to_owned(), seconds: None, output: Output::default() };
        let error = run(&options).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 2, "{error}");
        assert!(error.contains("wrong.toml:1:12: `duration` is the number 1"), "{error}");
    }
}
