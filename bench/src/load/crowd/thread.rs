//! The thread of a crowd: passes over its clients, and what the owner orders.
//!
//! A pass is: orders; receive; what has fallen due; questions; a look at each client that was touched, which sends all it has; sleep.
//! The clock is read once in it.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use rustix::time::{ClockId, clock_gettime};

use super::client::{After, Client, State};
use super::common::Common;
use super::meter::Meters;
use super::outlet::Outlets;
use super::report::{CrowdReport, NearGroup};
use super::timers::{Pacer, client_and_flow};
use super::trouble::{Chance, Loss};
use super::{CLIENT_FLOWS_MAX, ClientPlan, CrowdPlan, Order, Owner, Request, THREADS_MAX};
use crate::scenario::{CONNECTIONS_MAX, Sources};

/// How long a thread sleeps at most.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// Questions to the far end that are new and unanswered, at most: more would be a burst that fills the gateway's queues.
const QUESTIONS_MAX: usize = 128;
/// Connections that are closed at the end, a second, for the same reason.
const CLOSINGS_PER_SECOND: f64 = 5000.0;
/// Clients that are looked at to find one that can be closed or moved.
const DRAWS_MAX: usize = 16;
/// How often the thread reads its CPU clock.
const CPU_INTERVAL: Duration = Duration::from_millis(100);

/// What a thread owns.
pub(super) struct Driver {
    owner: Owner,
    clients: Vec<Client>,
    common: Common,
    outlets: Outlets,
    /// Handshakes that may be in progress.
    handshakes_max: u64,
    /// When further connections are begun; `None` for as soon as may be.
    ramp: Option<Pacer>,
    churn: Pacer,
    /// All clients, and those whose connections may be made anew.
    slots: Vec<u32>,
    churned: Vec<u32>,
    rebinds: Pacer,
    /// What is lost on purpose, while traffic runs.
    loss_share: f64,
    loss: Option<Loss>,
    /// Clients that are to be closed, and when.
    to_close: VecDeque<u32>,
    closings: Pacer,
    now: Instant,
    cpu_read_at: Option<Instant>,
}

impl CrowdPlan {
    /// Whether the bounds hold that the rest relies on.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.thread < THREADS_MAX, "a crowd has the number {}, but must be below {THREADS_MAX}", self.thread);
        ensure!(!self.far_ends.is_empty(), "a crowd has no far end");
        ensure!(self.clients.len() <= CONNECTIONS_MAX as usize, "a crowd has more than {CONNECTIONS_MAX} clients");
        for traffic in &self.scenario.traffic {
            let (name, flows) = (&traffic.name, traffic.flows);
            ensure!(
                usize::from(flows) <= CLIENT_FLOWS_MAX,
                "traffic {name:?} has {flows} flows a connection, but at most {CLIENT_FLOWS_MAX} are possible"
            );
        }
        for group in self.clients.iter().filter_map(|client| client.group) {
            ensure!(
                usize::from(group) < self.scenario.traffic.len(),
                "a client has traffic {group}, which there is not"
            );
        }
        let moves =
            self.scenario.trouble.rebinds_per_second > 0.0 && self.scenario.harness.sources == Sources::Addresses;
        ensure!(
            !moves || !self.spare_sources.is_empty(),
            "clients are to change their addresses, but none is to spare"
        );
        Ok(())
    }

    /// The share of all clients that this crowd has.
    fn share(&self) -> f64 {
        self.clients.len() as f64 / f64::from(self.scenario.connections().max(1))
    }
}

