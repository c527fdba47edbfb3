//! Everything there is in a run, and the loop that lets it happen.

mod acts;
mod disturbances;
mod passes;
mod scenario;
mod strangers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::TransportConfig;
use rustc_hash::FxHashMap;
use tollgate_shards::{
    Command, CommandId, ConnectionKey, Drops, Machine, Received, Shard, ShardIndex, TransportParams, transport,
};

use crate::client::{Act, Device};
use crate::gateway::Gateway;
use crate::link::Aggregate;
use crate::mesh::Mesh;
use crate::oracle::{Oracle, Violation};
use crate::packets::Packets;
use crate::plan::Plan;
use crate::random::Stream;
use crate::run::{Facts, Options, Planted};
use crate::schedule::{Schedule, Time};
use crate::trace::{Trace, Who};

pub use crate::gateway::GATEWAY;
pub use scenario::{Seen, Setup, UserSpec};
use strangers::Strangers;

/// More passes than this at one moment mean that it will never pass.
const PASSES_AT_ONCE_MAX: usize = 100_000;

#[derive(Debug)]
pub(crate) enum Event {
    /// Datagrams of some source reach the gateway.
    ToGateway(SocketAddr, Aggregate),
    /// Datagrams of the gateway reach whoever has an outer address by now.
    ToDevice(SocketAddr, Aggregate),
    /// Something comes out of the channel between two shards.
    Mesh(ShardIndex, ShardIndex),
    Order(u16),
    WakeShard(u16),
    /// A device's tunnel wants to be woken.
    WakeDevice(u32),
    /// A device acts, as that session (by number; any if it connects or rebinds).
    Device(u32, Act),
    /// A session's planned end has come.
    End(u32, u64, Act),
    Flow(u32),
    Reload,
    Kick,
    Restart,
    Strangers,
    /// The oracles look at everything.
    Inspect,
}

pub struct World {
    pub(crate) plan: Plan,
    pub now: Time,
    pub(crate) schedule: Schedule<Event>,
    pub(crate) trace: Trace,
    pub(crate) packets: Packets,
    pub gateway: Gateway,
    pub(crate) mesh: Mesh,
    pub devices: Vec<Device>,
    pub(crate) oracle: Oracle,
    /// For how long datagrams are under way to clients at most, where nothing holds them up in the gateway: with it, packets of clients that
    /// were sent away are looked for at other clients too.
    pub(crate) on_links_max: Option<Duration>,
    /// Clients that orders send away, and which sessions of theirs, until the orders are acknowledged.
    pub(crate) sent_away: BTreeMap<CommandId, Vec<(ConnectionKey, u32, u64)>>,
    /// What came out, where a test acts.
    pub seen: Seen,
    pub(crate) is_calm: bool,
    pub(crate) origin: Instant,
    pub(crate) traffic: Stream,
    pub(crate) disturbance: Stream,
    pub(crate) planted: Option<Planted>,
    strangers: Strangers,
    transport: Arc<TransportConfig>,
    by_outer: FxHashMap<SocketAddr, u32>,
    outer_addresses: u32,
    dirty_shards: Vec<u16>,
    dirty_devices: Vec<u32>,
    arrivals: Vec<(Time, Aggregate)>,
    buf: Vec<u8>,
    datagrams: u64,
    sessions: u64,
    pub(crate) frames_in: u64,
}

