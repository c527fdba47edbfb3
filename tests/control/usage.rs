//! What users have carried, as `tollgate usage` says: its forms, and a file that cannot be used.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tollgate_shards::{CloseCause, close_code};
use tollgate_test_support::deployment::Deployment;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::disk::{Disk, run};
use crate::site::Site;

const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);

fn keeps_usage(file: &Path) -> impl FnOnce(&Deployment) {
    let table = format!("[usage]\nenabled = true\nfile = \"{}\"\n[control]", file.display());
    move |deployment| deployment.edit_server("[control]", &table)
}

fn login(site: &Site, user: &str) -> TestTunnel {
    site.topology.gateway.run(|| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None))
}

/// The rows of an answer.
fn rows(site: &Site, arguments: &[&str]) -> Vec<Value> {
    let answer: Value = serde_json::from_str(&site.order_done(&[&["usage"], arguments, &["--json"]].concat())).unwrap();
    answer["usage"].as_array().unwrap().clone()
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn usage_is_told_in_all_and_by_day_and_month_and_forgotten_by_order() {
    let _turn = turn::together();
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(keeps_usage(&folder.path().join("usage")));
    let (alice, _bob) = (login(&site, "alice"), login(&site, "bob"));
    alice.close();
    // Figures are a tenth of a second old at most.
    thread::sleep(Duration::from_millis(300));
    let all = rows(&site, &[]);
    let names: Vec<_> = all.iter().map(|row| row["user"].clone()).collect();
    assert_eq!((names, all[0].get("begin")), (vec!["alice".into(), "bob".into()], None), "{all:?}");
    let [day, month] = ["--day", "--month"].map(|period| rows(&site, &["alice", period]).remove(0));
    let begin = |row: &Value| row["begin"].as_str().unwrap().to_owned();
    assert!(begin(&month).ends_with("-01") && begin(&day).starts_with(&begin(&month)[..8]), "{day}, {month}");
    assert_eq!([&day["received_bytes"], &month["received_bytes"]], [&rows(&site, &["alice"])[0]["received_bytes"]; 2]);
    assert_eq!(rows(&site, &["--since", "2999-01-01"]), Vec::<Value>::new());

    let table = site.order_done(&["usage"]);
    assert!(table.starts_with("user ") && table.contains("\nalice "), "{table}");
    let csv = site.order_done(&["usage", "--day", "--csv"]);
    let bytes = day["received_bytes"].as_u64().unwrap();
    assert!(csv.starts_with("user,begin,") && csv.contains(&format!("\nalice,{},{bytes},", begin(&day))), "{csv}");

    site.order_done(&["usage", "alice", "--forget"]);
    assert_eq!(rows(&site, &["alice"]), Vec::<Value>::new());
    let said = site.order(&["usage", "alice", "--forget"]);
    assert!(said.code == Some(1) && said.text.contains("no usage of that user"), "{said:?}");
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_gateway_that_keeps_no_usage_says_how_it_would() {
    let _turn = turn::together();
    let site = Site::start(|_| {});
    let said = site.order(&["usage"]);
    assert!(said.code == Some(1) && said.text.contains("enabled = true in [usage]"), "{said:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_full_disk_costs_a_line_and_what_was_counted_is_written_when_there_is_room() {
    let _turn = turn::together();
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&folder.path().join("disk"), "size=64k");
    let filled = fs::write(disk.0.join("filler"), [1; 128 << 10]);
    assert!(filled.is_err(), "the disk is not full");
    let mut site = Site::start(keeps_usage(&disk.0.join("usage")));
    let line = "usage is counted in memory alone";
    site.gateway.process.wait_for_line(line, PATIENCE).unwrap();
    login(&site, "alice").close();
    assert!(eventually(PATIENCE, || rows(&site, &["alice"]).len() == 1));
    let carried = rows(&site, &["alice"])[0]["received_bytes"].clone();
    assert!(site.order_done(&["status"]).contains(line));
    run("mount", &["-o", "remount,size=64m"], &disk.0);
    assert!(eventually(PATIENCE, || !site.order_done(&["status"]).contains(line)));
    assert_eq!(rows(&site, &["alice"])[0]["received_bytes"], carried);
    assert_eq!(site.gateway.count_lines(line), 1);
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_file_of_something_else_is_set_aside_and_clients_are_served() {
    let _turn = turn::together();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    fs::write(&path, [0x5a; 100_000]).unwrap();
    let mut site = Site::start(keeps_usage(&path));
    site.gateway.process.wait_for_line("usage begins anew", PATIENCE).unwrap();
    login(&site, "alice").close();
    assert!(eventually(PATIENCE, || rows(&site, &["alice"]).len() == 1));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    site.gateway.assert_sound();
}

/// What an order may take on a machine that does nothing else.
const ORDER_MS_MAX: f64 = 100.0;

/// Whether the gateway has closed it because of a quota.
fn is_over_quota(client: &mut TestTunnel) -> bool {
    client.turn();
    let code = u64::from(close_code::QUOTA);
    matches!(&client.closed, Some(CloseCause::Gateway { code: said, .. }) if *said == code)
}

/// A login that comes to an address, or to an end.
fn try_login(site: &Site, user: &str) -> TestTunnel {
    let begin = || TestTunnel::start(GATEWAY.0.into(), &site.deployment, user, GATEWAY.into(), None);
    let mut client = site.topology.gateway.run(begin);
    assert!(eventually(PATIENCE, || {
        client.turn();
        client.address.is_some() || client.closed.is_some()
    }));
    client
}

/// The milliseconds in a line of the log that ends with the time that an order took.
fn took_ms(line: &str) -> f64 {
    let time = line.rsplit(' ').next().unwrap_or_default();
    let (number, unit) = time.split_at(time.find(|c: char| c.is_alphabetic() || c == 'µ').unwrap());
    number.parse::<f64>().unwrap()
        * if unit == "s" {
            1e3
        } else if unit == "ms" {
            1.0
        } else {
            1e-3
        }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn whoever_has_used_a_quota_up_is_closed_on_every_shard_and_refused_until_it_is_raised() {
    let _turn = turn::alone();
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::start(|deployment| {
        keeps_usage(&folder.path().join("usage"))(deployment);
        deployment.edit_user("alice", "quota_per_day = \"300 kB\"");
    });
    let mut bob = login(&site, "bob");
    let mut clients = vec![login(&site, "alice")];
    // A client goes to the shard that has least to do, which may be the same one a few times.
    assert!(eventually(PATIENCE, || {
        clients.push(login(&site, "alice"));
        thread::sleep(Duration::from_millis(300));
        told_connections(&site, "alice").len() == 2
    }));
    let packet = udp_packet(clients[0].address.unwrap(), SERVER_V4.into(), &[0; 972]);
    clients[0].send_packet(&packet);
    thread::sleep(Duration::from_millis(300));
    assert!(!clients.iter_mut().any(is_over_quota), "she has carried less");
    let first = site.gateway.process.line_count();
    (0..400).for_each(|_| clients[0].send_packet(&packet));
    assert!(eventually(PATIENCE, || clients.iter_mut().all(is_over_quota)), "{:?}", site.gateway.process.lines());
    let line = site.gateway.process.wait_for_line_from(first, "users over their quotas: 1", PATIENCE).unwrap();
    let closed = format!("connections closed: {};", clients.len());
    assert!(line.contains(&closed) && took_ms(&line) < ORDER_MS_MAX, "{line}");

    assert!(is_over_quota(&mut try_login(&site, "alice")));
    assert!(site.order_done(&["status"]).contains("users over their quotas: \"alice\""));
    assert!(site.order_done(&["users"]).contains("over quota"));
    bob.turn();
    assert_eq!(bob.closed, None);

    // She is refused after a restart too, as soon as the file is read.
    thread::sleep(Duration::from_secs(4));
    site.gateway.process.signal(rustix::process::Signal::KILL).unwrap();
    assert!(eventually(PATIENCE, || UnixStream::connect(site.deployment.path("control")).is_err()));
    site.gateway = Gateway::start(&site.deployment, &site.topology.gateway);
    assert!(eventually(PATIENCE, || is_over_quota(&mut try_login(&site, "alice"))));

    site.deployment.edit("users.toml", "300 kB", "1 GB");
    site.order_done(&["reload"]);
    let mut client = login(&site, "alice");
    thread::sleep(Duration::from_millis(300));
    assert!(!is_over_quota(&mut client), "{:?}", client.closed);
    site.deployment.edit("users.toml", "1 GB", "300 kB");
    site.order_done(&["reload"]);
    assert!(eventually(PATIENCE, || is_over_quota(&mut client)));
    // Whoever is forgotten has the whole quota.
    site.order_done(&["usage", "alice", "--forget"]);
    assert!(eventually(PATIENCE, || !is_over_quota(&mut try_login(&site, "alice"))));
    site.gateway.assert_sound();
}

/// The shards that have connections of `user`.
fn told_connections(site: &Site, user: &str) -> BTreeSet<u64> {
    let said = site.order_done(&["connections", "--user", user, "--json"]);
    let answer: Value = serde_json::from_str(&said).unwrap();
    answer["connections"].as_array().unwrap().iter().map(|row| row["shard"].as_u64().unwrap()).collect()
}