impl Driver {
    /// Opens the sockets; to be called in the thread that is to be pinned, in its network namespace.
    pub fn new(plan: CrowdPlan, owner: Owner) -> Result<Driver> {
        pin(&plan.cpus)?;
        // The kernel's 50 microseconds would be in every round trip. Where it refuses, they are.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let now = Instant::now();
        let scenario = &*plan.scenario;
        let sources: Vec<_> = plan.clients.iter().map(|client| client.source).collect();
        let spare = plan.spare_sources.clone();
        let (how, connections) = (scenario.harness.sources, scenario.connections());
        let outlets = Outlets::open(how, &sources, spare, plan.remote, connections, &owner.wake)?;
        let (meters, of_clients) = Meters::new(&plan.clients);
        let meters = if scenario.users.limit.is_some() { meters } else { Meters::default() };
        let common = Common::new(&plan, meters, now)?;
        let clients = (0..).zip(plan.clients.iter().zip(of_clients));
        let clients = clients.map(|(slot, (client, meter))| Client::new(slot, meter, client, now)).collect();
        let share = plan.share();
        let may_churn = |client: &ClientPlan| client.group.is_none() || !scenario.trouble.churn_idle_only;
        let churned = (0..).zip(&plan.clients).filter(|(_, client)| may_churn(client)).map(|(slot, _)| slot).collect();
        Ok(Driver {
            owner,
            clients,
            common,
            outlets,
            handshakes_max: (f64::from(scenario.users.handshakes_max) * share).round().max(1.0) as u64,
            ramp: scenario.users.ramp_per_second.map(|rate| Pacer::new(rate * share)),
            churn: Pacer::new(scenario.trouble.churn_per_second * share),
            slots: (0..plan.clients.len() as u32).collect(),
            churned,
            rebinds: Pacer::new(scenario.trouble.rebinds_per_second * share),
            loss_share: scenario.trouble.loss,
            loss: None,
            to_close: VecDeque::new(),
            closings: Pacer::new(CLOSINGS_PER_SECOND),
            now,
            cpu_read_at: None,
        })
    }

    /// Makes passes until the owner ends them.
    pub fn run(mut self) -> Result<CrowdReport> {
        loop {
            self.pass()?;
            self.publish();
            let timeout = self.timeout();
            let is_woken = self.outlets.wait(timeout)?;
            self.common.counts.sleeps += u64::from(!timeout.is_zero());
            self.now = Instant::now().max(self.now + Duration::from_nanos(1));
            if is_woken && self.owner.wake.drain() && self.take_requests() {
                self.outlets.flush(&mut self.common.counts)?;
                return Ok(self.report());
            }
        }
    }

    fn pass(&mut self) -> Result<()> {
        self.common.counts.passes += 1;
        self.receive();
        self.fire_timers();
        self.make_trouble()?;
        self.connect_and_close()?;
        self.ask_questions();
        self.serve()?;
        self.outlets.flush(&mut self.common.counts)?;
        self.outlets.retire(self.now, &mut self.common.counts)
    }

    /// Does what the owner wants. Returns whether that is the end.
    fn take_requests(&mut self) -> bool {
        while let Ok(request) = self.owner.requests.try_recv() {
            match request {
                Request::Order(order, reply) => {
                    self.obey(order);
                    self.publish();
                    // Who has gone away needs no reply.
                    let _ = reply.send(());
                }
                Request::Report(reply) => {
                    let _ = reply.send(self.report());
                }
                Request::End => return true,
            }
        }
        false
    }

    fn obey(&mut self, order: Order) {
        let (now, common) = (self.now, &mut self.common);
        match order {
            Order::Connect => {
                self.ramp.iter_mut().for_each(|ramp| ramp.start(now));
                for (slot, client) in (0..).zip(&mut self.clients) {
                    if client.state == State::Out && client.attempt == 0 {
                        client.set_state(State::Waiting, &mut common.counts);
                        common.waiting.push_back(slot);
                    }
                }
            }
            // Already begun.
            Order::StartTraffic if common.is_traffic => {}
            Order::StartTraffic => {
                common.is_traffic = true;
                self.churn.start(now);
                self.rebinds.start(now);
                let chance = Chance::new(common.chance.number(), 0);
                self.loss = (self.loss_share > 0.0).then(|| Loss::new(chance, self.loss_share));
                self.clients.iter_mut().for_each(|client| client.open_flows(common));
            }
            Order::StopTraffic => {
                common.is_traffic = false;
                self.churn.stop();
                self.rebinds.stop();
                self.loss = None;
                self.clients.iter_mut().for_each(|client| client.flows.close(common));
            }
            Order::AskReports => self.clients.iter_mut().for_each(|client| client.flows.ask_reports(common)),
            Order::Close => self.close_all(),
        }
    }

