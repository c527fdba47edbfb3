//! One client: how far it is, from one connection to the next.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quinn_proto::crypto::ClientConfig as CryptoConfig;
use tollgate_shards::{ClientEvent, CloseCause, Counters, Received, TimerEntry, Transmit, Tunnel, TunnelParams};

use super::common::{Common, INTERVALS};
use super::flows::Flows;
use super::report::{CrowdCounts, add_counters};
use super::{ATTEMPTS_MAX, ClientPlan};

/// Datagrams of one UDP send: the kernel's `UDP_MAX_SEGMENTS` before Linux 6.9.
const SEND_DATAGRAMS_MAX: usize = 64;
/// A client that is to end its connection waits no longer than this for the far end's counts.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// How far a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
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
pub(super) enum After {
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
pub(super) struct Client {
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
    armed: TimerEntry,
    is_touched: bool,
    heard_at: Instant,
    leaving_since: Instant,
    /// Counters of connections that are over.
    gone: Counters,
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
            armed: TimerEntry::default(),
            is_touched: false,
            heard_at: now,
            leaving_since: now,
            gone: Counters::default(),
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
    ///
    /// # Errors
    ///
    /// When the gateway's address or name can be nobody's.
    pub fn connect(&mut self, now: Instant, common: &mut Common) -> Result<()> {
        let params = TunnelParams {
            remote: common.remote,
            server_name: common.server_name.clone(),
            transport: Arc::clone(&common.transport),
            send_datagrams_max: SEND_DATAGRAMS_MAX,
            seed: common.chance.seed(),
        };
        let tunnel = Tunnel::new(params, Arc::clone(&self.tls), Arc::clone(&common.reset_key), now)
            .with_context(|| format!("cannot connect to {} as {:?}", common.remote, common.server_name))?;
        self.tunnel = Some(Box::new(tunnel));
        self.attempt += 1;
        self.heard_at = now;
        self.set_state(State::Connecting, &mut common.counts);
        common.timers.handshakes.push(now, (self.slot, self.attempt));
        self.touch(&mut common.touched);
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
        self.armed.fired();
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.handle_timeout(now);
            self.touch(touched);
        }
    }

    /// The time of a flow's source has come.
    pub fn handle_source(&mut self, index: usize, touched: &mut Vec<u32>) {
        self.flows.handle_source(index);
        self.touch(touched);
    }

    /// The time of a flow's acknowledgement has come.
    pub fn handle_credit_timer(&mut self, now: Instant, flow: u32, common: &mut Common) {
        let Some(tunnel) = &mut self.tunnel else { return };
        self.flows.handle_credit_timer(now, flow, tunnel, common);
        self.touch(&mut common.touched);
    }

    /// Puts a flow's question to the far end, for the first time or again.
    pub fn send_question(&mut self, now: Instant, flow: u32, is_first: bool, common: &mut Common) {
        let Some(tunnel) = &mut self.tunnel else { return };
        if self.flows.send_question(now, flow, is_first, tunnel, common) {
            self.touch(&mut common.touched);
        }
    }

    /// A handshake's time is over.
    pub fn handle_handshake_timeout(&mut self, now: Instant, common: &mut Common) {
        if self.state == State::Connecting {
            let seconds = INTERVALS.handshake.as_secs();
            self.fail(&format!("the gateway assigned no address within {seconds} s"), common);
            self.close(now, After::Retry, common);
        }
    }

    /// The time for what is left of a connection is over.
    pub fn handle_closing_timeout(&mut self, common: &mut Common) {
        if matches!(self.state, State::Closing(_)) {
            self.end(common);
        }
    }

    /// Looks at everything that has happened to the client, and queues in its tunnel what it has to send.
    pub fn decide(&mut self, now: Instant, common: &mut Common) {
        self.is_touched = false;
        let Some(mut tunnel) = self.tunnel.take() else { return };
        tunnel.decide(now);
        while let Some(event) = tunnel.poll_event() {
            self.handle_event(now, event, &mut tunnel, common);
        }
        while let Some(packet) = tunnel.poll_packet() {
            self.flows.take(now, &packet, &mut tunnel, common);
        }
        self.flows.generate(now, &mut tunnel, common);
        self.tunnel = Some(tunnel);
    }

