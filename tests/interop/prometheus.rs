//! Prometheus, the real program, scrapes a gateway with a client at work: every query of the dashboard has data, the documents' can be asked, and
//! no alert holds.

use std::io::Write;
use std::process::{Command, Stdio};
use std::{fs, net::SocketAddr};

use serde_json::Value;
use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::scrape::{Scrape, ask};
use tollgate_test_support::traffic::{bulk_both_ways, bulk_server, wait_for_ping};
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, queries, turn};
use tollgate_testkit::{Namespace, Process, SERVER_V4, Topology, TopologyPlan};

const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);
const PROMETHEUS: ([u8; 4], u16) = ([127, 0, 0, 1], 9191);
/// Some seconds at the user's limit, so that there is something to see.
const BULK_BYTES: u64 = 30_000_000;

/// Scrapes the gateway in `namespace` five times a second, and evaluates the alerts as often.
fn start(deployment: &Deployment, namespace: &Namespace) -> Process {
    let config = format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}\n\
         rule_files: ['{}']\n\
         scrape_configs: [{{job_name: tollgate, static_configs: [{{targets: ['127.0.0.1:9090']}}]}}]\n",
        queries::folder().join("alerts.yml").display()
    );
    fs::write(deployment.path("prometheus.yml"), config).unwrap();
    let mut command = Command::new("prometheus");
    let listens = format!("--web.listen-address={}", SocketAddr::from(PROMETHEUS));
    let data = format!("--storage.tsdb.path={}", deployment.path("prometheus").display());
    command.args([&listens, &data]).arg(format!("--config.file={}", deployment.path("prometheus.yml").display()));
    namespace.spawn(command).expect("prometheus of Debian's package of that name")
}

/// What Prometheus in `namespace` answers to a request of its HTTP API.
fn answer(namespace: &Namespace, path: &str) -> Option<Value> {
    let (_, body) = ask(namespace, PROMETHEUS, &format!("GET /api/v1/{path} HTTP/1.0\r\n\r\n")).ok()?;
    let answer: Value = serde_json::from_str(&body).ok()?;
    assert_eq!(answer["status"], "success", "{path}: {answer}");
    Some(answer["data"].clone())
}

/// The values that a query has now.
fn values(namespace: &Namespace, query: &str) -> Vec<f64> {
    let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let data = answer(namespace, &format!("query?query={escaped}")).unwrap_or_default();
    let samples = data["result"].as_array().cloned().unwrap_or_default();
    samples.iter().map(|sample| sample["value"][1].as_str().unwrap().parse().unwrap()).collect()
}

/// The same in the older text format, which is all that promtool reads: there the name of a counter ends in `_total` everywhere.
fn classic(open_metrics: &str) -> String {
    let (mut text, mut help) = (String::new(), "");
    for line in open_metrics.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["#", "HELP", ..] => help = line,
            ["#", "TYPE", name, kind] => {
                let full = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
                let rest = help.strip_prefix(&format!("# HELP {name} ")).expect("the help comes before the type");
                text += &format!("# HELP {full} {rest}\n# TYPE {full} {kind}\n");
            }
            _ => text += &format!("{line}\n"),
        }
    }
    text
}

/// Runs promtool with `input`, which must find nothing wrong.
fn promtool(arguments: &[&str], input: &str) {
    let command = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = command.expect("promtool of Debian's package prometheus");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
#[ignore = "needs root, Quincy's programs and Prometheus: cargo xtask test --full"]
fn every_query_of_the_dashboard_has_data_from_a_real_prometheus_and_no_alert_holds() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let mut deployment = Deployment::write(&Plan::default());
    deployment.edit_user("alice", "bandwidth_limit = \"80 mbps\"");
    deployment.write_identity("mallory", &[]);
    deployment.edit_server("[control]", "[metrics]\nenabled = true\nreporting_interval_s = 1\n[control]");
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let prometheus = start(&deployment, &topology.gateway);
    let asked = |query: &str| values(&topology.gateway, query);
    assert!(eventually(PATIENCE, || asked("tollgate_shards") == [2.0]), "{}", prometheus.last_lines());

    // Somebody whom nobody knows, somebody whose packets go nowhere, and somebody who is limited.
    let mut stranger =
        topology.gateway.run(|| TestTunnel::start([0; 4].into(), &deployment, "mallory", GATEWAY.into(), None));
    assert!(eventually(PATIENCE, || {
        stranger.turn();
        stranger.closed.is_some()
    }));
    let mut forger = topology.gateway.run(|| TestTunnel::login(&deployment, "bob", GATEWAY.into(), None));
    let forged = udp_packet("198.19.128.99".parse().unwrap(), SERVER_V4.into(), &[0; 472]);
    (0..10).for_each(|_| forger.send_packet(&forged));
    let inside = &topology.clients[0].namespace;
    let _client = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    let server = bulk_server(&topology.network, SERVER_V4);
    bulk_both_ways(inside, server.address(), BULK_BYTES);

    for query in queries::of_dashboard() {
        let has_data = || {
            let values = asked(&query);
            !values.is_empty() && values.iter().all(|value| value.is_finite())
        };
        assert!(eventually(PATIENCE, has_data), "{query}: {:?}", asked(&query));
    }
    queries::of_documents().iter().for_each(|query| drop(asked(query)));

    let groups = answer(&topology.gateway, "rules").unwrap()["groups"].clone();
    let rules: Vec<Value> =
        groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
    assert!(rules.len() > 5, "{groups}");
    for rule in rules {
        assert_eq!((&rule["health"], &rule["state"]), (&"ok".into(), &"inactive".into()), "{rule}");
    }
    promtool(&["check", "rules", queries::folder().join("alerts.yml").to_str().unwrap()], "");
    promtool(&["check", "metrics"], &classic(Scrape::fetch(&topology.gateway).unwrap().text()));
    gateway.assert_sound();
}
