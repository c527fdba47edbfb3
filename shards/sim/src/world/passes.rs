//! One look at a shard or at a device: what is due, what comes out of it and where that goes.

use std::net::SocketAddr;
use std::time::Duration;

use tollgate_shards::{
    Action, ClientEvent, ClientMtu, DropReason, Event as ShardEvent, Machine, Message, Output, PacketMessage,
    ShardIndex, SteeringUpdate, Transmit,
};

use super::{Event, World};
use crate::gateway::{GATEWAY, GATEWAYS, default_for};
use crate::hostile::negotiation::{self, ANSWERED_PERMILLE};
use crate::link::Aggregate;
use crate::oracle::{self, Violation};
use crate::packets::kernel;
use crate::plan::Feature;
use crate::run::Planted;
use crate::schedule::Time;
use crate::trace::Who;

/// How late the kernel wakes somebody.
const SLACK: Duration = Duration::from_micros(50);

/// What a pass of a shard has come to beside UDP sends.
#[derive(Default)]
pub(super) struct Outputs {
    pub events: Vec<ShardEvent>,
    pub client_mtus: Vec<ClientMtu>,
    pub frames: Vec<Vec<u8>>,
    pub steers: Vec<SteeringUpdate>,
    pub messages: Vec<(ShardIndex, Message)>,
}

/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(60);

impl World {
    pub(super) fn pass_shard(&mut self, index: u16) -> Result<(), Violation> {
        if self.shell.is_some() {
            return self.turn(index);
        }
        let now = self.shard_instant(index);
        let core = &mut self.gateway.cores[usize::from(index)];
        core.dirty = false;
        if let Some((_, reason)) = core.shard_mut().poll_timeout().filter(|&(at, _)| at <= now) {
            self.hits.wake(reason);
            core.shard_mut().handle_timeout(now);
        }
        self.oracle.before_pass(core.shard())?;
        let mut buf = std::mem::take(&mut self.buf);
        let mut outputs = Outputs::default();
        loop {
            let core = &mut self.gateway.cores[usize::from(index)];
            let room = (!core.is_blocked).then_some(&mut buf);
            let Some(output) = core.shard_mut().poll_output(now, true, room) else { break };
            match output {
                Output::Transmit(transmit) => {
                    self.transmit(index, &transmit, &buf)?;
                    buf.clear();
                }
                Output::Frame(frame) => outputs.frames.push([frame.header, &frame.payloads.concat()].concat()),
                Output::Action(Action::Tell(told)) => outputs.events.push(told.event),
                Output::Action(Action::Steering(update)) => outputs.steers.push(update),
                Output::Action(Action::Send(to, message)) => outputs.messages.push((to, message)),
                Output::Action(Action::ClientMtu(mtu)) => outputs.client_mtus.push(mtu),
            }
        }
        self.buf = buf;
        let shard = self.gateway.cores[usize::from(index)].shard();
        oracle::pass_within_bounds(outputs.frames.len(), shard, &self.plan.limits)?;
        self.carry_out(index, outputs)?;
        self.sleep_shard(index);
        self.pass_ends(index)
    }

    /// What a shard had to say is out.
    pub(super) fn pass_ends(&mut self, index: u16) -> Result<(), Violation> {
        let core = &mut self.gateway.cores[usize::from(index)];
        core.pass_ends();
        let behind = self.gateway.clocks[usize::from(index)].behind(self.now);
        // Its timers come once it has taken what has come while it stood, and what a pass has left for the next one is judged then.
        let is_behind = self.catching_up == Some(index) || core.shard().has_backlog();
        let behind = if is_behind { behind + PAUSE_MAX } else { behind };
        self.oracle.after_pass((self.now, behind), core.shard(), &self.plan.limits, |remote| {
            self.floods.has_only_begun(remote)
        })?;
        self.oracle.deadlines.after_pass(self.now, behind, &self.gateway.cores[usize::from(index)])?;
        self.judge_stop(index)?;
        self.judge_drain(index)?;
        while let Some(pending) = self.gateway.acknowledge() {
            self.trace.note(self.now, Who::World, "acknowledged", pending.id.0);
            self.oracle.acknowledged(self.now, &pending, &self.gateway)?;
            self.packets.permission.snapshots_change(self.now, &self.gateway);
            self.forbid_sent_away(pending.id);
        }
        Ok(())
    }

