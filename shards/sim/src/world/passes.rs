//! One look at a shard or at a device: what is due, what comes out of it and where that goes.

use std::time::{Duration, Instant};

use tollgate_shards::{
    Action, ClientEvent, ClientMtu, DropReason, Event as ShardEvent, Machine, Message, Output, PacketMessage,
    ShardIndex, SteeringUpdate, Transmit,
};

use super::{Event, World};
use crate::oracle::Violation;
use crate::plan::Feature;
use crate::run::Planted;
use crate::schedule::Time;
use crate::trace::Who;

/// What a pass of a shard has come to beside UDP sends.
#[derive(Default)]
struct Outputs {
    events: Vec<ShardEvent>,
    client_mtus: Vec<ClientMtu>,
    frames: Vec<Vec<u8>>,
    steers: Vec<SteeringUpdate>,
    messages: Vec<(ShardIndex, Message)>,
}

impl World {
    pub(super) fn pass_shard(&mut self, index: u16) -> Result<(), Violation> {
        let now = self.instant();
        let who = Who::Shard(index);
        let core = &mut self.gateway.cores[usize::from(index)];
        core.dirty = false;
        if core.shard.poll_timeout().is_some_and(|(at, _)| at <= now) {
            core.shard.handle_timeout(now);
        }
        let mut buf = std::mem::take(&mut self.buf);
        let mut outputs = Outputs::default();
        while let Some(output) = self.gateway.cores[usize::from(index)].shard.poll_output(now, true, Some(&mut buf)) {
            match output {
                Output::Transmit(transmit) => {
                    self.transmit(who, &transmit, &buf)?;
                    buf.clear();
                }
                Output::Frame(frame) => outputs.frames.push([frame.header, &frame.payloads.concat()].concat()),
                Output::Action(Action::Log(event)) => outputs.events.push(event),
                Output::Action(Action::Steering(update)) => outputs.steers.push(update),
                Output::Action(Action::Send(to, message)) => outputs.messages.push((to, message)),
                Output::Action(Action::ClientMtu(mtu)) => outputs.client_mtus.push(mtu),
            }
        }
        self.buf = buf;
        self.carry_out(index, outputs)?;
        self.sleep_shard(index);
        let core = &mut self.gateway.cores[usize::from(index)];
        core.pass_ends();
        self.oracle.after_pass(&core.shard)?;
        while let Some(pending) = self.gateway.acknowledge() {
            self.trace.note(self.now, Who::World, "acknowledged", pending.id.0);
            self.oracle.acknowledged(self.now, &pending, &self.gateway)?;
            self.packets.permission.snapshots_change(self.now, &self.gateway);
            self.forbid_sent_away(pending.id);
        }
        Ok(())
    }

    /// What a shard sends goes its way to a device.
    fn transmit(&mut self, who: Who, transmit: &Transmit, bytes: &[u8]) -> Result<(), Violation> {
        self.trace.note(self.now, who, "udp out", bytes.len() as u64);
        self.datagrams += transmit.datagrams() as u64;
        self.seen.sent(transmit.remote, bytes.len());
        self.strangers.sent(transmit.remote, bytes.len())?;
        if let Some(&device) = self.by_outer.get(&transmit.remote) {
            let link = &mut self.devices[device as usize].down;
            link.carry(self.now, transmit.segment_bytes, transmit.ecn, bytes, &mut self.arrivals);
            for (at, aggregate) in self.arrivals.drain(..) {
                let at = at.round_up(self.plan.tick);
                self.schedule.at(at, Event::ToDevice(transmit.remote, aggregate));
            }
        }
        Ok(())
    }

