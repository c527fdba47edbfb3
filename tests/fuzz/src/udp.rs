//! What a gateway's UDP socket receives from anybody: clients who are not who they seem, others' addresses, and bytes.
//!
//! Packets are [open](tollgate_sim::open), so that a fuzzer can write what a client that knows its keys could send. Each input gets a gateway of two
//! shards with one client; afterwards a new client must get in and exchange packets, whatever has happened.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tollgate_noise::Kind;
use tollgate_shards::Ecn;
use tollgate_sim::open::TAG;
use tollgate_sim::world::{Setup, UserSpec, World};

use crate::input::Input;

/// What is done to the gateway in one input: fewer datagrams than there may be handshakes in progress.
const STEPS_MAX: usize = 48;
const DATAGRAM_BYTES_MAX: usize = 1472;
/// Clients that an input makes.
const CLIENTS_MAX: usize = 4;
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 9, 9));

/// A gateway with one client, and whoever else sends. A new client gets in afterwards.
pub fn udp(data: &[u8]) {
    let mut attack = Attack::new();
    let mut input = Input::new(data);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        attack.step(&mut input);
    }
    let Attack { mut world, .. } = attack;
    world.run(Duration::from_secs(1));
    let (client, address) = world.attach(1, 1);
    world.seen.tun.clear();
    world.send_up(client, &packet(address, SERVER, b"up"));
    world.send_down(&packet(SERVER, address, b"down"));
    world.run(Duration::from_secs(1));
    assert!(world.seen.tun.iter().any(|(_, packet)| packet.ends_with(b"up")), "an honest client's packet goes out");
    assert!(world.devices[client].received.iter().any(|packet| packet.ends_with(b"down")), "and one comes back");
}

fn packet(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    tollgate_sim::udp((source, 1111), (destination, 2222), payload)
}

struct Attack {
    world: World,
    /// What clients have sent and the gateway has not been given yet, or not for the last time.
    held: Vec<Vec<u8>>,
    clients: Vec<usize>,
    address: IpAddr,
    /// The connection ID under which the gateway knows the client that got in.
    connection_id: [u8; 8],
    packet_number: u32,
}

impl Attack {
    fn new() -> Self {
        // Two have certificates, the others keys.
        let keys = [None, None, Some(Kind::Standard), Some(Kind::PostQuantum), Some(Kind::Hybrid)];
        let users = vec![UserSpec::default(); keys.len()];
        let mut world = World::scenario(Setup { users, keys: keys.to_vec(), is_open: true, ..Setup::default() });
        let (client, address) = world.attach(0, 0);
        world.silence(client);
        world.send_up(client, &packet(address, SERVER, b"first"));
        world.step();
        let held = world.take_held(client);
        let id = held.first().and_then(|datagram| datagram.get(1..)?.first_chunk::<8>());
        let connection_id = *id.expect("a packet with a short header");
        Attack { world, held, clients: vec![client], address, connection_id, packet_number: 1000 }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 10 {
            0 => self.receive(input, |_, input| input.bytes().to_vec()),
            1 | 2 => self.receive(input, Self::frames),
            3 => self.receive(input, Self::held),
            4 | 5 => self.receive(input, Self::changed),
            6 => self.connect(input),
            7 => {
                let milliseconds = 1 << (input.u8() % 11);
                self.world.run(Duration::from_millis(milliseconds));
            }
            8 => {
                let client = self.clients[usize::from(input.u8()) % self.clients.len()];
                self.world.send_forged(client, input.bytes());
            }
            _ => {
                let bytes = usize::from(input.u16()) % 1400;
                self.world.send_down(&packet(SERVER, self.address, &vec![7; bytes]));
            }
        }
        self.world.step();
        for &client in &self.clients {
            self.held.extend(self.world.take_held(client));
        }
    }

    /// One receive of one or a few datagrams.
    fn receive(&mut self, input: &mut Input<'_>, datagram: impl Fn(&mut Self, &mut Input<'_>) -> Vec<u8>) {
        let head = input.u8();
        let remote = self.remote(head & 7);
        let ecn = Ecn::from_bits(head >> 3 & 3);
        let mut data = datagram(self, input);
        data.truncate(DATAGRAM_BYTES_MAX);
        let segment_bytes = if head & 0x80 == 0 { data.len() } else { usize::from(input.u16()) };
        let times = if head & 0x40 == 0 { 1 } else { 2 };
        data = data.repeat(times);
        self.world.udp_marked(remote, segment_bytes.max(1), ecn, &data);
    }

    /// The attached client's address, another of its network, or a stranger's.
    fn remote(&self, choice: u8) -> SocketAddr {
        let own = self.world.devices[self.clients[0]].outer;
        match choice {
            0..=3 => own,
            4 => SocketAddr::new(own.ip(), own.port() ^ 1),
            host => SocketAddr::from((Ipv4Addr::new(198, 19, 77, host), 4433)),
        }
    }

    /// A packet of the attached client with any frames in it.
    fn frames(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        self.packet_number += 1;
        let first = 0x43 | input.u8() & 0x24;
        let number = self.packet_number.to_be_bytes();
        [&[first], &self.connection_id[..], &number, input.bytes(), &[0; 4], &TAG].concat()
    }

    /// What a client has sent, as it was; the oldest is not kept.
    fn held(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let choice = usize::from(input.u8());
        match self.held.len() {
            0 => Vec::new(),
            _ if choice == 0 => self.held.remove(0),
            held => self.held[choice % held].clone(),
        }
    }

    /// The same, with other bytes somewhere, and perhaps shorter.
    fn changed(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let mut datagram = self.held(input);
        let (at, bytes) = (usize::from(input.u16()), input.u8() % 32);
        let others = input.take(bytes.into());
        datagram.iter_mut().skip(at).zip(others).for_each(|(byte, other)| *byte = *other);
        if bytes == 0 {
            datagram.truncate(at);
        }
        datagram
    }

    /// Another client begins, and its datagrams are held.
    fn connect(&mut self, input: &mut Input<'_>) {
        if self.clients.len() < CLIENTS_MAX {
            let choice = input.u8();
            let user = match choice >> 2 & 3 {
                0 => choice & 1,
                kind => 1 + kind,
            };
            let client = self.world.connect(usize::from(user), u16::from(choice >> 1 & 1));
            self.world.silence(client);
            self.clients.push(client);
        }
    }
}
