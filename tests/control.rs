//! Orders to a running gateway: `tollgate reload`, `tollgate kick`, SIGHUP, a watched users file. The real program, in a network namespace.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;
use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

use tollgate_testkit::bed::client::{Attached, Login};
use tollgate_testkit::bed::deployment::{Deployment, Plan};
use tollgate_testkit::bed::gateway::Gateway;
use tollgate_testkit::bed::peers::{Peers, gateways_can_run};
use tollgate_testkit::bed::traffic::{assert_pings, wait_for_ping};
use tollgate_testkit::bed::{PATIENCE, eventually, turn};

// The interop tests use the rest of it.

/// A gateway, where it runs, and what it reads.
struct Site {
    gateway: Gateway,
    topology: Topology,
    deployment: Deployment,
}

/// What `tollgate` said to an operator.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    text: String,
}

impl Site {
    /// Starts a gateway without a client, after `prepare` has changed its files.
    fn start(prepare: impl FnOnce(&Deployment)) -> Self {
        Self::start_with_clients(1, prepare)
    }

    /// Starts a site with namespaces for `clients`.
    fn start_with_clients(clients: usize, prepare: impl FnOnce(&Deployment)) -> Self {
        let plan = Plan { users: users(&["alice", "bob", "carol"]), ..Plan::default() };
        let mut deployment = Deployment::write(&plan);
        deployment.write_identity("dave", &[]);
        prepare(&deployment);
        let topology = Topology::build(&TopologyPlan { clients, ..TopologyPlan::default() }).unwrap();
        let gateway = Gateway::start(&deployment, &topology.gateway);
        Site { gateway, topology, deployment }
    }

    fn order(&self, arguments: &[&str]) -> Said {
        order(&self.deployment, arguments)
    }

    /// Gives an order that must be carried out, and returns what the gateway answers.
    fn order_done(&self, arguments: &[&str]) -> String {
        let said = self.order(arguments);
        assert_eq!(said.code, Some(0), "{said:?}");
        said.text
    }

    /// Speaks to the control socket without `tollgate`, and returns the answer.
    fn say(&self, line: &[u8]) -> Value {
        let mut stream = UnixStream::connect(self.deployment.path("control")).unwrap();
        stream.write_all(line).unwrap();
        hear(&stream)
    }

    /// Changes the gateway's users, who have certificates already.
    fn write_users(&self, names: &[&str]) {
        self.deployment.write_users(&users(names));
    }

    /// Whether the gateway knows a user of that name. It has no connections to lose.
    fn knows(&self, user: &str) -> bool {
        self.order(&["kick", user]).code == Some(0)
    }
}

fn users(names: &[&str]) -> Vec<(String, Option<&'static str>)> {
    names.iter().map(|name| ((*name).to_owned(), None)).collect()
}

/// Runs `tollgate` with `arguments` on the configuration of `deployment`.
fn order(deployment: &Deployment, arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).current_dir(deployment.folder());
    let output = command.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    Said { code: output.status.code(), text }
}

fn hear(stream: &UnixStream) -> Value {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

#[test]
fn the_control_socket_is_private_and_goes_with_the_gateway() {
    if !gateways_can_run() {
        return;
    }
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
fn a_second_gateway_on_the_same_control_socket_is_refused() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let second = Deployment::write(&Plan::default());
    second.edit_server("tollgate0", "tollgate1");
    second.edit_server("bind_port = 55555", "bind_port = 55556");
    let own = second.path("control").display().to_string();
    second.edit_server(&own, &site.deployment.path("control").display().to_string());
    let mut refused = site.topology.gateway.spawn(Gateway::command(&second)).unwrap();
    assert_eq!(refused.wait(PATIENCE).unwrap().code(), Some(1));
    refused.wait_for_line("no line says this", PATIENCE).unwrap_err();
    let lines = refused.lines();
    assert!(lines.len() == 1 && lines[0].contains("a gateway already listens on the control socket"), "{lines:?}");
    site.order_done(&["reload"]);
    site.gateway.assert_sound();
}

#[test]
fn a_reload_puts_a_new_file_in_force_and_says_what_is_different() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let text = site.order_done(&["reload"]);
    assert!(text.contains("nothing has changed") && text.contains("epoch 1 is in force on 2 shards"), "{text}");

    site.write_users(&["alice", "bob", "dave"]);
    let answer = site.say(b"{\"order\":\"reload\"}\n");
    assert_eq!((answer["done"].as_bool(), answer["epoch"].as_u64()), (Some(true), Some(2)), "{answer}");
    assert_eq!(answer["closed_connections"].as_u64(), Some(0), "{answer}");
    assert!(answer["took_ms"].as_f64() > Some(0.0), "{answer}");
    assert_eq!(["alice", "bob", "carol", "dave"].map(|user| site.knows(user)), [true, true, false, true]);
    site.gateway.process.wait_for_line("epoch 2 is in force", PATIENCE).unwrap();

    site.write_users(&["bob", "dave"]);
    for file in ["cert", "key"] {
        let from = site.deployment.path(&format!("dave_{file}.pem"));
        fs::copy(from, site.deployment.path(&format!("server_{file}.pem"))).unwrap();
    }
    let text = site.order_done(&["reload", "--socket", "control"]);
    assert!(text.contains("certificate replaced") && text.contains("epoch 3"), "{text}");
    assert_eq!(["alice", "bob", "dave"].map(|user| site.knows(user)), [false, true, true]);
    site.gateway.assert_sound();
}