impl World {
    /// The world of `plan` before anything has happened.
    pub(crate) fn new(plan: Plan, options: Options) -> Self {
        let origin = origin();
        let mut gateway = Gateway::new(&plan, origin);
        gateway.acknowledges_early = options.planted == Some(Planted::EarlyAcknowledgement);
        let mut mesh = Mesh::new(plan.shards, &plan.disturbances, Stream::new(plan.seed, "mesh"));
        mesh.deliver_hairpins_twice = options.planted == Some(Planted::HairpinTwice);
        let parameters = TransportParams { keep_alive: Some(plan.keep_alive), ..plan.transport.clone() };
        let mut world = World {
            now: Time::default(),
            schedule: Schedule::default(),
            trace: Trace::new(options.print),
            packets: Packets::new(&plan),
            gateway,
            mesh,
            devices: Vec::new(),
            oracle: Oracle::new(&plan),
            on_links_max: None,
            sent_away: BTreeMap::new(),
            seen: Seen::default(),
            is_calm: false,
            origin,
            traffic: Stream::new(plan.seed, "traffic"),
            disturbance: Stream::new(plan.seed, "disturbance"),
            planted: options.planted,
            strangers: Strangers::new(plan.seed),
            transport: Arc::new(transport(&parameters)),
            by_outer: FxHashMap::default(),
            outer_addresses: 0,
            dirty_shards: Vec::new(),
            dirty_devices: Vec::new(),
            arrivals: Vec::new(),
            buf: Vec::new(),
            datagrams: 0,
            sessions: 0,
            frames_in: 0,
            plan,
        };
        for (index, device) in world.plan.devices.clone().into_iter().enumerate() {
            let outer = world.fresh_outer_address(index as u32);
            world.devices.push(Device::new(index as u32, device, outer, world.plan.seed));
        }
        world
    }

    /// The time as the state machines get it.
    pub fn instant(&self) -> Instant {
        self.origin + self.now.since_start()
    }

    /// Lets everything happen that happens until `end`, or until the first violation.
    pub(crate) fn run_until(&mut self, end: Time) -> Result<(), Violation> {
        while let Some(at) = self.schedule.next()
            && at <= end
        {
            self.now = self.now.max(at);
            self.moment()?;
        }
        self.now = end;
        Ok(())
    }

    /// Everything that happens now.
    fn moment(&mut self) -> Result<(), Violation> {
        for _ in 0..PASSES_AT_ONCE_MAX {
            while let Some(event) = self.schedule.pop_due(self.now) {
                self.happen(event)?;
            }
            if self.dirty_shards.is_empty() && self.dirty_devices.is_empty() {
                return Ok(());
            }
            self.pass()?;
        }
        Err(Violation::new("rest", "the world does not come to rest".to_owned()))
    }

