//! The table `[control]`: how a running gateway is told what to do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::bind::{self, DEFAULT_BIND};
use crate::document::{self, FILE_BYTES_MAX};
use crate::environment::RUNTIME_FOLDER;
use crate::error::ConfigError;
use crate::kind::{FilePlace, Kind, switch, text};
use crate::open::open_file;
use crate::schema::{Declared, LIVE, RESTART, read_key, table};
use crate::value;

/// Longest path of a Unix socket, in bytes (unix(7): `sun_path` without its terminator).
const SOCKET_PATH_BYTES_MAX: usize = 107;

table! {
    /// How a running gateway is told what to do.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Control of Tollgate {
        /// The Unix socket that `tollgate reload` and `tollgate kick` speak to. Only root and the gateway's own user may. Its default names the
        /// port, and a bind_address that is not all of the machine's ("/run/tollgate/198.18.0.1-55555.sock"); where systemd sets
        /// RUNTIME_DIRECTORY, it is there. The gateway does without the default where it cannot be made, and without what is set here never.
        "socket" => socket: FilePlace = FilePlace::unconfigured(RUNTIME_FOLDER, &socket_name(DEFAULT_BIND)), socket(), RESTART;
        /// Whether the gateway reloads by itself when the users file has changed. A broken file changes nothing, and is told of in the log.
        "watch_users_file" => watch_users_file: bool = false, switch(), LIVE;
    }
}

fn socket() -> Kind<FilePlace> {
    let expected = "write the path of a Unix socket, for example socket = \"/run/tollgate/control.sock\"";
    let parse = |text: &str| match value::path(text)? {
        path if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
            Err(format!("which is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a socket's path may have"))
        }
        path => Ok(path),
    };
    FilePlace::kind(text(expected, parse, |path| path.display().to_string()))
}

/// The socket's name where none is configured. Gateways on different ports or addresses have different ones.
pub(crate) fn socket_name(bind: SocketAddr) -> String {
    match bind.ip().to_canonical() {
        ip if ip.is_unspecified() => format!("{}.sock", bind.port()),
        ip => format!("{ip}-{}.sock", bind.port()),
    }
}

impl Control {
    /// Puts the socket where it is by default, unless it is configured.
    pub(crate) fn locate(mut self, folder: &Path, bind: SocketAddr) -> Self {
        if !self.socket.is_configured {
            self.socket = FilePlace::unconfigured(folder, &socket_name(bind));
        }
        self
    }
}

/// The control socket that the gateway's configuration file at `path` names. Nothing else in the file needs to be right: a gateway may run
/// with what it was before.
///
/// # Errors
///
/// If the file cannot be read or is not TOML, or what it says of the socket is wrong.
pub fn control_socket(path: &Path, variables: impl Iterator<Item = (String, String)>) -> Result<PathBuf, ConfigError> {
    let concerned = |name: &str| {
        ["_CONTROL__SOCKET", "_BIND_PORT", "_BIND_ADDRESS", "RUNTIME_DIRECTORY"].iter().any(|key| name.ends_with(key))
    };
    let variables = variables.filter(|(name, _)| concerned(&name.to_ascii_uppercase()));
    let (control, _) = document::load(path, FILE_BYTES_MAX, variables, &open_file, |mut root, report| {
        let bind = bind::read_bind(&mut root, report);
        let mut control = Control::initial();
        let socket = read_key("socket", socket, RESTART, &mut root.table(report, "control"), report);
        control.socket = socket.unwrap_or(control.socket);
        control.locate(report.runtime_folder(), bind)
    })?;
    Ok(control.socket.path)
}
