//! Clients of our own making, many in one thread, that do what no honest client does: fall silent, acknowledge nothing, put whatever frames
//! they like into their packets.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError};
use tollgate::gateway::{ephemeral_reset_key, random};
use tollgate::tls;
use tollgate_config::{ClientTls, KeyExchange, PemSource};
use tollgate_shards::{
    ClientEvent, CloseCause, Congestion, Received, TLS_VERSION, TransportParams, Tunnel, TunnelParams, transport,
};

use crate::deployment::Deployment;

/// How long a login may take.
const LOGIN: Duration = Duration::from_secs(10);
/// What an inner packet begins with that is to be sent as frames of its own.
const MARK: &[u8; 8] = b"verbatim";
const TAG_BYTES: usize = 16;

/// A client and its socket.
pub struct TestTunnel {
    tunnel: Tunnel,
    socket: UdpSocket,
    remote: SocketAddr,
    /// Its inner address, once it is logged in.
    pub address: Option<IpAddr>,
    /// Why it is over, once it is.
    pub closed: Option<CloseCause>,
    /// Inner packets that it has received.
    pub received: u64,
    /// UDP datagrams that it has sent, and their bytes.
    pub udp_sent: [u64; 2],
    /// Those that it has received.
    pub udp_received: [u64; 2],
}

/// Counts a datagram, and its bytes.
fn count(counted: &mut [u64; 2], bytes: usize) {
    *counted = [counted[0] + 1, counted[1] + bytes as u64];
}

impl TestTunnel {
    /// Begins a login as `user` from the address `source` of the calling thread's namespace. The client takes UDP payloads of `takes_bytes`
    /// at most, where that is less than what all take.
    pub fn start(
        source: IpAddr,
        deployment: &Deployment,
        user: &str,
        remote: SocketAddr,
        takes_bytes: Option<u16>,
    ) -> Self {
        let pem = |name: String| PemSource::File(deployment.path(&name));
        let tls = ClientTls {
            key_exchange: KeyExchange::Standard,
            trusted: vec![pem("server_cert.pem".to_owned())],
            certificates: vec![pem(format!("{user}_cert.pem"))],
            key: pem(format!("{user}_key.pem")),
        };
        let tls = Arc::new(Verbatim { config: tls::client(&tls).expect("a client's TLS"), takes_bytes });
        let params = TunnelParams {
            quic_version: TLS_VERSION,
            remote,
            server_name: "198.18.0.1".to_owned(),
            transport: Arc::new(transport(&TransportParams {
                mtu_bytes: 1400,
                idle_timeout: Duration::from_secs(600),
                keep_alive: None,
                initial_rtt: None,
                datagram_send_buffer_bytes_max: 1 << 20,
                datagram_receive_buffer_bytes_max: 1 << 20,
                congestion: Congestion::Uncontrolled,
            })),
            send_datagrams_max: 1,
            seed: *random(),
        };
        let tunnel = Tunnel::new(params, tls, ephemeral_reset_key(), Instant::now()).expect("a tunnel");
        let socket = UdpSocket::bind((source, 0)).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        TestTunnel {
            tunnel,
            socket,
            remote,
            address: None,
            closed: None,
            received: 0,
            udp_sent: [0; 2],
            udp_received: [0; 2],
        }
    }

    /// Logs in, and keeps at it until there is an address.
    pub fn login(deployment: &Deployment, user: &str, remote: SocketAddr, takes_bytes: Option<u16>) -> Self {
        let any = if remote.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let mut tunnel = Self::start(any, deployment, user, remote, takes_bytes);
        let end = Instant::now() + LOGIN;
        while tunnel.address.is_none() {
            assert!(tunnel.closed.is_none() && Instant::now() < end, "no login: {:?}", tunnel.closed);
            tunnel.turn();
            thread::sleep(Duration::from_micros(200));
        }
        // The last acknowledgement is to be out.
        tunnel.turn();
        tunnel
    }

    /// Takes what has arrived, and sends what is due.
    pub fn turn(&mut self) {
        let now = Instant::now();
        let mut datagram = [0; 2048];
        while let Ok((bytes, _)) = self.socket.recv_from(&mut datagram) {
            count(&mut self.udp_received, bytes);
            let data = BytesMut::from(&datagram[..bytes]);
            let received = Received { remote: self.remote, local_ip: None, ecn: None, segment_bytes: bytes, data };
            self.tunnel.handle_udp(now, received);
        }
        self.tunnel.handle_timeout(now);
        while self.tunnel.poll_packet().is_some() {
            self.received += 1;
        }
        let mut buffer = Vec::new();
        while self.tunnel.poll_transmit(now, &mut buffer).is_some() {
            // What the kernel does not take is lost on the way.
            if let Ok(bytes) = self.socket.send_to(&buffer, self.remote) {
                count(&mut self.udp_sent, bytes);
            }
            buffer.clear();
        }
        while let Some(event) = self.tunnel.poll_event() {
            match event {
                ClientEvent::PathMtu(_) => {}
                ClientEvent::Assigned(assignment) => self.address = Some(assignment.client_address.addr()),
                ClientEvent::Closed(cause) => self.closed = Some(cause),
            }
        }
    }

