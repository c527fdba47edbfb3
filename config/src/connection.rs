//! The table `[connection]`: what server and client configure alike about QUIC connections and the UDP socket.

use std::time::Duration;

use crate::document::Report;
use crate::kind::{Kind, choice, count, seconds, whole};
use crate::schema::{Declared, RESTART, read_key, table};
use crate::table::Table;

/// Smallest MTU of the tunnel, in bytes: what every IPv4 host must be able to receive (RFC 791, section 3.1).
const MTU_BYTES_MIN: u16 = 576;

/// Smallest MTU of a tunnel that carries IPv6, in bytes (RFC 8200, section 5).
const MTU_BYTES_MIN_V6: u16 = 1280;

/// Largest MTU of the tunnel, in bytes: a jumbo frame's. QUIC needs 50 more on the outer path.
const MTU_BYTES_MAX: u16 = 9000;

const SECONDS_MAX: u64 = 86_400;
const SOCKET_BUFFER_BYTES_MIN: u64 = 4096;
const DATAGRAM_BUFFER_BYTES_MIN: u64 = 65_536;
const BUFFER_BYTES_MAX: u64 = 1 << 30;
const PENDING_HANDSHAKES_MAX: u64 = 65_536;
const PER_SOURCE: &str = "max_pending_handshakes_per_source";

/// A congestion control algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CongestionController {
    /// CUBIC (RFC 9438).
    Cubic,
    /// BBR, experimental in quinn.
    Bbr,
    /// NewReno as of RFC 9002, section 7.
    NewReno,
    /// None: inner traffic controls itself (RFC 8085, section 3.1.11; RFC 9484).
    None,
}

const CONGESTION_CONTROLLERS: [(&str, CongestionController); 8] = [
    ("cubic", CongestionController::Cubic),
    ("bbr", CongestionController::Bbr),
    ("new_reno", CongestionController::NewReno),
    ("none", CongestionController::None),
    ("Cubic", CongestionController::Cubic),
    ("Bbr", CongestionController::Bbr),
    ("BBR", CongestionController::Bbr),
    ("NewReno", CongestionController::NewReno),
];

fn mtu(bytes_min: u16, unit: &'static str) -> Kind<u16> {
    whole(bytes_min.into()..=MTU_BYTES_MAX.into(), unit).map(|bytes| bytes as u16, |bytes| Some((*bytes).into()))
}

fn bytes(bytes_min: u64) -> Kind<usize> {
    count(bytes_min..=BUFFER_BYTES_MAX, "bytes")
}

table! {
    /// QUIC connections and the UDP socket.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Connection of Quincy {
        /// Largest packet inside the tunnel, in bytes; at least 1280 if the tunnel network is IPv6. The path outside must carry 50 bytes more of
        /// UDP payload. The same on server and clients.
        "mtu" => mtu_bytes: u16 = 1400, mtu(MTU_BYTES_MIN, "bytes"), RESTART;
        /// With "none" what is in the tunnel controls itself, as TCP and QUIC do. Any other controls all of a client's traffic as one: a loss of
        /// one of its connections slows down all the others, which costs most of the rate on a long path with a few losses. Quincy does not know
        /// "none"; its default is "cubic".
        "congestion_controller" => congestion_controller: CongestionController = CongestionController::None, choice(&CONGESTION_CONTROLLERS), RESTART;
        /// Seconds of silence until the other side counts as gone. A client's address stays leased as long.
        "connection_timeout_s" => connection_timeout: Duration = Duration::from_secs(30), seconds(1..=SECONDS_MAX), RESTART;
        /// How often clients break the silence, in seconds; the server never does.
        "keep_alive_interval_s" => keep_alive_interval: Duration = Duration::from_secs(25), seconds(1..=SECONDS_MAX), RESTART;
        /// Bytes of the UDP socket's send buffer.
        "send_buffer_size" => send_buffer_bytes: usize = 2 << 20, bytes(SOCKET_BUFFER_BYTES_MIN), RESTART;
        /// Bytes of the UDP socket's receive buffer.
        "recv_buffer_size" => recv_buffer_bytes: usize = 2 << 20, bytes(SOCKET_BUFFER_BYTES_MIN), RESTART;
        /// Bytes that each connection's queue of outgoing datagrams may hold.
        "datagram_send_buffer_size" => datagram_send_buffer_bytes: usize = 4 << 20, bytes(DATAGRAM_BUFFER_BYTES_MIN), RESTART;
        /// Bytes that each connection's queue of incoming datagrams may hold.
        "datagram_receive_buffer_size" => datagram_receive_buffer_bytes: usize = 4 << 20, bytes(DATAGRAM_BUFFER_BYTES_MIN), RESTART;
        /// Handshakes that may be under way at once. Of the server only.
        "max_pending_handshakes" => pending_handshakes_max: usize = 256, count(1..=PENDING_HANDSHAKES_MAX, "handshakes"), RESTART;
        /// Handshakes of one IPv4 address or IPv6 /64 that may be under way at once: no more than max_pending_handshakes. Of the server only.
        "max_pending_handshakes_per_source" => pending_handshakes_per_source_max: usize = 32,
            count(1..=PENDING_HANDSHAKES_MAX, "handshakes"), RESTART;
    }
}

/// Reads the table. `inner_v6` says whether the tunnel network is known to be IPv6.
pub(crate) fn read(mut table: Table<'_>, report: &mut Report<'_>, inner_v6: bool) -> Connection {
    let mut connection = Connection::initial();
    if inner_v6 {
        let mtu = || mtu(MTU_BYTES_MIN_V6, "bytes (IPv6 needs 1280)");
        connection.mtu_bytes = read_key("mtu", mtu, RESTART, &mut table, report).unwrap_or(connection.mtu_bytes);
    }
    connection.read_keys(&mut table, report);
    let (total, of_source) = (connection.pending_handshakes_max, &mut connection.pending_handshakes_per_source_max);
    match table.taken(PER_SOURCE) {
        None => *of_source = total.min(*of_source),
        Some(taken) if *of_source > total => {
            let what = format!("is {of_source}, more than connection.max_pending_handshakes, which is {total}");
            let remedy = "lower this one or raise connection.max_pending_handshakes";
            report.wrong(taken.value.clone(), &format!("connection.{PER_SOURCE}"), what, remedy);
        }
        Some(_) => {}
    }
    table.finish(report);
    connection
}
