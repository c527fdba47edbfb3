//! The table `[control]`: how a running gateway is told what to do.

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
    /// Whether a change of the users file is a reload.
    pub watch_users_file: bool,
}

/// Reads the table. Gateways on different ports have different sockets by default.
pub(crate) fn read(mut table: Table<'_>, report: &mut Report<'_>, port: u16) -> Control {
    let expected = "write the path of a Unix socket, for example socket = \"/run/tollgate/control.sock\"";
    let socket = table.parsed(report, "socket", expected, |text| match value::path(text)? {
        path if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
            Err(format!("which is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a socket's path may have"))
        }
        path => Ok(path),
    });
    let watch_users_file = table.boolean(report, "watch_users_file").unwrap_or(false);
    table.finish(report);
    Control { socket: socket.unwrap_or_else(|| format!("/run/tollgate/{port}.sock").into()), watch_users_file }
}
