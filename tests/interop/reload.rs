//! Changes while the gateway runs, under load: reload, kick, and the rotation of its certificate.

use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tollgate_test_support::datagrams::{DatagramPlan, DatagramReceiver, send_while};
use tollgate_testkit::{Namespace, SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use crate::placement::connect_at;
use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::control::{self, Answer};
use tollgate_test_support::deployment::{CLIENT_TUN, Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::raw::{PacketSocket, ends};
use tollgate_test_support::traffic::{assert_pings, datagram_receiver, paced_flow_while, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};

const RELOADS: u32 = 100;
/// The time from one reload to the next.
const RELOAD_INTERVAL: Duration = Duration::from_millis(150);
/// How long some shards may have the new configuration and others the old one.
const MIXED_MAX: Duration = Duration::from_secs(1);
/// How soon after the acknowledgement a client that was cut off must be gone. The gateway has let go of it by the acknowledgement; the rest is the
/// client's own time, 2 to 20 ms where nothing else runs.
const CUT_MAX: Duration = Duration::from_secs(1);
/// For how long nothing of who was cut off may be seen.
const LISTEN: Duration = Duration::from_millis(500);
const DATAGRAMS_PER_S: u32 = 500;
/// For how long everybody sends, at most, who is, or is not, cut off.
const STREAM: Duration = Duration::from_secs(8);
/// Outer packets to a client of at least this length carry its data; goodbyes and acknowledgements are shorter.
const DATA_BYTES_MIN: usize = 1000;

/// A way to be broken, and what the command must tell of it.
struct Broken {
    what: &'static str,
    spoil: fn(&Deployment),
    says: &'static [&'static str],
}

const BROKEN: &[Broken] = &[
    Broken {
        what: "a users file that is cut off",
        spoil: |deployment| deployment.edit("users.toml", "[users.mallory]", "[users.mallory"),
        says: &["users.toml"],
    },
    Broken {
        what: "an unknown key of a user",
        spoil: |deployment| deployment.edit_user("mallory", "bandwith_limit = \"1 mbps\""),
        says: &["users.toml", "bandwith_limit"],
    },
    Broken {
        what: "a pool outside the tunnel network",
        spoil: |deployment| deployment.edit_user("mallory", "address_pool = [\"10.0.0.0/24\"]"),
        says: &["users.toml", "address_pool"],
    },
    Broken {
        what: "a missing certificate",
        spoil: |deployment| deployment.edit_server("server_cert.pem", "no_cert.pem"),
        says: &["no_cert.pem"],
    },
    Broken {
        what: "another certificate's key",
        spoil: |deployment| deployment.edit_server("server_key.pem", "mallory_key.pem"),
        says: &["certificate", "key"],
    },
    Broken {
        what: "a port that needs a restart",
        spoil: |deployment| deployment.edit_server("bind_port = 55555", "bind_port = 55556"),
        says: &["bind_port", "restart"],
    },
];

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_hundred_reloads_under_load_half_of_them_broken_lose_nothing_of_who_stays() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let mut deployment = Deployment::write(&Plan::default());
    deployment.write_identity("mallory", &[]);
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [inside, other_site] = [0, 1].map(|index| &topology.clients[index].namespace);
    let mut alice = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    inside.lengthen_queue(CLIENT_TUN, 50_000).unwrap();

    let receivers = [datagram_receiver(&topology.network, SERVER_V4), datagram_receiver(inside, alice.address)];
    let server_file = fs::read_to_string(deployment.path("server.toml")).unwrap();
    // Until the last reload; no longer than all, were each as slow as it may be in the middle.
    let done = AtomicBool::new(false);
    let goes_on = || !done.load(Ordering::Relaxed);
    let seconds = (RELOAD_INTERVAL * RELOADS).as_secs_f64() * 2.0;
    let datagrams = (seconds * f64::from(DATAGRAMS_PER_S)) as u64;
    let slowest = thread::scope(|scope| {
        let flows = [(inside, &receivers[0]), (&topology.network, &receivers[1])].map(|(from, receiver)| {
            scope.spawn(move || paced_flow_while(from, receiver, 1, datagrams, DATAGRAMS_PER_S, goes_on))
        });
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        for number in 0..RELOADS {
            thread::sleep((start + RELOAD_INTERVAL * number).saturating_duration_since(Instant::now()));
            if number % 2 == 0 {
                write_version(&deployment, number);
                let Answer { done, said, took, .. } = control::reload(&deployment);
                assert!(done, "reload {number}: {said}");
                slowest = slowest.max(took);
            } else {
                assert_refused(&deployment, &BROKEN[number as usize / 2 % BROKEN.len()]);
                fs::write(deployment.path("server.toml"), &server_file).unwrap();
            }
        }
        assert!(flows.iter().all(|flow| !flow.is_finished()), "the load ended before the last reload");
        done.store(true, Ordering::Relaxed);
        for (flow, direction) in flows.into_iter().zip(["up", "down"]) {
            let (lost, counts) = flow.join().unwrap();
            println!("{direction}: {} datagrams, {lost} lost", counts.received);
            assert_eq!((lost, counts.duplicated, counts.corrupted), (0, 0, 0), "{direction}");
        }
        slowest
    });
    println!("slowest reload: {slowest:?}");
    assert!(slowest <= MIXED_MAX, "a reload took {slowest:?}");
    assert_eq!(alice.client.process.exit_status().unwrap(), None);
    assert_eq!(gateway.count_lines("client disconnected"), 0);

    // The last file was a broken one, without bob and with mallory. In force is the one before.
    assert_turned_away(&peers, &deployment, other_site, "mallory");
    let _bob = Attached::start(&peers, &deployment, other_site, &gateway, Login::of("bob"));
    wait_for_ping(other_site, SERVER_V4);
    assert_pings(inside, SERVER_V4);
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_removed_user_is_cut_off_before_the_operator_hears_that_it_is() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let mut site = Site::start(&peers);
    site.assert_cuts_off_bob(&peers, |deployment| {
        deployment.write_users(&[("alice".to_owned(), None)]);
        control::reload(deployment)
    });
    assert_turned_away(&peers, &site.deployment, site.inside(1), "bob");
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_kicked_user_is_cut_off_and_may_come_back() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let mut site = Site::start(&peers);
    site.assert_cuts_off_bob(&peers, |deployment| control::kick(deployment, "bob"));
    let _bob = Attached::start(&peers, &site.deployment, site.inside(1), &site.gateway, Login::of("bob"));
    wait_for_ping(site.inside(1), SERVER_V4);

    let nobody = control::kick(&site.deployment, "nobody");
    assert!(!nobody.done && nobody.said.contains("nobody"), "{nobody:?}");
    assert_pings(site.inside(1), SERVER_V4);
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_new_certificate_is_shown_to_new_connections_and_old_ones_live_on() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 3, ..TopologyPlan::default() }).unwrap();
    let mut deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [old, new, distrustful] = [0, 1, 2].map(|index| &topology.clients[index].namespace);
    let mut alice = Attached::start(&peers, &deployment, old, &gateway, Login::of("alice"));
    wait_for_ping(old, SERVER_V4);

    fs::copy(deployment.path("server_cert.pem"), deployment.path("first_cert.pem")).unwrap();
    deployment.write_identity("server", &["198.18.0.1"]);
    let answer = control::reload(&deployment);
    assert!(answer.done, "{}", answer.said);

    let _bob = Attached::start(&peers, &deployment, new, &gateway, Login::of("bob"));
    wait_for_ping(new, SERVER_V4);
    assert_pings(old, SERVER_V4);
    assert_eq!(alice.client.process.exit_status().unwrap(), None);
    // Who trusts the first certificate only does not get in any more.
    let login = Login::of("bob");
    let config = deployment.write_client(login);
    deployment.edit("client_bob.toml", "server_cert.pem", "first_cert.pem");
    let mut client = Client::start_with(&peers, &deployment, distrustful, &config);
    assert!(!client.process.wait(PATIENCE).unwrap().success(), "{:#?}", client.process.lines());
    assert_eq!(gateway.status().sum("/counters/connections"), 2);
    gateway.assert_sound();
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_hangup_reloads_and_a_broken_file_changes_nothing() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let mut deployment = Deployment::write(&Plan::default());
    deployment.write_identity("carol", &[]);
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [inside, other_site] = [0, 1].map(|index| &topology.clients[index].namespace);
    let _alice = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    let mut bob = Attached::start(&peers, &deployment, other_site, &gateway, Login::of("bob"));
    [inside, other_site].into_iter().for_each(|site| wait_for_ping(site, SERVER_V4));

    fs::write(deployment.path("users.toml"), "[users").unwrap();
    gateway.process.signal(Signal::HUP).unwrap();
    // That it was refused the log tells, and it names the file.
    gateway.process.wait_for_line("users.toml", PATIENCE).unwrap();
    [inside, other_site].into_iter().for_each(|site| assert_pings(site, SERVER_V4));

    deployment.write_users(&["alice", "carol"].map(|name| (name.to_owned(), None)));
    gateway.process.signal(Signal::HUP).unwrap();
    assert!(!bob.client.process.wait(PATIENCE).unwrap().success());
    let _carol = Attached::start(&peers, &deployment, other_site, &gateway, Login::of("carol"));
    wait_for_ping(other_site, SERVER_V4);
    assert_pings(inside, SERVER_V4);
    gateway.assert_sound();
}

