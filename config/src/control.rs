//! The table `[control]`: how a running gateway is told what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::document::{Report, Table};
use crate::value;

/// Longest path of a Unix socket, in bytes (unix(7): `sun_path` without its terminator).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The table `[control]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The Unix socket that `tollgate reload` and `tollgate kick` speak to.
    pub socket: PathBuf,
    /// Whether the configuration names it. Otherwise the gateway can do without.
    pub is_socket_configured: bool,
    /// Whether a change of the users file is a reload.
    pub watch_users_file: bool,
}

/// The socket's name where none is configured. Gateways on different ports or addresses have different ones.
pub fn socket_name(bind: SocketAddr) -> String {
    match bind.ip().to_canonical() {
        ip if ip.is_unspecified() => format!("{}.sock", bind.port()),
        ip => format!("{ip}-{}.sock", bind.port()),
    }
}

/// Reads the table.
pub(crate) fn read(mut table: Table<'_>, report: &mut Report<'_>, bind: SocketAddr) -> Control {
    let expected = "write the path of a Unix socket, for example socket = \"/run/tollgate/control.sock\"";
    let socket = table.parsed(report, "socket", expected, |text| match value::path(text)? {
        path if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
            Err(format!("which is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a socket's path may have"))
        }
        path => Ok(path),
    });
    let watch_users_file = table.boolean(report, "watch_users_file").unwrap_or(false);
    table.finish(report);
    let is_socket_configured = socket.is_some();
    let socket = socket.unwrap_or_else(|| report.runtime_folder().join(socket_name(bind)));
    Control { socket, is_socket_configured, watch_users_file }
}