    fn pass(&mut self) -> Result<(), Violation> {
        let mut shards = std::mem::take(&mut self.dirty_shards);
        shards.sort_unstable();
        for &index in &shards {
            self.pass_shard(index)?;
        }
        shards.clear();
        self.dirty_shards = shards;
        let mut devices = std::mem::take(&mut self.dirty_devices);
        devices.sort_unstable();
        for &index in &devices {
            self.pass_device(index)?;
        }
        devices.clear();
        self.dirty_devices = devices;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::ToGateway(from, aggregate) => self.reach_gateway(from, aggregate),
            Event::ToDevice(to, aggregate) => self.reach_device(to, aggregate),
            Event::Mesh(from, to) => self.leave_channel(from, to),
            Event::Order(index) => self.order(index),
            Event::WakeShard(index) => {
                let core = &mut self.gateway.cores[usize::from(index)];
                if core.wake.is_some_and(|at| at <= self.now) {
                    core.wake = None;
                    self.touch_shard(index);
                }
            }
            Event::WakeDevice(index) => {
                let device = &mut self.devices[index as usize];
                if device.wake.is_some_and(|at| at <= self.now) {
                    device.wake = None;
                    self.touch_device(index);
                }
            }
            Event::Device(index, act) => self.act(index, act),
            Event::End(index, number, act) => {
                let session = self.devices[index as usize].session.as_ref();
                if !self.is_calm && session.is_some_and(|session| session.number == number && !session.over) {
                    self.act(index, act);
                }
            }
            Event::Flow(index) => self.flow(index),
            Event::Reload => self.reload(),
            Event::Kick => self.kick(),
            Event::Restart => self.restart()?,
            Event::Strangers => self.strangers_send(),
            Event::Inspect => {
                assert!(self.planted != Some(Planted::Panic), "this panic was planted");
                crate::oracle::inspect(self)?;
                self.schedule.at(self.now + Duration::from_millis(777), Event::Inspect);
            }
        }
        Ok(())
    }

    /// Remembers to look at a shard before time goes on.
    pub(crate) fn touch_shard(&mut self, index: u16) {
        let core = &mut self.gateway.cores[usize::from(index)];
        if !core.dirty {
            core.dirty = true;
            self.dirty_shards.push(index);
        }
    }

    /// A shard to which something is about to happen.
    pub fn shard_mut(&mut self, index: u16) -> &mut Shard {
        self.touch_shard(index);
        &mut self.gateway.cores[usize::from(index)].shard
    }

    /// Remembers to look at a device before time goes on.
    pub(crate) fn touch_device(&mut self, index: u32) {
        let device = &mut self.devices[index as usize];
        if !device.dirty {
            device.dirty = true;
            self.dirty_devices.push(index);
        }
    }

    fn reach_gateway(&mut self, from: SocketAddr, aggregate: Aggregate) {
        let Aggregate { segment_bytes, ecn, data } = aggregate;
        let index = self.gateway.steer_udp(&data);
        self.trace.note(self.now, Who::Shard(index), "udp in", data.len() as u64);
        let received = Received { remote: from, local_ip: Some(GATEWAY.ip()), ecn, segment_bytes, data };
        let now = self.instant();
        self.shard_mut(index).handle_udp(now, received);
    }

    fn reach_device(&mut self, to: SocketAddr, aggregate: Aggregate) {
        let Some(&index) = self.by_outer.get(&to) else { return };
        let Aggregate { segment_bytes, ecn, data } = aggregate;
        self.trace.note(self.now, Who::Device(index), "udp in", data.len() as u64);
        let now = self.instant();
        if let Some(session) = &mut self.devices[index as usize].session {
            if session.end.tunnel().is_drained() {
                self.seen.late(data.chunks(segment_bytes));
            }
            session
                .end
                .tunnel()
                .handle_udp(now, Received { remote: GATEWAY, local_ip: None, ecn, segment_bytes, data });
            self.touch_device(index);
        }
    }

    fn leave_channel(&mut self, from: ShardIndex, to: ShardIndex) {
        let now = self.instant();
        while let Some(message) = self.mesh.receive(self.now, from, to) {
            self.shard_mut(to.0).handle_message(now, message);
        }
    }

    fn order(&mut self, index: u16) {
        let now = self.instant();
        while let Some(command) = self.gateway.next_order(index, self.now) {
            let (what, number) = match &command {
                Command::Apply { id, .. } => ("applies", id.0),
                Command::Kick { id, .. } => ("kicks", id.0),
                _ => ("obeys", 0),
            };
            self.trace.note(self.now, Who::Shard(index), what, number);
            let sent_away = self.oracle.before_order(index, &command);
            self.note_sent_away(number, sent_away);
            if self.planted == Some(Planted::OrderNotTold) && index == 0 {
                continue;
            }
            self.shard_mut(index).handle_command(now, command);
        }
    }

    /// The results of the run so far.
    pub(crate) fn facts(&self) -> Facts {
        let counters: Vec<_> = self.gateway.cores.iter().map(|core| core.shard.counters()).collect();
        let mut drops = Drops::default();
        counters
            .iter()
            .flat_map(|counters| counters.drops.iter())
            .for_each(|(reason, packets)| drops.add(reason, packets));
        Facts {
            trace_hash: self.trace.hash(),
            events: self.trace.events(),
            packets_sent: self.packets.made(),
            packets_delivered: self.packets.delivered,
            datagrams: self.datagrams,
            handshakes: counters.iter().map(|counters| counters.handshakes).sum(),
            sessions: self.sessions,
            drops,
            messages: counters.iter().map(|counters| counters.messages).sum(),
            orders: self.gateway.commands,
            restarts: self.gateway.restarts,
            simulated: self.now.since_start(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "an arbitrary moment; time is virtual from here on")]
fn origin() -> Instant {
    Instant::now()
}