/// The users file's valid version `number`: alice is in all, with one limit or another or none, far above what her traffic needs.
fn write_version(deployment: &Deployment, number: u32) {
    let pool = (number.is_multiple_of(8)).then_some("198.19.128.64/26");
    deployment.write_users(&[("alice".to_owned(), None), ("bob".to_owned(), pool)]);
    if number.is_multiple_of(4) {
        deployment.edit_user("alice", &format!("bandwidth_limit = \"{} mbps\"", 100 + number));
    }
    deployment.edit_user("bob", &format!("bandwidth_limit = \"{} kbps\"", 64 + number));
}

/// Fails unless a file that is broken in this way, and would turn everybody out, is refused with what is wrong.
fn assert_refused(deployment: &Deployment, broken: &Broken) {
    deployment.write_users(&[("mallory".to_owned(), None)]);
    (broken.spoil)(deployment);
    let Answer { done, said, .. } = control::reload(deployment);
    assert!(!done, "{}: {said}", broken.what);
    for word in broken.says {
        assert!(said.contains(word), "{}: no {word:?} in {said:?}", broken.what);
    }
}

fn assert_turned_away(peers: &Peers, deployment: &Deployment, inside: &Namespace, user: &str) {
    let mut client = Client::start(peers, deployment, inside, Login::of(user));
    assert!(!client.process.wait(PATIENCE).unwrap().success(), "{user} got in: {:#?}", client.process.lines());
}

