//! Everything there is in a run, and the loop that lets it happen.

mod acts;
mod arrivals;
mod disturbances;
pub(crate) mod drain;
mod halts;
mod large;
mod outer;
mod passes;
mod scenario;
mod shell;
mod stop;
mod strangers;
mod upgrade;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::TransportConfig;
use tollgate_shards::{
    Command, CommandId, ConnectionKey, Drops, Received, Shard, ShardIndex, TransportParams, transport,
};

use self::drain::{DrainTimes, Draining};
use crate::by_shard::ByShard;
use crate::client::{Act, Device};
use crate::gateway::Gateway;
use crate::hits::Hits;
use crate::hostile::failures::Failures;
use crate::hostile::floods::Floods;
use crate::link::Aggregate;
use crate::mesh::Mesh;
use crate::oracle::{Oracle, Violation};
use crate::packets::Packets;
use crate::plan::Plan;
use crate::random::Stream;
use crate::run::{Facts, Options, Planted};
use crate::schedule::{Schedule, Time};
use crate::shell::Shell;
use crate::tcp::Tcp;
use crate::trace::{Trace, Who};

pub use crate::gateway::GATEWAY;
use crate::gateway::default_for;
pub(crate) use halts::{Input, Pause};
use outer::Outer;
pub use scenario::{Seen, Setup, UserSpec};
use stop::Stops;
use strangers::Strangers;
use upgrade::{Step, Upgrade};

/// More passes than this at one moment mean that it will never pass.
const PASSES_AT_ONCE_MAX: usize = 100_000;
/// Somebody who wants to be woken again and again, and does nothing, lets so many moments last less than that.
const MOMENTS: u32 = 20_000;
const MOMENTS_LAST_MIN: Duration = Duration::from_micros(100);

#[derive(Debug)]
pub(crate) enum Event {
    /// Datagrams from some source reach that address of the gateway.
    ToGateway(SocketAddr, SocketAddr, Aggregate),
    /// Datagrams from that address of the gateway reach whoever has an outer address by now.
    ToDevice(SocketAddr, SocketAddr, Aggregate),
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
    /// A TCP connection of a flow begins.
    TcpStart(u32),
    /// A TCP connection is to be looked at.
    Tcp(u32),
    Reload,
    Kick,
    Restart,
    Stop(u16),
    /// A shard is to drain at that pace, or to take clients again.
    Drain(u16, Option<DrainTimes>),
    /// Likewise the process that serves by then.
    OrderDrain(Option<DrainTimes>),
    Upgrade(Step),
    /// The users change while that device logs in.
    Race(u32),
    Nat,
    Pause,
    Stand,
    /// A core or its clock may go on.
    Resume(u16),
    Strangers,
    Flood,
    Fail,
    Large,
    /// A device that means harm does something.
    Cheat(u32),
    /// One feigns to be elsewhere, or to be back.
    Feint(u32, bool),
    /// The oracles look at everything.
    Inspect,
    /// Something of the kernel's below the shell.
    Kernel(shell::Happening),
}

