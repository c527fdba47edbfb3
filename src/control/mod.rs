//! The control thread of a running gateway: signals, orders from its control socket, and a watched users file, one at a time.
//!
//! The configuration crate and the gateway validate what is to be put in force.

mod client;
mod protocol;
mod socket;
mod watch;

use std::io;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, never, select};
use tollgate_config::{ConfigError, LogFilter, ServerConfig};
use tracing::{error, info, warn};

pub use client::{AskError, ask};
pub use protocol::{ANSWER_BYTES_MAX, Answer, REQUEST_BYTES_MAX, Request};
pub use socket::{CLIENT_TIMEOUT, CLIENTS_MAX, SocketError};
pub use watch::QUIET;

use self::socket::ControlSocket;
use self::watch::Watch;
use crate::gateway::{Gateway, GatewayError, ReloadError};
use crate::log::{self, Kind, Log};
use crate::output::Reports;
use crate::signals::{Signal, hangups, signals};

/// Why a gateway cannot be controlled.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The control socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The users file cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The system is out of something.
    #[error("signals cannot be received: {0}")]
    Signals(#[from] io::Error),
    /// No thread for reports.
    #[error("no thread for reports can be started: {0}")]
    Reports(io::Error),
}

/// The users file cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("the folder of {} cannot be watched: {source}; set [control] watch_users_file = false to do without", path.display())]
pub struct WatchError {
    path: PathBuf,
    source: io::Error,
}

/// Everything that tells a gateway what to do, open.
#[derive(Debug)]
pub struct Control {
    signals: Receiver<Signal>,
    hangups: Receiver<()>,
    /// `None` where there is none and none was configured.
    socket: Option<ControlSocket>,
    watch: Option<Watch>,
    level: LogFilter,
    reports: Reports,
}

impl Control {
    /// Opens what `config` asks for. To be called before the gateway starts, so that one that cannot be controlled does not.
    ///
    /// # Errors
    ///
    /// In one line that says what to do.
    pub fn open(config: &ServerConfig) -> Result<Self, ControlError> {
        Ok(Control {
            signals: signals()?,
            hangups: hangups()?,
            socket: control_socket(&config.control)?,
            watch: watch(config)?,
            level: config.log.clone(),
            reports: Reports::start().map_err(ControlError::Reports)?,
        })
    }

    /// Has `gateway` do what is asked for until somebody wants it to stop or a core has ended; then stops it. `load` reads the
    /// configuration again.
    ///
    /// # Errors
    ///
    /// If a core had failed.
    pub fn run<L>(self, gateway: Gateway, log: Log, load: L) -> Result<(), GatewayError>
    where
        L: Fn() -> Result<ServerConfig, ConfigError>,
    {
        let Control { signals, hangups, socket, watch, level, reports } = self;
        let requests = socket.as_ref().map_or_else(never, |socket| socket.requests().clone());
        let mut running = Running { gateway, log, level, load, watch };
        loop {
            let changes = running.watch.as_ref().map_or_else(never, |watch| watch.changes().clone());
            select! {
                recv(signals) -> signal => match signal {
                    Ok(Signal::Report) => reports.print(running.gateway.status().to_json()),
                    // Where nobody can send signals any more, nobody could stop the gateway.
                    Ok(Signal::Stop) | Err(_) => break,
                },
                recv(hangups) -> _ => drop(running.reload("SIGHUP", false)),
                recv(changes) -> change => running.users_changed(change.is_ok()),
                recv(requests) -> asked => if let Ok(asked) = asked {
                    // Whoever asked may be gone.
                    let _ = asked.answer.send(running.carry_out(&asked.request));
                },
                recv(running.gateway.ended()) -> _ => break,
            }
        }
        // Nobody shall wait for an answer of a gateway that is about to go.
        drop(socket);
        let gateway = running.gateway;
        for line in gateway.status().to_string().lines() {
            info!("{line}");
        }
        info!("stopping: every client is told");
        gateway.stop()
    }
}

/// A running gateway, and what else may change with its configuration.
struct Running<L> {
    gateway: Gateway,
    log: Log,
    /// The log's, as configured.
    level: LogFilter,
    watch: Option<Watch>,
    load: L,
}

impl<L: Fn() -> Result<ServerConfig, ConfigError>> Running<L> {
    fn carry_out(&mut self, request: &Request) -> Answer {
        match request {
            Request::Reload { force } => self.reload("order", *force),
            Request::Kick { user } => self.kick(user),
        }
    }

