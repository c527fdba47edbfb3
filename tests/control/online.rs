//! Who is online, as `tollgate users` and `tollgate connections` say: it agrees with what clients have sent and received, and tells no outer address.

use std::thread;
use std::time::Duration;

use serde_json::Value;
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::site::Site;

const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);

/// What the gateway answers to an order with `--json`.
fn told(site: &Site, arguments: &[&str]) -> Value {
    serde_json::from_str(&site.order_done(&[arguments, &["--json"]].concat())).unwrap()
}

/// What a row says was received and sent: datagrams and bytes each.
fn carried(row: &Value) -> [[u64; 2]; 2] {
    ["received", "sent"].map(|way| ["datagrams", "bytes"].map(|what| row[format!("{way}_{what}")].as_u64().unwrap()))
}

/// The rows of the connections once nothing moves any more, and what the clients have sent and received then.
fn settled(site: &Site, clients: &mut [&mut TestTunnel]) -> (Value, Vec<[[u64; 2]; 2]>) {
    let mut before = Value::Null;
    let mut rests = || {
        for _ in 0..100 {
            clients.iter_mut().for_each(|client| client.turn());
            thread::sleep(Duration::from_millis(2));
        }
        let answer = told(site, &["connections"]);
        let carried: Vec<_> = answer["connections"].as_array().unwrap().iter().map(carried).collect();
        let now = serde_json::to_value(carried).unwrap();
        let is_same = std::mem::replace(&mut before, now.clone()) == now;
        is_same.then_some(answer)
    };
    let mut answer = None;
    assert!(eventually(PATIENCE, || {
        answer = rests();
        answer.is_some()
    }));
    (answer.unwrap(), clients.iter().map(|client| [client.udp_sent, client.udp_received]).collect())
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn who_is_online_is_told_with_what_each_has_sent_and_received() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    assert_eq!(site.order_done(&["users"]), "users online: 0, connections: 0\n");
    let log_in = |user| site.topology.gateway.run(|| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None));
    let (mut bob, mut alice, mut again) = (log_in("bob"), log_in("alice"), log_in("alice"));
    let (before, had) = settled(&site, &mut [&mut alice, &mut again, &mut bob]);
    let address = alice.address.unwrap();
    for _ in 0..100 {
        alice.send_packet(&udp_packet(address, SERVER_V4.into(), &[0; 472]));
    }
    let (after, has) = settled(&site, &mut [&mut alice, &mut again, &mut bob]);
    let row = |answer: &Value, address: &str| {
        answer["connections"].as_array().unwrap().iter().find(|row| row["address"] == address).unwrap().clone()
    };
    for (place, client) in [&alice, &again, &bob].into_iter().enumerate() {
        let address = client.address.unwrap().to_string();
        let rows = [row(&before, &address), row(&after, &address)];
        for way in [0, 1] {
            for what in [0, 1] {
                let difference = carried(&rows[1])[way][what] - carried(&rows[0])[way][what];
                assert_eq!(difference, has[place][way][what] - had[place][way][what], "{rows:?}");
            }
        }
        assert_eq!((&rows[1]["mode"], rows[1].get("outer")), (&"TLS".into(), None), "{rows:?}");
    }
    let users: Vec<_> = after["connections"].as_array().unwrap().iter().map(|row| row["user"].clone()).collect();
    assert_eq!(users, ["alice", "alice", "bob"]);

    let online = told(&site, &["users"]);
    assert_eq!(online["users"][0]["connections"], 2, "{online}");
    let both: u64 =
        [&alice, &again].map(|client| carried(&row(&after, &client.address.unwrap().to_string()))[0][1]).iter().sum();
    assert_eq!(carried(&online["users"][0])[0][1], both, "{online}");
    let table = site.order_done(&["users", "--sort", "traffic"]);
    let first: Vec<_> = table.lines().map(|line| line.split_whitespace().next().unwrap_or_default()).collect();
    assert_eq!(first, ["user", "alice", "bob", "users"], "{table}");
    assert!(!table.contains("127.0.0.1"), "{table}");
    let said = site.order(&["connections", "--user", "bbo"]);
    assert!(said.code == Some(1) && said.text.contains("did you mean \"bob\"?"), "{said:?}");

    again.close();
    let is_one = || told(&site, &["connections", "--user", "alice"])["connections"].as_array().unwrap().len() == 1;
    assert!(eventually(PATIENCE, is_one));
    let status = told(&site, &["status"]);
    assert_eq!((&status["clients"], status["shards"].as_array().map(Vec::len)), (&2.into(), Some(2)), "{status}");
    site.gateway.assert_sound();
}
