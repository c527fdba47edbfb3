//! Limits of users and the log's level by order: at once, on connections that are there, and for as long as it is said.

use std::thread;
use std::time::Duration;

use serde_json::Value;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::site::Site;

const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);
/// What an order may take on a machine that does nothing else.
const ORDER_MS_MAX: f64 = 100.0;
/// Packets of a thousand bytes that are sent at once.
const PACKETS: u64 = 200;
/// So many are more than a burst (64 KiB) and what a rate of ten in a second lets through within their time in the queue.
const LIMITED_MAX: u64 = 120;
/// What becomes of the others.
const WAITED: [&str; 3] = ["over_limit", "queue_delay", "waited_too_long"];

/// Sends packets at once, and returns how many of them have come through.
fn passing(site: &Site, client: &mut TestTunnel) -> u64 {
    let figures = |site: &Site| {
        let status = site.gateway.status();
        [status.sum("/counters/up_packets"), WAITED.iter().map(|reason| status.dropped(reason)).sum()]
    };
    let before = figures(site);
    let packet = udp_packet(client.address.unwrap(), SERVER_V4.into(), &[0; 972]);
    (0..PACKETS).for_each(|_| client.send_packet(&packet));
    let mut through = 0;
    let mut is_settled = || {
        client.turn();
        let now = figures(site);
        through = now[0] - before[0];
        through + now[1] - before[1] == PACKETS
    };
    assert!(eventually(PATIENCE, &mut is_settled), "{through} of {PACKETS} have come through");
    through
}

fn took_ms(said: &str) -> f64 {
    let answer: Value = serde_json::from_str(said).unwrap();
    answer["took_ms"].as_f64().unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_limit_by_order_holds_at_once_on_what_is_there_and_until_it_is_taken_back() {
    let _turn = turn::alone();
    let mut site = Site::start(|_| {});
    let log_in = || site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
    let (mut first, mut second) = (log_in(), log_in());
    assert_eq!([passing(&site, &mut first), passing(&site, &mut second)], [PACKETS; 2]);
    let said = site.order_done(&["limit", "alice", "80 kbps"]);
    assert!(said.starts_with("limit of user 'alice': 80 kbps, by order; in force on every shard after"), "{said}");
    let (of_first, of_second) = (passing(&site, &mut first), passing(&site, &mut second));
    assert!(of_first < LIMITED_MAX && of_second < LIMITED_MAX, "{of_first}, {of_second}");

    // It goes on through a reload, whatever that says of the user.
    site.deployment.edit_user("alice", "bandwidth_limit = \"500 mbps\"");
    let said = site.order_done(&["reload"]);
    assert!(said.contains("limits by order, in place of the files': \"alice\" 80 kbps"), "{said}");
    let of_first = passing(&site, &mut first);
    assert!(of_first < LIMITED_MAX, "{of_first}");
    assert!(site.order_done(&["status"]).contains("\"alice\" 80 kbps"));
    let row = |site: &Site| {
        let answer: Value = serde_json::from_str(&site.order_done(&["users", "--json"])).unwrap();
        answer["users"].as_array().unwrap().iter().find(|row| row["user"] == "alice").cloned()
    };
    let told = row(&site).unwrap();
    assert_eq!((&told["limit_bits_per_s"], &told["is_ordered"]), (&80_000.into(), &true.into()), "{told}");

    let took: Vec<f64> = (1..6)
        .map(|number| took_ms(&site.order_done(&["limit", "alice", &format!("{number} mbps"), "--json"])))
        .collect();
    assert!(took.iter().all(|took_ms| *took_ms < ORDER_MS_MAX), "{took:?}");

    site.order_done(&["limit", "alice", "none"]);
    assert_eq!(passing(&site, &mut first), PACKETS);
    let kicked = site.order_done(&["kick", "alice", "--json"]);
    let answer: Value = serde_json::from_str(&kicked).unwrap();
    assert_eq!(answer["closed_connections"], 2, "{kicked}");
    assert!(took_ms(&kicked) < ORDER_MS_MAX, "{kicked}");
    // Who is not online is told of as long as the limit is by order.
    assert!(eventually(PATIENCE, || row(&site).is_some_and(|row| row["connections"] == 0)));
    let said = site.order_done(&["limit", "alice", "--file"]);
    assert!(said.starts_with("limit of user 'alice': 500 mbps, as the files say"), "{said}");
    assert_eq!(row(&site), None);
    assert!(!site.order_done(&["status"]).contains("alice"));

    for (arguments, word) in [
        (&["limit", "alcie", "1 mbps"][..], "did you mean \"alice\"?"),
        (&["limit", "alice", "1 furlong"], "write a number and bps"),
        (&["limit", "alice"], "<RATE>"),
    ] {
        let said = site.order(arguments);
        assert!(said.code != Some(0) && said.text.contains(word), "{said:?}");
    }
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_user_who_is_gone_from_the_file_has_no_limit_by_order_any_more() {
    let _turn = turn::alone();
    let mut site = Site::start(|_| {});
    site.order_done(&["limit", "carol", "1 mbps"]);
    site.write_users(&["alice", "bob"]);
    site.order_done(&["reload"]);
    site.write_users(&["alice", "bob", "carol"]);
    let said = site.order_done(&["reload"]);
    assert!(!said.contains("by order"), "{said}");
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_log_level_by_order_holds_until_a_reload_brings_another() {
    let _turn = turn::alone();
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", "[log]\nlevel = \"info\"\n[control]"));
    let said = site.order(&["log-level", "debug"]);
    assert!(said.code == Some(1) && said.text.contains("RUST_LOG governs"), "{said:?}");
    site.gateway.process.stop(PATIENCE).unwrap();
    let mut command = Gateway::command(&site.deployment);
    command.env_remove("RUST_LOG");
    site.gateway = Gateway::start_with(command, &site.topology.gateway);

    let log_in = |site: &Site| {
        let client = site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
        thread::sleep(Duration::from_millis(300));
        (client, site.gateway.count_lines("address leased"))
    };
    let shows_outer = |site: &Site| site.order_done(&["connections"]).contains("127.0.0.1");
    let (_first, lines) = log_in(&site);
    assert_eq!((lines, shows_outer(&site)), (0, false));
    let took: Vec<f64> = ["warn", "info,tollgate_shards=debug", "debug"]
        .map(|level| took_ms(&site.order_done(&["log-level", level, "--json"])))
        .into();
    assert!(took.iter().all(|took_ms| *took_ms < ORDER_MS_MAX), "{took:?}");
    let (_second, lines) = log_in(&site);
    assert_eq!((lines, shows_outer(&site)), (1, true));
    assert!(site.order_done(&["status"]).contains("log level by order, in place of the file's: debug"));

    // One that says of it what the one before has said changes nothing.
    site.order_done(&["reload"]);
    assert_eq!(log_in(&site).1, 2);
    site.deployment.edit_server("\"info\"", "\"warn\"");
    site.order_done(&["reload"]);
    assert_eq!((log_in(&site).1, shows_outer(&site)), (2, false));
    assert!(!site.order_done(&["status"]).contains("log level"));
    site.order_done(&["log-level", "debug"]);
    let said = site.order_done(&["log-level", "--file"]);
    assert!(said.starts_with("log level: warn, as the file says") && !shows_outer(&site), "{said}");
    let said = site.order(&["log-level", "verbos"]);
    assert!(said.code == Some(1) && said.text.contains("write off, error, warn"), "{said:?}");
    site.gateway.assert_sound();
}
