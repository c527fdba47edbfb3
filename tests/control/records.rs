//! The audit log and the events of sessions: what they tell of a run, and that their figures are those of `tollgate usage`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tollgate_test_support::deployment::Deployment;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::disk::{Disk, run};
use crate::site::Site;

const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);
/// The attributes of a session's event, and the keys of a row of usage.
const FIGURES: [(&str, &str); 4] = [
    ("Acct-Input-Octets", "received_bytes"),
    ("Acct-Output-Octets", "sent_bytes"),
    ("Acct-Input-Packets", "received_datagrams"),
    ("Acct-Output-Packets", "sent_datagrams"),
];

/// A folder with the files of a gateway that keeps all that there is to keep.
struct Kept(tempfile::TempDir);

impl Kept {
    fn new() -> Self {
        Kept(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn configure(&self) -> impl FnOnce(&Deployment) {
        let table = |name: &str| format!("[{name}]\nenabled = true\nfile = \"{}\"\n", self.path(name).display());
        let tables = ["usage", "audit", "events"].map(table).concat();
        move |deployment| deployment.edit_server("[control]", &format!("{tables}[control]"))
    }
}

/// The whole lines of a file, in order and with no number missing.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let object = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    // One that is just being written may not be whole yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines: Vec<Value> = whole.lines().map(object).collect();
    let first = lines.first().map_or(1, |line| line["seq"].as_u64().unwrap());
    (first..).zip(&lines).for_each(|(seq, line)| assert_eq!(line["seq"], seq, "{lines:#?}"));
    lines
}

fn of<'l>(lines: &'l [Value], key: &str, value: &str) -> Vec<&'l Value> {
    lines.iter().filter(|line| line[key] == value).collect()
}

/// Waits for a line, and returns the newest such.
fn wait_for(path: &Path, key: &str, value: &str, count: usize) -> Value {
    assert!(eventually(PATIENCE, || of(&lines(path), key, value).len() >= count), "{:#?}", lines(path));
    (*of(&lines(path), key, value).last().unwrap()).clone()
}

fn login(site: &Site, user: &str) -> TestTunnel {
    site.topology.gateway.run(|| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None))
}

fn send(client: &mut TestTunnel, packets: usize) {
    let packet = udp_packet(client.address.unwrap(), SERVER_V4.into(), &[0; 972]);
    (0..packets).for_each(|_| client.send_packet(&packet));
}

/// What all sessions of each user have carried by their ends; fails unless each has one begin and one end.
fn ended(path: &Path) -> BTreeMap<String, [u64; 4]> {
    let lines = lines(path);
    let ids = |status| -> Vec<&str> {
        let mut ids: Vec<_> = of(&lines, "Acct-Status-Type", status)
            .iter()
            .map(|line| line["Acct-Session-Id"].as_str().unwrap())
            .collect();
        ids.sort_unstable();
        ids
    };
    let begun = ids("Start");
    assert_eq!(begun, ids("Stop"), "{lines:#?}");
    assert!(begun.windows(2).all(|pair| pair[0] < pair[1]), "{begun:?}");
    let mut users: BTreeMap<String, [u64; 4]> = BTreeMap::new();
    for line in of(&lines, "Acct-Status-Type", "Stop") {
        let sum = users.entry(line["User-Name"].as_str().unwrap().to_owned()).or_default();
        FIGURES.iter().zip(sum).for_each(|((attribute, _), sum)| *sum += line[attribute].as_u64().unwrap());
    }
    users
}

