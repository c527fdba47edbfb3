//! Where connections fall: two clients on two shards are apart, and wherever a connection's owner and its user's home are, packets pass.

use std::thread;

use rustix::process::Signal;
use tollgate_shards::{Shards, home_of};
use tollgate_testkit::{Namespace, SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, bulk_both_ways, bulk_server, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};

const BULK_BYTES: u64 = 20_000_000;
/// Of two shards that have as many clients, it is chance which one a client's first packet comes to, and so which one owns it: this often it misses the wanted
/// one once in a trillion runs.
const LOGINS_MAX: usize = 40;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn all_four_placements_of_owner_and_home_carry_traffic() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let names = [user_at_home(0, 2), user_at_home(1, 2)];
    let users = names.iter().map(|name| (name.clone(), None)).collect();
    let deployment = Deployment::write(&Plan { users, ..Plan::default() });
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    let server = bulk_server(&topology.network, SERVER_V4);
    for (home, user) in names.iter().enumerate() {
        for owner in 0..2 {
            let attached = connect_at(&peers, &deployment, inside, &gateway, user, owner);
            let status = gateway.status();
            let owned = [0, 1].map(|shard| status.of_shard(shard, "/owned_connections"));
            let at_home = [0, 1].map(|shard| status.of_shard(shard, "/counters/connections"));
            assert_eq!((owned[owner], owned[1 - owner]), (1, 0), "owner {owner}");
            assert_eq!((at_home[home], at_home[1 - home]), (1, 0), "home {home}");

            wait_for_ping(inside, SERVER_V4);
            assert_pings(inside, SERVER_V4);
            assert_pings(&topology.network, attached.address);
            bulk_both_ways(inside, server.address(), BULK_BYTES);
            disconnect(attached, &gateway);
        }
    }
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn four_shards_on_however_few_cores_carry_four_clients_at_once() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 4, ..TopologyPlan::default() }).unwrap();
    let users: Vec<_> = (0..4).map(|home| (user_at_home(home, 4), None)).collect();
    let deployment = Deployment::write(&Plan { shards: 4, users: users.clone(), ..Plan::default() });
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let server = bulk_server(&topology.network, SERVER_V4);
    let sites = || topology.clients.iter().map(|site| &site.namespace);
    let attached: Vec<Attached> = sites()
        .zip(&users)
        .map(|(inside, (user, _))| Attached::start(&peers, &deployment, inside, &gateway, Login::of(user)))
        .collect();
    thread::scope(|scope| {
        for (inside, attached) in sites().zip(&attached) {
            let (server, network) = (server.address(), &topology.network);
            scope.spawn(move || {
                wait_for_ping(inside, SERVER_V4);
                bulk_both_ways(inside, server, BULK_BYTES);
                assert_pings(inside, SERVER_V4);
                assert_pings(network, attached.address);
            });
        }
    });
    let status = gateway.status();
    assert_eq!((status.shards(), status.sum("/owned_connections")), (4, 4));
    let at_home: Vec<_> = (0..4).map(|shard| status.of_shard(shard, "/counters/connections")).collect();
    assert_eq!(at_home, [1; 4]);
    gateway.assert_sound();
}

/// Rounds of two logins: by chance alone, all would be apart once in a thousand runs.
const ROUNDS: usize = 10;

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn two_clients_on_two_shards_are_apart() {
    let peers = Peers::find();
    // Beside others a core may look busy that only waits for its CPU.
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    for round in 0..ROUNDS {
        let sites = [("alice", &topology.clients[0].namespace), ("bob", &topology.clients[1].namespace)];
        let clients = sites.map(|(user, inside)| {
            let attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of(user));
            // Until it is at work, quincy-client dies of SIGINT without a goodbye.
            wait_for_ping(inside, SERVER_V4);
            attached
        });
        let owners = clients.each_ref().map(|client| client.owner);
        assert_ne!(owners[0], owners[1], "round {round}");
        clients.into_iter().for_each(|client| disconnect(client, &gateway));
    }
    gateway.assert_sound();
}

/// Connects `user` again and again until shard `owner` owns the connection. No more others may be there than on the other shard.
pub fn connect_at(
    peers: &Peers,
    deployment: &Deployment,
    inside: &Namespace,
    gateway: &Gateway,
    user: &str,
    owner: usize,
) -> Attached {
    for _ in 0..LOGINS_MAX {
        let attached = Attached::start(peers, deployment, inside, gateway, Login::of(user));
        if attached.owner == owner {
            return attached;
        }
        // Not before it is at work: until then quincy-client dies of SIGINT without a goodbye, and lingers at the gateway.
        wait_for_ping(inside, SERVER_V4);
        disconnect(attached, gateway);
    }
    panic!("none of {LOGINS_MAX} logins came to shard {owner}");
}

/// Ends a client and waits until the gateway has forgotten it.
fn disconnect(mut attached: Attached, gateway: &Gateway) {
    let others = gateway.status().sum("/owned_connections") - 1;
    attached.client.process.signal(Signal::INT).unwrap();
    attached.client.process.wait(PATIENCE).unwrap();
    assert!(eventually(PATIENCE, || gateway.status().sum("/owned_connections") == others));
}

/// The name of a user whose home is that shard.
pub fn user_at_home(home: u16, shards: u16) -> String {
    let mut names = (0..).map(|number| format!("user{number}"));
    names.find(|name| home_of(name, Shards::alone(shards)).0 == home).expect("some name hashes to every shard")
}
