//! `tollgate-bench floor` as a user runs it. What it finds is held against itself only: no machine has to be fast.

use std::process::Command;

use tollgate_bench::record;
use tollgate_bench::results::{Finding, Floor};

/// Ends a test early, saying why, where the kernel's part cannot be measured.
macro_rules! require_privileges_or_skip {
    () => {
        if let Err(missing) = tollgate::lab::privileges().and_then(|()| tollgate::lab::require_tun()) {
            assert!(std::env::var_os("TOLLGATE_TEST_PRIVILEGED").is_none(), "nothing may be skipped here: {missing}");
            eprintln!("skipped: {missing}");
            return;
        }
    };
}

/// What `name` costs, in CPU seconds per gigabyte.
fn cost(floor: &Floor, name: &str) -> f64 {
    let stage = floor.stages.iter().find(|stage| stage.name == name);
    stage.unwrap_or_else(|| panic!("no stage {name}")).cpu_seconds_per_gigabyte.median
}

#[test]
fn every_stage_costs_something_and_super_packets_cost_less_than_single_packets() {
    require_privileges_or_skip!();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("floor.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-bench"));
    let output = command.args(["floor", "--quick", "--json"]).arg(&path).output().unwrap();
    let (table, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{log}");

    let record = record::read(&path).unwrap();
    let Finding::Floor(floor) = record.finding else { panic!("no floor in {record:?}") };
    for stage in &floor.stages {
        let spread = stage.cpu_seconds_per_gigabyte;
        assert!(spread.min > 0.0 && spread.min <= spread.median && spread.median <= spread.max, "{stage:?}");
        assert!(stage.cycles_per_byte.is_none_or(|cycles| cycles > 0.0), "{stage:?}");
        assert!(table.contains(&stage.name), "{table}");
    }
    for (whole, single) in [
        ("TUN write, TCP super-packets", "TUN write, single packets"),
        ("TUN read, TCP super-packets", "TUN read, single packets"),
        ("UDP send, GSO", "UDP send, single datagrams"),
        ("UDP receive, GRO", "UDP receive, single datagrams"),
    ] {
        assert!(cost(&floor, whole) < cost(&floor, single), "{whole} against {single}: {table}");
    }
    for cipher in ["AES-256-GCM", "AES-128-GCM", "ChaCha20-Poly1305"] {
        assert!(cost(&floor, &format!("{cipher} seal, 1400 B")) > 0.0);
        assert!(cost(&floor, &format!("{cipher} open, 1400 B")) > 0.0);
    }
    let up = ["UDP receive, GRO", "AES-256-GCM open, 1400 B", "TUN write, TCP super-packets"];
    let down = ["TUN read, TCP super-packets", "AES-256-GCM seal, 1400 B", "UDP send, GSO"];
    let sum = |parts: [&str; 3]| parts.map(|name| cost(&floor, name)).iter().sum::<f64>();
    assert!((sum(up) - floor.up_cpu_seconds_per_gigabyte).abs() < 1e-9);
    assert!((sum(down) - floor.down_cpu_seconds_per_gigabyte).abs() < 1e-9);
}

#[test]
fn a_cpu_that_there_is_not_is_refused_in_one_line() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-bench"));
    let output = command.args(["floor", "--cpu", "100000"]).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && log.lines().count() == 1, "{log}");
    assert!(log.starts_with("tollgate-bench: --cpu names CPU 100000, but this process may use only "), "{log}");
}