    /// Takes what else a shard has: what it tells, the inner packets that it writes to its TUN queue, steering, messages.
    fn carry_out(&mut self, index: u16, outputs: Outputs) -> Result<(), Violation> {
        let (who, from) = (Who::Shard(index), ShardIndex(index));
        for event in &outputs.events {
            self.trace.tell(self.now, who, format_args!("{event:?}"));
            self.sessions += u64::from(matches!(event, ShardEvent::Attached { .. }));
            self.oracle.told(event, &self.gateway.cores[usize::from(index)])?;
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
        for (to, message) in outputs.messages {
            self.trace.note(self.now, who, "says something to", u64::from(to.0));
            if let Message::Packet(PacketMessage::Frame(frame)) = &message {
                self.packets.crosses(frame).map_err(|what| Violation::new("packets", what))?;
            }
            match self.mesh.send(self.now, from, to, message, self.plan.tick) {
                Ok(at) => self.schedule.at(at, Event::Mesh(from, to)),
                Err(packets) => {
                    self.gateway.cores[usize::from(index)].shard.handle_drop(DropReason::MeshFull, packets);
                }
            }
        }
        Ok(())
    }

    pub(super) fn sleep_shard(&mut self, index: u16) {
        let core = &mut self.gateway.cores[usize::from(index)];
        if let Some((at, _)) = core.shard.poll_timeout() {
            let at = Self::wake_at(self.origin, self.now, self.plan.tick, at);
            if core.wake.is_none_or(|wake| at < wake) {
                core.wake = Some(at);
                self.schedule.at(at, Event::WakeShard(index));
            }
        }
    }

    /// Timers are late by a tick, and never early.
    pub(super) fn wake_at(origin: Instant, now: Time, tick: Duration, at: Instant) -> Time {
        let at = Time::default() + at.saturating_duration_since(origin);
        let slack = tick.max(Duration::from_micros(50));
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
        self.events_of_device(index);
        while let Some(packet) = self.devices[index as usize].session.as_mut().and_then(|s| s.end.poll_packet(now)) {
            self.trace.packet(self.now, who, "arrived", &[&packet]);
            self.arrive_at_device(index, &packet)?;
        }
        let mut buf = std::mem::take(&mut self.buf);
        let device = &mut self.devices[index as usize];
        let Some(session) = &mut device.session else { return Ok(()) };
        while let Some(transmit) = session.end.poll_transmit(now, &mut buf) {
            self.trace.note(self.now, who, "udp out", buf.len() as u64);
            self.datagrams += transmit.datagrams() as u64;
            if self.plan.features.has(Feature::Strangers) {
                buf.chunks(transmit.segment_bytes).for_each(|datagram| self.strangers.overhear(datagram));
            }
            if let Some(held) = &mut device.held {
                held.extend(buf.chunks(transmit.segment_bytes).map(<[u8]>::to_vec));
                buf.clear();
                continue;
            }
            device.up.carry(self.now, transmit.segment_bytes, transmit.ecn, &buf, &mut self.arrivals);
            for (at, aggregate) in self.arrivals.drain(..) {
                self.schedule.at(at.round_up(self.plan.tick), Event::ToGateway(device.outer, aggregate));
            }
            buf.clear();
        }
        self.buf = buf;
        if let Some((at, _)) = session.end.tunnel().poll_timeout() {
            let at = Self::wake_at(self.origin, self.now, self.plan.tick, at);
            if device.wake.is_none_or(|wake| at < wake) {
                device.wake = Some(at);
                self.schedule.at(at, Event::WakeDevice(index));
            }
        }
        Ok(())
    }

    pub(super) fn events_of_device(&mut self, index: u32) {
        let now = self.instant();
        let device = &mut self.devices[index as usize];
        let Some(session) = &mut device.session else { return };
        let number = session.number;
        let mut assigned = false;
        while let Some(event) = session.end.poll_event(now) {
            self.trace.tell(self.now, Who::Device(index), format_args!("{event:?}"));
            match &event {
                ClientEvent::Assigned(assignment) => {
                    session.address = Some(assignment.client_address.addr());
                    assigned = true;
                }
                ClientEvent::PathMtu(_) => {}
                ClientEvent::Closed(_) => session.over = true,
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
    }
}
