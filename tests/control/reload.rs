//! Reloads: by order, on SIGHUP, on a change of a watched users file.

use std::fs;
use std::thread;

use rustix::process::Signal;
use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::site::Site;

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_reload_puts_a_new_file_in_force_and_says_what_is_different() {
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
#[ignore = "needs root: cargo xtask test --full"]
fn a_broken_file_changes_nothing_and_every_problem_is_told() {
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
#[ignore = "needs root: cargo xtask test --full"]
fn what_needs_a_restart_is_refused_by_name() {
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
#[ignore = "needs root: cargo xtask test --full"]
fn a_hangup_reloads_and_the_log_tells_the_result() {
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
#[ignore = "needs root: cargo xtask test --full"]
fn a_users_file_that_is_watched_is_in_force_soon_after_it_was_replaced() {
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
#[ignore = "needs root: cargo xtask test --full"]
fn a_users_file_without_most_of_the_users_takes_force() {
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
#[ignore = "needs root: cargo xtask test --full"]
fn the_level_of_the_log_changes_with_a_reload_that_succeeds() {
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
    site.gateway = Gateway::start_with(command, &site.topology.gateway);
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
#[ignore = "needs root: cargo xtask test --full"]
fn settings_without_effect_are_told_of_at_the_start_on_a_reload_and_by_check() {
    let _turn = turn::together();
    let mut site =
        Site::start(|deployment| deployment.edit_server("[control]", "[metrics]\nidle_timeout_s = 7\n[control]"));
    let line = site.gateway.process.wait_for_line("[metrics] idle_timeout_s", PATIENCE).unwrap();
    assert!(line.contains("WARN") && line.contains("no effect"), "{line}");
    for arguments in [&["check"][..], &["reload"]] {
        let text = site.order_done(arguments);
        assert!(text.contains("[metrics] idle_timeout_s = 7 has no effect"), "{arguments:?}: {text}");
    }
    site.deployment.edit_server("timeout_s = 7", "timeout_s = 300");
    assert!(!site.order_done(&["check"]).contains("no effect"));
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn many_reloads_leave_nothing_behind() {
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
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_reload_leaves_the_clients_alone_whom_it_does_not_concern() {
    let peers = Peers::find();
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