    /// What a shard sends goes its way to a device.
    pub(super) fn transmit(&mut self, index: u16, transmit: &Transmit, bytes: &[u8]) -> Result<(), Violation> {
        let (who, shard) = (Who::Shard(index), ShardIndex(index));
        self.trace.note(self.now, who, "udp out", bytes.len() as u64);
        self.datagrams += transmit.datagrams() as u64;
        self.seen.sent(transmit.remote, bytes.len());
        self.strangers.sent(transmit.remote, bytes.len())?;
        oracle::send_within_bounds(transmit, &self.plan.limits)?;
        self.oracle.sent(self.now, shard, transmit.remote, bytes)?;
        if bytes.first().is_some_and(|first| first & 0xf0 == 0xf0) && !self.seen.keeps_arrivals {
            let mut cores = self.gateway.cores.iter();
            let has_handshakes = cores.any(|core| core.shard().inspect().handshakes_admitted() > 0);
            if self.oracle.placement.retried(self.now, shard, bytes, has_handshakes)? {
                self.hits.placed();
            }
        }
        if self.plan.flood.is_some() {
            self.floods.receive(transmit.remote, bytes);
        }
        if self.plan.failures.is_some() {
            self.failures.receive(transmit.remote, bytes);
        }
        // Where a stranger has sent a client's packet from an address of the other family, the kernel chooses.
        let chosen = transmit.local_ip.filter(|ip| ip.is_ipv4() == transmit.remote.is_ipv4());
        let from = chosen.map_or(default_for(transmit.remote), |ip| SocketAddr::new(ip, GATEWAY.port()));
        if !GATEWAYS.contains(&from) {
            return Err(Violation::new("outer", format!("{who} sends to {} from {from}", transmit.remote)));
        }
        if let Some(&device) = self.outer.holders.get(&transmit.remote) {
            // Where a test acts, it may put a client at an address of the other family.
            let from = if self.seen.is_kept { self.devices[device as usize].remote() } else { from };
            let link = &mut self.devices[device as usize].down;
            link.carry(self.now, transmit.segment_bytes, transmit.ecn, bytes, &mut self.arrivals);
            for (at, aggregate) in self.arrivals.drain(..) {
                let at = at.round_up(self.plan.tick);
                self.schedule.at(at, Event::ToDevice(from, transmit.remote, aggregate));
            }
        }
        Ok(())
    }

    /// Takes what else a shard has: what it tells, the inner packets that it writes to its TUN queue, steering, messages.
    pub(super) fn carry_out(&mut self, index: u16, outputs: Outputs) -> Result<(), Violation> {
        let (who, from) = (Who::Shard(index), ShardIndex(index));
        for event in &outputs.events {
            self.trace.tell(self.now, who, format_args!("{event:?}"));
            self.sessions += u64::from(matches!(event, ShardEvent::Attached { .. }));
            self.hits.event(event);
            self.oracle.told(self.now, event, &self.gateway.cores[usize::from(index)])?;
        }
        self.seen.told(outputs.events, outputs.client_mtus);
        for mut frame in outputs.frames {
            if self.planted == Some(Planted::ChangedAtTun)
                && self.packets.made() > 100
                && let Some(last) = frame.last_mut()
            {
                *last ^= 1;
            }
            self.trace.packet(self.now, who, "tun out", &[&frame]);
            self.arrive_at_tun(index, &frame)?;
        }
        outputs.steers.into_iter().for_each(|update| self.gateway.steer(update.address, update.owner));
        if !outputs.messages.is_empty() {
            self.hits.states_after_messages(self.gateway.cores[usize::from(index)].shard());
        }
        for (to, message) in outputs.messages {
            self.trace.note(self.now, who, "says something to", u64::from(to.0));
            self.hits.message(&message);
            oracle::message_within_bounds(&message, &self.plan.limits)?;
            if let Message::Packet(PacketMessage::Frame(frame)) = &message {
                self.packets.crosses(frame).map_err(|what| Violation::new("packets", what))?;
            }
            if let Message::Packet(PacketMessage::Datagram(received)) = &message {
                self.strangers.crosses(&received.data)?;
            }
            if self.seen.keeps_arrivals && matches!(message, Message::Load { .. }) {
                continue;
            }
            if !self.gateway.cores.has(to) {
                self.drop_message(index, &message);
                continue;
            }
            let users = self.gateway.cores[usize::from(index)].users();
            match self.mesh.send(self.now, (from, users), to, message, self.plan.tick) {
                Ok(at) => self.schedule.at(at, Event::Mesh(from, to)),
                Err(packets) => {
                    self.gateway.cores[usize::from(index)].shard_mut().handle_drop(DropReason::MeshFull, packets);
                }
            }
        }
        Ok(())
    }

    /// A shard has something for one that is no more.
    fn drop_message(&mut self, index: u16, message: &Message) {
        if let Message::Packet(message) = message {
            let is_inner = !matches!(message, PacketMessage::Datagram(_));
            self.mesh.lost_packets += if is_inner { message.packets() } else { 0 };
            let shard = self.gateway.cores[usize::from(index)].shard_mut();
            shard.handle_drop(DropReason::MeshFull, message.packets());
        }
    }

    pub(super) fn sleep_shard(&mut self, index: u16) {
        let core = &mut self.gateway.cores[usize::from(index)];
        if let Some((at, _)) = core.shard_mut().poll_timeout() {
            let at = Time::default() + at.saturating_duration_since(self.origin);
            let clock = &self.gateway.clocks[usize::from(index)];
            let mut at = Self::wake_at(self.now, self.plan.tick, clock.when(at));
            if clock.stands() {
                // What is due by a clock that does not move may be due again at once: quinn-proto's pacing, where a round trip took no time by it.
                at = at.max(self.now + SLACK);
            }
            if core.wake.is_none_or(|wake| at < wake) {
                core.wake = Some(at);
                self.schedule.at(at, Event::WakeShard(index));
            }
        }
    }

