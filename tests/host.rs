//! What happens to the gateway's host while clients are connected: its interface is changed or removed, its sockets are destroyed, the kernel
//! refuses calls. The real program and the real client, in network namespaces; a preloaded library plays a kernel that refuses.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate::netlink::{Netlink, VethPeer};
use tollgate_testkit::bulk::Direction;
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{Namespace, SERVER_V4, SERVER_V6, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::faults::Faults;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{
    assert_pings, bulk, bulk_both_ways, bulk_server, datagram_receiver, paced_flow, wait_for_ping,
};
use tollgate_test_support::{eventually, turn};

/// How long the gateway may take to put right what is wrong.
const RECOVERY: Duration = Duration::from_secs(3);
const TUN: &str = "tollgate0";
const BULK_BYTES: u64 = 5_000_000;

/// A gateway of two shards with a client.
struct Site {
    gateway: Gateway,
    topology: Topology,
    deployment: Deployment,
    peers: Peers,
    alice: Attached,
    server: IpAddr,
}

impl Site {
    fn start(plan: &Plan) -> Site {
        Self::start_with(plan, None)
    }

    fn start_with(plan: &Plan, faults: Option<&Faults>) -> Site {
        let peers = Peers::find();
        let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
        let deployment = Deployment::write(plan);
        let mut command = Gateway::command(&deployment);
        if let Some(faults) = faults {
            faults.prepare(&mut command);
        }
        let process = topology.gateway.spawn(command).unwrap();
        process.wait_for_line("listening on", tollgate_test_support::PATIENCE).unwrap();
        let gateway = Gateway { process };
        let alice = Attached::start(&peers, &deployment, &topology.clients[0].namespace, &gateway, Login::of("alice"));
        let server = if plan.tunnel.contains(':') { SERVER_V6.into() } else { SERVER_V4.into() };
        wait_for_ping(&topology.clients[0].namespace, server);
        Site { gateway, topology, deployment, peers, alice, server }
    }

    fn inside(&self) -> &Namespace {
        &self.topology.clients[0].namespace
    }

    /// Changes the gateway's host by `fault`, and fails unless pings pass within the time for recovery, in both directions. Returns what
    /// `line` found in the log since.
    fn after(&self, what: &str, line: &str, fault: impl FnOnce(&mut Netlink, u32)) -> usize {
        let first = self.gateway.process.line_count();
        self.topology
            .gateway
            .configure(|netlink| {
                // Pings pass under another name, too.
                assert!(eventually(RECOVERY, || netlink.link(TUN).is_ok()), "{what}: there is no {TUN}");
                let index = netlink.link(TUN)?.index;
                fault(netlink, index);
                Ok(())
            })
            .unwrap();
        // The fault's own effect comes first.
        thread::sleep(Duration::from_millis(20));
        self.assert_recovers(what);
        self.count_lines_from(first, line)
    }

    fn assert_recovers(&self, what: &str) {
        let start = Instant::now();
        let answered = |from: &Namespace, target: IpAddr| {
            let plan = PingPlan { count: 1, timeout: Duration::from_millis(100), ..PingPlan::new(target) };
            from.run(|| ping(&plan)).is_ok_and(|report| report.received == 1)
        };
        let recovered = eventually(RECOVERY, || {
            answered(self.inside(), self.server) && answered(&self.topology.network, self.alice.address)
        });
        assert!(recovered, "{what}: nothing passes after {RECOVERY:?}: {:#?}", self.gateway.process.lines());
        println!("{what}: pings pass after {:?}", start.elapsed());
        assert_pings(self.inside(), self.server);
        assert_pings(&self.topology.network, self.alice.address);
    }

    fn count_lines_from(&self, first: usize, pattern: &str) -> usize {
        self.gateway.process.lines().iter().skip(first).filter(|line| line.contains(pattern)).count()
    }

    /// The number at `name` in what the gateway reports of its host.
    fn host(&self, name: &str) -> u64 {
        self.gateway.status().number(&format!("/host/{name}"))
    }

    /// A socket that was destroyed or shut down takes packets until its error is read: pings pass before it is made anew, and are lost while
    /// it is.
    fn wait_for_new_sockets(&self) {
        let remade = eventually(RECOVERY, || self.host("remade_sockets") > 0);
        assert!(remade, "no socket was made anew within {RECOVERY:?}: {:#?}", self.gateway.process.lines());
    }

    /// Lets another client log in, and fails unless packets pass both ways for both.
    fn assert_serves_another(&self) -> Attached {
        let namespace = &self.topology.clients[1].namespace;
        let bob = Attached::start(&self.peers, &self.deployment, namespace, &self.gateway, Login::of("bob"));
        wait_for_ping(namespace, self.server);
        for (namespace, address) in [(namespace, bob.address), (self.inside(), self.alice.address)] {
            assert_pings(namespace, self.server);
            assert_pings(&self.topology.network, address);
            bulk_both_ways(namespace, bulk_server(&self.topology.network, self.server).address(), BULK_BYTES);
        }
        bob
    }

    /// Fails unless the first client is still in its first connection.
    fn assert_alice_stayed(&mut self) {
        assert_eq!(self.gateway.count_lines("client disconnected"), 0, "{:#?}", self.gateway.process.lines());
        assert_eq!(self.alice.client.process.exit_status().unwrap(), None);
        self.gateway.assert_sound();
    }
}

fn v6() -> Plan {
    Plan { tunnel: "fd00:19:80::1/64", ..Plan::default() }
}

/// Every address of an interface, link-local ones left out.
fn addresses(netlink: &mut Netlink, index: u32) -> Vec<IpNet> {
    let addresses = netlink.addresses(index).unwrap();
    addresses.into_iter().filter(|net| !net.to_string().starts_with("fe80")).collect()
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn an_interface_that_others_change_is_put_right() {
    for plan in [Plan::default(), v6()] {
        let mut site = Site::start(&plan);
        let _turn = turn::together();
        let put_back = "put back";
        let lines = site.after("addresses flushed", put_back, |netlink, index| {
            for address in addresses(netlink, index) {
                netlink.remove_address(index, address).unwrap();
            }
        });
        assert_eq!((lines, site.host("restored_addresses")), (1, 1));
        let lines = site.after("routes flushed", put_back, |netlink, index| {
            for route in netlink.routes(index).unwrap() {
                netlink.remove_route(&route).unwrap();
            }
        });
        assert_eq!((lines, site.host("restored_routes")), (1, 1));
        let lines = site.after("set down", put_back, |netlink, index| netlink.set_link_down(index).unwrap());
        assert_eq!(lines, 1);
        site.after("set down and up", put_back, |netlink, index| {
            netlink.set_link_down(index).unwrap();
            netlink.set_link_up(index).unwrap();
        });
        site.after("MTU changed", put_back, |netlink, index| netlink.set_link_mtu(index, 1300).unwrap());
        site.after("renamed", put_back, |netlink, index| netlink.rename_link(index, "other0").unwrap());
        site.after("queue length changed", put_back, |netlink, index| {
            netlink.set_link_queue_length(index, 7).unwrap();
        });
        if plan.tunnel.contains(':') {
            // After so many faults in a row, what is put back is counted, and told of later.
            let restored = site.host("restored_addresses");
            let setting = format!("net/ipv6/conf/{TUN}/disable_ipv6");
            site.topology.gateway.sysctl(&setting, "1").unwrap();
            site.assert_recovers("IPv6 forbidden on the interface");
            assert!(site.host("restored_addresses") > restored);
        }
        let link = |site: &Site| site.topology.gateway.configure(|netlink| netlink.link(TUN));
        assert!(eventually(RECOVERY, || link(&site)
            .is_ok_and(|link| (link.mtu_bytes, link.queue_frames, link.is_up) == (1400, 1000, true))));
        assert!(site.host("restored_links") >= 3);
        let bob = site.assert_serves_another();
        drop(bob);
        site.assert_alice_stayed();
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_device_that_is_deleted_is_made_anew_under_its_clients() {
    for plan in [Plan::default(), v6()] {
        let mut site = Site::start(&plan);
        let _turn = turn::together();
        for times in 1..=2 {
            let lines = site.after("deleted", "made anew", |netlink, index| netlink.remove_link(index).unwrap());
            assert_eq!((lines, site.host("remade_devices")), (1, times));
        }
        let elsewhere = Namespace::new("elsewhere").unwrap();
        site.after("moved to another namespace", "made anew", |netlink, index| {
            netlink.move_link(index, elsewhere.as_fd()).unwrap();
        });
        let bob = site.assert_serves_another();
        // The kernel still steers to the owners' queues: the mesh carries next to nothing.
        let before = site.gateway.status();
        let server = bulk_server(&site.topology.network, site.server);
        for namespace in [site.inside(), &site.topology.clients[1].namespace] {
            bulk(namespace, server.address(), Direction::Download, BULK_BYTES);
        }
        let after = site.gateway.status();
        let since = |pointer: &str| after.sum(pointer) - before.sum(pointer);
        assert!(since("/traffic/tun_reads") > 0);
        assert_eq!(since("/counters/misrouted_frames"), 0);
        drop(bob);
        site.assert_alice_stayed();
    }
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_device_whose_name_is_taken_is_made_as_soon_as_it_is_free() {
    let mut site = Site::start(&Plan::default());
    let _turn = turn::together();
    let far = Namespace::new("thief").unwrap();
    let first = site.gateway.process.line_count();
    // The gateway may be quicker, and have its device again before the name is taken.
    let take = |netlink: &mut Netlink| {
        if let Ok(link) = netlink.link(TUN) {
            netlink.remove_link(link.index)?;
        }
        netlink.add_veth(TUN, VethPeer { name: "peer0", namespace: far.as_fd() })
    };
    let takes = (1..20).find(|_| site.topology.gateway.configure(take).is_ok()).expect("the name can be taken");
    thread::sleep(Duration::from_secs(5));
    assert_eq!(site.count_lines_from(first, "trying again"), 1, "{:#?}", site.gateway.process.lines());
    assert!((2..40).contains(&site.host("failures")));
    let cpu = site.gateway.process.cpu_seconds().unwrap();
    thread::sleep(Duration::from_secs(1));
    let cpu = site.gateway.process.cpu_seconds().unwrap() - cpu;
    assert!(cpu < 0.3, "{cpu} s of CPU in a second without a device");
    site.topology
        .gateway
        .configure(|netlink| {
            let index = netlink.link(TUN)?.index;
            netlink.remove_link(index)
        })
        .unwrap();
    site.assert_recovers("name free again");
    assert!((1..=takes).contains(&site.count_lines_from(first, "made anew")));
    site.assert_alice_stayed();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn somebody_who_keeps_changing_the_interface_costs_few_lines_and_little_time() {
    let mut site = Site::start(&Plan::default());
    let _turn = turn::together();
    let first = site.gateway.process.line_count();
    let cpu = site.gateway.process.cpu_seconds().unwrap();
    let mut netlink = site.topology.gateway.netlink().unwrap();
    let index = netlink.link(TUN).unwrap().index;
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        for address in addresses(&mut netlink, index) {
            netlink.remove_address(index, address).unwrap();
        }
        thread::sleep(Duration::from_millis(2));
    }
    let cpu = site.gateway.process.cpu_seconds().unwrap() - cpu;
    assert!(cpu < 1.5, "{cpu} s of CPU in eight seconds");
    let restored = site.host("restored_addresses");
    assert!((2..30).contains(&restored), "restored {restored} times");
    assert!(site.count_lines_from(first, "put back") <= 5);
    site.assert_recovers("left alone");
    site.assert_alice_stayed();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn sockets_that_are_destroyed_are_opened_anew_under_their_clients() {
    let mut site = Site::start(&Plan::default());
    let _turn = turn::together();
    let first = site.gateway.process.line_count();
    let destroyed =
        site.topology.gateway.run(|| Command::new("ss").args(["-K", "-u", "-a", "sport", "=", ":55555"]).output());
    let destroyed = destroyed.expect("ss of iproute2");
    assert!(destroyed.status.success(), "{destroyed:?}");
    site.wait_for_new_sockets();
    site.assert_recovers("sockets destroyed");
    assert_eq!(site.host("remade_sockets"), 1, "{:#?}", site.gateway.process.lines());
    assert_eq!(site.count_lines_from(first, "opened anew"), 1);
    let bob = site.assert_serves_another();
    // The order of the sockets is what steering goes by: the mesh carries next to nothing.
    let before = site.gateway.status();
    bulk(site.inside(), bulk_server(&site.topology.network, site.server).address(), Direction::Upload, BULK_BYTES);
    let after = site.gateway.status();
    assert_eq!(after.sum("/counters/misrouted_datagrams"), before.sum("/counters/misrouted_datagrams"));
    drop(bob);
    site.assert_alice_stayed();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_socket_that_is_shut_down_by_another_program_is_opened_anew() {
    let mut site = Site::start(&Plan::default());
    let _turn = turn::together();
    assert!(tollgate_test_support::faults::shut_down_udp(site.gateway.process.id()) > 0, "the gateway has UDP sockets");
    site.wait_for_new_sockets();
    site.assert_recovers("sockets shut down");
    let bob = site.assert_serves_another();
    drop(bob);
    site.assert_alice_stayed();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_descriptor_that_is_closed_under_the_gateway_is_made_anew() {
    let faults = Faults::build();
    let mut site = Site::start_with(&Plan::default(), Some(&faults));
    let _turn = turn::together();
    for (call, counter) in
        [("recvmmsg", "remade_sockets"), ("sendmmsg", "remade_sockets"), ("writev", "remade_devices")]
    {
        let before = site.host(counter);
        faults.close_at(call);
        // A call that needs it.
        assert!(eventually(RECOVERY, || {
            let plan = PingPlan { count: 1, timeout: Duration::from_millis(20), ..PingPlan::new(site.server) };
            let _ = site.inside().run(|| ping(&plan));
            site.host(counter) == before + 1
        }));
        site.assert_recovers(&format!("closed at {call}"));
        assert_eq!(site.host(counter), before + 1, "{call}: {:#?}", site.gateway.process.lines());
    }
    let bob = site.assert_serves_another();
    drop(bob);
    site.assert_alice_stayed();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn errors_of_single_calls_are_counted_and_forgotten() {
    let errors = [libc::ENOMEM, libc::ENOBUFS, libc::ENETDOWN, libc::EPERM, libc::ECONNREFUSED, libc::EHOSTUNREACH];
    let faults = Faults::build().fail_receives(&errors).fail_sends(&errors);
    let mut site = Site::start_with(&Plan { shards: 1, ..Plan::default() }, Some(&faults));
    let _turn = turn::together();
    faults.arm();
    site.assert_recovers("single calls failed");
    let status = site.gateway.status();
    assert_eq!(status.sum("/traffic/udp_receive_errors"), errors.len() as u64);
    assert!(status.dropped("udp_send") >= errors.len() as u64);
    assert_eq!((status.sum("/traffic/lost_descriptors"), status.number("/host/remade_sockets")), (0, 0));
    let bob = site.assert_serves_another();
    drop(bob);
    site.assert_alice_stayed();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn errors_that_last_end_with_their_cause() {
    let faults = Faults::build().fail_receives(&[libc::ENOMEM; 120]);
    let mut site = Site::start_with(&Plan { shards: 1, ..Plan::default() }, Some(&faults));
    let _turn = turn::together();
    faults.arm();
    // Two rows of errors, with the rests between them and a pause before the sockets are opened anew.
    thread::sleep(Duration::from_secs(2));
    site.assert_recovers("receives failed for two seconds");
    let status = site.gateway.status();
    assert_eq!(status.sum("/traffic/udp_receive_errors"), 120);
    assert!((1..=4).contains(&status.number("/host/remade_sockets")));
    site.assert_alice_stayed();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_kernel_that_refuses_merged_frames_gets_single_packets() {
    let faults = Faults::build().refuse_merged_frames();
    let mut site = Site::start_with(&Plan { shards: 1, ..Plan::default() }, Some(&faults));
    let _turn = turn::alone();
    faults.arm();
    let receiver = datagram_receiver(&site.topology.network, site.server);
    let (lost, counts) = paced_flow(site.inside(), &receiver, 1, 20_000, 10_000);
    assert_eq!((counts.duplicated, counts.corrupted), (0, 0));
    assert!(lost <= 200, "{lost} of 20,000 datagrams lost");
    let server = bulk_server(&site.topology.network, site.server);
    bulk_both_ways(site.inside(), server.address(), BULK_BYTES);
    let status = site.gateway.status();
    assert_eq!(status.dropped("tun_write"), 0);
    let refusals = faults.refusals();
    assert_eq!((status.sum("/traffic/tun_refused_merges"), refusals > 0), (refusals, true));
    for kind in ["TCP super-packets", "UDP super-packets"] {
        assert_eq!(site.gateway.count_lines(kind), 1, "{:#?}", site.gateway.process.lines());
    }
    // It is not asked again and again.
    bulk(site.inside(), server.address(), Direction::Upload, BULK_BYTES);
    assert_eq!(faults.refusals(), refusals);
    site.assert_alice_stayed();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_kernel_that_refuses_merged_frames_with_a_shorter_last_packet_gets_single_packets() {
    let faults = Faults::build().refuse_frames_with_a_short_last_segment();
    let mut site = Site::start_with(&Plan { shards: 1, ..Plan::default() }, Some(&faults));
    let _turn = turn::alone();
    faults.arm();
    let server = bulk_server(&site.topology.network, site.server);
    // What is sent in one go ends in a shorter segment.
    for _ in 0..40 {
        bulk(site.inside(), server.address(), Direction::Upload, 10_000);
    }
    let status = site.gateway.status();
    assert_eq!(status.dropped("tun_write"), 0);
    let refusals = faults.refusals();
    assert_eq!((status.sum("/traffic/tun_refused_merges"), refusals > 0), (refusals, true));
    assert!(site.gateway.count_lines("super-packets") <= 1, "{:#?}", site.gateway.process.lines());
    site.assert_alice_stayed();
}
