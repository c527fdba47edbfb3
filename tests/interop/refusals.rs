//! What is wrong with a deployment is said in one clear line, and nothing is left behind.

use std::fs::{self, Permissions};
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tollgate_testkit::{Namespace, SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, turn};

/// A bit of the capability sets (capabilities(7)).
const CAP_NET_ADMIN: libc::c_ulong = 12;

/// A way to be wrong, and what the gateway's one line must tell of it.
struct Wrong {
    what: &'static str,
    spoil: fn(&mut Deployment),
    command: fn(&mut Command),
    says: &'static [&'static str],
}

const WRONGS: &[Wrong] = &[
    Wrong {
        what: "an unreadable certificate",
        spoil: |deployment| fs::remove_file(deployment.path("server_cert.pem")).unwrap(),
        command: |_| {},
        says: &["server_cert.pem", "cannot read"],
    },
    Wrong {
        what: "a file that is no certificate",
        spoil: |deployment| fs::write(deployment.path("server_cert.pem"), "nothing").unwrap(),
        command: |_| {},
        says: &["server_cert.pem", "no certificate"],
    },
    Wrong {
        what: "another certificate's key",
        spoil: |deployment| {
            fs::copy(deployment.path("alice_key.pem"), deployment.path("server_key.pem")).unwrap();
        },
        command: |_| {},
        says: &["certificate", "key"],
    },
    Wrong {
        what: "an unknown key",
        spoil: |deployment| deployment.edit_server("isolate_clients", "isolate_client"),
        command: |_| {},
        says: &["server.toml", "isolate_client", "isolate_clients"],
    },
    Wrong {
        what: "a wrong value",
        spoil: |deployment| deployment.edit_server("bind_port = 55555", "bind_port = 70000"),
        command: |_| {},
        says: &["server.toml", "bind_port", "70000"],
    },
    Wrong {
        what: "a missing users file",
        spoil: |deployment| fs::remove_file(deployment.path("users.toml")).unwrap(),
        command: |_| {},
        says: &["server.toml", "users_file", "users.toml", "cannot be read"],
    },
    Wrong {
        what: "a key file that is open to others",
        spoil: |deployment| {
            fs::write(deployment.path("keys"), format!("tollgate-keys-1 {}\n", "5a".repeat(32))).unwrap();
            fs::set_permissions(deployment.path("keys"), Permissions::from_mode(0o644)).unwrap();
        },
        command: |_| {},
        says: &["keys", "open to others", "chmod 600"],
    },
    Wrong {
        what: "a CPU that is not there",
        spoil: |deployment| deployment.edit_server("[shards]", "[shards]\ncpus = [1000]"),
        command: |_| {},
        says: &["cpus", "1000"],
    },
    Wrong {
        what: "an interface name that is taken",
        spoil: |deployment| deployment.edit_server("tollgate0", "to-network"),
        command: |_| {},
        says: &["to-network"],
    },
    Wrong {
        what: "no permission for the TUN device",
        spoil: |_| {},
        command: without_network_rights,
        says: &["TUN", "CAP_NET_ADMIN"],
    },
];

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_wrong_deployment_is_refused_in_one_line_and_nothing_is_left() {
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 0, ..TopologyPlan::default() }).unwrap();
    for wrong in WRONGS {
        let mut deployment = Deployment::write(&Plan::default());
        (wrong.spoil)(&mut deployment);
        let mut command = Gateway::command(&deployment);
        (wrong.command)(&mut command);
        assert_refused(wrong.what, &topology.gateway, command, wrong.says);
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn an_address_in_use_is_refused_in_one_line_and_nothing_is_left() {
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 0, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let others = topology.gateway.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap();
    assert_refused("a foreign socket", &topology.gateway, Gateway::command(&deployment), &["0.0.0.0:55555", "in use"]);
    drop(others);
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    // The shards of one gateway share a port; two gateways must not.
    let second = Deployment::write(&Plan::default());
    second.edit_server("tollgate0", "tollgate1");
    assert_refused("another gateway", &topology.gateway, Gateway::command(&second), &["0.0.0.0:55555", "in use"]);
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_client_beyond_the_pool_is_refused_and_the_log_says_why() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    // Network, gateway, one client, broadcast.
    let deployment = Deployment::write(&Plan { tunnel: "198.19.128.1/30", ..Plan::default() });
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [inside, other_site] = [0, 1].map(|index| &topology.clients[index].namespace);
    let _alice = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);

    let mut bob = Client::start(&peers, &deployment, other_site, Login::of("bob"));
    assert_turned_away(&mut bob, &gateway, "client refused user=\"bob\" reason=\"no address is free");
    assert_pings(inside, SERVER_V4);
    let status = gateway.status();
    assert_eq!((status.sum("/counters/connections"), status.sum("/counters/users")), (1, 1));
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_client_with_an_unknown_certificate_is_refused_and_the_log_says_why() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let mut deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    deployment.write_identity("mallory", &[]);
    let mut mallory = Client::start(&peers, &deployment, &topology.clients[0].namespace, Login::of("mallory"));
    assert_turned_away(&mut mallory, &gateway, "client refused: no user has this certificate");
    assert_eq!(gateway.status().sum("/counters/handshakes"), 0);
    gateway.assert_sound();
}

/// Makes the program start without the right to manage networks; the child enters its namespace before it becomes the program.
fn without_network_rights(command: &mut Command) {
    let drop_right = || {
        // SAFETY: the call takes plain numbers.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0) };
        if dropped == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec the closure makes a system call only.
    unsafe { command.pre_exec(drop_right) };
}

/// Fails unless `command` ends with one complaint that says all of `says`, and leaves no interface in `namespace`.
fn assert_refused(what: &str, namespace: &Namespace, command: Command, says: &[&str]) {
    let before = interfaces(namespace);
    let mut process = namespace.spawn(command).unwrap();
    let status = process.wait(PATIENCE).unwrap();
    let lines = process.lines();
    assert_eq!(status.code(), Some(1), "{what}: {lines:?}");
    let complaint = lines.join("\n");
    for word in says {
        assert!(complaint.contains(word), "{what}: no {word:?} in {complaint:?}");
    }
    assert_eq!(lines.len(), 1, "{what}: {lines:?}");
    assert!(complaint.starts_with("tollgate: "), "{what}: {lines:?}");
    assert_eq!(interfaces(namespace), before, "{what}");
}

/// Fails unless the client ends because the gateway closed with code 0x02, and the gateway's log says `why` in one line.
fn assert_turned_away(client: &mut Client, gateway: &Gateway, why: &str) {
    gateway.process.wait_for_line(why, PATIENCE).unwrap();
    // It names no code, but fails in this way only when it has been let in and then turned away.
    client.process.wait_for_line("Authentication failed: IP assignment failed", PATIENCE).unwrap();
    assert_eq!(client.process.wait(PATIENCE).unwrap().code(), Some(1));
    assert_eq!(gateway.count_lines("refused"), 1, "{:#?}", gateway.process.lines());
}

fn interfaces(namespace: &Namespace) -> Vec<String> {
    namespace.configure(|netlink| netlink.links()).unwrap().into_iter().map(|link| link.name).collect()
}
