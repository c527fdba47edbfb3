//! The control plane of a running gateway: one event loop on one thread.
//!
//! The loop waits for signals, the control socket and its clients, the users file, the host, the cores, and timers. Nothing in it waits for
//! a core: an order begins, and is completed when all cores have answered or its time is over. Reading the configuration files may block the
//! loop, and a netlink request takes as long as the kernel's system call.
//!
//! The configuration crate and the gateway validate what is to be put in force.

mod acceptor;
mod carry_out;
mod clients;
mod drain;
mod event_loop;
mod file_watch;
pub mod metrics;
mod operator;
mod orders;
pub mod protocol;
mod records;
mod sockets;
mod survey;
mod upgrade;
mod usage;
mod watchdog;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tollgate_config::{LogFilter, ServerConfig};
use tollgate_netlink::NetlinkWatch;
use tracing::warn;

pub use acceptor::SocketError;
pub use clients::{CLIENT_TIMEOUT, CLIENTS_MAX};
pub use drain::{DrainError, drain};
pub use file_watch::QUIET;
pub use operator::{AskError, ask, ask_for_all};
pub use protocol::{ANSWER_BYTES_MAX, Answer, REQUEST_BYTES_MAX, Request};
pub use sockets::Sockets;

use self::acceptor::Acceptor;
use self::clients::{Clients, not_served};
use self::event_loop::{EventLoop, Interest, Source, Watched};
use self::file_watch::FileWatch;
use self::metrics::{Endpoint, MetricsError};
use self::orders::{Orders, Origin};
use self::records::Records;
use self::upgrade::Leaving;
use self::usage::Bookkeeping;
use self::watchdog::Watchdog;
use crate::gateway::{Gateway, GatewayError};
use crate::host::{Host, Load};
use crate::io::Wake;
use crate::log::Log;
use crate::output::Reports;
use crate::records::Recorder;
use crate::signals::SignalSource;
use crate::supervisor;

/// Longest drain.
pub const DRAIN_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long to wait before accepting, or waiting, again when the system is out of something.
const RETRY: Duration = Duration::from_millis(100);

/// Why a gateway cannot be controlled.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The control socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The users file cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The system is out of something.
    #[error("signals cannot be received: {0}")]
    Signals(io::Error),
    /// The system is out of something else.
    #[error("the control plane cannot wait for its descriptors: {0}")]
    EventLoop(#[from] io::Error),
    /// The system is out of something else.
    #[error("no thread for reports can be started: {0}")]
    Reports(io::Error),
    /// The system is out of something else.
    #[error("no thread for users' usage can be started: {0}")]
    Usage(io::Error),
    /// The system is out of something else.
    #[error("no thread for the audit log and the events of sessions can be started: {0}")]
    Records(io::Error),
}

/// The users file cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("the folder of {} cannot be watched: {source}; set [control] watch_users_file = false to do without", path.display())]
pub struct WatchError {
    path: PathBuf,
    source: io::Error,
}

/// The control plane of a gateway that does not run yet.
#[derive(Debug)]
pub struct Control {
    event_loop: EventLoop,
    signals: Watched<SignalSource>,
    /// `None` where there is none and none was configured.
    acceptor: Option<Watched<Acceptor>>,
    users_file: Option<Watched<FileWatch>>,
    metrics: Endpoint,
    /// `None` where usage is not kept.
    usage: Option<Bookkeeping>,
    /// `None` where none are kept.
    recorder: Option<Recorder>,
    level: LogFilter,
    reports: Reports,
}

impl Control {
    /// Opens what `config` asks for beside `sockets`. To be called before the gateway starts, so that one that cannot be controlled does not.
    ///
    /// # Errors
    ///
    /// In one line that says what to do.
    pub fn open(config: &ServerConfig, mut sockets: Sockets, host: &mut Host) -> Result<Self, ControlError> {
        let event_loop = EventLoop::new()?;
        let metrics = sockets.metrics.take();
        let watch = |acceptor| event_loop.watch_once(Source::Acceptor, acceptor);
        Ok(Control {
            signals: event_loop.watch(Source::Signals, SignalSource::open().map_err(ControlError::Signals)?)?,
            acceptor: sockets.acceptor().map(watch).transpose()?,
            users_file: watch_users_file(watched_file(config), host, &event_loop)?,
            metrics: Endpoint::open(metrics, &event_loop)?,
            usage: Bookkeeping::open(&config.usage, &event_loop)?,
            recorder: Recorder::start(config).map_err(ControlError::Records)?,
            level: config.log.level.clone(),
            reports: Reports::start().map_err(ControlError::Reports)?,
            event_loop,
        })
    }

