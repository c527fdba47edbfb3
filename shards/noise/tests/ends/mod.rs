//! Two endpoints of quinn-proto and nothing between them.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::{hkdf, hmac};
use base64::Engine;
use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, Event,
    ServerConfig, TransportConfig, crypto,
};
use tollgate_noise::{Kind, NoRandomness, PrivateKey, Randomness};

/// What TLS calls handshake_failure.
pub const REFUSED: u64 = 0x128;

const SERVER: &str = "198.18.0.1:55555";
const CLIENT: &str = "198.18.0.2:40000";
/// Long enough for any handshake to give up.
const PATIENCE: Duration = Duration::from_secs(60);
const TRANSIT: Duration = Duration::from_millis(1);

struct Of(u8);

impl Randomness for Of {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        bytes.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index as u8).wrapping_mul(7) ^ self.0);
        Ok(())
    }
}

/// The key with this number.
pub fn key(kind: Kind, number: u8) -> PrivateKey {
    PrivateKey::generate(kind, &Of(number.wrapping_mul(29))).unwrap()
}

pub fn raw<const BYTES: usize>(key: &PrivateKey) -> [u8; BYTES] {
    base64::engine::general_purpose::STANDARD.decode(&*key.to_base64()).unwrap().try_into().unwrap()
}

pub fn tls() -> (Arc<dyn crypto::ServerConfig>, Arc<dyn crypto::ClientConfig>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["gateway".to_owned()]).unwrap().self_signed(&key).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = [&rustls::version::TLS13];
    let server = rustls::ServerConfig::builder_with_provider(provider()).with_protocol_versions(&versions).unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider()).with_protocol_versions(&versions).unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    (Arc::new(QuicServerConfig::try_from(server).unwrap()), Arc::new(QuicClientConfig::try_from(client).unwrap()))
}

pub struct End {
    endpoint: Endpoint,
    here: SocketAddr,
    connections: BTreeMap<ConnectionHandle, Connection>,
    retries: bool,
    pub accepted: usize,
    pub connected: usize,
    lost: Option<ConnectionError>,
    received: Vec<Bytes>,
}

type Datagram = (Instant, SocketAddr, Vec<u8>);

impl End {
    fn new(here: &str, versions: Vec<u32>, server: Option<Arc<ServerConfig>>, retries: bool) -> Self {
        let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &[7; 64])));
        config.supported_versions(versions);
        let endpoint = Endpoint::new(Arc::new(config), server, true, None);
        End {
            endpoint,
            here: here.parse().unwrap(),
            connections: BTreeMap::new(),
            retries,
            accepted: 0,
            connected: 0,
            lost: None,
            received: Vec::new(),
        }
    }

    pub fn connection(&self) -> &Connection {
        self.connections.values().next().expect("one")
    }

    fn connection_mut(&mut self) -> &mut Connection {
        self.connections.values_mut().next().expect("one")
    }

    pub fn closed_with(&self) -> Option<u64> {
        match self.lost.as_ref()? {
            ConnectionError::ConnectionClosed(close) => Some(close.error_code.into()),
            _ => None,
        }
    }

    pub fn is_version_refused(&self) -> bool {
        matches!(self.lost, Some(ConnectionError::VersionMismatch))
    }

    fn receive(&mut self, now: Instant, from: SocketAddr, datagram: Vec<u8>, out: &mut VecDeque<Datagram>) {
        let mut buf = Vec::new();
        let event = self.endpoint.handle(now, from, None, None, BytesMut::from(&datagram[..]), &mut buf);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                self.connections.get_mut(&handle).expect("known").handle_event(event);
            }
            Some(DatagramEvent::NewConnection(incoming)) if self.retries && !incoming.remote_address_validated() => {
                let transmit = self.endpoint.retry(incoming, &mut buf).unwrap();
                out.push_back((now, self.here, buf[..transmit.size].to_vec()));
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.accepted += 1;
                match self.endpoint.accept(incoming, now, &mut buf, None) {
                    Ok((handle, connection)) => drop(self.connections.insert(handle, connection)),
                    Err(error) => {
                        let response = error.response.expect("it says why");
                        out.push_back((now, self.here, buf[..response.size].to_vec()));
                    }
                }
            }
            Some(DatagramEvent::Response(transmit)) => {
                out.push_back((now, self.here, buf[..transmit.size].to_vec()));
            }
            None => {}
        }
    }

    fn drive(&mut self, now: Instant, out: &mut VecDeque<Datagram>) {
        for (&handle, connection) in &mut self.connections {
            if connection.poll_timeout().is_some_and(|at| at <= now) {
                connection.handle_timeout(now);
            }
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(handle, event) {
                    connection.handle_event(event);
                }
            }
            while let Some(event) = connection.poll() {
                match event {
                    Event::Connected => self.connected += 1,
                    Event::ConnectionLost { reason } => self.lost = Some(reason),
                    _ => {}
                }
            }
            self.received.extend(std::iter::from_fn(|| connection.datagrams().recv()));
            let mut buf = Vec::new();
            while let Some(transmit) = connection.poll_transmit(now, 1, &mut buf) {
                out.push_back((now, self.here, buf[..transmit.size].to_vec()));
                buf.clear();
            }
        }
    }

    fn next(&mut self) -> Option<Instant> {
        self.connections.values_mut().filter_map(|connection| connection.poll_timeout()).min()
    }
}