/// A gateway, alice with one client, and room for bob's two.
struct Site {
    topology: Topology,
    deployment: Deployment,
    receivers: Vec<DatagramReceiver>,
    alice: Attached,
    gateway: Gateway,
}

impl Site {
    fn start(peers: &Peers) -> Self {
        let topology = Topology::build(&TopologyPlan { clients: 3, ..TopologyPlan::default() }).unwrap();
        let deployment = Deployment::write(&Plan::default());
        let gateway = Gateway::start(&deployment, &topology.gateway);
        let inside = &topology.clients[0].namespace;
        let alice = Attached::start(peers, &deployment, inside, &gateway, Login::of("alice"));
        wait_for_ping(inside, SERVER_V4);
        inside.lengthen_queue(CLIENT_TUN, 50_000).unwrap();
        let receivers = vec![datagram_receiver(&topology.network, SERVER_V4), datagram_receiver(inside, alice.address)];
        Site { topology, deployment, receivers, alice, gateway }
    }

    fn inside(&self, index: usize) -> &Namespace {
        &self.topology.clients[index].namespace
    }

    /// Fails unless `order` cuts off both of bob's connections, at once and for good, and costs alice nothing.
    fn assert_cuts_off_bob(&mut self, peers: &Peers, order: impl FnOnce(&Deployment) -> Answer) {
        // One on each shard: both have something to cut off.
        let first = Attached::start(peers, &self.deployment, self.inside(1), &self.gateway, Login::of("bob"));
        let other = 1 - first.owner;
        let second = connect_at(peers, &self.deployment, self.inside(2), &self.gateway, "bob", other);
        [1, 2].into_iter().for_each(|index| wait_for_ping(self.inside(index), SERVER_V4));
        let mut bobs = [first, second];
        let site = &*self;
        let Site { topology, deployment, receivers, gateway, .. } = site;
        let [up, down] = [&receivers[0], &receivers[1]];
        let receivers_of_bob = [1, 2].map(|index| datagram_receiver(site.inside(index), bobs[index - 1].address));
        let done = AtomicBool::new(false);
        let goes_on = || !done.load(Ordering::Relaxed);
        let (cut, alices) = thread::scope(|scope| {
            for (index, down) in (1..).zip(&receivers_of_bob) {
                scope.spawn(move || stream(site.inside(index), up, 10 + index as u32, goes_on));
                scope.spawn(move || stream(&topology.network, down, 1, goes_on));
            }
            let datagrams = u64::from(DATAGRAMS_PER_S) * STREAM.as_secs();
            let alices = [(site.inside(0), up), (&topology.network, down)].map(|(from, to)| {
                scope.spawn(move || paced_flow_while(from, to, 1, datagrams, DATAGRAMS_PER_S, goes_on))
            });
            thread::sleep(STREAM / 8);
            let mut taps = Taps::open(topology, &bobs);
            let flowing = eventually(PATIENCE, || taps.take().iter().all(|seen| *seen > 0));
            let answer = order(deployment);
            assert!(answer.done, "{}", answer.said);
            let before = taps.take();
            taps.forget();
            let connections = gateway.status().sum("/counters/connections");
            let gone = bobs.each_mut().map(|bob| {
                let status = bob.client.process.wait(PATIENCE).expect("bob's client ends");
                assert!(!status.success());
                answer.at.elapsed()
            });
            thread::sleep((answer.at + LISTEN).saturating_duration_since(Instant::now()));
            let after = taps.take();
            println!("the command took {:?}", answer.took);
            done.store(true, Ordering::Relaxed);
            let cut = Cut { flowing, before, after, connections, gone };
            (cut, alices.map(|flow| flow.join().expect("a flow")))
        });
        println!("{cut:?}");
        assert!(cut.flowing, "not everything was seen of bob before: {:?}", cut.before);
        assert_eq!(cut.after, [0; 4], "packets of bob passed after the acknowledgement");
        assert_eq!(cut.connections, 1, "connections at the acknowledgement");
        assert!(cut.gone.iter().all(|gone| *gone <= CUT_MAX), "bob's clients lived on: {:?}", cut.gone);
        for (lost, counts) in alices {
            assert_eq!((lost, counts.duplicated, counts.corrupted), (0, 0, 0), "of alice");
        }
        assert_eq!(self.alice.client.process.exit_status().unwrap(), None);
    }
}

