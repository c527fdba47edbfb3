//! The client: connects this machine to a gateway and stays connected.
//!
//! This module decides when to connect, when to wait and when to give up. Connections are run by `session`, the machine's network is
//! set up by `network`; whatever happens to a connection, the network stays as it is until the client ends.

mod backoff;
mod clock;
mod control;
mod dns;
mod exclusion;
mod failure;
mod gateways;
mod guard;
mod leftovers;
mod network;
mod resolve;
mod restored;
mod routing;
mod session;
mod status;
mod uplink;
mod watch;

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};
use tollgate_config::ClientConfig;
use tollgate_shards::Assignment;
use tracing::{debug, error, info, warn};

pub use failure::{ConnectError, Failure};
pub use network::NetworkError;
pub use status::{State, Status};

use self::backoff::{Backoff, Patience};
use self::clock::ClockWatch;
use self::control::{Control, Waited, relay};
use self::gateways::Gateways;
use self::leftovers::Leftovers;
use self::network::Network;
use self::resolve::Picked;
use self::session::{Outcome, Session};
use self::uplink::Uplink;
use self::watch::{Told, WatchEnd, Watched, watch};
use crate::gateway::random;
use crate::handshakes::Spoken;
use crate::io::{BindError, UdpOptions, UdpSocket, Wake};
use crate::netlink::{Netlink, NetlinkWatch};
use crate::output::Reports;
use crate::packet_io::PacketIo;
use crate::signals::Signal;

/// When the tunnel's part of this machine's network is looked at again after the kernel has refused to put it right.
const MEND_INTERVAL: Duration = Duration::from_millis(250);

/// The time between two warnings that somebody has put a route in the place of one of the tunnel's.
const TAKEN_INTERVAL: Duration = Duration::from_secs(60);
/// How long a gateway that does not answer keeps the client from another one.
const SILENT_MAX: Duration = Duration::from_millis(1800);
/// How long there may be no way to the gateway before that is said.
const WAY_PATIENCE: Duration = Duration::from_millis(700);

/// Connects, and reconnects whenever the tunnel is lost, until [`Signal::Stop`], which `Ok` stands for: then the gateway has been told, and
/// interface, routes and DNS servers are as they were before. [`Signal::Report`] prints a [`Status`] on standard output.
///
/// # Errors
///
/// In one line that says what to do. While no tunnel has been up yet, a refusal that will not change ends the client; silence does not.
pub fn run(config: &ClientConfig, signals: &Receiver<Signal>) -> Result<(), ConnectError> {
    let spoken = Spoken::load(&config.protocol)?;
    let (wake, watch_ended) = (Wake::new()?, Wake::new()?);
    let reports = Reports::start()?;
    let (to, relayed) = unbounded();
    let (running, ended) = bounded::<()>(0);
    let ((network, network_changes), (clock, clock_changes)) = (bounded(1), bounded(1));
    let told = Told { network, clock };
    let watched = Watched { network: NetlinkWatch::open().map_err(NetworkError::from)?, clock: ClockWatch::open()? };
    let netlink = Netlink::open().map_err(NetworkError::from)?;
    thread::scope(|scope| {
        let relaying = || relay(signals, &ended, &to, &wake);
        thread::Builder::new().name("tollgate-relay".to_owned()).spawn_scoped(scope, relaying)?;
        let watching = || watch(&watched, &watch_ended, &told, &wake);
        // Both end when this does, also by a panic.
        let _running = running;
        let _watch_end = WatchEnd(&watch_ended);
        thread::Builder::new().name("tollgate-watch".to_owned()).spawn_scoped(scope, watching)?;
        let control = Control::new(relayed, &wake).with_changes(network_changes, clock_changes);
        Connector::new(config, spoken, control, netlink, reports)?.run()
    })
}

/// What goes on between the first attempt and the last goodbye.
struct Connector<'a> {
    config: &'a ClientConfig,
    spoken: Spoken,
    control: Control<'a>,
    netlink: Netlink,
    gateways: Gateways,
    backoff: Backoff,
    leftovers: Leftovers,
    /// The way to the gateway when it was last looked at.
    uplink: Option<Uplink>,
    way_lost: WayLost,
    /// When it was last said that somebody has put a route in the place of one of the tunnel's.
    taken_said_at: Option<Instant>,
    /// When the network is looked at again without a change of it.
    look_at: Option<Instant>,
    // Before `packet_io`: the interface goes with the TUN queue in it, and what belongs to it must go first.
    network: Option<Network<'a>>,
    packet_io: Option<PacketIo>,
    /// The outer address in use.
    gateway: Option<IpAddr>,
    refusals: u32,
    /// How many attempts in a row have failed for reasons that are final.
    final_failures: usize,
    status: Status,
    reports: Reports,
}

