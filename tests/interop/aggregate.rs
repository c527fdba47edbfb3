//! One aggregate with packets for connections of two shards, made by the real kernel.
//!
//! Two clients share one UDP socket, so that one `UDP_SEGMENT` send can carry a packet of each. The gateway's kernel steers what arrives by
//! its first packet only. Quincy's client has a socket of its own; the engine's client machine is driven here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket as StdUdpSocket};
use std::time::{Duration, Instant};

use crate::stranger::params;
use tollgate::gateway::{ephemeral_reset_key, random};
use tollgate::io::{ReceiveBatch, TransmitBatch, UdpOptions, UdpSocket};
use tollgate::tls;
use tollgate_config::{ClientTls, KeyExchange, PemSource};
use tollgate_shards::packet::MergeLimits;
use tollgate_shards::{Client, Machine, Output, Received, Transmit};
use tollgate_testkit::{SERVER_V4, SERVICE_V4, Topology, TopologyPlan};

use tollgate_test_support::PATIENCE;
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::raw;
use tollgate_test_support::turn;

/// How often two packets of equal size are tried for. Also the mark of packets that none of the tries made.
const TRIES_MAX: u8 = 50;

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn one_aggregate_for_two_shards_kills_neither_connection() {
    let _turn = turn::alone();
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let server = topology.network.run(|| StdUdpSocket::bind((Ipv4Addr::UNSPECIFIED, raw::UDP_PORT)).unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let remote = (SERVICE_V4, PORT).into();
    let socket = topology.clients[0].namespace.run(|| UdpSocket::for_remote(remote, &UdpOptions::default()).unwrap());

    let mut pair = Pair::new(&deployment, socket);
    pair.drive_until(|pair| pair.addresses().is_some());
    // Until nothing is left of the handshakes that would go along with the packets.
    pair.drive_for(Duration::from_millis(500));
    let before = gateway.status();
    assert_eq!([0, 1].map(|shard| before.of_shard(shard, "/owned_connections")), [1, 1], "an owner each");

    let addresses = pair.addresses().unwrap();
    let mark = pair.send_in_one_aggregate(addresses);
    assert_eq!(receive_of_each(&server, mark), BTreeSet::from(addresses), "a packet of each");
    let after = gateway.status();
    let crossed = after.sum("/counters/misrouted_datagrams") - before.sum("/counters/misrouted_datagrams");
    assert_eq!(crossed, 1, "the kernel gave the second packet to the first one's shard");

    // Had one been answered with a stateless reset, its client would know by now.
    pair.drive_for(Duration::from_millis(300));
    for (client, address) in pair.clients.iter_mut().zip(addresses) {
        client.handle_frame(Instant::now(), &frame(address, TRIES_MAX));
    }
    pair.drive_for(Duration::from_millis(300));
    assert_eq!(receive_of_each(&server, TRIES_MAX), BTreeSet::from(addresses), "both live on");
    assert_eq!(gateway.status().sum("/counters/stateless_responses"), before.sum("/counters/stateless_responses"));
    gateway.assert_sound();
}

/// Two clients, whose connections have different owners, on one socket.
struct Pair {
    clients: [Client; 2],
    socket: UdpSocket,
    receive: ReceiveBatch,
    transmit: TransmitBatch,
}

impl Pair {
    fn new(deployment: &Deployment, socket: UdpSocket) -> Self {
        let clients = [("alice", 0), ("bob", 1)].map(|(user, owner)| client(deployment, user, owner));
        Pair { clients, socket, receive: ReceiveBatch::new(16), transmit: TransmitBatch::new(16) }
    }

    /// The clients' inner addresses, once both have one.
    fn addresses(&self) -> Option<[IpAddr; 2]> {
        let mut addresses = [None, None];
        for (address, client) in addresses.iter_mut().zip(&self.clients) {
            *address = Some(client.tunnel.assignment()?.client_address.addr());
        }
        Some(addresses.map(|address| address.expect("both are there")))
    }

    fn drive_until(&mut self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "the clients get no addresses");
            self.pass();
        }
    }

    fn drive_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.pass();
        }
    }

    fn pass(&mut self) {
        let now = Instant::now();
        let clients = &mut self.clients;
        self.socket
            .receive(&mut self.receive, &mut |received| {
                // Each takes what carries its own connection ID.
                let copy = Received { data: received.data[..].into(), ..received };
                clients[0].handle_udp(now, copy);
                clients[1].handle_udp(now, received);
            })
            .unwrap();
        for client in clients {
            client.handle_timeout(now);
            while let Some(output) = client.poll_output(now, true, self.transmit.buffer()) {
                if let Output::Transmit(transmit) = output {
                    self.transmit.push(transmit);
                }
            }
            self.socket.send(&mut self.transmit);
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    /// Has each client make one packet, and sends both in one piece. Returns the packets' mark.
    fn send_in_one_aggregate(&mut self, addresses: [IpAddr; 2]) -> u8 {
        for mark in 0..TRIES_MAX {
            let packets = [0, 1].map(|index| self.packet_of(index, addresses[index], mark));
            let (first, second) = match packets {
                [Some(first), Some(second)] if first.0.bytes == second.0.bytes => (first, second),
                // One had to acknowledge something as well, or to wait: what it has made is lost, as datagrams may be, and what it has
                // not made yet goes out alone.
                _ => {
                    self.drive_for(Duration::from_millis(50));
                    continue;
                }
            };
            let run = Transmit { bytes: 2 * first.0.bytes, segment_bytes: first.0.bytes, ..first.0 };
            assert!(self.transmit.fill(|buf| {
                buf.extend(first.1.iter().chain(&second.1));
                Some(run)
            }));
            let outcome = self.socket.send(&mut self.transmit);
            assert_eq!((outcome.sends, outcome.datagrams), (1, 2), "one piece");
            return mark;
        }
        panic!("no two packets of equal size in {TRIES_MAX} tries");
    }

    fn packet_of(&mut self, index: usize, address: IpAddr, mark: u8) -> Option<(Transmit, Vec<u8>)> {
        let (client, now) = (&mut self.clients[index], Instant::now());
        client.handle_frame(now, &frame(address, mark));
        let mut packet = Vec::new();
        let transmit = client.tunnel.poll_transmit(now, &mut packet)?;
        (transmit.datagrams() == 1).then_some((transmit, packet))
    }
}

/// A client whose first packet, and so its connection, goes to shard `owner` of two.
fn client(deployment: &Deployment, user: &str, owner: u8) -> Client {
    let file = |name: &str| PemSource::File(deployment.path(name));
    let tls = tls::client(&ClientTls {
        key_exchange: KeyExchange::Hybrid,
        trusted: vec![file("server_cert.pem")],
        certificates: vec![file(&format!("{user}_cert.pem"))],
        key: file(&format!("{user}_key.pem")),
    })
    .unwrap();
    let make = |seed: [u8; 32]| {
        let params = params((SERVICE_V4, PORT).into(), seed);
        Client::new(params, MergeLimits::default(), tls.clone(), ephemeral_reset_key(), Instant::now()).unwrap()
    };
    loop {
        let seed = *random();
        // The first connection ID depends on the seed alone, and its byte 7 picks the owner.
        let mut initial = Vec::new();
        make(seed).tunnel.poll_transmit(Instant::now(), &mut initial).expect("an Initial");
        if initial[6 + 7] % 2 == owner {
            return make(seed);
        }
    }
}

/// A frame with a UDP packet from `source` to the server, full of `mark`. The virtio header asks for nothing.
fn frame(source: IpAddr, mark: u8) -> Vec<u8> {
    [&[0; 10], &raw::udp_packet(source, SERVER_V4.into(), &[mark; 1000])[..]].concat()
}

/// Whom the next two packets of `mark` are from.
fn receive_of_each(server: &StdUdpSocket, mark: u8) -> BTreeSet<IpAddr> {
    let mut buffer = [0; 2000];
    let received = std::iter::repeat_with(|| {
        let (bytes, from) = server.recv_from(&mut buffer).expect("a packet of a client");
        (bytes > 0 && buffer[0] == mark).then_some(from.ip())
    });
    received.flatten().take(2).collect()
}