/// What was seen of a user that was cut off.
#[derive(Debug)]
struct Cut {
    /// Whether it had packets on each way of each connection when the order was given.
    flowing: bool,
    /// Its packets until the acknowledgement: up and down of its first connection, then of the second.
    before: [usize; 4],
    /// Packets that arrived after it.
    after: [usize; 4],
    /// All connections that users had at the acknowledgement. Such as only repeat their goodbye are not among them.
    connections: u64,
    /// How long after it each of its clients was gone.
    gone: [Duration; 2],
}

/// Sees what the gateway passes on of bob's two connections, at its far sides: data to the network, and data to his clients.
struct Taps {
    addresses: [IpAddr; 2],
    inner: PacketSocket,
    outer: [PacketSocket; 2],
    seen: [usize; 4],
}

impl Taps {
    fn open(topology: &Topology, bobs: &[Attached; 2]) -> Self {
        let outer = ["to-client1", "to-client2"].map(|interface| PacketSocket::open(&topology.gateway, interface));
        let inner = PacketSocket::open(&topology.gateway, "tollgate0");
        Taps { addresses: bobs.each_ref().map(|bob| bob.address), inner, outer, seen: [0; 4] }
    }

    /// Begins to count anew.
    fn forget(&mut self) {
        self.seen = [0; 4];
    }

    /// How many packets there were so far: up and down of the first connection, then of the second.
    fn take(&mut self) -> [usize; 4] {
        let inner: Vec<_> =
            std::iter::from_fn(|| self.inner.receive()).filter_map(|packet| Some(ends(&packet)?[0])).collect();
        let up = self.addresses.map(|address| inner.iter().filter(|source| **source == address).count());
        let is_data =
            |packet: &Vec<u8>| packet.len() >= DATA_BYTES_MIN && ends(packet).is_some_and(|ends| ends[0] == SERVICE_V4);
        let down = self.outer.each_ref().map(|tap| std::iter::from_fn(|| tap.receive()).filter(is_data).count());
        for (seen, more) in self.seen.iter_mut().zip([up[0], down[0], up[1], down[1]]) {
            *seen += more;
        }
        self.seen
    }
}

/// Sends while it `goes_on`, wherever the datagrams end up: a client that is gone takes its route with it.
fn stream(from: &Namespace, to: &DatagramReceiver, flow: u32, goes_on: impl Fn() -> bool + Send) {
    let datagrams = u64::from(DATAGRAMS_PER_S) * STREAM.as_secs();
    let plan = DatagramPlan { flow, per_second: Some(DATAGRAMS_PER_S), ..DatagramPlan::new(to.address(), datagrams) };
    from.run(|| send_while(&plan, goes_on));
}
