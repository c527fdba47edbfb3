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
use tollgate_shards::{Client, ClientParams, Congestion, Machine, Received, TransportParams};
use zeroize::Zeroizing;

/// How long an answer may take that may also be lost.
const ANSWER: Duration = Duration::from_millis(300);

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
}

impl Stranger {
    /// With a certificate of its own making.
    pub fn new() -> Self {
        let identity = Identity::generate("stranger", &["stranger"]).expect("an identity");
        let inline = |pem: &str| PemSource::Inline(Zeroizing::new(pem.to_owned()));
        let tls = tls::client(&ClientTls {
            key_exchange: KeyExchange::Hybrid,
            trusted: vec![inline(&identity.certificate_pem)],
            certificates: vec![inline(&identity.certificate_pem)],
            key: inline(&identity.key_pem),
        });
        Stranger { tls: tls.expect("a configuration") }
    }

    /// Begins a handshake with `gateway` through `socket`, and leaves it there. Returns whether the gateway answered the first packet.
    pub fn begin(&self, socket: &UdpSocket, gateway: SocketAddr, until: Until) -> bool {
        let mut client = self.client(gateway);
        send(&mut client, socket, gateway, usize::MAX);
        socket.set_read_timeout(Some(ANSWER)).expect("a timeout");
        let mut datagram = [0; 2048];
        let bytes = match socket.recv_from(&mut datagram) {
            Ok((bytes, _)) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(error) => panic!("receiving: {error}"),
        };
        let data = BytesMut::from(&datagram[..bytes]);
        client.handle_udp(
            Instant::now(),
            Received { remote: gateway, local_ip: None, ecn: None, segment_bytes: bytes, data },
        );
        let datagrams = if until == Until::HalfHello { 1 } else { usize::MAX };
        assert!(send(&mut client, socket, gateway, datagrams) > 1, "this ClientHello takes two datagrams");
        true
    }

    fn client(&self, remote: SocketAddr) -> Client {
        let params = ClientParams {
            remote,
            server_name: "stranger".to_owned(),
            transport: TransportParams {
                mtu_bytes: 1400,
                idle_timeout: Duration::from_secs(30),
                keep_alive: None,
                initial_rtt: None,
                datagram_send_buffer_bytes_max: 1 << 20,
                datagram_receive_buffer_bytes_max: 1 << 20,
                congestion: Congestion::Cubic,
            },
            merge: MergeLimits::default(),
            send_datagrams_max: 64,
            seed: *random(),
        };
        Client::new(params, self.tls.clone(), ephemeral_reset_key(), Instant::now()).expect("a client")
    }
}

/// Sends the first `datagrams` of what `client` has to send, and returns how many there were.
fn send(client: &mut Client, socket: &UdpSocket, gateway: SocketAddr, datagrams: usize) -> usize {
    let now = Instant::now();
    client.decide(now);
    let mut all = Vec::new();
    let mut buf = Vec::new();
    while let Some(transmit) = client.poll_transmit(now, &mut buf) {
        all.extend(buf.chunks(transmit.segment_bytes).map(<[u8]>::to_vec));
        buf.clear();
    }
    for datagram in all.iter().take(datagrams) {
        socket.send_to(datagram, gateway).expect("the network takes it");
    }
    all.len()
}