/// Since when there has been no way to the gateway.
enum WayLost {
    Not,
    Since(Instant),
    Told,
}

/// How an attempt ended.
enum Attempt {
    /// A signal ended it.
    Stopped,
    /// Another one is due after this time.
    Retry(Duration),
}

impl<'a> Connector<'a> {
    fn new(
        config: &'a ClientConfig,
        spoken: Spoken,
        control: Control<'a>,
        mut netlink: Netlink,
        reports: Reports,
    ) -> Result<Self, ConnectError> {
        let leftovers = Leftovers::find(&mut netlink).map_err(NetworkError::from)?;
        Ok(Connector {
            config,
            spoken,
            control,
            netlink,
            gateways: Gateways::new(&config.servers),
            backoff: Backoff::default(),
            leftovers,
            uplink: None,
            way_lost: WayLost::Not,
            taken_said_at: None,
            look_at: None,
            gateway: None,
            network: None,
            packet_io: None,
            refusals: 0,
            final_failures: 0,
            status: Status::default(),
            reports,
        })
    }

    fn run(mut self) -> Result<(), ConnectError> {
        let ended = self.run_on();
        self.leftovers.remove(&mut self.netlink, None);
        ended
    }

    fn run_on(&mut self) -> Result<(), ConnectError> {
        loop {
            let Attempt::Retry(delay) = self.attempt()? else { return Ok(()) };
            self.status.state = State::Waiting;
            if !self.wait(delay)? {
                return Ok(());
            }
        }
    }