#[test]
fn a_broken_file_changes_nothing_and_every_problem_is_told() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let server = fs::read_to_string(site.deployment.path("server.toml")).unwrap();
    site.write_users(&["alice", "carol"]);
    let users = fs::read_to_string(site.deployment.path("users.toml")).unwrap();
    fs::write(site.deployment.path("users.toml"), users.clone() + "colour = \"red\"\n").unwrap();
    site.deployment.edit_server("isolate_clients = true", "isolate_client = true\nname2 = 3");
    let said = site.order(&["reload"]);
    let check = site.order(&["check", "--config", site.deployment.path("server.toml").to_str().unwrap()]);
    assert_eq!((said.code, check.code), (Some(1), Some(1)));
    assert_eq!(said.text, check.text, "the same words as those of `tollgate check`");
    for word in ["users.toml:", "colour", "isolate_client", "name2"] {
        assert!(said.text.contains(word), "{word} in {said:?}");
        site.gateway.process.wait_for_line(word, PATIENCE).unwrap();
    }

    // What only the gateway can find out.
    fs::write(site.deployment.path("server.toml"), &server).unwrap();
    fs::write(site.deployment.path("users.toml"), &users).unwrap();
    fs::copy(site.deployment.path("alice_key.pem"), site.deployment.path("server_key.pem")).unwrap();
    let said = site.order(&["reload"]);
    assert!(said.code == Some(1) && said.text.contains("does not match the certificate"), "{said:?}");
    assert_eq!(said.text.lines().count(), 1, "{said:?}");
    assert!(site.knows("bob"), "a file that is refused has removed nobody");
    site.gateway.assert_sound();
}

#[test]
fn what_needs_a_restart_is_refused_by_name() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    site.write_users(&["alice", "carol"]);
    site.deployment.edit_server("bind_port = 55555", "bind_port = 55556");
    site.deployment.edit_server("count = 2", "count = 1");
    site.deployment.edit_server("198.19.128.1/24", "198.19.129.1/24");
    let said = site.order(&["reload"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for word in ["bind_port (55555 -> 55556)", "shards.count (2 -> 1)", "tunnel_network", "restart"] {
        assert!(said.text.contains(word), "{word} in {said:?}");
    }
    assert!(site.knows("bob"));
    site.gateway.assert_sound();
}

#[test]
fn a_hangup_reloads_and_the_log_tells_the_result() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    site.write_users(&["alice", "carol"]);
    site.gateway.process.signal(Signal::HUP).unwrap();
    site.gateway.process.wait_for_line("reloaded on SIGHUP", PATIENCE).unwrap();
    assert!(!site.knows("bob"));

    fs::write(site.deployment.path("users.toml"), "colour = 1\n[users.bob]\nsize = 2\n").unwrap();
    let first = site.gateway.process.line_count();
    site.gateway.process.signal(Signal::HUP).unwrap();
    for word in ["colour", "size"] {
        let line = site.gateway.process.wait_for_line_from(first, word, PATIENCE).unwrap();
        assert!(
            line.contains("ERROR") && line.contains("not reloaded on SIGHUP") && line.contains("users.toml"),
            "{line}"
        );
    }
    assert!(site.knows("alice") && !site.knows("bob"));
    site.gateway.assert_sound();
}

