//! Sends a user away at every delay of messages and orders, one combination after the other, while its packets are everywhere, and looks for one
//! that passes after the acknowledgement.
//!
//! A run of the simulator draws delays, message by message; here each channel between two shards and each order has one of a few, and all
//! combinations have their turn. The sender's packets are on their way to the TUN and to another user's clients, some through the wrong shard's
//! hands; those of others are on their way to the sender; where users are limited, packets wait for tokens in either's queues.

use std::time::Duration;

use tollgate_noise::Kind;
use tollgate_shards::{Limit, Rate, ShaperLimits, User};

use crate::client::Act;
use crate::gateway::Order;
use crate::identity;
use crate::noise;
use crate::oracle::Violation;
use crate::plan::{DevicePlan, Feature, Features, FlowPlan, LinkPlan, Peer, Plan, Source};
use crate::random::Stream;
use crate::run::{Facts, Options};
use crate::world::{Event, World};

/// Worlds after which every combination has had its turn. In as many further ones clients have Noise keys, and so on by turns.
pub const WORLDS: u64 = ORDER_DELAYS.len().pow(SHARDS as u32) as u64 * 4;

const SHARDS: u16 = 3;
/// How long a message takes from one shard to another.
const MESH_DELAYS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(10)];
/// How long an order takes to a shard: at once, in the middle of what others say of it, and when all that has been said.
const ORDER_DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(5), Duration::from_millis(25)];

const ON_LINK: Duration = Duration::from_micros(100);
/// Until the last packet from before has arrived wherever it is going to.
const AFTERWARDS: Duration = Duration::from_millis(30);
const PATIENCE: Duration = Duration::from_secs(20);

/// The user that is sent away; its devices come first.
const LEAVES: usize = 0;
const DEVICES_OF_EACH: usize = 2;

/// Lets every combination of delays on the mesh have its turn in world `number`: with these delays of the order, with a kick or a user that is
/// taken out, with limits or without.
pub fn run(number: u64, options: Options) -> Result<Facts, Violation> {
    identity::begin(number, false);
    let is_kick = number.is_multiple_of(2);
    let has_limits = (number / 2).is_multiple_of(2);
    let mut digits = Digits(number / 4);
    let order_delays = (0..SHARDS).map(|_| digits.pick(&ORDER_DELAYS)).collect();

    let mut world = World::new(plan(number, has_limits), options);
    world.on_links_max = Some(2 * ON_LINK);
    world.gateway.fix_order_delays(order_delays);
    world.begin();
    let channels = SHARDS * SHARDS;
    let combinations = MESH_DELAYS.len().pow(u32::from(SHARDS * (SHARDS - 1)));
    let mut phase = Stream::new(number, "revocation.phase");
    for combination in 0..combinations {
        let mut digits = Digits(combination as u64);
        let delay = |channel: u16| match channel % (SHARDS + 1) {
            0 => Duration::ZERO,
            _ => digits.pick(&MESH_DELAYS),
        };
        world.mesh.fix_delays((0..channels).map(delay).collect());
        let result = one(&mut world, is_kick, phase.duration(Duration::ZERO, Duration::from_millis(2)));
        result.map_err(|violation| violation.at(world.now))?;
    }
    Ok(world.facts())
}

/// Everybody is there; one user is sent away; the packets from before get time to arrive where they must not.
fn one(world: &mut World, is_kick: bool, phase: Duration) -> Result<(), Violation> {
    come(world)?;
    world.run_until(world.now + AFTERWARDS + phase)?;
    (0..DEVICES_OF_EACH).for_each(|device| world.devices[device].wanted = false);
    if is_kick {
        let user = world.gateway.snapshot.users.find_name(&world.plan.users[LEAVES].name).expect("a user");
        world.give(Order::Kick(user));
    } else {
        presence(world, false);
    }
    wait_for_orders(world)?;
    world.run_until(world.now + AFTERWARDS)?;
    if !is_kick {
        presence(world, true);
        wait_for_orders(world)?;
    }
    Ok(())
}

