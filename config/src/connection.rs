//! The table `[connection]`: what server and client configure alike about QUIC connections and the UDP socket.

use std::time::Duration;

use crate::document::{Report, Table};
use crate::value;

/// Smallest MTU of the tunnel, in bytes: what every IPv4 host must be able to receive (RFC 791, section 3.1).
pub const MTU_BYTES_MIN: u16 = 576;

/// Smallest MTU of a tunnel that carries IPv6, in bytes (RFC 8200, section 5).
pub const MTU_BYTES_MIN_V6: u16 = 1280;

/// Largest MTU of the tunnel, in bytes: a jumbo frame's. QUIC needs 50 more on the outer path.
pub const MTU_BYTES_MAX: u16 = 9000;

const SECONDS_MAX: u64 = 86_400;
const SOCKET_BUFFER_BYTES_MIN: u64 = 4096;
const DATAGRAM_BUFFER_BYTES_MIN: u64 = 65_536;
const BUFFER_BYTES_MAX: u64 = 1 << 30;
const PENDING_HANDSHAKES_MAX: u64 = 65_536;

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

/// A congestion control algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CongestionController {
    /// CUBIC (RFC 9438).
    Cubic,
    /// BBR, experimental in quinn.
    Bbr,
    /// NewReno as of RFC 9002, section 7.
    NewReno,
    /// None: inner traffic controls itself (RFC 8085, section 3.1.11; RFC 9484). Not known to Quincy, whose default is CUBIC.
    #[default]
    None,
}

impl CongestionController {
    /// The name in a configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            CongestionController::Cubic => "cubic",
            CongestionController::Bbr => "bbr",
            CongestionController::NewReno => "new_reno",
            CongestionController::None => "none",
        }
    }
}

/// Settings of QUIC connections and of the UDP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Largest inner packet, in bytes: [`MTU_BYTES_MIN`] to [`MTU_BYTES_MAX`], with an IPv6 tunnel network at least [`MTU_BYTES_MIN_V6`].
    pub mtu_bytes: u16,
    /// The congestion control algorithm of what we send.
    pub congestion_controller: CongestionController,
    /// Silence after which a connection is given up; 1 s to a day. An address stays leased as long.
    pub connection_timeout: Duration,
    /// How often a client breaks the silence; 1 s to a day. The server sends no keep-alives.
    pub keep_alive_interval: Duration,
    /// Size of the UDP socket's send buffer, in bytes.
    pub send_buffer_bytes: usize,
    /// Size of the UDP socket's receive buffer, in bytes.
    pub recv_buffer_bytes: usize,
    /// Bound of a connection's queue of outgoing datagrams, in bytes.
    pub datagram_send_buffer_bytes: usize,
    /// Bound of a connection's queue of incoming datagrams, in bytes.
    pub datagram_receive_buffer_bytes: usize,
    /// Handshakes that may be pending at once. Of the server only.
    pub pending_handshakes_max: usize,
    /// Handshakes of one source (IPv4 address or IPv6 /64) that may be pending at once, at most `pending_handshakes_max`. Of the server
    /// only.
    pub pending_handshakes_per_source_max: usize,
}

impl Default for Connection {
    fn default() -> Self {
        Connection {
            mtu_bytes: 1400,
            congestion_controller: CongestionController::None,
            connection_timeout: Duration::from_secs(30),
            keep_alive_interval: Duration::from_secs(25),
            send_buffer_bytes: 2 << 20,
            recv_buffer_bytes: 2 << 20,
            datagram_send_buffer_bytes: 4 << 20,
            datagram_receive_buffer_bytes: 4 << 20,
            pending_handshakes_max: 256,
            pending_handshakes_per_source_max: 32,
        }
    }
}

/// Reads the table. `inner_v6` says whether the tunnel network is known to be IPv6.
pub(crate) fn read(mut table: Table<'_>, report: &mut Report<'_>, inner_v6: bool) -> Connection {
    let mut connection = Connection::default();
    let Connection { mtu_bytes, congestion_controller, .. } = &mut connection;
    let mtu_min = if inner_v6 { MTU_BYTES_MIN_V6 } else { MTU_BYTES_MIN };
    let mtu_unit = if inner_v6 { "bytes (IPv6 needs 1280)" } else { "bytes" };
    if let Some(mtu) = table.integer(report, "mtu", mtu_min.into()..=MTU_BYTES_MAX.into(), mtu_unit) {
        *mtu_bytes = mtu as u16;
    }
    let expected = "write \"cubic\", \"bbr\", \"new_reno\" or \"none\"";
    if let Some(choice) =
        table.parsed(report, "congestion_controller", expected, |text| value::one_of(&CONGESTION_CONTROLLERS, text))
    {
        *congestion_controller = choice;
    }
    for (key, field) in [
        ("connection_timeout_s", &mut connection.connection_timeout),
        ("keep_alive_interval_s", &mut connection.keep_alive_interval),
    ] {
        if let Some(seconds) = table.integer(report, key, 1..=SECONDS_MAX, "seconds") {
            *field = Duration::from_secs(seconds);
        }
    }
    for (key, bytes_min, field) in [
        ("send_buffer_size", SOCKET_BUFFER_BYTES_MIN, &mut connection.send_buffer_bytes),
        ("recv_buffer_size", SOCKET_BUFFER_BYTES_MIN, &mut connection.recv_buffer_bytes),
        ("datagram_send_buffer_size", DATAGRAM_BUFFER_BYTES_MIN, &mut connection.datagram_send_buffer_bytes),
        ("datagram_receive_buffer_size", DATAGRAM_BUFFER_BYTES_MIN, &mut connection.datagram_receive_buffer_bytes),
    ] {
        if let Some(bytes) = table.integer(report, key, bytes_min..=BUFFER_BYTES_MAX, "bytes") {
            *field = bytes as usize;
        }
    }
    read_handshakes(&mut table, report, &mut connection);
    table.finish(report);
    connection
}

fn read_handshakes(table: &mut Table<'_>, report: &mut Report<'_>, connection: &mut Connection) {
    let range = 1..=PENDING_HANDSHAKES_MAX;
    if let Some(handshakes) = table.integer(report, "max_pending_handshakes", range.clone(), "handshakes") {
        connection.pending_handshakes_max = handshakes as usize;
    }
    let total = connection.pending_handshakes_max;
    let Some(setting) = table.take(report, "max_pending_handshakes_per_source") else {
        connection.pending_handshakes_per_source_max = connection.pending_handshakes_per_source_max.min(total);
        return;
    };
    let (place, path) = (setting.place.clone(), setting.path.clone());
    let Some(handshakes) = setting.integer(report, range, "handshakes") else { return };
    if handshakes as usize > total {
        let what = format!("is {handshakes}, more than connection.max_pending_handshakes, which is {total}");
        report.wrong(place, &path, what, "lower this one or raise connection.max_pending_handshakes");
    } else {
        connection.pending_handshakes_per_source_max = handshakes as usize;
    }
}
