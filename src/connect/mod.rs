//! The client: connects this machine to a gateway and stays connected.
//!
//! This module decides when to connect, when to wait and when to give up. Connections are run by `session`, the machine's network is
//! set up by `network`; whatever happens to a connection, the network stays as it is until the client ends.

mod backoff;
mod control;
mod dns;
mod failure;
mod network;
mod resolve;
mod routing;
mod session;
mod status;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};
use quinn_proto::crypto::rustls::QuicClientConfig;
use tollgate_config::ClientConfig;
use tollgate_shards::assignment::Assignment;
use tracing::{debug, error, info, warn};

pub use failure::Failure;
pub use network::NetworkError;
pub use status::{State, Status};

use self::backoff::Backoff;
use self::control::{Control, relay};
use self::network::Network;
use self::resolve::{Picked, Resolver};
use self::session::{Outcome, Session};
use crate::gateway::random;
use crate::io::{UdpOptions, UdpSocket, Wake};
use crate::pump::Pump;
use crate::signals::Signal;
use crate::tls::{self, TlsError};

/// Why the client has given up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its certificates or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The first answer of a gateway was a refusal that trying again would not change.
    #[error(transparent)]
    Gateway(#[from] Failure),
    /// `connection_string` cannot be used.
    #[error(
        "connection_string cannot be used: {0}; its host must be a DNS name or an IP address, as the gateway's certificate bears it"
    )]
    Name(#[from] quinn_proto::ConnectError),
    /// This machine's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A descriptor failed: that of the interface does when somebody removes it.
    #[error(
        "the tunnel's descriptors failed: {0}; start again, and leave the TUN interface to the client while it runs"
    )]
    System(#[from] io::Error),
}

/// Connects, and reconnects whenever the tunnel is lost, until [`Signal::Stop`], which `Ok` stands for: then the gateway has been told, and
/// interface, routes and DNS servers are as they were before. [`Signal::Report`] prints a [`Status`] on standard output.
///
/// # Errors
///
/// In one line that says what to do. While no tunnel has been up yet, a refusal that will not change ends the client; silence does not.
pub fn run(config: &ClientConfig, signals: &Receiver<Signal>) -> Result<(), ConnectError> {
    let tls = tls::client(&config.tls)?;
    let wake = Wake::new()?;
    let (to, relayed) = unbounded();
    let (running, ended) = bounded::<()>(0);
    thread::scope(|scope| {
        let relaying = || relay(signals, &ended, &to, &wake);
        thread::Builder::new().name("tollgate-relay".to_owned()).spawn_scoped(scope, relaying)?;
        // The relay ends when this does, also by a panic.
        let _running = running;
        Connector::new(config, tls, Control::new(relayed, &wake)).run()
    })
}

/// What goes on between the first attempt and the last goodbye.
struct Connector<'a> {
    config: &'a ClientConfig,
    tls: Arc<QuicClientConfig>,
    control: Control<'a>,
    resolver: Resolver,
    backoff: Backoff,
    // Before the pump: the interface goes with the pump's queue, and what belongs to it must go first.
    network: Option<Network<'a>>,
    pump: Option<Pump>,
    refusals: u32,
    status: Status,
}

/// How an attempt ended.
enum Attempt {
    /// Somebody wanted it to.
    Stopped,
    /// Another one is due after this time.
    Retry(Duration),
}

impl<'a> Connector<'a> {
    fn new(config: &'a ClientConfig, tls: Arc<QuicClientConfig>, control: Control<'a>) -> Self {
        let resolver = Resolver::new(&config.server);
        let backoff = Backoff::default();
        let status = Status::default();
        Connector { config, tls, control, resolver, backoff, network: None, pump: None, refusals: 0, status }
    }

    fn run(mut self) -> Result<(), ConnectError> {
        loop {
            let Attempt::Retry(delay) = self.attempt()? else { return Ok(()) };
            self.status.state = State::Waiting;
            if !self.wait(delay) {
                return Ok(());
            }
        }
    }

    /// Lets `delay` pass. Returns whether to go on.
    fn wait(&mut self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        loop {
            match self.control.wait(until.saturating_duration_since(Instant::now())) {
                None => return true,
                Some(Signal::Stop) => return false,
                Some(Signal::Report) => self.report(None),
            }
        }
    }

