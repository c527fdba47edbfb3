//! Whole loads against real gateways, as a user runs them: every packet is accounted for, on both ends, and nothing is left behind.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use tollgate_test_support::turn;

/// Runs the program with temporary files in a folder of their own, none of which may be left.
fn bench(arguments: &[&str]) -> (Output, Value) {
    let (temporary, results) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let json = results.path().join("result.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-bench"));
    command.args(arguments).arg("--json").arg(&json).env("TMPDIR", temporary.path());
    let output = command.output().unwrap();
    let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let text = fs::read_to_string(&json).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let record: Value = serde_json::from_str(&text).unwrap();
    (output, record["result"].clone())
}

/// Runs a scenario against a gateway. Gives the result, with the printed table for messages.
fn load(scenario: &str, gateway: &str) -> (Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scenario.toml");
    fs::write(&path, scenario).unwrap();
    let (output, result) = bench(&["load", path.to_str().unwrap(), "--gateway", gateway]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.success(), result["failures"] == Value::Array(Vec::new()), "{table}");
    (result, table)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// 200 clients: some send up, some are sent to, some ask, some are idle; all lengths from the shortest to the MTU.
const MIXED: &str = r#"
duration = "3 s"
gateway.shards = 2
gateway.scrapes = 10
users.count = 200
# A machine with other work drops packets, which is to be counted and not to fail a test.
demand.loss_max = 1.0
traffic = [
    { name = "up", kind = "constant", connections = 60, direction = "up", rate = 50.0, size = "imix" },
    { name = "down", kind = "constant", connections = 60, direction = "down", rate = 50.0, size = "imix" },
    { kind = "request", connections = 60, flows = 2, rate = 10.0, size = [52, 300], answer_bytes = 1400 },
]
"#;

fn assert_mixed_load_is_exact(gateway: &str) -> Value {
    let (result, table) = load(MIXED, gateway);
    assert_eq!(result["failures"], Value::Array(Vec::new()), "{table}");
    assert_eq!((number(&result["ramp"]["connected"]), number(&result["clients"]["handshakes"])), (200, 200), "{table}");
    let groups = result["groups"].as_array().unwrap();
    let [up, down, request] = &groups[..] else { panic!("{table}") };
    let received = |group: &Value, way| number(&group[way]["received_packets"]);
    assert!(received(up, "up") > 60 * 50 && received(down, "down") > 60 * 50, "{table}");
    // Every request that arrived was answered, and each round trip timed.
    assert_eq!(received(request, "up"), number(&request["down"]["sent_packets"]), "{table}");
    assert_eq!(number(&request["round_trip"]["count"]), received(request, "down"), "{table}");
    for way in ["up", "down"] {
        let sent: u64 = groups.iter().map(|group| number(&group[way]["sent_packets"])).sum();
        assert_eq!((number(&result[way]["sent"]), &result[way]["unaccounted"]), (sent, &Value::from(0)), "{table}");
    }
    assert!(number(&result["gateway_memory_bytes"]) > 1 << 20, "{table}");
    result
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn two_hundred_clients_of_two_shards_are_accounted_for_to_the_packet() {
    let _turn = turn::alone();
    let result = assert_mixed_load_is_exact("tollgate");
    let (shards, scrapes) = (&result["shards"], &result["scrapes"]);
    let [scraped, failed, bytes] = ["scrapes", "failed", "bytes"].map(|name| number(&scrapes[name]));
    assert!(scraped > 10 && failed == 0 && bytes > 10_000, "{scrapes}");
    let counts = ["shards", "connections", "addresses_held"].map(|name| number(&shards[name]));
    assert_eq!(counts, [2, 200, 200]);
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn the_same_clients_are_accounted_for_with_quincys_server() {
    let _turn = turn::alone();
    let result = assert_mixed_load_is_exact("quincy-server");
    assert_eq!((&result["shards"], &result["scrapes"]), (&Value::Null, &Value::Null));
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn clients_that_come_go_move_and_lose_datagrams_are_accounted_for_too() {
    let _turn = turn::alone();
    let scenario = r#"
duration = "5 s"
gateway.shards = 3
users.count = 60
harness.threads = 2
trouble.churn_per_second = 10
trouble.loss = 0.005
trouble.rebinds_per_second = 10
traffic = [
    { kind = "constant", connections = 30, rate = 40.0, size = "imix" },
    { kind = "bulk", connections = 4, window_bytes = 65536 },
]
"#;
    let (result, table) = load(scenario, "tollgate");
    for way in ["up", "down"] {
        assert_eq!(result[way]["unaccounted"], 0, "{table}");
        assert!(number(&result[way]["drops"]["outer: lost on purpose"]) > 0, "{table}");
    }
    assert!(number(&result["clients"]["handshakes"]) >= 80 && number(&result["clients"]["rebound"]) >= 20, "{table}");
    let failures = result["failures"].as_array().unwrap().iter().filter_map(Value::as_str);
    let damaged = failures.filter(|failure| !failure.contains("connections"));
    assert_eq!(damaged.count(), 0, "{table}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn flows_over_steered_shards_keep_their_order() {
    let _turn = turn::alone();
    let scenario = r#"
duration = "4 s"
gateway.shards = 6
users.count = 40
demand.loss_max = 1.0
traffic = [
    { name = "up", kind = "constant", connections = 10, flows = 16, direction = "up", rate = 40.0, size = "imix" },
    { name = "down", kind = "constant", connections = 10, flows = 16, direction = "down", rate = 40.0, size = "imix" },
    { kind = "bulk", connections = 8, flows = 5, window_bytes = 65536 },
]
"#;
    let (result, table) = load(scenario, "tollgate");
    let mut received = 0;
    for flow in result["groups"].as_array().unwrap().iter().flat_map(|group| [&group["up"], &group["down"]]) {
        received += number(&flow["received_packets"]);
        let wrong = ["reordered_packets", "duplicated_packets", "corrupted_packets"].map(|name| number(&flow[name]));
        assert_eq!(wrong, [0; 3], "reordered, twice, corrupt: {table}");
    }
    assert!(received > 40_000 && result["up"]["unaccounted"] == 0 && result["down"]["unaccounted"] == 0, "{table}");
    let shards = &result["shards"];
    assert!(number(&shards["crossed"]) * 100 < number(&shards["arrived"]), "the TUN device is steered: {table}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn users_who_want_too_much_are_held_to_their_limit() {
    let _turn = turn::alone();
    let scenario = r#"
duration = "4 s"
users.count = 4
users.limit = "2 mbps"
traffic = [
    { kind = "constant", rate = 500.0 },
]
"#;
    let (result, table) = load(scenario, "tollgate");
    assert_eq!(result["failures"], Value::Array(Vec::new()), "{table}");
    for way in ["up", "down"] {
        assert!(number(&result["groups"][0][way]["lost_packets"]) > 0, "{table}");
        assert!(result[way]["user_peak_bits_per_second"].as_f64() > Some(0.0), "{table}");
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_comparison_checks_every_byte_and_holds_ours_against_the_floor() {
    let _turn = turn::alone();
    let (output, result) = bench(&["compare", "--peer", "quincy", "--pairs", "1", "--seconds", "1"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && table.contains("| both ways | quincy-server |"), "{table}");
    let runs = result["transfers"]["rounds"].as_array().unwrap().iter().flat_map(|work| work.as_array().unwrap());
    let transfers: Vec<_> = runs.flat_map(|rounds| rounds.as_array().unwrap()).collect();
    assert_eq!(transfers.len(), 6);
    assert!(transfers.iter().all(|it| number(&it["bytes"]) > 0 && it["corrupt_at_byte"].is_null()), "{table}");
    let figures = result["figures"].as_array().unwrap();
    assert!(figures.iter().all(|cell| cell["to_floor"]["median"].as_f64() > Some(1.0)), "{table}");
}