pub struct Link {
    pub client: End,
    pub server: End,
    now: Instant,
    under_way: VecDeque<Datagram>,
    /// What the client sent before it heard anything but Retries.
    pub first_flight: Vec<Vec<u8>>,
}

impl Link {
    pub fn new(server: Arc<dyn crypto::ServerConfig>, version: u32, retries: bool) -> Self {
        Link::of_versions(server, vec![version], retries)
    }

    pub fn of_versions(server: Arc<dyn crypto::ServerConfig>, versions: Vec<u32>, retries: bool) -> Self {
        let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&[5; 32]);
        let mut config = ServerConfig::new(server, Arc::new(token_key));
        config.transport_config(transport());
        let server = End::new(SERVER, versions, Some(Arc::new(config)), retries);
        let client = End::new(CLIENT, Vec::new(), None, false);
        let (under_way, first_flight) = Default::default();
        Link { client, server, now: origin(), under_way, first_flight }
    }

    pub fn connect(&mut self, crypto: Arc<dyn crypto::ClientConfig>, version: u32) {
        self.client = End::new(CLIENT, vec![version], None, false);
        let mut config = ClientConfig::new(crypto);
        config.version(version).transport_config(transport());
        let connected = self.client.endpoint.connect(self.now, config, SERVER.parse().unwrap(), "gateway");
        let (handle, connection) = connected.unwrap();
        self.client.connections.insert(handle, connection);
        self.client.drive(self.now, &mut self.under_way);
        self.first_flight = self.under_way.iter().map(|(_, _, bytes)| bytes.clone()).collect();
    }

    pub fn server_receives(&mut self, datagrams: Vec<Vec<u8>>) {
        self.under_way.extend(datagrams.into_iter().map(|bytes| (self.now, CLIENT.parse().unwrap(), bytes)));
    }

    /// Goes on until nothing moves, or for a minute. Returns whether the ends are connected.
    pub fn run(&mut self) -> bool {
        let deadline = self.now + PATIENCE;
        while self.now < deadline && !self.is_done() {
            if let Some((at, from, datagram)) = self.under_way.pop_front() {
                self.now = self.now.max(at + TRANSIT);
                let to = if from == self.server.here { &mut self.client } else { &mut self.server };
                to.receive(self.now, from, datagram, &mut self.under_way);
            } else if let Some(next) = self.client.next().into_iter().chain(self.server.next()).min() {
                self.now = self.now.max(next);
            } else {
                break;
            }
            self.client.drive(self.now, &mut self.under_way);
            self.server.drive(self.now, &mut self.under_way);
        }
        self.client.connected == 1 && self.server.connected == 1
    }

    fn is_done(&self) -> bool {
        let is_connected = self.client.connected == 1 && self.server.connected == 1;
        self.under_way.is_empty() && (is_connected || self.client.lost.is_some())
    }

    /// Sends datagrams both ways, with key updates from either side.
    pub fn exchange(&mut self, datagrams: usize) {
        let content = |number: usize, salt: u8| Bytes::from(vec![number as u8 ^ salt; 40 + number % 1100]);
        for number in 0..datagrams {
            for (end, salt) in [(&mut self.client, 0), (&mut self.server, 0x55)] {
                let connection = end.connection_mut();
                if number % 1000 == 500 + usize::from(salt) {
                    connection.force_key_update();
                }
                connection.datagrams().send(content(number, salt), false).expect("room");
            }
            self.client.drive(self.now, &mut self.under_way);
            self.server.drive(self.now, &mut self.under_way);
            self.run();
        }
        for (end, salt) in [(&self.client, 0x55), (&self.server, 0)] {
            assert_eq!(end.received.len(), datagrams);
            assert!(end.received.iter().enumerate().all(|(number, bytes)| *bytes == content(number, salt)));
        }
    }
}

/// Some instant, from which virtual time runs.
#[allow(clippy::disallowed_methods, reason = "the one source of time in these tests")]
fn origin() -> Instant {
    Instant::now()
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.datagram_receive_buffer_size(Some(1 << 20)).initial_mtu(1400);
    Arc::new(transport)
}