    /// Timers are late by a tick, and never early.
    fn wake_at(now: Time, tick: Duration, at: Time) -> Time {
        let slack = tick.max(SLACK);
        at.round_up(slack).max(Time { ns: now.ns + 1 })
    }

    pub(super) fn pass_device(&mut self, index: u32) -> Result<(), Violation> {
        let now = self.instant();
        let who = Who::Device(index);
        let device = &mut self.devices[index as usize];
        device.dirty = false;
        let Some(session) = &mut device.session else { return Ok(()) };
        if session.end.tunnel().poll_timeout().is_some_and(|(at, _)| at <= now) {
            session.end.tunnel().handle_timeout(now);
        }
        self.events_of_device(index)?;
        while let Some(frame) = self.devices[index as usize].session.as_mut().and_then(|s| s.end.poll_frame(now)) {
            self.trace.packet(self.now, who, "arrived", &[&frame[kernel::HEADER_BYTES..]]);
            self.arrive_at_device(index, &frame)?;
        }
        let mut buf = std::mem::take(&mut self.buf);
        let device = &mut self.devices[index as usize];
        let remote = device.remote();
        let Some(session) = &mut device.session else { return Ok(()) };
        while let Some(transmit) = session.end.poll_transmit(now, &mut buf) {
            self.trace.note(self.now, who, "udp out", buf.len() as u64);
            self.datagrams += transmit.datagrams() as u64;
            if self.plan.features.has(Feature::Strangers) {
                buf.chunks(transmit.segment_bytes).for_each(|datagram| self.strangers.overhear(datagram));
            }
            if self.plan.features.has(Feature::Negotiation)
                && !self.is_calm
                && session.address.is_none()
                && self.negotiation.permille(ANSWERED_PERMILLE)
                && let Some(answer) = negotiation::answer(&buf)
            {
                let answer = Aggregate { segment_bytes: answer.len(), ecn: None, data: answer[..].into() };
                self.schedule.at(self.now, Event::ToDevice(remote, device.outer, answer));
            }
            if let Some(held) = &mut device.held {
                held.extend(buf.chunks(transmit.segment_bytes).map(<[u8]>::to_vec));
                buf.clear();
                continue;
            }
            device.up.carry(self.now, transmit.segment_bytes, transmit.ecn, &buf, &mut self.arrivals);
            for (at, aggregate) in self.arrivals.drain(..) {
                if let Some(forged) = device.spoofs {
                    aggregate.data.chunks(aggregate.segment_bytes).for_each(|it| self.strangers.sends(forged, it));
                    self.oracle.moves.claims(self.now, (index, session.number), forged, aggregate.data.len());
                }
                let from = device.spoofs.unwrap_or(device.outer);
                self.schedule.at(at.round_up(self.plan.tick), Event::ToGateway(from, remote, aggregate));
            }
            buf.clear();
        }
        self.buf = buf;
        if let Some((at, _)) = session.end.tunnel().poll_timeout() {
            let at = Time::default() + at.saturating_duration_since(self.origin);
            let at = Self::wake_at(self.now, self.plan.tick, at);
            if device.wake.is_none_or(|wake| at < wake) {
                device.wake = Some(at);
                self.schedule.at(at, Event::WakeDevice(index));
            }
        }
        Ok(())
    }

    pub(super) fn events_of_device(&mut self, index: u32) -> Result<(), Violation> {
        let now = self.instant();
        let device = &mut self.devices[index as usize];
        let Some(session) = &mut device.session else { return Ok(()) };
        let number = session.number;
        let mut assigned = false;
        while let Some(event) = session.end.poll_event(now) {
            self.trace.tell(self.now, Who::Device(index), format_args!("{event:?}"));
            if !self.seen.is_kept && device.plan.cheats.is_none() {
                let (may_be_refused, shown) = (session.may_be_refused, device.shown);
                self.oracle.client_told(&event, &self.plan, may_be_refused, shown)?;
            }
            match &event {
                ClientEvent::Assigned(assignment) => {
                    // Said again by one that has moved.
                    assigned = session.address.is_none();
                    session.address = Some(assignment.client_address.addr());
                }
                ClientEvent::PathMtu(_) => {}
                ClientEvent::Closed(cause) => {
                    session.over = true;
                    self.hits.closed(cause);
                }
            }
            device.events.push(event);
        }
        let over = session.over;
        if assigned {
            device.last_address = session.address;
            if let Some((after, act)) = device.draw_end() {
                self.schedule.at(self.now + after, Event::End(index, number, act));
            }
        }
        if over {
            self.come_back(index);
        }
        Ok(())
    }
}
