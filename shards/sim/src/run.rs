//! A run: first a time of faults in which nothing forbidden may happen, then calm in which everything allowed must.

use std::time::Duration;

use clap::ValueEnum;
use tollgate_shards::Drops;

use crate::hits::Hits;
use crate::identity;
use crate::oracle::{self, Violation};
use crate::plan::{Feature, Plan};
use crate::schedule::Time;
use crate::world::{Event, World};

/// After so long, all that is left of connections must be gone. Their last timers run for three probe timeouts (RFC 9000, section 10.2), and where
/// an address changed, an acknowledgement that was lost and came again with a keep-alive may have made those long: the first round trip measured
/// at an address counts three times (RFC 9002, section 5.3), so that one of a minute takes nine, and three more until the last probe.
const LEAVE: Duration = Duration::from_secs(900);

/// Packets that may be under way when goodput is compared.
const PACKETS_UNDER_WAY: u64 = 20;

/// The results of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Everything that was observed, as a number.
    pub trace_hash: u64,
    /// The number of observed events.
    pub events: u64,
    /// Inner packets sent.
    pub packets_sent: u64,
    /// Inner packets that arrived.
    pub packets_delivered: u64,
    /// UDP datagrams that links carried or lost.
    pub datagrams: u64,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Clients that got an address.
    pub sessions: u64,
    /// Packets that the shards dropped, by reason. Those of a shard that was started anew are gone with it.
    pub drops: Drops,
    /// Messages between shards.
    pub messages: u64,
    /// Orders given.
    pub orders: u64,
    /// Shards started anew.
    pub restarts: u64,
    /// The simulated time at the end.
    pub simulated: Duration,
    pub hits: Hits,
}

impl Facts {
    /// One line: what must stay as it is while the engine's insides change. The hash of the trace comes last: it changes with the order of a
    /// shard's outputs too.
    pub fn line(&self, seed: u64) -> String {
        let Facts { packets_sent, packets_delivered, handshakes, sessions, trace_hash, .. } = self;
        let drops = self.drops.iter().filter(|&(_, packets)| packets > 0);
        let drops: Vec<_> = drops.map(|(reason, packets)| format!("{}={packets}", reason.name())).collect();
        let drops = drops.join(" ");
        format!(
            "{seed}: {packets_delivered}/{packets_sent} packets, {sessions}/{handshakes} sessions, {drops}, {trace_hash:016x}"
        )
    }
}

/// Something of the simulator's own that is broken on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Planted {
    /// The mesh delivers inner packets twice.
    HairpinTwice,
    /// A bit of an inner packet changes at the TUN.
    ChangedAtTun,
    /// The driver forgets to tell a shard of an order.
    OrderNotTold,
    /// The driver acknowledges an order while packets from before it are still under way between shards.
    EarlyAcknowledgement,
    /// The driver panics.
    Panic,
}

impl Planted {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_owned()
    }
}

/// How a run is to go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Whether everything is printed.
    pub print: bool,
    /// The fault that is planted.
    pub planted: Option<Planted>,
}

/// Runs `plan` to its end, or to the first violation of what must hold.
pub fn run(plan: Plan, options: Options) -> Result<Facts, Violation> {
    let undisturbed = if plan.is_otherwise_quiet() { Some(goodput(plan.without_harm())?) } else { None };
    identity::begin(plan.seed, false);
    let safety = plan.safety;
    let mut world = World::new(plan, options);
    world.begin();
    let result = world.run_until(Time::default() + safety);
    let result = result.and_then(|()| suffers_not(world.goodput, undisturbed)).and_then(|()| calm(&mut world));
    result.map_err(|violation| violation.at(world.now))?;
    Ok(world.facts())
}

/// The packets that arrive in a plan's time of faults.
fn goodput(plan: Plan) -> Result<u64, Violation> {
    identity::begin(plan.seed, false);
    let safety = plan.safety;
    let mut world = World::new(plan, Options::default());
    world.begin();
    world.run_until(Time::default() + safety).map_err(|violation| violation.at(world.now))?;
    Ok(world.goodput)
}

/// Whoever means no harm gets 95 % at least of what arrives without those who do.
fn suffers_not(goodput: u64, undisturbed: Option<u64>) -> Result<(), Violation> {
    match undisturbed {
        Some(undisturbed) if goodput + PACKETS_UNDER_WAY < undisturbed * 95 / 100 => {
            let what = format!("{goodput} packets arrived, {undisturbed} do where nobody means harm");
            Err(Violation::new("goodput", what))
        }
        _ => Ok(()),
    }
}

/// Runs the plan that `bytes` stand for. Any bytes do.
pub fn run_bytes(bytes: &[u8]) -> Result<Facts, Violation> {
    run(Plan::from_bytes(bytes), Options::default())
}

/// Faults stop. Whoever may be connected must get there and exchange packets both ways; then all say goodbye, and nothing must be left.
fn calm(world: &mut World) -> Result<(), Violation> {
    world.calm_down();
    if let Some(after) = world.stops_early() {
        world.run_until(world.now + after)?;
        world.stop_for_good(false)?;
        return leave(world);
    }
    let deadline = world.now + world.patience();
    loop {
        let missing = world.missing();
        if missing.is_empty() && world.gateway.has_no_order() {
            break;
        }
        if world.now >= deadline {
            return Err(Violation::new("liveness", world.describe_missing(&missing)));
        }
        world.exchange()?;
        world.run_until(world.now + Duration::from_millis(500))?;
    }
    if !world.plan.tcp.is_empty() {
        finish_tcp(world)?;
    }
    oracle::at_rest(world)?;
    if world.plan.features.has(Feature::Stop) {
        world.stop_for_good(true)?;
        if world.shell.is_some() {
            // Its cores are no more, and what they had is not looked at.
            return Ok(());
        }
    }
    leave(world)
}

/// All leave, and nothing must be left.
fn leave(world: &mut World) -> Result<(), Violation> {
    world.close_all();
    let deadline = world.now + LEAVE;
    while world.now < deadline && !world.is_empty() {
        world.run_until(world.now + Duration::from_secs(5))?;
    }
    oracle::at_end(world)
}

/// Connections of TCP end, and each flow has one more.
fn finish_tcp(world: &mut World) -> Result<(), Violation> {
    world.tcp_calm_down();
    let deadline = world.now + world.patience();
    loop {
        world.run_until(world.now + Duration::from_millis(500))?;
        let left = world.tcp_left();
        if left.is_empty() {
            break;
        }
        if world.now >= deadline {
            return Err(Violation::new("liveness", left.join("; ")));
        }
    }
    // What is under way arrives.
    world.run_until(world.now + Duration::from_secs(1))?;
    world.tcp_judge()
}

impl World {
    /// Schedules what happens without anybody's doing.
    pub(crate) fn begin(&mut self) {
        for (index, device) in self.plan.devices.iter().enumerate() {
            let at = Time::default() + device.first_connect;
            self.schedule.at(at, Event::Device(index as u32, crate::client::Act::Connect));
            if let Some(every) = device.rebind_every {
                self.schedule.at(Time::default() + every, Event::Device(index as u32, crate::client::Act::Rebind));
            }
        }
        for index in 0..self.plan.flows.len() {
            let at = Time::default() + self.plan.flows[index].every;
            self.schedule.at(at, Event::Flow(index as u32));
        }
        self.schedule_tcp();
        self.schedule_disturbances();
        self.schedule.at(Time::default() + Duration::from_millis(777), Event::Inspect);
    }
}