    fn attempt(&mut self) -> Result<Attempt, ConnectError> {
        self.status.state = State::Connecting;
        self.status.attempts += 1;
        let remote = loop {
            match self.resolver.pick(&self.control) {
                Picked::Address(remote) => break remote,
                Picked::None(failure) => return self.failed(failure),
                Picked::Signal(Signal::Stop) => return Ok(Attempt::Stopped),
                Picked::Signal(Signal::Report) => self.report(None),
            }
        };
        debug!(%remote, "connecting");
        if let Some(network) = &mut self.network {
            // On the way that the tunnel itself takes, this would be an attempt in vain.
            if let Err(error) = network.follow(remote.ip()) {
                debug!(%error, "no way around the tunnel");
                return self.failed(Failure::NoWay);
            }
        }
        let connection = &self.config.connection;
        let options = UdpOptions {
            send_buffer_bytes: connection.send_buffer_bytes,
            receive_buffer_bytes: connection.recv_buffer_bytes,
            ..UdpOptions::default()
        };
        let udp = match UdpSocket::for_remote(remote, &options) {
            Ok(udp) => udp,
            Err(error) => return self.failed(Failure::Socket(error)),
        };
        let mut pump = match self.pump.take() {
            Some(mut pump) => {
                pump.set_udp(Some(udp), self.control.wake())?;
                pump
            }
            None => Pump::new(udp, None, self.control.wake())?,
        };
        let attempt = self.connect(remote, &mut pump);
        self.pump = Some(pump);
        attempt
    }

    /// Runs one connection from its first packet to its end.
    fn connect(&mut self, remote: SocketAddr, pump: &mut Pump) -> Result<Attempt, ConnectError> {
        let mut session = Session::new(self.config, remote, self.tls.clone(), Instant::now())?;
        let mut up_since = None;
        let ended = loop {
            match session.run(pump, &self.control)? {
                Outcome::Assigned(assignment) => {
                    self.established(remote.ip(), assignment, pump)?;
                    up_since = Some(Instant::now());
                }
                Outcome::Signal(Signal::Report) => {
                    self.status.traffic = pump.traffic();
                    self.report(Some(&session));
                }
                Outcome::Signal(Signal::Stop) => {
                    info!("stopping: the gateway is told");
                    session.say_goodbye(pump, &self.control)?;
                    return Ok(Attempt::Stopped);
                }
                Outcome::Closed(cause) => break Failure::of(cause),
                Outcome::Late => break Failure::Silent,
            }
        };
        self.status.add(session.counters());
        self.status.traffic = pump.traffic();
        match up_since {
            Some(since) => Ok(self.lost(&ended, since.elapsed())),
            None => self.failed(ended),
        }
    }

    fn established(&mut self, gateway: IpAddr, assignment: Assignment, pump: &mut Pump) -> Result<(), ConnectError> {
        match &mut self.network {
            Some(network) => network.readdress(gateway, assignment)?,
            None => {
                let (network, queue) = Network::establish(self.config, gateway, assignment)?;
                pump.set_tun(Some(queue), self.control.wake())?;
                self.status.interface = Some(network.interface().to_owned());
                self.network = Some(network);
            }
        }
        let interface = self.status.interface.as_deref().unwrap_or_default();
        info!("connected: this machine is {} on {interface}", assignment.client_address);
        self.refusals = 0;
        self.status.state = State::Connected;
        self.status.assignment = Some(assignment);
        self.status.tunnels += 1;
        Ok(())
    }

    fn lost(&mut self, why: &Failure, lived: Duration) -> Attempt {
        let delay = self.backoff.after_loss(lived, noise());
        warn!("tunnel lost: {why}; reconnecting{}", Patience(delay));
        Attempt::Retry(delay)
    }

    fn failed(&mut self, why: Failure) -> Result<Attempt, ConnectError> {
        self.refusals = if matches!(why, Failure::Refused(_)) { self.refusals + 1 } else { 0 };
        let is_final = why.is_final(self.refusals);
        if is_final && self.status.tunnels == 0 {
            return Err(why.into());
        }
        self.resolver.failed();
        let delay = self.backoff.after_failure(noise());
        if is_final {
            error!("no tunnel, and none before somebody changes something: {why}; trying again{}", Patience(delay));
        } else {
            warn!("no tunnel: {why}; trying again{}", Patience(delay));
        }
        Ok(Attempt::Retry(delay))
    }

    fn report(&self, session: Option<&Session>) {
        let mut status = self.status.clone();
        if let Some(session) = session {
            status.add(session.counters());
        }
        // Whoever asked may not listen any more.
        let _ = writeln!(io::stdout(), "{}", status.to_json());
    }
}

/// A wait, for the log.
struct Patience(Duration);

impl std::fmt::Display for Patience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_zero() { f.write_str(" at once") } else { write!(f, " in {:.1} s", self.0.as_secs_f64()) }
    }
}

fn noise() -> u64 {
    let random = random();
    u64::from_le_bytes(random[..8].try_into().expect("8 of 32 bytes"))
}