    fn close_all(&mut self) {
        let common = &mut self.common;
        common.is_ending = true;
        common.waiting.clear();
        self.closings.start(self.now);
        for (slot, client) in (0..).zip(&mut self.clients) {
            match client.state {
                State::Waiting => client.set_state(State::Out, &mut common.counts),
                State::Connecting | State::Open | State::Leaving => self.to_close.push_back(slot),
                State::Closing(_) => client.set_state(State::Closing(After::Out), &mut common.counts),
                State::Out | State::Failed => {}
            }
        }
    }

    fn receive(&mut self) {
        let (now, clients) = (self.now, &mut self.clients);
        let Common { counts, touched, .. } = &mut self.common;
        let mut unclaimed = 0;
        self.outlets.receive(&mut self.loss, counts, &mut |client, received| {
            let datagrams = received.data.len().div_ceil(received.segment_bytes);
            if !clients[client as usize].handle_udp(now, received, touched) {
                unclaimed += datagrams as u64;
            }
        });
        counts.outer_stray_datagrams += unclaimed;
    }

    fn fire_timers(&mut self) {
        let (now, clients, common) = (self.now, &mut self.clients, &mut self.common);
        while let Some(client) = common.timers.tunnels.pop_due(now) {
            clients[client as usize].handle_timeout(now, &mut common.touched);
        }
        while let Some(slot) = common.timers.sources.pop_due(now) {
            let (client, flow) = client_and_flow(slot);
            clients[client as usize].handle_source(flow, &mut common.touched);
        }
        while let Some(name) = common.timers.credits.pop_due(now) {
            clients[name.client as usize].handle_credit_timer(now, name.flow, common);
        }
        while let Some(name) = common.timers.questions.pop_due(now) {
            clients[name.client as usize].send_question(now, name.flow, false, common);
        }
        while let Some((client, attempt)) = common.timers.handshakes.pop_due(now) {
            let client = &mut clients[client as usize];
            if client.attempt == attempt {
                client.handle_handshake_timeout(now, common);
            }
        }
        while let Some((client, attempt)) = common.timers.closings.pop_due(now) {
            let client = &mut clients[client as usize];
            if client.attempt == attempt {
                client.handle_closing_timeout(common);
            }
        }
        while let Some((client, attempt)) = common.timers.farewells.pop_due(now) {
            let client = &mut clients[client as usize];
            if client.attempt == attempt {
                client.take_leave(now, common);
            }
        }
    }

    /// Churn and rebinding.
    fn make_trouble(&mut self) -> Result<()> {
        for _ in 0..self.churn.take(self.now, u32::MAX) {
            if let Some(client) = draw(&self.churned, &self.clients, &mut self.common.chance) {
                self.clients[client as usize].leave(self.now, &mut self.common);
            }
        }
        for _ in 0..self.rebinds.take(self.now, u32::MAX) {
            if let Some(client) = draw(&self.slots, &self.clients, &mut self.common.chance) {
                let is_rebound = self.outlets.rebind(self.now, client)?;
                self.common.counts.rebound += u64::from(is_rebound);
            }
        }
        Ok(())
    }

    fn connect_and_close(&mut self) -> Result<()> {
        let (now, clients, common) = (self.now, &mut self.clients, &mut self.common);
        let free = self.handshakes_max.saturating_sub(common.counts.handshaking).min(common.waiting.len() as u64);
        let begun = self.ramp.as_mut().map_or(free, |ramp| u64::from(ramp.take(now, free as u32)));
        for _ in 0..begun {
            let Some(client) = common.waiting.pop_front() else { break };
            clients[client as usize].connect(now, common)?;
        }
        for _ in 0..self.closings.take(now, u32::MAX) {
            match self.to_close.pop_front() {
                Some(client) => clients[client as usize].close(now, After::Out, common),
                None => self.closings.stop(),
            }
        }
        Ok(())
    }

