//! One connection, from its first packet to its last: the passes of a client machine.
//!
//! `network` sets up interface and routes, and the client above reconnects.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::ConnectError as RefusedStart;
use tollgate_config::ClientConfig;
use tollgate_shards::packet::MergeLimits;
use tollgate_shards::{
    Assignment, Client, ClientEvent, CloseCause, Counters, Machine, TransportParams, TunnelParams, transport,
};

use super::control::Control;
use crate::gateway::{congestion, ephemeral_reset_key, random};
use crate::handshakes::Spoken;
use crate::packet_io::{Lost, PacketIo};
use crate::signals::Signal;

/// How long an attempt may take, from the first packet to the address.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// What the first packet's repetition reckons with. A third of RFC 9002's: a gateway that is just starting is found sooner.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// How long a client that stops repeats its goodbye to a gateway that has not heard it.
const LINGER: Duration = Duration::from_millis(300);
/// Datagrams of one UDP send: the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9.
const SEND_DATAGRAMS_MAX: usize = 64;

/// The events that end a session.
#[derive(Debug)]
pub enum Outcome {
    /// The tunnel is up, or has moved to another connection. To be run on.
    Assigned(Assignment),
    /// The path carries inner packets of this many bytes from now on. To be run on.
    PathMtu(u16),
    /// Somebody wants something. To be run on.
    Signal(Signal),
    /// This machine's network has changed, or it is time to look at it again. To be run on.
    NetworkChanged,
    /// This machine's clock was set, or it was suspended. To be run on.
    ClockChanged,
    /// Descriptors were given up. To be run on with others.
    Lost(Lost),
    /// The connection is over.
    Closed(CloseCause),
    /// No tunnel came up in time.
    Late,
}

/// A connection to a gateway.
pub struct Session {
    client: Client,
    /// What the client has told, and the caller of [`Session::run`] has yet to hear.
    events: VecDeque<ClientEvent>,
    /// Until when the tunnel must be up, while it is not.
    late_at: Option<Instant>,
    /// Until when the gateway must have answered at all.
    silent_at: Option<Instant>,
}

impl Session {
    /// Begins the handshake with the gateway called `name` at `remote`, which must have answered by `silent_at` if there is such a time.
    ///
    /// # Errors
    ///
    /// If the address or the name in `connection_string` cannot be used.
    pub fn new(
        config: &ClientConfig,
        (name, remote): (&str, SocketAddr),
        spoken: &Spoken,
        silent_at: Option<Instant>,
        now: Instant,
    ) -> Result<Self, RefusedStart> {
        let params = TunnelParams {
            remote,
            quic_version: spoken.mode.quic_version(),
            server_name: name.to_owned(),
            transport: Arc::new(transport(&transport_params(config))),
            send_datagrams_max: SEND_DATAGRAMS_MAX,
            seed: *random(),
        };
        let mut client =
            Client::new(params, MergeLimits::default(), spoken.config.clone(), ephemeral_reset_key(), now)?;
        client.tunnel.move_by(spoken.moving.clone());
        Ok(Session { client, events: VecDeque::new(), late_at: Some(now + ATTEMPT_TIMEOUT), silent_at })
    }

    /// What the connection has carried so far.
    pub fn counters(&self) -> Counters {
        self.client.tunnel.counters()
    }

    /// Takes note that packets to the gateway have another way now, or the same one again.
    pub fn handle_path_change(&mut self, is_elsewhere: bool) {
        self.client.tunnel.handle_path_change(Instant::now(), is_elsewhere);
    }

    /// Runs until something happens that its caller must know, and until `look_at` at the latest.
    pub fn run(&mut self, packet_io: &mut PacketIo, control: &Control<'_>, look_at: Option<Instant>) -> Outcome {
        loop {
            if let Some(signal) = control.take() {
                return Outcome::Signal(signal);
            }
            let now = Instant::now();
            if control.take_network_change() || look_at.is_some_and(|at| at <= now) {
                return Outcome::NetworkChanged;
            }
            if control.take_clock_change() {
                return Outcome::ClockChanged;
            }
            let busy = self.pass(packet_io, now);
            let lost = packet_io.take_lost();
            if lost.any() {
                return Outcome::Lost(lost);
            }
            match self.events.pop_front() {
                Some(ClientEvent::Assigned(assignment)) => {
                    (self.late_at, self.silent_at) = (None, None);
                    return Outcome::Assigned(assignment);
                }
                Some(ClientEvent::PathMtu(mtu_bytes)) => return Outcome::PathMtu(mtu_bytes),
                Some(ClientEvent::Closed(cause)) => return Outcome::Closed(cause),
                None => {}
            }
            if self.silent_at.is_some() && self.client.tunnel.has_heard() {
                self.silent_at = None;
            }
            if self.late_at.into_iter().chain(self.silent_at).any(|at| at <= now) {
                self.client.tunnel.close(now);
                self.pass(packet_io, now);
                return Outcome::Late;
            }
            if !busy {
                self.sleep(
                    packet_io,
                    control,
                    now,
                    [self.late_at, self.silent_at, look_at].into_iter().flatten().min(),
                );
            }
        }
    }

    /// Says goodbye, and stays until the gateway can be expected to have heard it.
    pub fn say_goodbye(&mut self, packet_io: &mut PacketIo, control: &Control<'_>) {
        let mut now = Instant::now();
        let end = now + LINGER;
        self.client.tunnel.close(now);
        while now < end && !self.client.tunnel.is_drained() {
            // Whoever asks again to stop is stopping already.
            while control.take().is_some() {}
            if !self.pass(packet_io, now) {
                self.sleep(packet_io, control, now, Some(end));
            }
            now = Instant::now();
        }
    }

    /// In, out. Returns whether there was anything to do.
    fn pass(&mut self, packet_io: &mut PacketIo, now: Instant) -> bool {
        let busy = packet_io.intake(&mut self.client, now);
        if self.client.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.client.handle_timeout(now);
        }
        while let Some(event) = packet_io.output(&mut self.client, now) {
            self.events.push_back(event);
        }
        busy
    }

    fn sleep(&mut self, packet_io: &mut PacketIo, control: &Control<'_>, now: Instant, until: Option<Instant>) {
        let deadline = self.client.poll_timeout().map(|(at, _)| at);
        packet_io.sleep(now, [deadline, until].into_iter().flatten().min());
        if packet_io.take_woken() {
            // What it announced is in the channel already.
            control.wake().drain();
        }
    }
}

fn transport_params(config: &ClientConfig) -> TransportParams {
    let connection = &config.connection;
    TransportParams {
        mtu_bytes: connection.mtu_bytes,
        idle_timeout: connection.connection_timeout,
        keep_alive: Some(connection.keep_alive_interval),
        initial_rtt: Some(INITIAL_RTT),
        datagram_send_buffer_bytes_max: connection.datagram_send_buffer_bytes,
        datagram_receive_buffer_bytes_max: connection.datagram_receive_buffer_bytes,
        congestion: congestion(connection.congestion_controller),
    }
}
