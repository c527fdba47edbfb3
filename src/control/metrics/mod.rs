//! The metrics endpoint: where it listens, and how it goes from one configuration, and from one process, to the next.

mod families;
mod ledger;
mod scrapers;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tollgate_config::Metrics;
use tracing::{debug, info, warn};

pub use families::{SERIES_MAX, names};
pub use ledger::CONNECTIONS_TOLD_MAX;
pub use scrapers::{HEAD_BYTES_MAX, SCRAPER_TIMEOUT, SCRAPERS_MAX};

use self::families::{Client, Clients, OTHER, State, Totals};
use self::ledger::Ledger;
use self::scrapers::Scrapers;
use super::event_loop::{EventLoop, Interest, Source, Watched};
use crate::gateway::{self, Gateway};
use crate::log::{self, Kind};

/// How long to wait before accepting again when the system is out of something.
const RETRY: Duration = Duration::from_millis(100);

/// Metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "metrics cannot be served at {address}: {source}; set address and port in [metrics] to such as are this machine's and free, or enabled = false"
)]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listening {
    address: SocketAddr,
    listener: Watched<TcpListener>,
}

/// The endpoint, if one is wanted.
#[derive(Debug, Default)]
pub struct Endpoint {
    listening: Option<Listening>,
    scrapers: Scrapers,
    told: Told,
    /// When to accept again after the system was out of something.
    accept_at: Option<Instant>,
}

impl Endpoint {
    /// Listens where `config` says, with the socket that another process has `lent` if it is the one.
    ///
    /// # Errors
    ///
    /// If it cannot.
    pub fn open(bound: Option<(SocketAddr, TcpListener)>, event_loop: &EventLoop) -> Result<Self, MetricsError> {
        let listening = bound.map(|(address, listener)| listening(address, listener, event_loop));
        Ok(Endpoint { listening: listening.transpose()?, ..Endpoint::default() })
    }

    /// What another configuration changes: `None` for nothing.
    ///
    /// # Errors
    ///
    /// If it cannot be listened where that one says. Nothing has changed then.
    pub fn prepare(&self, config: &Metrics, event_loop: &EventLoop) -> Result<Option<Option<Listening>>, MetricsError> {
        let wanted = wanted(config);
        if wanted == self.listening.as_ref().map(|listening| listening.address) {
            return Ok(None);
        }
        wanted.map(|address| listening(address, listen(address)?, event_loop)).transpose().map(Some)
    }

    /// Puts in force what was prepared. Whoever is being served still is.
    pub fn replace(&mut self, listening: Option<Listening>) {
        (self.listening, self.accept_at) = (listening, None);
    }

    /// A copy of the socket for another process.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn lend(&self) -> io::Result<Option<(SocketAddr, OwnedFd)>> {
        let lent = self
            .listening
            .as_ref()
            .map(|Listening { address, listener }| Ok((*address, OwnedFd::from(listener.try_clone()?))));
        lent.transpose()
    }

    /// Accepts whoever waits, but not many at once.
    pub fn accept(&mut self, event_loop: &EventLoop, now: Instant) {
        let Some(Listening { listener, .. }) = &self.listening else { return };
        for _ in 0..SCRAPERS_MAX {
            match listener.accept() {
                Ok((stream, _)) => match stream.set_nonblocking(true) {
                    Ok(()) => self.scrapers.add(stream, event_loop, now),
                    Err(error) => debug!(%error, "a client of the metrics endpoint was lost"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The client has gone again.
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                }
                Err(error) => return self.accept_later(&error, now),
            }
        }
        if let Err(error) = listener.want(Interest::Input) {
            self.accept_later(&error, now);
        }
    }

    fn accept_later(&mut self, error: &io::Error, now: Instant) {
        if log::admits(Kind::NotServed) {
            warn!("a client of the metrics endpoint was not served: {error}");
        }
        self.accept_at = Some(now + RETRY);
    }

    /// Goes on with the client at `place`, who may ask how `gateway` stands.
    pub fn handle_ready(&mut self, place: usize, gateway: &Gateway, now: Instant) {
        let Endpoint { scrapers, told, .. } = self;
        scrapers.handle_ready(place, || text(gateway, told, now));
    }

    /// When to call [`Endpoint::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.accept_at, self.scrapers.poll_timeout()].into_iter().flatten().min()
    }

    /// Lets clients go whose time is over, and accepts again where that was to be tried.
    pub fn handle_timeout(&mut self, event_loop: &EventLoop, now: Instant) {
        self.scrapers.handle_timeout(now);
        if self.accept_at.take_if(|at| *at <= now).is_some() {
            self.accept(event_loop, now);
        }
    }
}

/// What is told of clients, which is written anew as often as their figures are.
#[derive(Debug, Default)]
struct Told {
    ledger: Ledger,
    text: String,
}

impl Told {
    fn text(&mut self, gateway: &Gateway, now: Instant) -> &str {
        let config = gateway.config();
        if self.ledger.is_due(now, config.metrics.reporting_interval) {
            self.ledger.renew(&gateway.usage(), now);
            let clients = self.ledger.told().map(|told| Client {
                user: config.users.name(told.newest.user).to_owned(),
                connection: told.newest.address.to_string(),
                usage: told.usage(),
                path: Some((told.newest.path.rtt, now.duration_since(told.newest.began))),
            });
            let usage = self.ledger.others();
            let others = Client { user: OTHER.into(), connection: OTHER.into(), usage, path: None };
            self.text = Clients(clients.chain([others]).collect()).into_text();
        }
        &self.text
    }
}

/// All metrics of a gateway, as they stand now.
fn text(gateway: &Gateway, told: &mut Told, now: Instant) -> String {
    let state = State {
        epoch: gateway.epoch(),
        users_configured: gateway.config().users.len(),
        is_draining: gateway.state() == gateway::State::Draining,
        has_predecessor: gateway.predecessor().is_some(),
        lost_log_lines: log::lost_lines(),
        host: gateway.host_report(),
    };
    Totals { shards: gateway.reports(), state }.into_text(told.text(gateway, now))
}

fn wanted(config: &Metrics) -> Option<SocketAddr> {
    config.enabled.then(|| SocketAddr::new(config.address, config.port))
}

/// Where `config` has metrics served, with a socket that listens there: the one that another process has `lent`, if it does.
///
/// # Errors
///
/// If it cannot be listened there.
pub fn bind(
    config: &Metrics,
    lent: Option<(SocketAddr, OwnedFd)>,
) -> Result<Option<(SocketAddr, TcpListener)>, MetricsError> {
    let Some(address) = wanted(config) else { return Ok(None) };
    let listener = match lent {
        Some((lent, socket)) if lent == address => TcpListener::from(socket),
        _ => listen(address)?,
    };
    Ok(Some((address, listener)))
}

fn listen(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    TcpListener::bind(address).map_err(|source| MetricsError { address, source })
}

fn listening(address: SocketAddr, listener: TcpListener, event_loop: &EventLoop) -> Result<Listening, MetricsError> {
    let watched = listener.set_nonblocking(true).and_then(|()| event_loop.watch_once(Source::Metrics, listener));
    let listener = watched.map_err(|source| MetricsError { address, source })?;
    info!("metrics are served at http://{address}/metrics");
    Ok(Listening { address, listener })
}