    /// Waits until something has arrived; false when nothing does within `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.socket.peek(&mut [0]).is_err() {
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        true
    }

    /// Says goodbye.
    pub fn close(mut self) {
        self.tunnel.close(Instant::now());
        self.turn();
    }

    /// Sends an inner packet.
    pub fn send_packet(&mut self, packet: &[u8]) {
        self.tunnel.send(Bytes::copy_from_slice(packet));
        self.turn();
    }

    /// Puts `frames` into a packet of their own and sends it.
    pub fn send_frames(&mut self, frames: &[u8]) {
        self.tunnel.send(Bytes::from([&MARK[..], &(frames.len() as u16).to_be_bytes(), frames].concat()));
        self.turn();
    }
}

/// TLS whose packets of one marked DATAGRAM frame bear the frames within instead.
struct Verbatim {
    config: Arc<dyn ClientConfig>,
    /// The `max_udp_payload_size` that is told, where it is not the largest.
    takes_bytes: Option<u16>,
}

/// `max_udp_payload_size` (RFC 9000, section 18.2). The default of 65,527 is not told.
const MAX_UDP_PAYLOAD_SIZE: u8 = 3;

/// `params` with a `max_udp_payload_size` of less than 16,384 bytes.
fn taking(params: &TransportParameters, takes_bytes: u16) -> TransportParameters {
    let mut encoded = Vec::new();
    params.write(&mut encoded);
    let [high, low] = takes_bytes.to_be_bytes();
    encoded.extend([MAX_UDP_PAYLOAD_SIZE, 2, 0x40 | high, low]);
    TransportParameters::read(Side::Server, &mut &encoded[..]).expect("valid parameters")
}

impl ClientConfig for Verbatim {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let small = self.takes_bytes.map(|takes_bytes| taking(params, takes_bytes));
        let params = small.as_ref().unwrap_or(params);
        Ok(Box::new(VerbatimSession(self.config.clone().start_session(version, server_name, params)?)))
    }
}

struct VerbatimSession(Box<dyn Session>);

/// Methods that pass everything on to what they wrap.
macro_rules! pass_on {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($argument: $kind),*) -> $answer { self.0.$name($($argument),*) })*
    };
}

impl Session for VerbatimSession {
    pass_on! {
        initial_keys(id: &ConnectionId, side: Side) -> Keys;
        handshake_data() -> Option<Box<dyn Any>>;
        peer_identity() -> Option<Box<dyn Any>>;
        early_crypto() -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)>;
        early_data_accepted() -> Option<bool>;
        is_handshaking() -> bool;
        transport_parameters() -> Result<Option<TransportParameters>, TransportError>;
        is_valid_retry(id: &ConnectionId, header: &[u8], payload: &[u8]) -> bool;
        export_keying_material(output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), ExportKeyingMaterialError>;
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.0.read_handshake(buf)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.0.write_handshake(buf).map(|keys| Keys { packet: verbatim(keys.packet), ..keys })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.0.next_1rtt_keys().map(verbatim)
    }
}

fn verbatim(keys: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
    KeyPair { local: Box::new(VerbatimKey(keys.local)), remote: keys.remote }
}

struct VerbatimKey(Box<dyn PacketKey>);

impl PacketKey for VerbatimKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let end = buf.len() - TAG_BYTES;
        let payload = &mut buf[header_len..end];
        if let Some(at) = payload.windows(MARK.len()).position(|window| window == MARK) {
            let length_at = at + MARK.len();
            let bytes = usize::from(u16::from_be_bytes([payload[length_at], payload[length_at + 1]]));
            let frames = payload[length_at + 2..length_at + 2 + bytes].to_vec();
            payload.fill(0);
            payload[..bytes].copy_from_slice(&frames);
        }
        self.0.encrypt(packet, buf, header_len);
    }

    pass_on! {
        decrypt(packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError>;
        tag_len() -> usize;
        confidentiality_limit() -> u64;
        integrity_limit() -> u64;
    }
}
