//! One look at a shard or at a device: what is due, what it decides, what comes out of it and where that goes.

use std::time::{Duration, Instant};

use tollgate_shards::{ClientEvent, DropReason, Event as ShardEvent, Machine, ShardIndex};

use super::{Event, World};
use crate::oracle::Violation;
use crate::run::Planted;
use crate::schedule::Time;
use crate::trace::Who;

impl World {
    pub(super) fn pass_shard(&mut self, index: u16) -> Result<(), Violation> {
        let now = self.instant();
        let who = Who::Shard(index);
        let core = &mut self.gateway.cores[usize::from(index)];
        core.dirty = false;
        if core.shard.poll_timeout().is_some_and(|(at, _)| at <= now) {
            core.shard.handle_timeout(now);
        }
        core.shard.decide(now);
        let mut buf = std::mem::take(&mut self.buf);
        while let Some(transmit) = self.gateway.cores[usize::from(index)].shard.poll_transmit(now, &mut buf) {
            self.trace.note(self.now, who, "udp out", buf.len() as u64);
            self.datagrams += transmit.datagrams() as u64;
            self.seen.sent(transmit.remote, buf.len());
            if let Some(&device) = self.by_outer.get(&transmit.remote) {
                let link = &mut self.devices[device as usize].down;
                link.carry(self.now, transmit.segment_bytes, transmit.ecn, &buf, &mut self.arrivals);
                for (at, aggregate) in self.arrivals.drain(..) {
                    let at = at.round_up(self.plan.tick);
                    self.schedule.at(at, Event::ToDevice(transmit.remote, aggregate));
                }
            }
            buf.clear();
        }
        self.buf = buf;
        self.events_and_frames(index)?;
        while let Some(steer) = self.gateway.cores[usize::from(index)].shard.poll_steer() {
            self.gateway.steer(steer.address, steer.owner);
        }
        self.messages(index);
        self.sleep_shard(index);
        let core = &mut self.gateway.cores[usize::from(index)];
        core.pass_ends();
        self.oracle.after_pass(&core.shard)?;
        while let Some(pending) = self.gateway.acknowledge() {
            self.trace.note(self.now, Who::World, "acknowledged", pending.id.0);
            self.oracle.acknowledged(self.now, &pending, &self.gateway)?;
            self.forbid_sent_away(pending.id);
        }
        Ok(())
    }

    /// Takes the inner packets that a shard writes to its TUN queue, and what it tells.
    pub(super) fn events_and_frames(&mut self, index: u16) -> Result<(), Violation> {
        let who = Who::Shard(index);
        let core = &mut self.gateway.cores[usize::from(index)];
        let events: Vec<_> = std::iter::from_fn(|| core.shard.poll_event()).collect();
        let client_mtus: Vec<_> = std::iter::from_fn(|| core.shard.poll_client_mtu()).collect();
        for event in &events {
            self.trace.tell(self.now, who, format_args!("{event:?}"));
            self.sessions += u64::from(matches!(event, ShardEvent::Attached { .. }));
            self.oracle.told(event, &self.gateway)?;
        }
        self.seen.told(events, client_mtus);
        let mut frame_bytes = std::mem::take(&mut self.buf);
        loop {
            frame_bytes.clear();
            let Some(frame) = self.gateway.cores[usize::from(index)].shard.poll_frame() else { break };
            frame_bytes.extend_from_slice(frame.header);
            frame.payloads.iter().for_each(|payload| frame_bytes.extend_from_slice(payload));
            if self.planted == Some(Planted::ChangedAtTun) && self.packets.made() > 100 {
                let last = frame_bytes.len() - 1;
                frame_bytes[last] ^= 1;
            }
            self.trace.packet(self.now, who, "tun out", &[&frame_bytes]);
            self.arrive_at_tun(index, &frame_bytes)?;
        }
        frame_bytes.clear();
        self.buf = frame_bytes;
        Ok(())
    }

    pub(super) fn messages(&mut self, index: u16) {
        let from = ShardIndex(index);
        while let Some((to, message)) = self.gateway.cores[usize::from(index)].shard.poll_message() {
            self.trace.note(self.now, Who::Shard(index), "says something to", u64::from(to.0));
            match self.mesh.send(self.now, from, to, message, self.plan.tick) {
                Ok(at) => self.schedule.at(at, Event::Mesh(from, to)),
                Err(packets) => {
                    let shard = &mut self.gateway.cores[usize::from(index)].shard;
                    shard.handle_drop(DropReason::MeshFull, packets);
                }
            }
        }
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
        session.end.decide(now);
        self.events_of_device(index);
        while let Some(packet) = self.devices[index as usize].session.as_mut().and_then(|s| s.end.poll_packet()) {
            self.trace.packet(self.now, who, "arrived", &[&packet]);
            self.arrive_at_device(index, &packet)?;
        }
        let mut buf = std::mem::take(&mut self.buf);
        let device = &mut self.devices[index as usize];
        let Some(session) = &mut device.session else { return Ok(()) };
        while let Some(transmit) = session.end.poll_transmit(now, &mut buf) {
            self.trace.note(self.now, who, "udp out", buf.len() as u64);
            self.datagrams += transmit.datagrams() as u64;
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
        if let Some(at) = session.end.poll_timeout() {
            let at = Self::wake_at(self.origin, self.now, self.plan.tick, at);
            if device.wake.is_none_or(|wake| at < wake) {
                device.wake = Some(at);
                self.schedule.at(at, Event::WakeDevice(index));
            }
        }
        Ok(())
    }

    pub(super) fn events_of_device(&mut self, index: u32) {
        let device = &mut self.devices[index as usize];
        let Some(session) = &mut device.session else { return };
        let number = session.number;
        let mut assigned = false;
        while let Some(event) = session.end.poll_event() {
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
