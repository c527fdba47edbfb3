//! Clients that are killed, hung up, stopped, or suspended with their machine.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tollgate_test_support::faults::{Faults, tell_of_clock_jump};
use tollgate_test_support::site::uplinks::{FIRST_ROUTER, OTHER_ROUTER, Uplinks};
use tollgate_test_support::site::{CONNECTED, PATIENCE};
use tollgate_testkit::{SERVER_V4, SERVICE_V4};

use crate::tunnel::{FULL, Family, SOON, Tunnel, connect};

/// How long a gateway waits for a client here, how long a client sleeps, and when it would speak by itself.
const FORGOTTEN: Duration = Duration::from_secs(5);
const ASLEEP: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(4);

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_that_was_killed_is_succeeded_over_another_router_without_a_packet_in_clear() {
    for (family, routes) in [FULL[0], FULL[2]] {
        let mut tunnel = Tunnel::start(family, routes);
        let ended = tunnel.uplinks.watch_for_clear_traffic();
        tunnel.client.kill().unwrap();
        let (took, client) = tunnel.recovery(|| {
            tunnel.uplinks.remove_default(FIRST_ROUTER);
            tunnel.uplinks.unplug("wan0");
            tunnel.uplinks.add_default(OTHER_ROUTER, None);
            connect(&tunnel.uplinks, family)
        });
        assert!(took < SOON, "{family:?}: {took:?}");
        ended.assert_none();
        let mut client = client;
        assert!(client.stop(PATIENCE).unwrap().success());
        // Nothing of either is left.
        let ours = tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap());
        assert_eq!(ours, []);
        assert_eq!(tunnel.uplinks.hop(family.service()).unwrap().1, "lan0");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn what_a_killed_client_left_is_removed_by_one_that_leads_less_into_the_tunnel() {
    let mut tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    tunnel.client.kill().unwrap();
    tunnel.uplinks.site.client_file("\"198.19.0.0/24\"", "", "server");
    let mut client = connect(&tunnel.uplinks, Family::V4);
    client.wait_for_line("connected: this machine is", PATIENCE).unwrap();
    assert!(tunnel.uplinks.time_until_answer(SERVER_V4) < SOON);
    // The rest of the world is reached as before the first client: the first router says that it knows no way.
    assert_eq!(tunnel.uplinks.hop("198.51.100.1".parse::<IpAddr>().unwrap()).unwrap().1, "wan0");
    assert!(client.stop(PATIENCE).unwrap().success());
    assert_eq!(tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap()), []);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_leaves_alone_what_belongs_to_another_that_lives() {
    let mut tunnel = Tunnel::start(Family::V4, "\"128.0.0.0/1\"");
    let another = |interface: &str| {
        let mut command = tunnel.uplinks.site.command("connect", "client.toml");
        command.env("TOLLGATE_NETWORK__INTERFACE_NAME", interface).env("TOLLGATE_NETWORK__ROUTES", "[\"192.0.0.0/4\"]");
        let client = tunnel.uplinks.client().spawn(command).unwrap();
        client.wait_for_line("connected: this machine is", PATIENCE).unwrap();
        client
    };
    another("tg-second").kill().unwrap();
    let mut third = another("tg-third");
    assert!(third.stop(PATIENCE).unwrap().success());
    assert_eq!(tunnel.uplinks.hop(SERVICE_V4).unwrap().1, "wan0");
    assert_eq!(tunnel.uplinks.hop("130.0.0.1".parse::<IpAddr>().unwrap()).unwrap().1, "tg-client");
    assert!(tunnel.uplinks.time_until_answer(SERVER_V4) < SOON);
    assert!(tunnel.client.stop(PATIENCE).unwrap().success());
    assert_eq!(tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap()), []);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_hangup_ends_the_client_with_everything_cleaned_up() {
    let mut tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    tunnel.client.signal(Signal::HUP).unwrap();
    assert!(tunnel.client.wait(PATIENCE).unwrap().success());
    tunnel.gateway.wait_for_line("closed by the client: Client shutdown (code 0x01)", PATIENCE).unwrap();
    assert_eq!(tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap()), []);
    assert_eq!(tunnel.uplinks.hop(SERVER_V4).unwrap().1, "wan0");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_that_was_told_to_ignore_hangups_does() {
    let uplinks = Uplinks::new();
    uplinks.site.client_file("\"198.19.0.0/24\"", "", "server");
    let _gateway = uplinks.site.serve();
    let command = uplinks.site.command("connect", "client.toml");
    let mut ignoring = Command::new("/bin/sh");
    ignoring.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    ignoring.current_dir(uplinks.site.deployment.folder()).env("NO_COLOR", "1").env_remove("RUST_LOG");
    let mut client = uplinks.client().spawn(ignoring).unwrap();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    client.signal(Signal::HUP).unwrap();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(client.exit_status().unwrap(), None);
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    assert!(client.stop(PATIENCE).unwrap().success());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_machine_that_was_suspended_has_its_tunnel_again_at_once_and_a_clock_that_is_set_costs_nothing() {
    let uplinks = Uplinks::new();
    uplinks.site.client_file("\"0.0.0.0/0\"", "", "server");
    let append = |file: &str, text: String| {
        let mut file = fs::OpenOptions::new().append(true).open(uplinks.site.path(file)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append("server.toml", format!("[connection]\nconnection_timeout_s = {}\n", FORGOTTEN.as_secs()));
    append("client.toml", format!("[connection]\nkeep_alive_interval_s = {}\n", KEEP_ALIVE.as_secs()));
    let _gateway = uplinks.site.serve();
    let faults = Faults::build();
    let mut command = uplinks.site.command("connect", "client.toml");
    command.env("PATH", uplinks.site.deployment.folder());
    faults.prepare(&mut command);
    let client = uplinks.client().spawn(command).unwrap();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    let is_lost = || client.lines().iter().any(|line| line.contains("tunnel lost"));

    // The clock is set while all is well.
    assert_eq!(tell_of_clock_jump(client.id()), 1, "the client watches the clock");
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    assert!(!is_lost(), "{:#?}", client.lines());

    let watch = uplinks.watch_for_clear_traffic();
    let mut still = Duration::ZERO;
    // Suspended, the client's clock has stood still and it is told so; stopped, it knows by its clock.
    for suspended in [true, false] {
        assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
        // What the exchange left to be acknowledged is over.
        thread::sleep(Duration::from_secs(1));
        let lines = client.line_count();
        let asleep = Instant::now();
        client.signal(Signal::STOP).unwrap();
        thread::sleep(ASLEEP);
        if suspended {
            still += asleep.elapsed();
            faults.stop_clock(still);
        }
        client.signal(Signal::CONT).unwrap();
        let awake = Instant::now();
        if suspended {
            tell_of_clock_jump(client.id());
        }
        // Nothing goes into the tunnel meanwhile that would make the gateway answer.
        client.wait_for_line_from(lines, "connected: this machine is", PATIENCE).unwrap();
        let took = awake.elapsed();
        eprintln!("suspended {suspended}: connected again after {took:?}");
        assert!(took < SOON, "suspended {suspended}: {took:?}: {:#?}", client.lines());
        assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    }
    watch.assert_none();
}