#[test]
fn a_users_file_that_is_watched_is_in_force_soon_after_it_was_replaced() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", "[control]\nwatch_users_file = true"));
    let path = site.deployment.path("users.toml");
    site.write_users(&["alice", "carol"]);
    assert!(eventually(PATIENCE, || !site.knows("bob")));
    // As editors do it.
    fs::rename(&path, site.deployment.path("users.toml~")).unwrap();
    site.write_users(&["carol", "dave"]);
    assert!(eventually(PATIENCE, || site.knows("dave") && !site.knows("alice")));
    fs::write(&path, "colour = 1\n").unwrap();
    site.gateway.process.wait_for_line("not reloaded on a change of the users file", PATIENCE).unwrap();
    assert!(site.knows("dave"));
    site.deployment.edit_server("watch_users_file = true", "watch_users_file = false");
    site.write_users(&["bob", "carol"]);
    site.order_done(&["reload"]);
    site.write_users(&["alice", "carol"]);
    thread::sleep(2 * tollgate::control::QUIET);
    assert!(site.knows("bob") && !site.knows("alice"), "watched no more");
    site.gateway.assert_sound();
}

#[test]
fn the_level_of_the_log_changes_with_a_reload_that_succeeds() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", "[log]\nlevel = \"info\"\n[control]"));
    site.deployment.edit_server("\"info\"", "\"error\"");
    let text = site.order_done(&["reload"]);
    assert!(text.contains("RUST_LOG governs the log"), "{text}");

    // Without it, the file governs.
    site.gateway.process.stop(PATIENCE).unwrap();
    site.deployment.edit_server("\"error\"", "\"info\"");
    let mut command = Gateway::command(&site.deployment);
    command.env_remove("RUST_LOG");
    site.gateway = Gateway { process: site.topology.gateway.spawn(command).unwrap() };
    site.gateway.process.wait_for_line("listening on", PATIENCE).unwrap();
    site.order_done(&["reload"]);
    site.deployment.edit_server("\"info\"", "\"error\"");
    let text = site.order_done(&["reload"]);
    assert!(!text.contains("RUST_LOG"), "{text}");
    // A reload that fails leaves the level as it is.
    site.deployment.edit_server("\"error\"", "\"info\"");
    site.deployment.edit_server("bind_port = 55555", "bind_port = 55556");
    assert_eq!(site.order(&["reload"]).code, Some(1));
    site.deployment.edit_server("bind_port = 55556", "bind_port = 55555");
    assert_eq!(site.order(&["kick", "nobody-at-all"]).code, Some(1), "a warning");
    site.order_done(&["reload"]);
    site.gateway.process.wait_for_line("epoch 3 is in force", PATIENCE).unwrap();
    assert_eq!(["reloaded on order", "not carried out"].map(|line| site.gateway.count_lines(line)), [3, 0]);
    site.gateway.assert_sound();
}