    /// Lets `delay` pass, or less if this machine's way to the gateway changes meanwhile. Returns whether to go on.
    fn wait(&mut self, delay: Duration) -> Result<bool, ConnectError> {
        let until = Instant::now() + delay;
        loop {
            let next = self.look_at.map_or(until, |at| at.min(until));
            match self.control.wait(next.saturating_duration_since(Instant::now())) {
                Waited::Signal(Signal::Stop) => return Ok(false),
                Waited::Signal(Signal::Report) => self.report(None),
                Waited::Elapsed if Instant::now() >= until => return Ok(true),
                Waited::ClockChanged => return Ok(true),
                Waited::Elapsed | Waited::NetworkChanged => {
                    if self.look_around(None)? {
                        self.backoff = Backoff::default();
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Puts right what belongs to the tunnel, and looks which way packets to the gateway take. `packet_io` is the one in use, if not this
    /// client's own. Returns whether there is another way than before, or one again, and it can be used.
    fn look_around(&mut self, packet_io: Option<&mut PacketIo>) -> Result<bool, ConnectError> {
        self.look_at = None;
        let Some(gateway) = self.gateway else { return Ok(false) };
        if let Some(network) = &mut self.network {
            match network.mend() {
                Ok(None) => {}
                Ok(queue) => {
                    if let Some(packet_io) = packet_io.or(self.packet_io.as_mut()) {
                        packet_io.set_tun(queue, self.control.wake())?;
                    }
                    self.look_at = Some(Instant::now() + MEND_INTERVAL);
                }
                Err(error) => {
                    let now = Instant::now();
                    if matches!(error, NetworkError::Taken { .. })
                        && self.taken_said_at.is_none_or(|at| now >= at + TAKEN_INTERVAL)
                    {
                        warn!("packets leave past the tunnel: {error}");
                        self.taken_said_at = Some(now);
                    } else {
                        debug!(%error, "this machine's network cannot be put right now");
                    }
                    self.look_at = Some(now + MEND_INTERVAL);
                }
            }
            self.status.restored = network.restored_times();
        }
        let tunnel = self.network.as_ref().map(Network::index);
        let before = std::mem::replace(&mut self.uplink, Uplink::now(&mut self.netlink, gateway, tunnel));
        Ok(self.uplink != before && self.uplink.is_some_and(|uplink| uplink.is_usable()))
    }

    fn attempt(&mut self) -> Result<Attempt, ConnectError> {
        self.status.state = State::Connecting;
        self.status.attempts += 1;
        let silent_at = (self.gateways.len() > 1).then(|| Instant::now() + SILENT_MAX);
        let remote = loop {
            match self.gateways.pick(&self.control) {
                Picked::Address(remote) => break remote,
                Picked::None(failure) => {
                    if !self.leftovers.is_empty() {
                        warn!(
                            "packets leave in clear until the tunnel is up: without that the gateway's name cannot be resolved"
                        );
                        self.leftovers.remove(&mut self.netlink, None);
                    }
                    return self.failed(failure);
                }
                Picked::NetworkChanged => {
                    self.look_around(None)?;
                }
                Picked::Signal(Signal::Stop) => return Ok(Attempt::Stopped),
                Picked::Signal(Signal::Report) => self.report(None),
            }
        };
        debug!(gateway = %self.gateways.server(), %remote, "connecting");
        if !self.prepare_way(remote.ip()) {
            return self.failed(Failure::NoWay);
        }
        let udp = match self.open_udp(remote) {
            Ok(udp) => udp,
            Err(error) => return self.failed(Failure::Socket(error)),
        };
        let mut packet_io = match self.packet_io.take() {
            Some(mut packet_io) => {
                packet_io.set_udp(Some(udp), self.control.wake())?;
                packet_io
            }
            None => PacketIo::new(udp, None, self.control.wake())?,
        };
        let attempt = self.connect(remote, silent_at, &mut packet_io);
        self.packet_io = Some(packet_io);
        attempt
    }

    fn open_udp(&self, remote: SocketAddr) -> Result<UdpSocket, BindError> {
        let connection = &self.config.connection;
        let options = UdpOptions {
            send_buffer_bytes: connection.send_buffer_bytes,
            receive_buffer_bytes: connection.recv_buffer_bytes,
            ..UdpOptions::default()
        };
        UdpSocket::for_remote(remote, &options)
    }

    /// Makes packets to `gateway` go around the tunnel, and around what an earlier run has left. Returns whether they go anywhere.
    fn prepare_way(&mut self, gateway: IpAddr) -> bool {
        self.gateway = Some(gateway);
        let opened = match &mut self.network {
            Some(network) => network.follow(gateway).map(|()| true),
            None => self.leftovers.open_way(&mut self.netlink, gateway).map_err(NetworkError::from),
        };
        let tunnel = self.network.as_ref().map(Network::index);
        self.uplink = Uplink::now(&mut self.netlink, gateway, tunnel);
        match opened {
            // On the way that the tunnel itself takes, this would be an attempt in vain.
            Ok(true) => self.uplink.is_some() || !self.network.as_ref().is_some_and(Network::covers_gateway),
            Ok(false) => false,
            Err(error) => {
                debug!(%error, "no way around the tunnel");
                false
            }
        }
    }

    /// Runs one connection from its first packet to its end.
    fn connect(
        &mut self,
        remote: SocketAddr,
        silent_at: Option<Instant>,
        packet_io: &mut PacketIo,
    ) -> Result<Attempt, ConnectError> {
        let gateway = (&self.gateways.server().host[..], remote);
        let mut session = Session::new(self.config, gateway, &self.spoken, silent_at, Instant::now())?;
        let mut up_since = None;
        let ended = loop {
            match session.run(packet_io, &self.control, self.look_at) {
                Outcome::Assigned(assignment) => {
                    self.established(remote.ip(), assignment, up_since.is_some(), packet_io)?;
                    up_since.get_or_insert_with(Instant::now);
                }
                Outcome::PathMtu(mtu_bytes) => {
                    if let Some(network) = &mut self.network {
                        network.follow_path(mtu_bytes);
                    }
                }
                Outcome::Signal(Signal::Report) => {
                    self.status.traffic = packet_io.traffic();
                    self.report(Some(&session));
                }
                Outcome::Signal(Signal::Stop) => {
                    info!("stopping: the gateway is told");
                    session.say_goodbye(packet_io, &self.control);
                    return Ok(Attempt::Stopped);
                }
                Outcome::NetworkChanged => {
                    let before = self.uplink;
                    let has_new_way = self.look_around(Some(packet_io))?;
                    if has_new_way && up_since.is_none() {
                        // What was sent may be lost, and its repetition far away.
                        return Ok(Attempt::Retry(Duration::ZERO));
                    }
                    self.tell_of_way(has_new_way);
                    if has_new_way {
                        self.status.path_changes += 1;
                        session.handle_path_change(self.uplink.is_some_and(|uplink| uplink.is_elsewhere(before)));
                    }
                }
                Outcome::Lost(lost) => {
                    if lost.udp {
                        match self.open_udp(remote) {
                            Ok(udp) => packet_io.set_udp(Some(udp), self.control.wake())?,
                            Err(error) => break Failure::Socket(error),
                        }
                        if up_since.is_none() {
                            return Ok(Attempt::Retry(Duration::ZERO));
                        }
                        // Of another port.
                        session.handle_path_change(true);
                    }
                    if lost.tun {
                        // The queue ended with the interface, or the interface with it.
                        self.look_around(Some(packet_io))?;
                    }
                }
                // A gateway that has not heard from this client for long has forgotten it, and says so when asked.
                Outcome::ClockChanged => session.handle_path_change(false),
                Outcome::Closed(cause) => {
                    let other = || Failure::of(cause, self.spoken.mode);
                    break self.spoken.validity.take().map_or_else(other, Failure::Clock);
                }
                Outcome::Late => break Failure::Silent,
            }
        };
        self.status.add(session.counters());
        self.status.traffic = packet_io.traffic();
        match up_since {
            Some(since) => Ok(self.lost(&ended, since.elapsed())),
            None => self.failed(ended),
        }
    }

    /// Says that a tunnel goes on over another way, or waits for one: not before there has been none for a while, for what is replaced is
    /// often gone for a moment.
    fn tell_of_way(&mut self, has_new_way: bool) {
        if self.uplink.is_some() {
            if has_new_way {
                info!("this machine's way to the gateway has changed: the tunnel goes on");
            }
            self.way_lost = WayLost::Not;
            return;
        }
        let now = Instant::now();
        match self.way_lost {
            WayLost::Not => self.way_lost = WayLost::Since(now),
            WayLost::Since(since) if now >= since + WAY_PATIENCE => {
                warn!("this machine has no way to the gateway now: the tunnel waits for one");
                self.way_lost = WayLost::Told;
            }
            WayLost::Since(_) | WayLost::Told => {}
        }
        if let WayLost::Since(since) = self.way_lost {
            self.look_at = Some(self.look_at.map_or(since + WAY_PATIENCE, |at| at.min(since + WAY_PATIENCE)));
        }
    }

    fn established(
        &mut self,
        gateway: IpAddr,
        assignment: Assignment,
        has_moved: bool,
        packet_io: &mut PacketIo,
    ) -> Result<(), ConnectError> {
        match &mut self.network {
            Some(network) => {
                network.readdress(gateway, assignment)?;
                // The new connection's path may be another one.
                network.follow_path(u16::MAX);
            }
            None => {
                let (network, queue) = Network::establish(self.config, gateway, assignment)?;
                packet_io.set_tun(Some(queue), self.control.wake())?;
                self.status.interface = Some(network.interface().to_owned());
                self.leftovers.remove(&mut self.netlink, network.exclusion());
                self.network = Some(network);
            }
        }
        self.look_around(Some(packet_io))?;
        let interface = self.status.interface.as_deref().unwrap_or_default();
        let what = if has_moved { "moved to the gateway's next process" } else { "connected" };
        info!("{what}: this machine is {} on {interface}", assignment.client_address);
        (self.refusals, self.final_failures) = (0, 0);
        self.gateways.worked();
        self.status.state = State::Connected;
        self.status.assignment = Some(assignment);
        self.status.tunnels += 1;
        Ok(())
    }

    fn lost(&mut self, why: &Failure, lived: Duration) -> Attempt {
        let lost = self.name("to ");
        self.gateways.lost(matches!(why, Failure::Silent), why.sends_away());
        let delay = self.backoff.after_loss(lived, noise());
        warn!("tunnel{lost} lost: {why}; reconnecting{}{}", self.name("to "), Patience(delay));
        Attempt::Retry(delay)
    }

    fn failed(&mut self, why: Failure) -> Result<Attempt, ConnectError> {
        self.refusals = if matches!(why, Failure::Refused(_)) { self.refusals + 1 } else { 0 };
        let is_final = why.is_final(self.refusals);
        self.final_failures = if is_final { self.final_failures + 1 } else { 0 };
        if self.final_failures >= self.gateways.len() && self.status.tunnels == 0 {
            return Err(why.into());
        }
        let failed = self.name("to ");
        let delay = if self.gateways.failed() { self.backoff.after_failure(noise()) } else { Duration::ZERO };
        let next = if failed.is_empty() { " again".to_owned() } else { self.name("") };
        let next = format!("trying{next}{}", Patience(delay));
        if is_final {
            error!("no tunnel{failed}, and none before somebody changes something: {why}; {next}");
        } else {
            warn!("no tunnel{failed}: {why}; {next}");
        }
        Ok(Attempt::Retry(delay))
    }

    /// The gateway that is in use or tried next, after `preposition`, where there are several.
    fn name(&self, preposition: &str) -> String {
        if self.gateways.len() == 1 { String::new() } else { format!(" {preposition}{}", self.gateways.server()) }
    }

    fn report(&self, session: Option<&Session>) {
        let mut status = self.status.clone();
        if let Some(session) = session {
            status.add(session.counters());
        }
        self.reports.print(status.to_json());
    }
}

fn noise() -> u64 {
    let random = random();
    u64::from_le_bytes(random[..8].try_into().expect("8 of 32 bytes"))
}