/// The same as `tollgate usage` has it.
fn used(site: &Site) -> BTreeMap<String, [u64; 4]> {
    let answer: Value = serde_json::from_str(&site.order_done(&["usage", "--json"])).unwrap();
    let row =
        |row: &Value| (row["user"].as_str().unwrap().to_owned(), FIGURES.map(|(_, key)| row[key].as_u64().unwrap()));
    answer["usage"].as_array().unwrap().iter().map(row).collect()
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn records_tell_who_came_and_went_who_was_refused_and_who_gave_which_order() {
    let _turn = turn::together();
    let kept = Kept::new();
    let mut site = Site::start(kept.configure());
    let (audit, events) = (kept.path("audit"), kept.path("events"));
    let (mut alice, bob) = (login(&site, "alice"), login(&site, "bob"));
    send(&mut alice, 20);
    let inner = alice.address.unwrap().to_string();
    bob.close();
    // Nobody knows dave.
    let start = || TestTunnel::start(GATEWAY.0.into(), &site.deployment, "dave", GATEWAY.into(), None);
    let mut dave = site.topology.gateway.run(start);
    assert!(eventually(PATIENCE, || {
        dave.turn();
        dave.closed.is_some()
    }));
    site.order_done(&["status"]);
    site.order_done(&["kick", "alice"]);
    site.order(&["kick", "nobody"]);

    assert_eq!(lines(&audit)[0]["event"], "start");
    wait_for(&audit, "event", "answer", 2);
    let told = lines(&audit);
    let connected = of(&told, "user", "alice")[0];
    assert_eq!((&connected["event"], &connected["address"]), (&"connected".into(), &Value::from(inner)));
    assert!(connected["outer"].as_str().unwrap().starts_with("127.0.0.1:"), "{connected}");
    assert!(connected["credential"].as_str().unwrap().starts_with("sha256:") && connected["mode"] == "TLS");
    let causes: Vec<_> = of(&told, "event", "disconnected").iter().map(|line| line["cause"].clone()).collect();
    assert_eq!(causes, ["client", "revoked"], "{told:#?}");
    let refused = of(&told, "event", "refused");
    assert_eq!((refused.len(), &refused[0]["why"]), (1, &"unknown_credential".into()), "{told:#?}");
    assert!(refused[0]["outer"].is_string() && refused[0]["credential"].is_string());
    let orders = of(&told, "event", "order");
    let given = |order: &Value| (order["request"]["order"].clone(), order["request"]["user"].clone());
    assert_eq!(
        orders.iter().map(|order| given(order)).collect::<Vec<_>>(),
        [("kick".into(), "alice".into()), ("kick".into(), "nobody".into())]
    );
    let by = &orders[0]["by"];
    assert_eq!(
        (&by["uid"], &by["via"], &orders[0]["user_name"]),
        (&0.into(), &"control socket".into(), &"root".into())
    );
    assert!(by["pid"].as_u64().unwrap() > 1);
    let answers: Vec<_> = of(&told, "event", "answer").iter().map(|answer| answer["done"].clone()).collect();
    assert_eq!(answers, [true, false]);

    let told = lines(&events);
    assert_eq!(told[0]["Acct-Status-Type"], "Accounting-On");
    let stop = of(&told, "Acct-Status-Type", "Stop")[1];
    let expected = [("User-Name", "alice"), ("Acct-Terminate-Cause", "Admin-Reset")];
    expected.iter().for_each(|(attribute, value)| assert_eq!(stop[attribute], *value, "{stop}"));
    assert_eq!(stop["Acct-Session-Id"], connected["connection"]);
    assert!(eventually(PATIENCE, || ended(&events) == used(&site)), "{:?}, {:?}", ended(&events), used(&site));
    site.gateway.assert_sound();
    let clients = login(&site, "carol");
    assert!(site.gateway.process.stop(PATIENCE).unwrap().success());
    drop(clients);
    assert_eq!(lines(&audit).last().unwrap()["event"], "stop");
    let told = lines(&events);
    assert_eq!(told.last().unwrap()["Acct-Status-Type"], "Accounting-Off");
    assert_eq!(of(&told, "User-Name", "carol")[1]["Acct-Terminate-Cause"], "NAS-Reboot");
    ended(&events);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn over_reloads_an_upgrade_and_a_rotation_each_session_has_one_begin_and_one_end_and_figures_agree_with_usage() {
    let _turn = turn::together();
    let kept = Kept::new();
    let mut site = Site::start(kept.configure());
    let (audit, events) = (kept.path("audit"), kept.path("events"));
    let mut clients: Vec<_> = ["alice", "bob", "carol", "alice"].map(|user| login(&site, user)).into();
    clients.iter_mut().for_each(|client| send(client, 10));
    clients.pop().unwrap().close();
    site.order_done(&["reload"]);
    clients.push(login(&site, "bob"));
    site.order_done(&["upgrade", "--within", "3s"]);
    // Both processes serve: who was there stays with the first one, who comes is the second one's.
    clients.push(login(&site, "carol"));
    clients.iter_mut().for_each(|client| send(client, 10));
    let text = fs::read_to_string(&audit).unwrap();
    fs::rename(&audit, kept.path("audit.1")).unwrap();
    site.order_done(&["reload"]);
    wait_for(&audit, "event", "stop", 1);
    site.order_done(&["kick", "carol"]);
    drop(clients);
    let is_over = || {
        let told = lines(&events);
        of(&told, "Acct-Status-Type", "Start").len() == of(&told, "Acct-Status-Type", "Stop").len()
    };
    assert!(eventually(PATIENCE, is_over), "{:#?}", lines(&events));
    assert!(eventually(PATIENCE, || ended(&events) == used(&site)), "{:?}, {:?}", ended(&events), used(&site));
    assert_eq!(ended(&events).len(), 3);
    let told = lines(&events);
    assert_eq!(of(&told, "Acct-Status-Type", "Accounting-On").len(), 1, "the sessions of the first process lasted");
    let mut processes: Vec<_> = told.iter().map(|line| line["process"].as_u64().unwrap()).collect();
    processes.sort_unstable();
    processes.dedup();
    assert_eq!(processes.len(), 2);
    // The numbers go on from the file that was moved away.
    assert_eq!(fs::read_to_string(kept.path("audit.1")).unwrap().get(..text.len()), Some(&text[..]));
    let (before, after) = (lines(&kept.path("audit.1")), lines(&audit));
    assert_eq!(after[0]["seq"].as_u64(), before.last().unwrap()["seq"].as_u64().map(|seq| seq + 1));

    // A gateway that is killed tells of no end. The next one says that all of it is over.
    let _alice = login(&site, "alice");
    wait_for(
        &events,
        "Acct-Status-Type",
        "Start",
        told.iter().filter(|line| line["Acct-Status-Type"] == "Start").count() + 1,
    );
    let seq = lines(&events).len();
    let process = *processes.iter().find(|process| told.last().unwrap()["process"] == **process).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(process as i32).unwrap(), Signal::KILL).unwrap();
    assert!(eventually(PATIENCE, || UnixStream::connect(site.deployment.path("control")).is_err()));
    site.gateway = Gateway::start(&site.deployment, &site.topology.gateway);
    wait_for(&events, "Acct-Status-Type", "Accounting-On", 2);
    assert_eq!(lines(&events)[seq]["Acct-Status-Type"], "Accounting-On");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_full_disk_costs_a_line_of_the_log_and_lines_beyond_a_bound_and_how_many_is_told() {
    let _turn = turn::together();
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&folder.path().join("disk"), "size=64k");
    let path = disk.0.join("audit");
    let table = format!("[audit]\nenabled = true\nfile = \"{}\"\nfsync = \"event\"\n[control]", path.display());
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", &table));
    wait_for(&path, "event", "start", 1);
    assert!(fs::write(disk.0.join("filler"), [1; 128 << 10]).is_err(), "the disk is not full");
    let line = "lines of the audit log wait in memory";
    // What is left of a page of the file is used up first.
    assert!(eventually(PATIENCE, || {
        site.order_done(&["kick", "bob"]);
        site.gateway.count_lines(line) == 1
    }));
    let written = lines(&path).len();
    login(&site, "alice").close();
    // More than may wait.
    let order = format!("{{\"order\":\"kick\",\"user\":\"{}\"}}\n", "x".repeat(3000));
    (0..400).for_each(|_| assert_eq!(site.say(order.as_bytes())["done"], false));
    run("mount", &["-o", "remount,size=64m"], &disk.0);
    let lost = wait_for(&path, "event", "lost", 1);
    assert!(lost["count"].as_u64().unwrap() > 0, "{lost}");
    site.order_done(&["kick", "bob"]);
    wait_for(&path, "event", "order", 3);
    let told = lines(&path);
    assert!(of(&told[written..], "user", "alice").len() == 2, "those waited");
    site.gateway.process.wait_for_line("are written to", PATIENCE).unwrap();
    assert_eq!(site.gateway.count_lines(line), 1);
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_program_that_listens_at_a_socket_has_each_event_also_those_from_before_it_listened() {
    let _turn = turn::together();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let table = format!("[events]\nenabled = true\nsocket = \"{}\"\n[control]", path.display());
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", &table));
    site.gateway.process.wait_for_line("events of sessions wait in memory", PATIENCE).unwrap();
    login(&site, "alice").close();
    let listener = UnixDatagram::bind(&path).unwrap();
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    for (seq, status) in (1..).zip(["Accounting-On", "Start", "Stop"]) {
        let mut datagram = [0; 4096];
        let bytes = listener.recv(&mut datagram).unwrap();
        let event: Value = serde_json::from_slice(&datagram[..bytes]).unwrap();
        assert_eq!((&event["seq"], &event["Acct-Status-Type"]), (&seq.into(), &status.into()), "{event}");
    }
    site.gateway.assert_sound();
    run("rm", &["-f"], &path);
}