    fn users_changed(&mut self, is_watched: bool) {
        if is_watched {
            self.reload("a change of the users file", false);
        } else {
            // The folder is gone. The next reload watches again where there is one.
            self.watch = None;
        }
    }

    fn kick(&mut self, user: &str) -> Answer {
        match self.gateway.kick(user) {
            Ok(kicked) => {
                if log::admits(Kind::Kicked) {
                    info!("{kicked}, by order");
                }
                Answer {
                    done: true,
                    lines: vec![kicked.to_string()],
                    closed_connections: Some(kicked.closed_connections),
                    took_ms: Some(kicked.took.as_secs_f64() * 1e3),
                    ..Answer::default()
                }
            }
            Err(error) => {
                if log::admits(Kind::NotKicked) {
                    warn!("an order to kick was not carried out: {error}");
                }
                Answer::refused(vec![error.to_string()])
            }
        }
    }

    /// Reads the configuration again and puts it in force, on some `occasion`.
    fn reload(&mut self, occasion: &str, force: bool) -> Answer {
        match self.try_reload(force) {
            Ok(answer) => {
                answer.lines.iter().for_each(|line| info!("reloaded on {occasion}: {line}"));
                answer
            }
            Err(reasons) => {
                reasons.iter().for_each(|reason| error!("not reloaded on {occasion}: {reason}"));
                Answer::refused(reasons)
            }
        }
    }

    fn try_reload(&mut self, force: bool) -> Result<Answer, Vec<String>> {
        let next = (self.load)().map_err(|error| reasons(&error))?;
        let is_watched = watched_file(&next) == self.watch.as_ref().map(Watch::path);
        let watch = if is_watched { None } else { Some(watch(&next).map_err(|error| vec![error.to_string()])?) };
        let level = next.log.clone();
        let warnings = next.warnings.clone();
        let result = self.gateway.reload(next, force);
        if let Err(ReloadError::Refused(reasons)) = result {
            return Err(reasons);
        }
        // Even where a shard has not said so yet, the configuration is in force from here on.
        if let Some(watch) = watch {
            self.watch = watch;
        }
        let is_same_level = std::mem::replace(&mut self.level, level) == self.level;
        let is_governed = !self.log.set(&self.level);
        let reloaded = result.map_err(|error| vec![error.to_string()])?;
        let mut lines = vec![reloaded.to_string()];
        lines.extend(warnings);
        if is_governed && !is_same_level {
            lines.push("RUST_LOG governs the log: what [log] says has no effect".to_owned());
        }
        Ok(Answer {
            done: true,
            lines,
            epoch: Some(reloaded.epoch),
            closed_connections: Some(reloaded.closed_connections),
            took_ms: Some(reloaded.took.as_secs_f64() * 1e3),
        })
    }
}

/// Opens the control socket. A gateway serves its clients without one, unless its configuration names it.
fn control_socket(config: &tollgate_config::Control) -> Result<Option<ControlSocket>, SocketError> {
    match ControlSocket::listen(&config.socket.path) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if config.socket.is_configured => Err(error),
        Err(error @ SocketError::InUse { .. }) => {
            warn!(
                "`tollgate reload` and `tollgate kick` reach the gateway that has the control socket, whichever --config they are given, and not \
                 this one, which SIGHUP and SIGTERM reach: {error}"
            );
            Ok(None)
        }
        Err(error) => {
            warn!("`tollgate reload` and `tollgate kick` cannot reach this gateway, SIGHUP and SIGTERM can: {error}");
            Ok(None)
        }
    }
}

/// Every problem of a configuration, as `tollgate check` prints them.
fn reasons(error: &ConfigError) -> Vec<String> {
    let mut reasons: Vec<String> = error.problems().iter().map(ToString::to_string).collect();
    if error.omitted() > 0 {
        reasons.push(format!("and {} more problems", error.omitted()));
    }
    reasons
}

/// The file whose change is to be noticed.
fn watched_file(config: &ServerConfig) -> Option<&Path> {
    config.control.watch_users_file.then_some(&config.users_file)
}

fn watch(config: &ServerConfig) -> Result<Option<Watch>, WatchError> {
    let watch = watched_file(config)
        .map(|path| Watch::start(path).map_err(|source| WatchError { path: path.to_owned(), source }));
    watch.transpose()
}
