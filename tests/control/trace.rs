//! What happens to one user's connections, as `tollgate trace` tells it while it happens, and as it writes it for the tools of qlog.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::turn;
use tollgate_testkit::SERVER_V4;

use crate::site::Site;

const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_trace_tells_of_a_users_connections_from_begin_to_end_and_of_nobody_elses() {
    let _turn = turn::together();
    let site = Site::start(|_| {});
    let log_in = |user| site.topology.gateway.run(|| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None));
    let mut bob = log_in("bob");
    let file = site.deployment.path("alice.sqlog");
    let trace = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["trace", "alice", "--for", "3s", "--json", "--qlog"])
        .arg(&file)
        .args(["--config", "server.toml"])
        .current_dir(site.deployment.folder())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(500));
    let mut alice = log_in("alice");
    let (address, bobs) = (alice.address.unwrap(), bob.address.unwrap());
    for _ in 0..50 {
        alice.send_packet(&udp_packet(address, SERVER_V4.into(), &[0; 472]));
        bob.send_packet(&udp_packet(bobs, SERVER_V4.into(), &[0; 472]));
        alice.turn();
        bob.turn();
        thread::sleep(Duration::from_millis(10));
    }
    site.order_done(&["kick", "alice"]);
    let output = trace.wait_with_output().unwrap();
    let [printed, said] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success() && said.contains("\"alice\" has no connection yet"), "{said}");
    let told: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(told.iter().all(|event| event["address"] == address.to_string()), "{printed}");
    let events: Vec<_> = told.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert!(events[0] == "begun" && events.last() == Some(&"ended") && events.contains(&"changed"), "{events:?}");
    assert!(told.last().unwrap()["received_datagrams"].as_u64().unwrap() >= 50, "{printed}");

    let qlog = fs::read_to_string(file).unwrap();
    let records: Vec<Value> =
        qlog.lines().map(|line| serde_json::from_str(line.trim_start_matches('\u{1e}')).unwrap()).collect();
    assert_eq!(records.len(), told.len() + 1, "{qlog}");
    assert_eq!(records[0]["trace"]["vantage_point"]["type"], "server");
    let metrics = records.iter().filter(|record| record["name"] == "quic:recovery_metrics_updated");
    assert_eq!(
        metrics.filter(|record| record["data"]["congestion_window"].as_u64() > Some(0)).count(),
        told.len() - 1,
        "{qlog}"
    );

    let said = site.order(&["trace", "alcie", "--for", "1s"]);
    assert!(said.code == Some(1) && said.text.contains("did you mean \"alice\"?"), "{said:?}");
}