    /// What the gateway's shards are to tell of clients to, where records are kept.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Has `gateway` do what is asked for until somebody wants it to stop or a core has ended; then stops it. `load` reads the
    /// configuration again, of files that something opens.
    ///
    /// # Errors
    ///
    /// If a core had failed.
    pub fn run(self, gateway: Gateway, log: Log, load: Box<Load>) -> Result<(), GatewayError> {
        let Control { event_loop, signals, mut acceptor, users_file, metrics, usage, recorder, level, reports } = self;
        acceptor.iter_mut().for_each(|acceptor| acceptor.set_shared(false));
        let mut control = ControlLoop {
            cores: event_loop.watch(Source::Cores, gateway.cores_wake())?,
            _host: gateway.host_watch().map(|watch| event_loop.watch(Source::Host, watch)).transpose()?,
            event_loop,
            signals,
            acceptor,
            accept_at: None,
            clients: Clients::default(),
            users_file,
            metrics,
            usage,
            records: Records::new(recorder),
            gateway,
            reports,
            orders: Orders::new(log, level),
            load,
            leaving: None,
            watchdog: Watchdog::new(Instant::now()),
            phase: Phase::Serving,
        };
        control.records.begin(control.gateway.predecessor().map(|(process, _)| process));
        supervisor::ready();
        while !control.has_stopped() {
            control.turn();
        }
        control.end_usage();
        control.end_records();
        control.gateway.finish()
    }
}

/// What the gateway is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Another process serves, and it has the clients that it has.
    Leaving,
    /// It reports its status a last time.
    LastStatus,
    /// The cores say goodbye to their clients.
    Stopping,
}

struct ControlLoop {
    event_loop: EventLoop,
    signals: Watched<SignalSource>,
    acceptor: Option<Watched<Acceptor>>,
    /// When to accept again after the system was out of something.
    accept_at: Option<Instant>,
    clients: Clients,
    users_file: Option<Watched<FileWatch>>,
    metrics: Endpoint,
    usage: Option<Bookkeeping>,
    records: Records,
    gateway: Gateway,
    cores: Watched<Arc<Wake>>,
    /// Watched as long as it is here; the gateway reads it.
    _host: Option<Watched<Arc<NetlinkWatch>>>,
    reports: Reports,
    orders: Orders,
    load: Box<Load>,
    /// How clients leave, once there is another process.
    leaving: Option<Leaving>,
    /// For the process that serves.
    watchdog: Watchdog,
    phase: Phase,
}

impl ControlLoop {
    fn has_stopped(&self) -> bool {
        self.phase == Phase::Stopping && self.gateway.has_stopped(Instant::now())
    }

    /// Waits once, and handles all that has come.
    fn turn(&mut self) {
        let users_file = self.users_file.as_ref().and_then(|watch| watch.poll_timeout());
        let leaving = self.leaving.as_ref().filter(|_| self.phase == Phase::Leaving).map(Leaving::poll_timeout);
        let watchdog = self.watchdog.poll_timeout().filter(|_| self.phase == Phase::Serving);
        let timeouts = [
            self.gateway.poll_timeout(),
            self.clients.poll_timeout(),
            self.metrics.poll_timeout(),
            self.usage.as_ref().map(Bookkeeping::poll_timeout),
            self.records.poll_timeout(),
            users_file,
            self.accept_at,
            leaving,
            watchdog,
        ];
        let timeout = timeouts.into_iter().flatten().min().map(|at| at.saturating_duration_since(Instant::now()));
        let ready = self.event_loop.wait(timeout).unwrap_or_else(|_| {
            // The kernel is out of memory: whatever it is, not a loop without a pause.
            thread::sleep(RETRY);
            Vec::new()
        });
        for source in ready {
            self.handle_ready(source, Instant::now());
        }
        self.handle_timeouts(Instant::now());
        while let Some((client, request)) = self.clients.poll_request() {
            self.orders.push(Origin::Client(client), request);
        }
        self.advance_orders();
        if matches!(self.phase, Phase::Serving | Phase::Leaving) && self.gateway.has_lost_a_core() {
            self.begin_stop();
        }
    }