pub struct World {
    pub(crate) plan: Plan,
    pub now: Time,
    pub(crate) schedule: Schedule<Event>,
    pub(crate) trace: Trace,
    pub(crate) packets: Packets,
    pub gateway: Gateway,
    pub(crate) mesh: Mesh,
    /// What the shell's cores share, where they are around the shards.
    pub(crate) shell: Option<Shell>,
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
    pub(crate) stops: Option<Stops>,
    /// The shard that takes what came in a pause.
    catching_up: Option<u16>,
    draining: ByShard<Draining>,
    drains: Stream,
    upgrade: Option<Upgrade>,
    pub(crate) origin: Instant,
    pub(crate) traffic: Stream,
    pub(crate) frames: Stream,
    pub(crate) tcp: Tcp,
    pub(crate) disturbance: Stream,
    pub(crate) planted: Option<Planted>,
    pub(crate) hits: Hits,
    pub(crate) strangers: Strangers,
    pub(crate) floods: Floods,
    pub(crate) failures: Failures,
    pub(crate) negotiation: Stream,
    pub(crate) large: Stream,
    /// Large packets so far that may be fragmented.
    pub(crate) large_packets: u16,
    pub(crate) cheats: Stream,
    races: Stream,
    restarts: Stream,
    /// Inner packets that have arrived, of those who mean no harm and for them.
    pub(crate) goodput: u64,
    transport: Arc<TransportConfig>,
    outer: Outer,
    halt: Stream,
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
        let mut mesh = Mesh::new(plan.shards, &plan.disturbances, plan.draws.stream("mesh"));
        mesh.deliver_hairpins_twice = options.planted == Some(Planted::HairpinTwice);
        let shell = plan.shell.map(|shell| {
            let streams = ["shell", "refusals", "panics"].map(|name| plan.draws.stream(name));
            gateway.enter_shell(shell, streams)
        });
        let parameters = TransportParams { keep_alive: Some(plan.keep_alive), ..plan.transport.clone() };
        let mut world = World {
            now: Time::default(),
            schedule: Schedule::default(),
            trace: Trace::new(options.print),
            packets: Packets::new(&plan),
            mesh,
            shell,
            devices: Vec::new(),
            oracle: Oracle::new(&plan, &gateway.snapshot),
            gateway,
            on_links_max: None,
            sent_away: BTreeMap::new(),
            seen: Seen::default(),
            is_calm: false,
            stops: None,
            catching_up: None,
            draining: ByShard::default(),
            drains: plan.draws.stream("drains"),
            upgrade: None,
            origin,
            traffic: plan.draws.stream("traffic"),
            frames: plan.draws.stream("frames"),
            tcp: Tcp::new(&plan),
            disturbance: plan.draws.stream("disturbance"),
            planted: options.planted,
            hits: Hits::default(),
            strangers: Strangers::new(&plan),
            floods: Floods::new(&plan.draws),
            failures: Failures::new(&plan.draws),
            negotiation: plan.draws.stream("negotiation"),
            large: plan.draws.stream("large"),
            large_packets: 0,
            cheats: plan.draws.stream("cheats"),
            races: plan.draws.stream("races"),
            restarts: plan.draws.stream("restarts"),
            goodput: 0,
            transport: Arc::new(transport(&parameters)),
            outer: Outer::new(&plan),
            halt: halts::stream(plan.seed),
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

    /// The time as a shard's clock has it.
    pub(crate) fn shard_instant(&self, index: u16) -> Instant {
        self.origin + self.gateway.clocks[usize::from(index)].reads(self.now).since_start()
    }

    /// Lets everything happen that happens until `end`, or until the first violation.
    pub(crate) fn run_until(&mut self, end: Time) -> Result<(), Violation> {
        let (mut moments, mut since) = (0, self.now);
        while let Some(at) = self.schedule.next()
            && at <= end
        {
            self.now = self.now.max(at);
            self.moment()?;
            moments += 1;
            if moments == MOMENTS {
                if self.now - since < MOMENTS_LAST_MIN {
                    return Err(Violation::new("rest", format!("{MOMENTS} moments last {:?}", self.now - since)));
                }
                (moments, since) = (0, self.now);
            }
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
        // Turns of the shell's cores wake others.
        shards.append(&mut self.dirty_shards);
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

    /// Whether it was to happen to a shard that is no more.
    fn is_for_nobody(&self, event: &Event) -> bool {
        match *event {
            Event::Mesh(_, shard) => !self.gateway.cores.has(shard),
            Event::Order(index) | Event::WakeShard(index) | Event::Drain(index, _) | Event::Resume(index) => {
                !self.gateway.cores.has(ShardIndex(index))
            }
            _ => false,
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        if self.is_for_nobody(&event) {
            return Ok(());
        }
        match event {
            Event::ToGateway(from, to, aggregate) => self.reach_gateway_at(from, to, aggregate),
            Event::ToDevice(from, to, aggregate) => self.reach_device(from, to, aggregate),
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
            Event::Kernel(happening) => self.happen_in_kernel(happening),
            Event::Flow(index) => self.flow(index),
            Event::TcpStart(flow) => self.tcp_start(flow),
            Event::Tcp(index) => self.tcp(index)?,
            Event::Reload => self.reload()?,
            Event::Kick => self.kick(),
            Event::Restart => self.restart(),
            Event::Stop(index) => self.stop_shard(index),
            Event::Drain(index, pace) => self.drain_shard(index, pace),
            Event::OrderDrain(pace) => self.order_drain(pace),
            Event::Upgrade(step) => self.upgrade(step),
            Event::Race(index) => self.race(index),
            Event::Nat => self.nat(),
            Event::Pause => self.pause(),
            Event::Stand => self.stand(),
            Event::Resume(index) => self.resume(index)?,
            Event::Strangers => self.strangers_send(),
            Event::Flood => self.flood(),
            Event::Fail => self.fail(),
            Event::Large => self.send_large(),
            Event::Cheat(index) => self.cheat(index)?,
            Event::Feint(index, is_away) => self.feign(index, is_away),
            Event::Inspect => {
                assert!(self.planted != Some(Planted::Panic), "this panic was planted");
                crate::oracle::inspect(self)?;
                self.gateway.cores.iter().for_each(|core| self.hits.states(core.shard()));
                self.schedule.at(self.now + Duration::from_millis(777), Event::Inspect);
            }
        }
        Ok(())
    }

    /// Remembers to look at a shard before time goes on.
    pub(crate) fn touch_shard(&mut self, index: u16) {
        let core = &mut self.gateway.cores[usize::from(index)];
        if !core.dirty && core.pause.is_none() {
            core.dirty = true;
            self.dirty_shards.push(index);
        }
    }

    /// A shard to which something is about to happen.
    pub fn shard_mut(&mut self, index: u16) -> &mut Shard {
        self.touch_shard(index);
        self.gateway.cores[usize::from(index)].shard_mut()
    }

    /// Remembers to look at a device before time goes on.
    pub(crate) fn touch_device(&mut self, index: u32) {
        let device = &mut self.devices[index as usize];
        if !device.dirty {
            device.dirty = true;
            self.dirty_devices.push(index);
        }
    }

    pub(crate) fn reach_gateway(&mut self, from: SocketAddr, aggregate: Aggregate) {
        self.reach_gateway_at(from, default_for(from), aggregate);
    }

    fn reach_gateway_at(&mut self, from: SocketAddr, to: SocketAddr, aggregate: Aggregate) {
        let Aggregate { segment_bytes, ecn, data } = aggregate;
        if self.shell.is_some() {
            return self.deliver_udp(Received { remote: from, local_ip: Some(GATEWAY.ip()), ecn, segment_bytes, data });
        }
        let index = self.gateway.steer_udp(&data);
        self.trace.note(self.now, Who::Shard(index), "udp in", data.len() as u64);
        let received = Received { remote: from, local_ip: Some(to.ip()), ecn, segment_bytes, data };
        self.input(index, Input::Udp(received));
    }

    fn reach_device(&mut self, from: SocketAddr, to: SocketAddr, aggregate: Aggregate) {
        let Some(&index) = self.outer.holders.get(&to) else { return };
        let Aggregate { segment_bytes, ecn, data } = aggregate;
        self.trace.note(self.now, Who::Device(index), "udp in", data.len() as u64);
        let now = self.instant();
        if let Some(session) = &mut self.devices[index as usize].session {
            if session.end.tunnel().is_drained() {
                self.seen.late(data.chunks(segment_bytes));
            }
            session.end.tunnel().handle_udp(now, Received { remote: from, local_ip: None, ecn, segment_bytes, data });
            self.touch_device(index);
        }
    }

    fn leave_channel(&mut self, from: ShardIndex, to: ShardIndex) {
        if self.gateway.cores[usize::from(to.0)].pause.is_some() {
            return;
        }
        let now = self.shard_instant(to.0);
        loop {
            let users = self.gateway.cores[usize::from(to.0)].users();
            let Some(message) = self.mesh.receive(self.now, from, to, users) else { break };
            self.shard_mut(to.0).handle_message(now, message);
        }
    }

    fn order(&mut self, index: u16) {
        if self.gateway.cores[usize::from(index)].pause.is_some() {
            return;
        }
        let now = self.shard_instant(index);
        while let Some(command) = self.gateway.next_order(index, self.now) {
            let (what, number) = match &command {
                Command::Apply { id, .. } => ("applies", id.0),
                Command::Kick { id, .. } => ("kicks", id.0),
                _ => ("obeys", 0),
            };
            self.trace.note(self.now, Who::Shard(index), what, number);
            let sent_away = self.oracle.before_order(index, &command);
            self.note_sent_away(number, sent_away);
            self.hits.command(&command);
            if self.planted == Some(Planted::OrderNotTold) && index == 0 {
                continue;
            }
            self.touch_shard(index);
            match self.gateway.cores[usize::from(index)].machine_mut() {
                Some(machine) => machine.order(command),
                None => self.shard_mut(index).handle_command(now, command),
            }
        }
        let arrivals = self.gateway.poll_deferred(self.now);
        self.schedule_arrivals(arrivals);
    }

    /// The results of the run so far.
    pub(crate) fn facts(&self) -> Facts {
        let living = self.gateway.cores.iter().map(|core| core.shard().counters());
        let counters: Vec<_> = living.chain(self.gateway.former.iter().copied()).collect();
        let mut drops = Drops::default();
        counters
            .iter()
            .flat_map(|counters| counters.drops.iter())
            .for_each(|(reason, packets)| drops.add(reason, packets));
        let mut hits = self.hits.clone();
        counters.iter().for_each(|counters| hits.counters(counters));
        Facts {
            hits,
            trace_hash: self.trace.hash(),
            events: self.trace.events(),
            packets_sent: self.packets.made() + self.packets.tcp.made(),
            packets_delivered: self.packets.delivered + self.packets.tcp.delivered,
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
pub(crate) fn origin() -> Instant {
    Instant::now()
}