    /// The next UDP send.
    #[inline]
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>) -> Option<Transmit> {
        self.tunnel.as_mut()?.poll_transmit(now, buf)
    }

    /// After everything was sent: ends a connection that is over, and sees to it that the client is looked at when it is to be.
    pub fn conclude(&mut self, common: &mut Common) {
        let Some(tunnel) = &mut self.tunnel else { return };
        if tunnel.is_drained() {
            return self.end(common);
        }
        if let Some((at, reason)) = tunnel.poll_timeout() {
            common.timers.tunnels.arm(self.slot, &mut self.armed, at, reason);
        }
        if self.flows.has_more(tunnel, common) {
            self.touch(&mut common.again);
        }
    }

    /// Opens the client's flows, if it is up and has any.
    pub fn open_flows(&mut self, common: &mut Common) {
        if let (State::Open, Some(group)) = (self.state, self.group) {
            self.flows.open(group, self.inner, common);
        }
    }

    /// Ends a connection, after its flows if it has any, so that the next one is made.
    pub fn leave(&mut self, now: Instant, common: &mut Common) {
        if self.flows.is_empty() {
            return self.close(now, After::Connect, common);
        }
        self.set_state(State::Leaving, &mut common.counts);
        self.leaving_since = now;
        self.flows.close(common);
        common.timers.farewells.push(now, (self.slot, self.attempt));
    }

    /// Closes the connection of a client that is leaving if nothing is on the way, or it has waited long enough.
    pub fn take_leave(&mut self, now: Instant, common: &mut Common) {
        if self.state != State::Leaving {
            return;
        }
        let is_quiet = now.saturating_duration_since(self.heard_at) >= INTERVALS.farewell;
        let is_settled = is_quiet && self.flows.is_settled();
        if is_settled || now.saturating_duration_since(self.leaving_since) >= FAREWELL_MAX {
            self.close(now, After::Connect, common);
        } else {
            common.timers.farewells.push(now, (self.slot, self.attempt));
        }
    }

    /// Closes the connection.
    pub fn close(&mut self, now: Instant, after: After, common: &mut Common) {
        let Some(tunnel) = &mut self.tunnel else { return };
        tunnel.close(now);
        common.counts.closed += u64::from(matches!(self.state, State::Open | State::Leaving));
        self.flows.end(common);
        self.begin_closing(now, after, common);
        self.touch(&mut common.touched);
    }

    /// Moves the client on, and keeps the counts of how many are how far.
    pub fn set_state(&mut self, state: State, counts: &mut CrowdCounts) {
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

    /// The counters of all connections there were.
    pub fn add_counters_to(&self, sum: &mut Counters) {
        add_counters(sum, &self.gone);
        if let Some(tunnel) = &self.tunnel {
            add_counters(sum, &tunnel.counters());
        }
    }

    fn handle_event(&mut self, now: Instant, event: ClientEvent, tunnel: &mut Tunnel, common: &mut Common) {
        match (event, self.state) {
            (ClientEvent::Assigned(assignment), State::Connecting) => {
                match assignment.client_address.addr() {
                    IpAddr::V4(address) => self.inner = address,
                    IpAddr::V6(address) => {
                        self.fail(&format!("the gateway assigned {address}, but inner traffic is IPv4 here"), common);
                        tunnel.close(now);
                        return self.begin_closing(now, After::Fail, common);
                    }
                }
                self.failed = 0;
                common.counts.handshakes += 1;
                self.set_state(State::Open, &mut common.counts);
                if common.is_traffic {
                    self.open_flows(common);
                }
            }
            (ClientEvent::Closed(cause), State::Connecting) => {
                self.fail(&cause.to_string(), common);
                self.begin_closing(now, After::Retry, common);
            }
            (ClientEvent::Closed(cause), State::Open | State::Leaving) if cause != CloseCause::Local => {
                common.counts.lost += 1;
                common.note(&format!("connection lost: {cause}"));
                self.flows.end(common);
                self.begin_closing(now, After::Out, common);
            }
            _ => {}
        }
    }

    fn fail(&mut self, reason: &str, common: &mut Common) {
        self.failed += 1;
        common.counts.failed_handshakes += 1;
        common.note(reason);
    }

    /// The connection is over; what is left of it has to die away.
    fn begin_closing(&mut self, now: Instant, after: After, common: &mut Common) {
        self.set_state(State::Closing(after), &mut common.counts);
        common.timers.closings.push(now, (self.slot, self.attempt));
    }

    /// The connection is over and everything said.
    fn end(&mut self, common: &mut Common) {
        if let Some(tunnel) = self.tunnel.take() {
            add_counters(&mut self.gone, &tunnel.counters());
        }
        common.timers.tunnels.disarm(self.slot, &mut self.armed);
        let next = match self.state {
            _ if common.is_ending => State::Out,
            State::Closing(After::Connect) => State::Waiting,
            State::Closing(After::Retry) if self.failed < ATTEMPTS_MAX => State::Waiting,
            State::Closing(After::Retry | After::Fail) => State::Failed,
            _ => State::Out,
        };
        self.flows.end(common);
        self.set_state(next, &mut common.counts);
        if next == State::Waiting {
            common.waiting.push_back(self.slot);
        }
    }
}