    fn handle_ready(&mut self, source: Source, now: Instant) {
        match source {
            Source::Signals => self.handle_signals(),
            Source::UsersFile => {
                if let Some(watch) = &mut self.users_file
                    && let Err(error) = watch.handle_ready(&self.gateway.host().opener(), now)
                {
                    warn!(%error, "{} is watched no more", watch.path().display());
                    // The next reload watches again where there is a folder.
                    self.users_file = None;
                }
            }
            Source::Cores => {
                self.cores.drain();
                self.gateway.handle_notices(now);
            }
            Source::Host => self.gateway.handle_host(now),
            Source::Usage => self.hear_keeper(),
            Source::Acceptor => self.accept(now),
            Source::Client(place) => self.clients.handle_ready(place, now),
            Source::Metrics => self.metrics.accept(&self.event_loop, now),
            Source::Scraper(place) => self.metrics.handle_ready(place, &self.gateway, now),
        }
    }

    fn handle_signals(&mut self) {
        let pending = self.signals.take();
        if matches!(self.phase, Phase::LastStatus | Phase::Stopping) {
            return;
        }
        if pending.report {
            self.orders.push_report();
        }
        if pending.reload {
            self.orders.push(Origin::Signal, Request::Reload { force: false });
        }
        if pending.stop {
            self.begin_stop();
        }
    }

    fn handle_timeouts(&mut self, now: Instant) {
        self.gateway.handle_timeout(now);
        self.look_whether_left(now);
        if self.phase == Phase::Serving {
            self.watchdog.handle_timeout(&mut self.gateway, now);
        }
        self.clients.handle_timeout(now);
        self.metrics.handle_timeout(&self.event_loop, now);
        self.count_usage(now);
        self.record_sessions(now);
        if self.users_file.as_mut().is_some_and(|watch| watch.handle_timeout(now)) {
            self.orders.push(Origin::UsersFile, Request::Reload { force: false });
        }
        if self.accept_at.take_if(|at| *at <= now).is_some() {
            self.accept(now);
        }
    }

    fn accept(&mut self, now: Instant) {
        if self.phase == Phase::Leaving {
            // Those who want to connect are the other process's.
            return;
        }
        let Some(acceptor) = &mut self.acceptor else { return };
        acceptor.keep_spare();
        match acceptor.accept() {
            Ok(stream) => {
                self.clients.add(stream, &self.event_loop, now);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                not_served(&error);
                self.accept_at = Some(now + RETRY);
                return;
            }
        }
        if let Err(error) = acceptor.want(Interest::Input) {
            not_served(&error);
            self.accept_at = Some(now + RETRY);
        }
    }

    /// Takes no more orders, and asks for the last status.
    fn begin_stop(&mut self) {
        if self.gateway.successor().is_none() {
            supervisor::stopping();
        }
        self.acceptor = None;
        self.metrics.replace(None);
        self.phase = Phase::LastStatus;
        if let Some((origin, answer)) = self.orders.abandon() {
            self.answer(origin, &answer);
        }
        self.gateway.begin_status(Instant::now());
    }
}

/// The file whose change is to be noticed.
fn watched_file(config: &ServerConfig) -> Option<PathBuf> {
    config.control.watch_users_file.then(|| config.users_file.clone())
}

fn watch_users_file(
    path: Option<PathBuf>,
    host: &mut Host,
    event_loop: &EventLoop,
) -> Result<Option<Watched<FileWatch>>, WatchError> {
    let Some(path) = path else { return Ok(None) };
    let folder = host.watch_folder(&path);
    let watch = folder.map(|folder| FileWatch::start(&path, folder, &host.opener()));
    let watch = watch.and_then(|watch| event_loop.watch(Source::UsersFile, watch));
    watch.map(Some).map_err(|source| WatchError { path, source })
}
