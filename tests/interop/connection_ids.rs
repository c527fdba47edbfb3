//! Clients of a gateway whose connection IDs are laid out for a balancer: the kernel steers them, and the longest IDs leave room for a full packet.

use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{bulk_both_ways, bulk_server, wait_for_ping};
use tollgate_test_support::turn;

const BULK_BYTES: u64 = 5_000_000;
/// Readable with byte 7 steering, readable with the first byte steering, and encrypted by either way.
const LAYOUTS: [&str; 4] = [
    "length = 12\nserver_id = \"0a0b0c\"",
    "length = 20\nserver_id = \"0a0b0c0d0e0f0a0b\"",
    "length = 17\nserver_id = \"0a0b\"\nkey = \"000102030405060708090a0b0c0d0e0f\"",
    "length = 20\nserver_id = \"0a0b0c0d0e0f0a0b\"\nkey = \"000102030405060708090a0b0c0d0e0f\"",
];

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn clients_work_and_are_apart_in_each_layout_of_quic_lb() {
    let peers = Peers::find();
    let _turn = turn::alone();
    for layout in LAYOUTS {
        let topology = Topology::build(&TopologyPlan::default()).unwrap();
        let deployment = Deployment::write(&Plan::default());
        let table = format!("[connection_ids]\nlayout = \"quic_lb\"\nrotation = 3\n{layout}\n\n[shards]");
        deployment.edit_server("[shards]", &table);
        let mut gateway = Gateway::start(&deployment, &topology.gateway);
        let server = bulk_server(&topology.network, SERVER_V4);
        let sites = [("alice", &topology.clients[0].namespace), ("bob", &topology.clients[1].namespace)];
        let clients = sites.map(|(user, inside)| {
            let attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of(user));
            wait_for_ping(inside, SERVER_V4);
            bulk_both_ways(inside, server.address(), BULK_BYTES);
            attached
        });
        assert_ne!(clients[0].owner, clients[1].owner, "{layout}");
        let status = gateway.status();
        let [arrived, misrouted] =
            ["/counters/datagrams_received", "/counters/misrouted_datagrams"].map(|counter| status.sum(counter));
        assert!(misrouted * 100 < arrived, "{layout}: of {arrived} datagrams {misrouted} came to the wrong shard");
        gateway.assert_sound();
    }
}
