//! Clients who never come back by themselves stay at the old process, and lose nothing, whatever number of shards either process has.

use std::process::Command;
use std::thread;
use std::time::Duration;

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{CLIENT_TUN, Plan};
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, datagram_receiver, paced_flow, wait_for_ping};
use tollgate_test_support::{PATIENCE, turn};
use tollgate_testkit::SERVER_V4;

use crate::site::Site;

const DATAGRAMS_PER_S: u32 = 500;
/// For how long clients send and receive.
const STREAM: Duration = Duration::from_secs(3);
/// When the upgrade comes, after traffic has begun.
const QUIET: Duration = Duration::from_secs(1);

/// Quincy's client, which never comes back by itself, over an upgrade from `old` to `new` shards. `word` is what the log says of steering.
fn stays(old: u16, new: u16, word: &str, prepare: impl FnOnce(&mut Command)) {
    let peers = Peers::find();
    let _turn = turn::alone();
    let users = ["alice", "bob"].map(|name| (name.to_owned(), None)).into();
    let site = Site::start_with(2, &Plan { shards: old, users, ..Plan::default() }, prepare);
    let first = site.gateway.process.wait_for_line("listening on", PATIENCE).unwrap();
    assert!(first.contains(word), "{first}");
    let attached: Vec<Attached> = site
        .topology
        .clients
        .iter()
        .zip(["alice", "bob"])
        .map(|(at, user)| {
            let attached = Attached::start(&peers, &site.deployment, &at.namespace, &site.gateway, Login::of(user));
            wait_for_ping(&at.namespace, SERVER_V4);
            at.namespace.lengthen_queue(CLIENT_TUN, 50_000).unwrap();
            attached
        })
        .collect();
    site.deployment.edit_server(&format!("count = {old}"), &format!("count = {new}"));
    let datagrams = (STREAM.as_secs_f64() * f64::from(DATAGRAMS_PER_S)) as u64;
    thread::scope(|scope| {
        let mut flows = Vec::new();
        for (at, attached) in site.topology.clients.iter().zip(&attached) {
            let network = &site.topology.network;
            for (from, to, address) in
                [(&at.namespace, network, SERVER_V4.into()), (network, &at.namespace, attached.address)]
            {
                flows.push(scope.spawn(move || {
                    let receiver = datagram_receiver(to, address);
                    paced_flow(from, &receiver, 1, datagrams, DATAGRAMS_PER_S)
                }));
            }
        }
        thread::sleep(QUIET);
        let serving = site.upgrade(&["--within", "1h"]);
        assert_ne!(serving, site.first());
        for flow in flows {
            let (lost, counts) = flow.join().unwrap();
            assert_eq!((lost, counts.duplicated, counts.corrupted), (0, 0, 0), "{old} to {new} shards");
        }
    });
    // Both processes live, and their clients reach the network.
    for (at, attached) in site.topology.clients.iter().zip(&attached) {
        assert_pings(&at.namespace, SERVER_V4);
        assert_pings(&site.topology.network, attached.address);
    }
    site.assert_no_panic();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn from_two_shards_to_two_who_stays_loses_nothing() {
    stays(2, 2, "(eBPF)", |_| {});
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn from_one_shard_to_one_who_stays_loses_nothing() {
    stays(1, 1, "nothing (one shard)", |_| {});
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn from_two_shards_to_three_who_stays_loses_nothing() {
    stays(2, 3, "(eBPF)", |_| {});
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn from_four_shards_to_four_who_stays_loses_nothing() {
    stays(4, 4, "(eBPF)", |_| {});
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn from_four_shards_to_one_who_stays_loses_nothing() {
    stays(4, 1, "(eBPF)", |_| {});
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn by_the_drivers_own_flow_table_who_stays_loses_nothing() {
    stays(2, 2, "flow table", |command| {
        let serve = std::mem::replace(command, Command::new("setpriv"));
        command.args(["--bounding-set=-bpf,-sys_admin", "--"]).arg(serve.get_program()).args(serve.get_args());
        serve.get_envs().for_each(|(name, value)| _ = value.map(|value| command.env(name, value)));
        command.current_dir(serve.get_current_dir().unwrap());
    });
}
