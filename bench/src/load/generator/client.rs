//! One client: how far it is, from one connection to the next.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quinn_proto::crypto::ClientConfig as CryptoConfig;
use tollgate_shards::{ClientEvent, CloseCause, Received, Transmit, Tunnel, TunnelParams};

use super::ClientPlan;
use super::counts::{GeneratorCounts, TunnelTotals};
use super::flows::Flows;
use super::shared::{FAREWELL, HANDSHAKE_TIMEOUT, Shared};
use super::timers::fired;

/// How often a handshake is tried before it counts as failed for good.
const ATTEMPTS_MAX: u8 = 4;
/// Datagrams of one UDP send: the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9.
const SEND_DATAGRAMS_MAX: usize = 64;
/// A client that is to end its connection waits no longer than this for the responder's counts.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// How far a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody wants it yet, or any more.
    Out,
    /// It waits for its turn to connect.
    Waiting,
    /// In a handshake.
    Connecting,
    /// It has an address.
    Open,
    /// It has an address, and is about to close.
    Leaving,
    /// The connection is over, and what is left of it dies away.
    Closing(After),
    /// It never came up, and is not tried any more.
    Failed,
}

/// What comes after a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The next one.
    Connect,
    /// Another attempt, if there may be one.
    Retry,
    /// Nothing.
    Out,
    /// Nothing, since no attempt can succeed.
    Fail,
}

/// A client.
pub struct Client {
    slot: u32,
    group: Option<u8>,
    tls: Arc<dyn CryptoConfig>,
    pub state: State,
    tunnel: Option<Box<Tunnel>>,
    /// Its inner address, once it has one.
    inner: Ipv4Addr,
    /// Connections begun so far: tells a timer of an earlier one.
    pub attempt: u64,
    /// Attempts that failed in a row.
    failed: u8,
    pub flows: Flows,
    armed: Option<Instant>,
    is_touched: bool,
    heard_at: Instant,
    leaving_since: Instant,
}

impl Client {
    pub fn new(slot: u32, meter: u32, plan: &ClientPlan, now: Instant) -> Client {
        Client {
            slot,
            group: plan.group,
            tls: Arc::clone(&plan.tls),
            state: State::Out,
            tunnel: None,
            inner: Ipv4Addr::UNSPECIFIED,
            attempt: 0,
            failed: 0,
            flows: Flows::new(slot, meter),
            armed: None,
            is_touched: false,
            heard_at: now,
            leaving_since: now,
        }
    }

    /// Sees to it that the client is looked at in this pass.
    #[inline]
    pub fn touch(&mut self, touched: &mut Vec<u32>) {
        if !self.is_touched {
            self.is_touched = true;
            touched.push(self.slot);
        }
    }

    /// Begins a handshake.
    pub fn connect(&mut self, now: Instant, shared: &mut Shared) -> Result<()> {
        let params = TunnelParams {
            remote: shared.remote,
            server_name: shared.remote.ip().to_string(),
            transport: Arc::clone(&shared.transport),
            send_datagrams_max: SEND_DATAGRAMS_MAX,
            seed: shared.chance.seed(),
        };
        let tunnel = Tunnel::new(params, Arc::clone(&self.tls), Arc::clone(&shared.reset_key), now)
            .with_context(|| format!("cannot connect to {}", shared.remote))?;
        self.tunnel = Some(Box::new(tunnel));
        self.attempt += 1;
        self.heard_at = now;
        self.set_state(State::Connecting, &mut shared.counts);
        shared.timers.handshakes.push(now, (self.slot, self.attempt));
        self.touch(&mut shared.touched);
        Ok(())
    }

    /// Takes what the client's socket received. Returns whether there is a connection for it.
    #[inline]
    pub fn handle_udp(&mut self, now: Instant, received: Received, touched: &mut Vec<u32>) -> bool {
        let Some(tunnel) = &mut self.tunnel else { return false };
        tunnel.handle_udp(now, received);
        self.heard_at = now;
        self.touch(touched);
        true
    }