    fn ask_questions(&mut self) {
        let (now, clients, common) = (self.now, &mut self.clients, &mut self.common);
        while common.asking < QUESTIONS_MAX
            && let Some(name) = common.to_ask.pop_front()
        {
            clients[name.client as usize].send_question(now, name.flow, true, common);
        }
    }

    /// Looks at every client that was touched, once, and sends all it has.
    fn serve(&mut self) -> Result<()> {
        let (now, common) = (self.now, &mut self.common);
        let mut next = 0;
        while let Some(&slot) = common.touched.get(next) {
            next += 1;
            let client = &mut self.clients[slot as usize];
            client.decide(now, common);
            self.outlets
                .transmit(slot, &mut self.loss, &mut common.counts, &mut |buf| client.poll_transmit(now, buf))?;
            client.conclude(common);
        }
        common.touched.clear();
        std::mem::swap(&mut common.touched, &mut common.again);
        Ok(())
    }

    fn timeout(&self) -> Duration {
        let common = &self.common;
        let may_ask = !common.to_ask.is_empty() && common.asking < QUESTIONS_MAX;
        if !common.touched.is_empty() || self.outlets.has_more() || may_ask {
            return Duration::ZERO;
        }
        let may_connect = common.counts.handshaking < self.handshakes_max && !common.waiting.is_empty();
        let ramp_at = match &self.ramp {
            Some(ramp) => ramp.next_at().filter(|_| may_connect),
            None => may_connect.then_some(self.now),
        };
        let paced = [&self.churn, &self.rebinds, &self.closings].map(Pacer::next_at);
        let times = [ramp_at, common.timers.next_at()].into_iter().chain(paced);
        let until = times.flatten().min().map(|at| at.saturating_duration_since(self.now));
        until.map_or(SLEEP_MAX, |until| until.min(SLEEP_MAX))
    }

    pub fn publish(&mut self) {
        let counts = &mut self.common.counts;
        if self.cpu_read_at.is_none_or(|at| self.now.saturating_duration_since(at) >= CPU_INTERVAL) {
            counts.cpu_ns = cpu_ns();
            self.cpu_read_at = Some(self.now);
        }
        let mut published = *counts;
        published.closing += self.to_close.len() as u64;
        *self.owner.counts.lock().unwrap_or_else(PoisonError::into_inner) = published;
    }

    fn report(&mut self) -> CrowdReport {
        self.common.counts.cpu_ns = cpu_ns();
        let mut groups: Vec<NearGroup> = self.common.groups.iter().map(|group| group.gone.clone()).collect();
        let mut report = CrowdReport { counts: self.common.counts, ..CrowdReport::default() };
        report.counts.closing += self.to_close.len() as u64;
        for client in &self.clients {
            client.flows.add_to(&mut groups);
            client.add_counters_to(&mut report.counters);
        }
        for (index, group) in (0..).zip(&mut groups) {
            (group.user_peak_up_bytes, group.user_peak_down_bytes) = self.common.meters.peaks(index);
        }
        CrowdReport { groups, failures: self.common.failures.clone(), ..report }
    }
}

/// One of `slots` whose client is up, by chance.
fn draw(slots: &[u32], clients: &[Client], chance: &mut Chance) -> Option<u32> {
    if slots.is_empty() {
        return None;
    }
    let mut draws = (0..DRAWS_MAX).map(|_| slots[chance.below(slots.len())]);
    draws.find(|slot| clients[*slot as usize].state == State::Open)
}

fn cpu_ns() -> u64 {
    let cpu = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32).as_nanos() as u64
}

/// Binds this thread to `cpus`; to none in particular if there are none.
fn pin(cpus: &[usize]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        if *cpu >= CpuSet::MAX_CPU {
            bail!("there is no CPU {cpu}");
        }
        set.set(*cpu);
    }
    sched_setaffinity(None, &set)
        .with_context(|| format!("CPUs {cpus:?} cannot be used: name some that `taskset -p $$` allows"))
}
