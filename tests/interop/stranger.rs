//! Somebody without an account who begins handshakes, and does not end them.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::crypto::rustls::QuicClientConfig;
use tollgate::gateway::{ephemeral_reset_key, random};
use tollgate::identity::Identity;
use tollgate::tls;
use tollgate_config::{ClientTls, KeyExchange, PemSource};
use tollgate_shards::packet::MergeLimits;
use tollgate_shards::{
    Client, ClientEvent, Congestion, Machine, Received, TLS_VERSION, TransportParams, TunnelParams, transport,
};
use zeroize::Zeroizing;

/// How long an answer may take that may also be lost.
const ANSWER: Duration = Duration::from_millis(300);
/// How long a stranger who waits for a refusal keeps repeating what nobody answers.
const PERSISTENCE: Duration = Duration::from_millis(900);

/// What a stranger needs for a handshake: a certificate that nobody has asked for.
#[derive(Clone)]
pub struct Stranger {
    tls: Arc<QuicClientConfig>,
}

/// How far a handshake goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The first half of a ClientHello, from an address that has been proven.
    HalfHello,
    /// The whole ClientHello.
    Hello,
    /// To its end, for a certificate that no user has.
    Refusal,
}

impl Stranger {
    /// With a certificate of its own making; it trusts a gateway that has `certificate_pem`.
    pub fn new(certificate_pem: &str) -> Self {
        let identity = Identity::generate("stranger", &["stranger"]).expect("an identity");
        let inline = |pem: &str| PemSource::Inline(Zeroizing::new(pem.to_owned()));
        let tls = tls::client(&ClientTls {
            key_exchange: KeyExchange::Hybrid,
            trusted: vec![inline(certificate_pem)],
            certificates: vec![inline(&identity.certificate_pem)],
            key: inline(&identity.key_pem),
        });
        Stranger { tls: tls.expect("a configuration") }
    }

    /// Begins a handshake with `gateway` through `socket`, and leaves it there. Returns whether the gateway answered the first packet.
    pub fn begin(&self, socket: &UdpSocket, gateway: SocketAddr, until: Until) -> bool {
        let mut client = self.client(gateway);
        send(&mut client, socket, gateway, usize::MAX);
        if !receive(&mut client, socket, gateway, ANSWER) {
            return false;
        }
        let datagrams = if until == Until::HalfHello { 1 } else { usize::MAX };
        assert!(send(&mut client, socket, gateway, datagrams) > 1, "this ClientHello takes two datagrams");
        if until == Until::Refusal {
            end(&mut client, socket, gateway);
        }
        true
    }

    fn client(&self, remote: SocketAddr) -> Client {
        let params = params(remote, *random());
        Client::new(params, MergeLimits::default(), self.tls.clone(), ephemeral_reset_key(), Instant::now())
            .expect("a client")
    }
}

/// Of a client to `remote`; the first connection ID follows from `seed`.
pub fn params(remote: SocketAddr, seed: [u8; 32]) -> TunnelParams {
    TunnelParams {
        quic_version: TLS_VERSION,
        remote,
        server_name: remote.ip().to_string(),
        transport: Arc::new(transport(&TransportParams {
            mtu_bytes: 1400,
            idle_timeout: Duration::from_secs(30),
            keep_alive: None,
            initial_rtt: None,
            datagram_send_buffer_bytes_max: 1 << 20,
            datagram_receive_buffer_bytes_max: 1 << 20,
            congestion: Congestion::Cubic,
        })),
        send_datagrams_max: 64,
        seed,
    }
}

/// Sends the first `datagrams` of what `client` has to send, and returns how many there were.
fn send(client: &mut Client, socket: &UdpSocket, gateway: SocketAddr, datagrams: usize) -> usize {
    let now = Instant::now();
    let mut all = Vec::new();
    let mut buf = Vec::new();
    while let Some(transmit) = client.tunnel.poll_transmit(now, &mut buf) {
        all.extend(buf.chunks(transmit.segment_bytes).map(<[u8]>::to_vec));
        buf.clear();
    }
    for datagram in all.iter().take(datagrams) {
        socket.send_to(datagram, gateway).expect("the network takes it");
    }
    all.len()
}

/// Takes the next datagram, if one comes within `limit`.
fn receive(client: &mut Client, socket: &UdpSocket, gateway: SocketAddr, limit: Duration) -> bool {
    socket.set_read_timeout(Some(limit.max(Duration::from_millis(1)))).expect("a timeout");
    let mut datagram = [0; 2048];
    let bytes = match socket.recv_from(&mut datagram) {
        Ok((bytes, _)) => bytes,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
        Err(error) => panic!("receiving: {error}"),
    };
    let data = BytesMut::from(&datagram[..bytes]);
    let received = Received { remote: gateway, local_ip: None, ecn: None, segment_bytes: bytes, data };
    client.handle_udp(Instant::now(), received);
    true
}

/// Goes on with the handshake, repetitions included, until the gateway refuses it or has been silent for too long.
fn end(client: &mut Client, socket: &UdpSocket, gateway: SocketAddr) {
    let deadline = Instant::now() + PERSISTENCE;
    let is_closed = |client: &mut Client| {
        std::iter::from_fn(|| client.tunnel.poll_event()).any(|event| matches!(event, ClientEvent::Closed(_)))
    };
    while Instant::now() < deadline && !is_closed(client) {
        let due = client.poll_timeout().map_or(deadline, |(at, _)| at.min(deadline));
        if !receive(client, socket, gateway, due.saturating_duration_since(Instant::now())) {
            client.handle_timeout(Instant::now());
        }
        send(client, socket, gateway, usize::MAX);
    }
}