    /// The tunnel's time has come.
    pub fn handle_timeout(&mut self, now: Instant, touched: &mut Vec<u32>) {
        fired(&mut self.armed, now);
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.handle_timeout(now);
            self.touch(touched);
        }
    }

    /// The time of a flow's source has come.
    pub fn handle_source(&mut self, now: Instant, index: usize, touched: &mut Vec<u32>) {
        self.flows.handle_source(now, index);
        self.touch(touched);
    }

    /// The time of a flow's acknowledgement has come.
    pub fn handle_credit_timer(&mut self, now: Instant, flow: u32, shared: &mut Shared) {
        let Some(tunnel) = &mut self.tunnel else { return };
        self.flows.handle_credit_timer(now, flow, tunnel, shared);
        self.touch(&mut shared.touched);
    }

    /// Puts a flow's question to the responder, for the first time or again.
    pub fn send_question(&mut self, now: Instant, flow: u32, is_first: bool, shared: &mut Shared) {
        let Some(tunnel) = &mut self.tunnel else { return };
        if self.flows.send_question(now, flow, is_first, tunnel, shared) {
            self.touch(&mut shared.touched);
        }
    }

    /// A handshake's time is over.
    pub fn handle_handshake_timeout(&mut self, now: Instant, shared: &mut Shared) {
        if self.state == State::Connecting {
            let seconds = HANDSHAKE_TIMEOUT.as_secs();
            self.fail(&format!("the gateway assigned no address within {seconds} s"), shared);
            self.close(now, After::Retry, shared);
        }
    }

    /// The time for what is left of a connection is over.
    pub fn handle_closing_timeout(&mut self, shared: &mut Shared) {
        if matches!(self.state, State::Closing(_)) {
            self.end(shared);
        }
    }

    /// Looks at everything that has happened to the client, and queues in its tunnel what it has to send.
    pub fn decide(&mut self, now: Instant, shared: &mut Shared) {
        self.is_touched = false;
        let Some(mut tunnel) = self.tunnel.take() else { return };
        tunnel.decide(now);
        while let Some(event) = tunnel.poll_event() {
            self.handle_event(now, event, &mut tunnel, shared);
        }
        while let Some(packet) = tunnel.poll_packet() {
            self.flows.take(now, &packet, &mut tunnel, shared);
        }
        self.flows.generate(now, &mut tunnel, shared);
        self.tunnel = Some(tunnel);
    }

    /// The next UDP send.
    #[inline]
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.tunnel.as_mut()?.poll_transmit(now, buf)
    }

    /// After everything was sent: ends a connection that is over, and sees to it that the client is looked at when it is to be.
    pub fn conclude(&mut self, shared: &mut Shared) {
        let Some(tunnel) = &mut self.tunnel else { return };
        if tunnel.is_drained() {
            return self.end(shared);
        }
        if let Some((at, _)) = tunnel.poll_timeout() {
            shared.timers.tunnels.arm(self.slot, &mut self.armed, at);
        }
        if self.flows.has_more(tunnel, shared) {
            self.touch(&mut shared.again);
        }
    }

    /// Opens the client's flows, if it is up and has any.
    pub fn open_flows(&mut self, shared: &mut Shared) {
        if let (State::Open, Some(group)) = (self.state, self.group) {
            self.flows.open(group, self.inner, shared);
        }
    }

    /// Ends a connection, after its flows if it has any, so that the next one is made.
    pub fn leave(&mut self, now: Instant, shared: &mut Shared) {
        if self.flows.is_empty() {
            return self.close(now, After::Connect, shared);
        }
        self.set_state(State::Leaving, &mut shared.counts);
        self.leaving_since = now;
        self.flows.close(shared);
        shared.timers.farewells.push(now, (self.slot, self.attempt));
    }

    /// Closes the connection of a client that is leaving if nothing is on the way, or it has waited long enough.
    pub fn take_leave(&mut self, now: Instant, shared: &mut Shared) {
        if self.state != State::Leaving {
            return;
        }
        let is_quiet = now.saturating_duration_since(self.heard_at) >= FAREWELL;
        let is_settled = is_quiet && self.flows.is_settled();
        if is_settled || now.saturating_duration_since(self.leaving_since) >= FAREWELL_MAX {
            self.close(now, After::Connect, shared);
        } else {
            shared.timers.farewells.push(now, (self.slot, self.attempt));
        }
    }

    /// Closes the connection.
    pub fn close(&mut self, now: Instant, after: After, shared: &mut Shared) {
        let Some(tunnel) = &mut self.tunnel else { return };
        tunnel.close(now);
        shared.counts.closed += u64::from(matches!(self.state, State::Open | State::Leaving));
        self.flows.end(shared);
        self.begin_closing(now, after, shared);
        self.touch(&mut shared.touched);
    }

    /// Moves the client on, and keeps the counts of how many are how far.
    pub fn set_state(&mut self, state: State, counts: &mut GeneratorCounts) {
        for (state, was) in [(self.state, true), (state, false)] {
            let is_ending = matches!(state, State::Closing(After::Out | After::Fail));
            let is_between = matches!(state, State::Closing(After::Connect | After::Retry));
            for (count, is_one) in [
                (&mut counts.connecting, is_between || matches!(state, State::Waiting | State::Connecting)),
                (&mut counts.handshaking, state == State::Connecting),
                (&mut counts.connected, matches!(state, State::Open | State::Leaving)),
                (&mut counts.closing, is_ending || state == State::Leaving),
                (&mut counts.failed, state == State::Failed),
            ] {
                *count = if was { *count - u64::from(is_one) } else { *count + u64::from(is_one) };
            }
        }
        self.state = state;
    }

    /// The counters of the connection that there is.
    pub fn add_counters_to(&self, sum: &mut TunnelTotals) {
        if let Some(tunnel) = &self.tunnel {
            sum.add(&tunnel.counters());
        }
    }

    fn handle_event(&mut self, now: Instant, event: ClientEvent, tunnel: &mut Tunnel, shared: &mut Shared) {
        match (event, self.state) {
            (ClientEvent::Assigned(assignment), State::Connecting) => {
                match assignment.client_address.addr() {
                    IpAddr::V4(address) => self.inner = address,
                    IpAddr::V6(address) => {
                        self.fail(&format!("the gateway assigned {address}, but inner traffic is IPv4 here"), shared);
                        tunnel.close(now);
                        return self.begin_closing(now, After::Fail, shared);
                    }
                }
                self.failed = 0;
                shared.counts.handshakes += 1;
                self.set_state(State::Open, &mut shared.counts);
                if shared.is_traffic {
                    self.open_flows(shared);
                }
            }
            (ClientEvent::Closed(cause), State::Connecting) => {
                self.fail(&cause.to_string(), shared);
                self.begin_closing(now, After::Retry, shared);
            }
            (ClientEvent::Closed(cause), State::Open | State::Leaving) if cause != CloseCause::Local => {
                shared.counts.lost += 1;
                shared.note(&format!("connection lost: {cause}"));
                self.flows.end(shared);
                self.begin_closing(now, After::Out, shared);
            }
            _ => {}
        }
    }

    fn fail(&mut self, reason: &str, shared: &mut Shared) {
        self.failed += 1;
        shared.counts.failed_handshakes += 1;
        shared.note(reason);
    }

    /// The connection is over; what is left of it has to die away.
    fn begin_closing(&mut self, now: Instant, after: After, shared: &mut Shared) {
        self.set_state(State::Closing(after), &mut shared.counts);
        shared.timers.closings.push(now, (self.slot, self.attempt));
    }

    /// The connection is over and everything said.
    fn end(&mut self, shared: &mut Shared) {
        if let Some(tunnel) = self.tunnel.take() {
            shared.tunnels.add(&tunnel.counters());
        }
        let next = match self.state {
            _ if shared.is_ending => State::Out,
            State::Closing(After::Connect) => State::Waiting,
            State::Closing(After::Retry) if self.failed < ATTEMPTS_MAX => State::Waiting,
            State::Closing(After::Retry | After::Fail) => State::Failed,
            _ => State::Out,
        };
        self.flows.end(shared);
        self.set_state(next, &mut shared.counts);
        if next == State::Waiting {
            shared.waiting.push_back(self.slot);
        }
    }
}