fn presence(world: &mut World, present: bool) {
    world.gateway.population.set_present(LEAVES, present);
    let snapshot = world.gateway.next_snapshot();
    world.give(Order::Apply(snapshot));
}

/// Lets everybody connect who is not connected, and waits for it.
fn come(world: &mut World) -> Result<(), Violation> {
    for device in 0..world.devices.len() {
        world.devices[device].wanted = true;
        world.schedule.at(world.now, Event::Device(device as u32, Act::Connect));
    }
    wait(world, "somebody does not get in", |world| world.devices.iter().all(|device| device.address().is_some()))
}

fn wait_for_orders(world: &mut World) -> Result<(), Violation> {
    wait(world, "an order is not acknowledged", |world| world.gateway.has_no_order())
}

fn wait(world: &mut World, what: &str, done: impl Fn(&World) -> bool) -> Result<(), Violation> {
    let deadline = world.now + PATIENCE;
    while !done(world) {
        if world.now >= deadline {
            return Err(Violation::new("liveness", what.to_owned()));
        }
        let soon = world.now + Duration::from_millis(1);
        world.run_until(soon)?;
    }
    Ok(())
}

/// Two users with two devices each on good links, whose packets go every way there is.
fn plan(number: u64, has_limits: bool) -> Plan {
    let mut plan = Plan::new(number, Features::of(&[]), Duration::from_secs(3600));
    let has_keys = !(number / WORLDS).is_multiple_of(2);
    plan.features = Features::of(&[Feature::Peers, Feature::Misrouting, Feature::MeshDelay, Feature::Noise]);
    if !has_keys {
        plan.features = plan.features.without(&[Feature::Noise]);
    }
    plan.shards = SHARDS;
    plan.tunnel = "10.77.0.1/24".parse().expect("a network");
    plan.isolate_clients = false;
    plan.disturbances.misrouted_permille = 200;
    plan.limits.waiting = ShaperLimits::default();
    plan.transport.idle_timeout = Duration::from_secs(30);
    plan.keep_alive = Duration::from_secs(10);
    // What is sent is more than this, so that packets wait.
    let limit = Limit::with_burst(Rate::from_bits_per_s(500_000).expect("not 0"), Duration::from_millis(10), 3000);
    let user = |index| User { name: format!("user{index}"), limit: has_limits.then_some(limit), ..User::default() };
    plan.users = (0..2).map(user).collect();
    let link = LinkPlan { delay: ON_LINK, ..LinkPlan::default() };
    let identity = |index: usize| match has_keys {
        true => noise::with_key(index as u64, Kind::ALL[index % Kind::ALL.len()]),
        false => index as u64,
    };
    let device = |index: usize| DevicePlan::steady(index / DEVICES_OF_EACH, identity(index), link);
    plan.devices = (0..2 * DEVICES_OF_EACH).map(device).collect();
    plan.certify();
    let network = Peer::Network(plan.network_host(0));
    let ways = [
        (0, network, false),
        (0, Peer::Device(2), false),
        (1, Peer::Device(3), false),
        (2, Peer::Device(0), false),
        (3, network, false),
        (0, network, true),
        (2, network, true),
    ];
    let flow = |(number, &(device, peer, down)): (usize, &(usize, Peer, bool))| FlowPlan {
        device,
        peer,
        down,
        every: Duration::from_micros(700),
        burst: 1,
        payload_bytes: (200, 201),
        port: 1000 + number as u16,
        source: Source::Own,
    };
    plan.flows = ways.iter().enumerate().map(flow).collect();
    plan
}

/// A number, digit by digit, each to a base of its own.
struct Digits(u64);

impl Digits {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let base = of.len() as u64;
        let digit = self.0 % base;
        self.0 /= base;
        of[digit as usize]
    }
}
