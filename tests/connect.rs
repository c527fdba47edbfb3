//! `tollgate connect` and `tollgate serve` as programs, in network namespaces with real kernel traffic.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use rustix::process::Signal;
use tollgate_testkit::bulk::{BulkPlan, BulkServer, Direction, transfer};
use tollgate_testkit::deploy::service;
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{PathToGateway, SERVER_V4, SERVER_V6, SERVICE_V6, TUNNEL_V4};

use tollgate_test_support::control;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::site::{CONNECTED, PATIENCE, Site};

const BULK_BYTES: u64 = 20_000_000;

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_tunnel_carries_traffic_both_ways_and_leaves_nothing_behind() {
    let site = Site::new(PathToGateway::Direct);
    site.client_file("\"198.19.0.0/24\"", "", "server");
    let before = site.client_network();
    let gateway = site.serve();
    let mut client = site.connect();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    let mut routes = site.tunnel_routes();
    routes.sort();
    assert_eq!(routes, ["198.19.0.0/24".parse().unwrap(), IpNet::V4(TUNNEL_V4)]);
    assert_eq!(site.ping(SERVER_V4).received, 10);

    let listener = site.topology.network.run(|| TcpListener::bind((SERVER_V4, 0))).unwrap();
    let server = BulkServer::start(listener).unwrap();
    for direction in [Direction::Upload, Direction::Download] {
        let plan = BulkPlan::new(server.address(), direction, BULK_BYTES);
        let report = site.client().run(|| transfer(&plan, |_| {})).unwrap();
        assert!(report.is_intact() && report.bytes == BULK_BYTES, "{direction:?}: {report:?}");
    }

    client.signal(Signal::USR1).unwrap();
    let status = client.wait_for_line(r#"{"state":"#, PATIENCE).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((status["state"].as_str(), status["interface"].as_str()), (Some("connected"), Some("tg-client")));
    assert_eq!(status["assignment"]["client_address"], "198.19.128.2/17");
    for direction in ["up_bytes", "down_bytes"] {
        assert!(status["counters"][direction].as_u64() > Some(BULK_BYTES), "{direction} in {status}");
    }
    assert!(status["traffic"]["tun_reads"].as_u64() > Some(0), "{status}");

    // Neither the tunnel nor the signal keeps an idle client awake.
    let busy_s = client.cpu_seconds().unwrap();
    thread::sleep(Duration::from_secs(1));
    assert!(client.cpu_seconds().unwrap() - busy_s < 0.3, "an idle client is busy");

    assert!(client.stop(PATIENCE).unwrap().success());
    let line = gateway.wait_for_line("client disconnected", PATIENCE).unwrap();
    assert!(line.contains("closed by the client: Client shutdown (code 0x01)"), "{line}");
    assert_eq!(site.client_network(), before);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_is_back_soon_after_the_gateway_was_killed() {
    let site = Site::new(PathToGateway::Direct);
    site.client_file("\"198.19.0.0/24\"", "", "server");
    let mut gateway = site.serve();
    let client = site.connect();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    let before = site.client_network();
    let link = || site.client().netlink().unwrap().link("tg-client").unwrap().index;
    let index = link();
    let plan = PingPlan { count: 400, ..PingPlan::new(SERVER_V4.into()) };
    thread::scope(|scope| {
        let pinging = scope.spawn(|| site.client().run(|| ping(&plan)).unwrap());
        thread::sleep(Duration::from_millis(500));
        let lines = client.line_count();
        gateway.kill().unwrap();
        let _gateway = site.serve();
        client.wait_for_line_from(lines, "tunnel lost: the gateway has forgotten this connection", PATIENCE).unwrap();
        // Far less than the 30 s after which a silent gateway counts as gone.
        client.wait_for_line_from(lines, CONNECTED, Duration::from_secs(10)).unwrap();
        assert_eq!((link(), site.client_network()), (index, before));
        assert_eq!(site.ping(SERVER_V4).received, 10);
        let report = pinging.join().unwrap();
        assert!(report.received > 0 && report.refused == 0, "{report:?}");
    });
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_full_tunnel_takes_everything_but_the_way_to_the_gateway() {
    let site = Site::new(PathToGateway::Routed);
    site.client_file("\"0.0.0.0/0\"", "\"198.19.0.53\"", "server");
    let resolvectl = site.path("resolvectl");
    fs::write(&resolvectl, "#!/bin/sh\necho \"$@\" >> calls\n").unwrap();
    fs::set_permissions(&resolvectl, fs::Permissions::from_mode(0o755)).unwrap();
    let before = site.client_network();
    let mut gateway = site.serve();
    let mut command = site.command("connect", "client.toml");
    command.env("PATH", site.deployment.folder());
    let mut client = site.client().spawn(command).unwrap();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    assert_eq!(site.ping(SERVER_V4).received, 10);
    let with_tunnel = site.client_network();
    let exclusion = with_tunnel.iter().filter(|line| line.starts_with("route 198.18.0.1/32 via 198.18.1.1 "));
    assert_eq!(exclusion.count(), 1, "{with_tunnel:?}");

    // The gateway goes and comes back: routes and exclusion stay meanwhile.
    let lines = client.line_count();
    gateway.stop(PATIENCE).unwrap();
    client.wait_for_line_from(lines, "tunnel lost: closed by the gateway: Server shutdown", PATIENCE).unwrap();
    assert_eq!(site.client_network(), with_tunnel);
    let _gateway = site.serve();
    client.wait_for_line_from(lines, CONNECTED, PATIENCE).unwrap();
    assert_eq!(site.client_network(), with_tunnel);
    assert_eq!(site.ping(SERVER_V4).received, 10);

    assert!(client.stop(PATIENCE).unwrap().success());
    assert_eq!(site.client_network(), before);
    let calls = fs::read_to_string(site.path("calls")).unwrap();
    assert_eq!(calls, "dns tg-client 198.19.0.53\ndomain tg-client ~.\nrevert tg-client\n");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn ipv6_is_carried_in_ipv6() {
    let site = Site::new(PathToGateway::Routed);
    site.client_file("\"::/0\"", "", "server");
    let before = site.client_network();
    let _gateway = site.serve_ipv6();
    let mut command = site.command("connect", "client.toml");
    command.env("TOLLGATE_CONNECTION_STRING", format!("[{SERVICE_V6}]:55555"));
    let mut client = site.client().spawn(command).unwrap();
    client.wait_for_line("connected: this machine is fd00:19:80::2/64 on tg-client", PATIENCE).unwrap();
    assert_eq!(site.ping(SERVER_V6).received, 10);
    assert!(client.stop(PATIENCE).unwrap().success());
    assert_eq!(site.client_network(), before);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_gateway_that_is_not_there_yet_is_waited_for() {
    let site = Site::new(PathToGateway::Direct);
    site.client_file("\"198.19.0.0/24\"", "", "server");
    let mut client = site.connect();
    client.wait_for_line("no tunnel: the gateway does not answer", PATIENCE).unwrap();
    let _gateway = site.serve();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    assert_eq!(site.ping(SERVER_V4).received, 10);
    assert!(client.stop(PATIENCE).unwrap().success());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_gateway_that_does_not_answer_costs_two_seconds_before_the_next_one_of_the_list() {
    let site = Site::new(PathToGateway::Direct);
    let silent = ["198.18.0.77:55555", "[fd00:18::77]:55555"];
    site.client_file("\"198.19.0.0/24\"", "", "server");
    let _gateway = site.serve();
    let mut command = site.command("connect", "client.toml");
    command.env("TOLLGATE_CONNECTION_STRING", format!("{},{},{}", silent[0], silent[1], service()));
    let started = Instant::now();
    let mut client = site.client().spawn(command).unwrap();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    let took = started.elapsed();
    let lines = client.lines();
    for (silent, next) in [(silent[0], silent[1]), (silent[1], &service())] {
        let expected =
            [format!("no tunnel to {silent}: the gateway does not answer"), format!("trying {next} at once")];
        assert!(lines.iter().any(|line| expected.iter().all(|part| line.contains(part))), "{expected:?} in {lines:#?}");
    }
    assert!((Duration::from_millis(3600)..Duration::from_secs(8)).contains(&took), "{took:?}");
    assert!(client.stop(PATIENCE).unwrap().success());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_of_a_gateway_that_drains_goes_to_the_next_one_of_its_list_and_back_when_that_drains() {
    let site = Site::new(PathToGateway::Direct);
    site.client_file("\"198.19.0.0/24\"", "", "server");
    let sockets = ["first.sock", "second.sock"].map(|name| site.path(name));
    let serve = |socket: &Path, port: &str, tunnel: &str| {
        let mut command = site.command("serve", "server.toml");
        command.env("TOLLGATE_CONTROL__SOCKET", socket).env("TOLLGATE_BIND_PORT", port);
        command.env("TOLLGATE_TUNNEL_NETWORK", tunnel).env("TOLLGATE_INTERFACE_NAME", format!("tg{port}"));
        Gateway::start_with(command, &site.topology.gateway)
    };
    let _first = serve(&sockets[0], "55555", "198.19.128.1/17");
    let _second = serve(&sockets[1], "55556", "198.18.128.1/17");
    let elsewhere = service().replace("55555", "55556");
    let mut command = site.command("connect", "client.toml");
    command.env("TOLLGATE_CONNECTION_STRING", format!("{},{elsewhere}", service()));
    let mut client = site.client().spawn(command).unwrap();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    assert!(control::order(&sockets[0], "status").said.contains("serving; clients: 1"));

    let drained = control::drain(&sockets[0], &["--within", "1s"]);
    assert!(drained.done && drained.said.contains("drained: of 1 client none is left after"), "{drained:?}");
    assert!(drained.took >= Duration::from_secs(1), "{drained:?}");
    client.wait_for_line("connected: this machine is 198.18.128.2/17 on tg-client", PATIENCE).unwrap();
    assert_eq!(site.ping(SERVER_V4).received, 10);
    let status = control::order(&sockets[0], "status");
    assert!(status.done && status.said.contains("drained; clients: 0"), "{status:?}");

    // While both drain, the client goes on trying.
    let drained = control::drain(&sockets[1], &["--rate", "200/s"]);
    assert!(drained.done && drained.took < PATIENCE, "{drained:?}");
    client.wait_for_line("the gateway does not take new clients now", PATIENCE).unwrap();
    let first = client.line_count();
    assert!(control::order(&sockets[0], "resume").done);
    client.wait_for_line_from(first, CONNECTED, PATIENCE).unwrap();
    assert_eq!(site.ping(SERVER_V4).received, 10);
    let resumed = control::order(&sockets[0], "resume");
    assert!(!resumed.done && resumed.said.contains("does not drain"), "{resumed:?}");
    assert!(client.stop(PATIENCE).unwrap().success());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_that_waits_can_be_stopped() {
    let site = Site::new(PathToGateway::Direct);
    site.client_file("\"198.19.0.0/24\"", "", "server");
    let before = site.client_network();
    let mut client = site.connect();
    client.wait_for_line("no tunnel", PATIENCE).unwrap();
    assert!(client.stop(PATIENCE).unwrap().success());
    assert_eq!(site.client_network(), before);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_certificate_that_is_not_trusted_ends_the_client_at_once_with_one_line() {
    let site = Site::new(PathToGateway::Direct);
    site.client_file("\"198.19.0.0/24\"", "", "stranger");
    let before = site.client_network();
    let _gateway = site.serve();
    let mut client = site.connect();
    assert_eq!(client.wait(PATIENCE).unwrap().code(), Some(1));
    client.wait_for_line("tollgate: TLS with the gateway failed", PATIENCE).unwrap();
    assert_eq!(client.lines().len(), 1, "{:?}", client.lines());
    assert_eq!(site.client_network(), before);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_that_is_nobodys_gives_up_at_the_second_refusal() {
    let site = Site::new(PathToGateway::Direct);
    site.client_file("\"198.19.0.0/24\"", "", "server");
    fs::write(site.path("users.toml"), "[users.alice]\nauthorized_certs = []\n").unwrap();
    let _gateway = site.serve();
    let mut client = site.connect();
    assert_eq!(client.wait(PATIENCE).unwrap().code(), Some(1));
    client.wait_for_line("tollgate: the gateway refused this client", PATIENCE).unwrap();
    let lines = client.lines();
    assert_eq!(lines.len(), 2, "the first refusal and the end: {lines:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_certificate_that_is_not_valid_by_the_clock_is_tried_again_and_the_clock_is_named() {
    let site = Site::new(PathToGateway::Direct);
    site.client_file("\"198.19.0.0/24\"", "", "server");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let (day, soon) = (Duration::from_secs(86_400), Duration::from_secs(8));
    for (from, until, text) in [
        (now - day * 3, now - day * 2, "no tunnel: the gateway's certificate was valid until"),
        (now + soon, now + day, "no tunnel: the gateway's certificate is valid from"),
    ] {
        site.identity_valid(from, until);
        let mut gateway = site.serve();
        let mut client = site.connect();
        let line = client.wait_for_line(text, PATIENCE).unwrap();
        assert!(line.contains("and this machine's clock says") && line.contains("trying again in"), "{line}");
        if until > now {
            client.wait_for_line(CONNECTED, PATIENCE).unwrap();
        }
        assert!(client.stop(PATIENCE).unwrap().success());
        gateway.stop(PATIENCE).unwrap();
    }
}