#[test]
fn a_kick_says_how_many_it_hit_and_whom_it_does_not_know() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let text = site.order_done(&["kick", "alice"]);
    assert!(text.starts_with("0 connections of user 'alice' closed"), "{text}");
    let said = site.order(&["kick", "alcie"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(said.text, "tollgate: no user is named \"alcie\": did you mean \"alice\"?\n");
    let answer = site.say(b"{\"order\":\"kick\",\"user\":\"bob\",\"and\":\"more\"}\n");
    assert_eq!((answer["done"].as_bool(), answer["closed_connections"].as_u64()), (Some(true), Some(0)), "{answer}");
    site.gateway.assert_sound();
}

#[test]
fn a_client_of_the_control_socket_that_misbehaves_disturbs_nobody() {
    if !gateways_can_run() {
        return;
    }
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
fn many_reloads_leave_nothing_behind() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", "[control]\nwatch_users_file = true"));
    // From here on all cores run. This order's own descriptors may count still.
    site.order_done(&["reload"]);
    let descriptors = |site: &Site| site.gateway.process.open_descriptors().unwrap();
    let before = descriptors(&site);
    for round in 0..50 {
        let watch = round % 2 == 0;
        site.deployment.edit_server(&format!("file = {watch}"), &format!("file = {}", !watch));
        site.order_done(&["reload"]);
    }
    assert!(eventually(PATIENCE, || descriptors(&site) <= before), "{before}, now {}", descriptors(&site));
    site.gateway.assert_sound();
}

#[test]
fn a_reload_leaves_the_clients_alone_whom_it_does_not_concern() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let inside = &site.topology.clients[0].namespace;
    let client = Attached::start(&peers, &site.deployment, inside, &site.gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    site.write_users(&["alice", "bob", "dave"]);
    let text = site.order_done(&["reload"]);
    assert!(text.contains("0 connections closed"), "{text}");
    assert_pings(inside, SERVER_V4);
    assert_pings(&site.topology.network, client.address);
    assert_eq!(site.gateway.count_lines("client disconnected"), 0);
    site.gateway.assert_sound();
}

#[test]
fn a_kicked_and_a_removed_user_lose_their_connections_and_nobody_else_does() {
    let Some(peers) = Peers::find() else { return };
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
fn a_users_file_without_most_of_the_users_takes_force() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|deployment| deployment.edit_server("[control]", "[control]\nwatch_users_file = true"));
    let all = |site: &Site| ["alice", "bob", "carol"].map(|user| site.knows(user)) == [true; 3];
    // Emptied, and cut off; on every occasion.
    fs::write(site.deployment.path("users.toml"), "").unwrap();
    let line = site.gateway.process.wait_for_line("not reloaded on a change of the users file", PATIENCE).unwrap();
    assert!(line.contains("0 of the 3 users in force") && line.contains("tollgate reload --force"), "{line}");
    site.gateway.process.signal(Signal::HUP).unwrap();
    let line = site.gateway.process.wait_for_line("not reloaded on SIGHUP", PATIENCE).unwrap();
    assert!(line.contains("tollgate reload --force"), "{line}");
    site.write_users(&["carol"]);
    let said = site.order(&["reload"]);
    assert!(said.code == Some(1) && said.text.contains("only 1 of the 3 users in force"), "{said:?}");
    assert_eq!(said.text.lines().count(), 1, "{said:?}");
    let answer = site.say(b"{\"order\":\"reload\",\"force\":false}\n");
    assert_eq!(answer["done"].as_bool(), Some(false), "{answer}");
    assert!(all(&site), "a file that is refused has removed nobody");

    site.order_done(&["reload", "--force"]);
    assert_eq!(["alice", "bob", "carol"].map(|user| site.knows(user)), [false, false, true]);
    // The last one, replaced by another.
    site.write_users(&["dave"]);
    assert_eq!(site.order(&["reload"]).code, Some(1));
    let answer = site.say(b"{\"order\":\"reload\",\"force\":true}\n");
    assert_eq!(answer["done"].as_bool(), Some(true), "{answer}");
    assert_eq!(["carol", "dave"].map(|user| site.knows(user)), [false, true]);
    site.gateway.assert_sound();
}

#[test]
fn an_order_to_a_gateway_that_is_stopped_ends_with_a_line_that_names_it() {
    if !gateways_can_run() {
        return;
    }
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
fn settings_without_effect_are_told_of_at_the_start_on_a_reload_and_by_check() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site =
        Site::start(|deployment| deployment.edit_server("[control]", "[metrics]\nenabled = true\n[control]"));
    let line = site.gateway.process.wait_for_line("[metrics] enabled", PATIENCE).unwrap();
    assert!(line.contains("WARN") && line.contains("no effect"), "{line}");
    for arguments in [&["check"][..], &["reload"]] {
        let text = site.order_done(arguments);
        assert!(text.contains("[metrics] enabled = true has no effect"), "{arguments:?}: {text}");
    }
    site.deployment.edit_server("enabled = true", "enabled = false");
    assert!(!site.order_done(&["check"]).contains("no effect"));
    site.gateway.assert_sound();
}

#[test]
fn a_gateway_without_a_descriptor_left_takes_orders_and_says_what_it_lacks() {
    if !gateways_can_run() {
        return;
    }
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

#[test]
fn a_status_names_the_shards_that_do_not_answer() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let process = site.gateway.process.id();
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|entry| entry.unwrap().path());
    let is_shard_1 = |path: &std::path::PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with("tollgate-1"))
    };
    let shard_1 = threads.into_iter().find(is_shard_1).expect("the thread of shard 1");
    let thread: libc::pid_t = shard_1.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let trace = |request| {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: these requests take no pointer; the thread is one of our own child's.
        let result = unsafe { libc::ptrace(request, thread, none, none) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    trace(libc::PTRACE_SEIZE);
    trace(libc::PTRACE_INTERRUPT);
    let has_stopped = || fs::read_to_string(shard_1.join("stat")).unwrap().contains(") t ");
    assert!(eventually(PATIENCE, has_stopped));
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
    trace(libc::PTRACE_DETACH);
    assert_eq!(site.gateway.status().shards(), 2);
    site.gateway.assert_sound();
}
