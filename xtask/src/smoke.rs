//! Every benchmark in a form of seconds: whether it works and its figures are right, never how fast anything is.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use super::{cargo, run};

/// What the harness is called with. What it compares with other programs is among the tests.
const FORMS: [&str; 9] = [
    "floor --quick",
    "load bench/scenarios/short.toml",
    "packets --quick",
    "scale --quick",
    "handshakes --quick",
    "idle --quick",
    "latency --quick",
    "modes --quick",
    "shaping --quick",
];

/// Runs the benchmarks of the same build as the tests, one after the other.
pub fn all(root: &Path) -> Result<()> {
    cargo(root, ["build", "--workspace", "--locked", "--bin", "tollgate-bench", "--bin", "tollgate"])?;
    let results = root.join("target/smoke");
    std::fs::create_dir_all(&results).with_context(|| format!("cannot make {}", results.display()))?;
    for form in FORMS {
        let mut arguments = form.split(' ');
        let name = arguments.clone().next().unwrap_or_default();
        let started = Instant::now();
        println!("--- tollgate-bench {form}");
        let mut bench = Command::new(root.join("target/debug/tollgate-bench"));
        bench.args(arguments.by_ref()).arg("--json").arg(results.join(format!("{name}.json"))).current_dir(root);
        run(&mut bench)?;
        println!("--- tollgate-bench {form}: {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}
