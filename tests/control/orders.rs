//! The control socket, and orders beside other clients of it or to a gateway that can hardly answer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;
use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::site::{Site, hear};

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_control_socket_is_private_and_goes_with_the_gateway() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let socket = site.deployment.path("control");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    site.gateway.process.kill().unwrap();
    assert!(socket.exists(), "a gateway that is killed removes nothing");
    let said = site.order(&["reload"]);
    assert!(said.code == Some(1) && said.text.contains("no gateway runs"), "{said:?}");

    site.gateway = Gateway::start(&site.deployment, &site.topology.gateway);
    site.order_done(&["reload"]);
    assert!(site.gateway.process.stop(PATIENCE).unwrap().success());
    assert!(!socket.exists());
    let said = site.order(&["kick", "alice"]);
    assert!(said.code == Some(1) && said.text.contains("tollgate serve"), "{said:?}");
    assert_eq!(said.text.lines().count(), 1, "{said:?}");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_second_gateway_on_the_same_control_socket_is_refused() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let second = Deployment::write(&Plan::default());
    second.edit_server("tollgate0", "tollgate1");
    second.edit_server("bind_port = 55555", "bind_port = 55556");
    let own = second.path("control").display().to_string();
    second.edit_server(&own, &site.deployment.path("control").display().to_string());
    let mut refused = site.topology.gateway.spawn(Gateway::command(&second)).unwrap();
    assert_eq!(refused.wait(PATIENCE).unwrap().code(), Some(1));
    let lines = refused.lines();
    assert!(lines.len() == 1 && lines[0].contains("a gateway already listens on the control socket"), "{lines:?}");
    site.order_done(&["reload"]);
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_kick_says_how_many_it_hit_and_whom_it_does_not_know() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let text = site.order_done(&["kick", "alice"]);
    assert!(text.starts_with("0 connections of user 'alice' closed"), "{text}");
    let said = site.order(&["kick", "alcie"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(said.text, "tollgate: no user is named \"alcie\": did you mean \"alice\"?\n");
    let answer = site.say(b"{\"order\":\"kick\",\"user\":\"bob\",\"and\":\"more\"}\n");
    assert_eq!((answer["done"].as_bool(), answer["closed_connections"].as_u64()), (Some(true), Some(0)), "{answer}");
    let answer = site.say(b"{\"version\":2,\"order\":\"kick\",\"user\":\"bob\"}\n");
    assert!(answer["lines"][0].as_str().is_some_and(|line| line.contains("version 2 is not known")), "{answer}");
    let printed: Value = serde_json::from_str(&site.order_done(&["kick", "bob", "--json"])).unwrap();
    assert_eq!((&printed["version"], &printed["done"]), (&1.into(), &true.into()), "{printed}");
    let said = site.order(&["kick", "bbo", "--json"]);
    let (printed, told) = said.text.split_once('\n').unwrap();
    let printed: Value = serde_json::from_str(printed).unwrap();
    assert!(said.code == Some(1) && printed["done"] == false && told.starts_with("tollgate: no user"), "{said:?}");
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_client_of_the_control_socket_that_misbehaves_disturbs_nobody() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let silent = UnixStream::connect(site.deployment.path("control")).unwrap();
    for (line, reason) in
        [(&b"reload please\n"[..], "no order in JSON"), (&[b'x'; 5000], "at most 4096 bytes"), (b"[]\n", "no order")]
    {
        let answer = site.say(line);
        assert_eq!(answer["done"].as_bool(), Some(false));
        assert!(answer["lines"][0].as_str().is_some_and(|told| told.contains(reason)), "{answer}");
    }
    site.order_done(&["reload"]);
    let answer = hear(&silent);
    assert!(answer["lines"][0].as_str().is_some_and(|told| told.contains("no whole line has come")), "{answer}");
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_kicked_and_a_removed_user_lose_their_connections_and_nobody_else_does() {
    let peers = Peers::find();
    let _turn = turn::together();
    let mut site = Site::start_with_clients(3, |_| {});
    let inside = |index: usize| &site.topology.clients[index].namespace;
    let [mut alice, mut bob, carol] = [(0, "alice"), (1, "bob"), (2, "carol")].map(|(index, user)| {
        let client = Attached::start(&peers, &site.deployment, inside(index), &site.gateway, Login::of(user));
        wait_for_ping(inside(index), SERVER_V4);
        client
    });

    let text = site.order_done(&["kick", "alice"]);
    assert!(text.starts_with("1 connection of user 'alice' closed"), "{text}");
    site.gateway.process.wait_for_line("Disconnected by the operator (code 0x04)", PATIENCE).unwrap();
    alice.client.process.wait(PATIENCE).unwrap();

    site.write_users(&["alice", "carol"]);
    let text = site.order_done(&["reload"]);
    assert!(text.contains("1 connection closed"), "{text}");
    let line = site.gateway.process.wait_for_line("Access revoked (code 0x04)", PATIENCE).unwrap();
    assert!(line.contains("user=\"bob\""), "the log still knows the name: {line}");
    bob.client.process.wait(PATIENCE).unwrap();

    assert_pings(&site.topology.network, carol.address);
    let status = site.gateway.status();
    assert_eq!((status.sum("/counters/connections"), status.sum("/counters/users")), (1, 1));
    // Whoever is still among the users may come back.
    let _again = Attached::start(&peers, &site.deployment, inside(0), &site.gateway, Login::of("alice"));
    wait_for_ping(inside(0), SERVER_V4);
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn an_order_to_a_gateway_that_is_stopped_ends_with_a_line_that_names_it() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    site.order_done(&["reload"]);
    site.gateway.process.signal(Signal::STOP).unwrap();
    // In turn with the orders, others take the places of the queue at the control socket: the last ones cannot even connect.
    let socket = site.deployment.path("control");
    let others: Vec<_> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let start = Instant::now();
    let said = thread::scope(|scope| {
        let orders: Vec<_> = (0..4)
            .map(|number| {
                let site = &site;
                let arguments: &[&str] = if number % 2 == 0 { &["reload"] } else { &["kick", "alice"] };
                scope.spawn(move || site.order(arguments))
            })
            .collect();
        orders.into_iter().map(|order| order.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    for said in &said {
        assert_eq!((said.code, said.text.lines().count()), (Some(1), 1), "{said:?}");
        assert!(said.text.contains("has not answered") && said.text.contains("control"), "{said:?}");
    }
    let process = format!("process {}", site.gateway.process.id());
    assert!(said.iter().any(|said| said.text.contains(&process)), "{process}: {said:?}");
    drop(others);
    site.gateway.process.signal(Signal::CONT).unwrap();
    assert!(eventually(PATIENCE, || site.order(&["kick", "alice"]).code == Some(0)));
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_gateway_without_a_descriptor_left_takes_orders_and_says_what_it_lacks() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    site.order_done(&["reload"]);
    let process = site.gateway.process.id();
    let pid = Pid::from_raw(process as i32);
    // From the lowest free one on there are none.
    let is_free = |number: &u64| !fs::exists(format!("/proc/{process}/fd/{number}")).unwrap();
    let free = || (0..).find(is_free);
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = |current| prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap();
    // That of the order before may not be closed yet.
    let is_exhausted = || {
        let first = free();
        limit(first);
        thread::sleep(Duration::from_millis(300));
        free() == first
    };
    assert!(eventually(PATIENCE, is_exhausted));
    for _ in 0..3 {
        let start = Instant::now();
        let text = site.order_done(&["kick", "alice"]);
        assert!(text.starts_with("0 connections of user 'alice' closed"), "{text}");
        let said = site.order(&["reload"]);
        assert!(said.code == Some(1) && said.text.contains("Too many open files"), "{said:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
    limit(maximum);
    site.order_done(&["reload"]);
    site.gateway.assert_sound();
}

/// A thread that runs no further until this is dropped.
struct Held(libc::pid_t);

impl Held {
    /// Holds the thread of shard 1.
    fn shard_1(gateway: &Gateway) -> Self {
        let process = gateway.process.id();
        let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|entry| entry.unwrap().path());
        let is_shard_1 = |path: &std::path::PathBuf| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("tollgate-1"))
        };
        let shard_1 = threads.into_iter().find(is_shard_1).expect("the thread of shard 1");
        let held = Held(shard_1.file_name().unwrap().to_str().unwrap().parse().unwrap());
        held.trace(libc::PTRACE_SEIZE);
        held.trace(libc::PTRACE_INTERRUPT);
        let has_stopped = || fs::read_to_string(shard_1.join("stat")).unwrap().contains(") t ");
        assert!(eventually(PATIENCE, has_stopped));
        held
    }

    fn trace(&self, request: libc::c_uint) {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests take no pointer; the thread is one of our own child's.
        let result = unsafe { libc::ptrace(request, self.0, none, none) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.trace(libc::PTRACE_DETACH);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_status_names_the_shards_that_do_not_answer() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let held = Held::shard_1(&site.gateway);
    let start = Instant::now();
    site.gateway.process.signal(Signal::USR1).unwrap();
    let line = site.gateway.process.wait_for_line("{\"shards\":", PATIENCE).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let status: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(status["unanswered"], serde_json::json!([1]), "{line}");
    assert_eq!(status["shards"].as_array().map(Vec::len), Some(1), "{line}");
    let said = site.order(&["kick", "alice"]);
    assert!(
        said.code == Some(1) && said.text.contains("shard 1 did not say") && !said.text.contains("shard 0"),
        "{said:?}"
    );
    drop(held);
    assert_eq!(site.gateway.status().shards(), 2);
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_service_managers_watchdog_hears_nothing_while_a_shard_does_not_answer() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    site.gateway.process.kill().unwrap();
    let path = site.deployment.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let mut command = Gateway::command(&site.deployment);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    site.gateway = Gateway::start_with(command, &site.topology.gateway);
    let heard = || {
        let mut words = [0; 512];
        let told = std::iter::from_fn(|| manager.recv(&mut words).ok().map(|bytes| words[..bytes].to_vec()));
        told.filter(|told| told.starts_with(b"WATCHDOG=1")).count()
    };
    assert!(eventually(PATIENCE, || heard() > 0));
    let held = Held::shard_1(&site.gateway);
    heard();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(heard(), 0);
    drop(held);
    assert!(eventually(PATIENCE, || heard() > 0));
    site.gateway.assert_sound();
}
