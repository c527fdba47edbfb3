//! The thread of a generator: passes over its clients, and what the owner orders.
//!
//! A pass is: orders; receive; what has fallen due; questions; a look at each client that was touched, which sends all it has; sleep.
//! The clock is read once in it.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::thread::set_current_timer_slack;
use rustix::time::{ClockId, clock_gettime};
use tollgate_testkit::chance::Chance;

use super::client::{After, Client, State};
use super::counts::{GeneratorReport, GroupCounts};
use super::impairment::{Loss, Meters};
use super::shared::{Shared, client_and_flow};
use super::sockets::Sockets;
use super::timers::Pacer;
use super::{ClientPlan, GeneratorPlan, Order, Owner, Request};
use crate::measure::cpus;

/// How long a thread sleeps at most.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// Questions to the responder that are new and unanswered, at most: more would be a burst that fills the gateway's queues.
const QUESTIONS_MAX: usize = 128;
/// Connections that are closed at the end, a second, for the same reason.
const CLOSINGS_PER_SECOND: f64 = 5000.0;
/// Clients that are looked at to find one that can be closed or moved.
const DRAWS_MAX: usize = 16;
/// How often the thread reads its CPU clock.
const CPU_INTERVAL: Duration = Duration::from_millis(100);

/// What a thread owns.
pub struct Driver {
    owner: Owner,
    clients: Vec<Client>,
    shared: Shared,
    sockets: Sockets,
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

impl GeneratorPlan {
    /// The share of all clients that this generator has.
    fn share(&self) -> f64 {
        self.clients.len() as f64 / f64::from(self.scenario.connections().max(1))
    }
}

impl Driver {
    /// Opens the sockets; to be called in the thread that is to be pinned, in its network namespace.
    pub fn new(plan: GeneratorPlan, owner: Owner) -> Result<Driver> {
        cpus::pin(&plan.cpus)?;
        // The kernel's 50 microseconds would be in every round trip. Where it refuses, they are.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let now = Instant::now();
        let scenario = &*plan.scenario;
        let sources = plan.clients.iter().map(|client| client.source).collect();
        let sockets = Sockets::open(sources, plan.spare_sources.clone(), plan.remote, &owner.wake)?;
        let (meters, of_clients) = Meters::new(&plan.clients);
        let meters = if scenario.users.limit.is_some() { meters } else { Meters::default() };
        let shared = Shared::new(&plan, meters, now)?;
        let clients = (0..).zip(plan.clients.iter().zip(of_clients));
        let clients = clients.map(|(slot, (client, meter))| Client::new(slot, meter, client, now)).collect();
        let share = plan.share();
        let may_churn = |client: &ClientPlan| client.group.is_none() || !scenario.trouble.churn_idle_only;
        let churned = (0..).zip(&plan.clients).filter(|(_, client)| may_churn(client)).map(|(slot, _)| slot).collect();
        Ok(Driver {
            owner,
            clients,
            shared,
            sockets,
            handshakes_max: (f64::from(scenario.ramp.handshakes_max) * share).round().max(1.0) as u64,
            ramp: scenario.ramp.per_second.map(|rate| Pacer::new(rate * share)),
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
    pub fn run(mut self) -> Result<GeneratorReport> {
        loop {
            self.pass()?;
            self.publish();
            let timeout = self.timeout();
            let is_woken = self.sockets.wait(timeout)?;
            self.now = Instant::now().max(self.now + Duration::from_nanos(1));
            if is_woken && self.owner.wake.drain() && self.take_requests() {
                self.sockets.flush(&mut self.shared.counts)?;
                return Ok(self.report());
            }
        }
    }

    fn pass(&mut self) -> Result<()> {
        self.receive();
        self.fire_timers();
        self.impair();
        self.connect_and_close()?;
        self.ask_questions();
        self.serve()?;
        self.sockets.flush(&mut self.shared.counts)
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
        let (now, shared) = (self.now, &mut self.shared);
        match order {
            Order::Connect => {
                self.ramp.iter_mut().for_each(|ramp| ramp.start(now));
                for (slot, client) in (0..).zip(&mut self.clients) {
                    if client.state == State::Out && client.attempt == 0 {
                        client.set_state(State::Waiting, &mut shared.counts);
                        shared.waiting.push_back(slot);
                    }
                }
            }
            // Already begun.
            Order::StartTraffic if shared.is_traffic => {}
            Order::StartTraffic => {
                shared.is_traffic = true;
                self.churn.start(now);
                self.rebinds.start(now);
                let chance = Chance::new(shared.chance.number());
                self.loss = (self.loss_share > 0.0).then(|| Loss::new(chance, self.loss_share));
                self.clients.iter_mut().for_each(|client| client.open_flows(shared));
            }
            Order::StopTraffic => {
                shared.is_traffic = false;
                self.churn.stop();
                self.rebinds.stop();
                self.loss = None;
                self.clients.iter_mut().for_each(|client| client.flows.close(shared));
            }
            Order::AskReports => self.clients.iter_mut().for_each(|client| client.flows.ask_reports(shared)),
            Order::Close => self.close_all(),
        }
    }

    fn close_all(&mut self) {
        let shared = &mut self.shared;
        shared.is_ending = true;
        shared.waiting.clear();
        self.closings.start(self.now);
        for (slot, client) in (0..).zip(&mut self.clients) {
            match client.state {
                State::Waiting => client.set_state(State::Out, &mut shared.counts),
                State::Connecting | State::Open | State::Leaving => self.to_close.push_back(slot),
                State::Closing(_) => client.set_state(State::Closing(After::Out), &mut shared.counts),
                State::Out | State::Failed => {}
            }
        }
    }

    fn receive(&mut self) {
        let (now, clients) = (self.now, &mut self.clients);
        let Shared { counts, touched, .. } = &mut self.shared;
        if self.sockets.has_more() {
            let mut sink = |client: u32, received| clients[client as usize].handle_udp(now, received, touched);
            self.sockets.receive(&mut self.loss, counts, &mut sink);
        }
    }

    fn fire_timers(&mut self) {
        let (now, clients, shared) = (self.now, &mut self.clients, &mut self.shared);
        while let Some(client) = shared.timers.tunnels.pop_due(now) {
            clients[client as usize].handle_timeout(now, &mut shared.touched);
        }
        while let Some(slot) = shared.timers.sources.pop_due(now) {
            let (client, flow) = client_and_flow(slot);
            clients[client as usize].handle_source(now, flow, &mut shared.touched);
        }
        while let Some(name) = shared.timers.credits.pop_due(now) {
            clients[name.client as usize].handle_credit_timer(now, name.flow, shared);
        }
        while let Some(name) = shared.timers.questions.pop_due(now) {
            clients[name.client as usize].send_question(now, name.flow, false, shared);
        }
        while let Some((client, attempt)) = shared.timers.handshakes.pop_due(now) {
            let client = &mut clients[client as usize];
            if client.attempt == attempt {
                client.handle_handshake_timeout(now, shared);
            }
        }
        while let Some((client, attempt)) = shared.timers.closings.pop_due(now) {
            let client = &mut clients[client as usize];
            if client.attempt == attempt {
                client.handle_closing_timeout(shared);
            }
        }
        while let Some((client, attempt)) = shared.timers.farewells.pop_due(now) {
            let client = &mut clients[client as usize];
            if client.attempt == attempt {
                client.take_leave(now, shared);
            }
        }
    }

    /// Churn and rebinding.
    fn impair(&mut self) {
        for _ in 0..self.churn.take(self.now, u32::MAX) {
            if let Some(client) = draw(&self.churned, &self.clients, &mut self.shared.chance) {
                self.clients[client as usize].leave(self.now, &mut self.shared);
            }
        }
        for _ in 0..self.rebinds.take(self.now, u32::MAX) {
            if let Some(client) = draw(&self.slots, &self.clients, &mut self.shared.chance) {
                let is_rebound = self.sockets.rebind(client);
                self.shared.counts.rebound += u64::from(is_rebound);
            }
        }
    }

    fn connect_and_close(&mut self) -> Result<()> {
        let (now, clients, shared) = (self.now, &mut self.clients, &mut self.shared);
        let free = self.handshakes_max.saturating_sub(shared.counts.handshaking).min(shared.waiting.len() as u64);
        let begun = self.ramp.as_mut().map_or(free, |ramp| u64::from(ramp.take(now, free as u32)));
        for _ in 0..begun {
            let Some(client) = shared.waiting.pop_front() else { break };
            clients[client as usize].connect(now, shared)?;
        }
        for _ in 0..self.closings.take(now, u32::MAX) {
            match self.to_close.pop_front() {
                Some(client) => clients[client as usize].close(now, After::Out, shared),
                None => self.closings.stop(),
            }
        }
        Ok(())
    }

    fn ask_questions(&mut self) {
        let (now, clients, shared) = (self.now, &mut self.clients, &mut self.shared);
        while shared.asking < QUESTIONS_MAX
            && let Some(name) = shared.to_ask.pop_front()
        {
            clients[name.client as usize].send_question(now, name.flow, true, shared);
        }
    }

    /// Looks at every client that was touched, once, and sends all it has.
    fn serve(&mut self) -> Result<()> {
        let (now, shared) = (self.now, &mut self.shared);
        let mut next = 0;
        while let Some(&slot) = shared.touched.get(next) {
            next += 1;
            let client = &mut self.clients[slot as usize];
            client.decide(now, shared);
            self.sockets
                .transmit(slot, &mut self.loss, &mut shared.counts, &mut |buf| client.poll_transmit(now, buf))?;
            client.conclude(shared);
        }
        shared.touched.clear();
        std::mem::swap(&mut shared.touched, &mut shared.again);
        Ok(())
    }

    fn timeout(&self) -> Duration {
        let shared = &self.shared;
        let may_ask = !shared.to_ask.is_empty() && shared.asking < QUESTIONS_MAX;
        if !shared.touched.is_empty() || self.sockets.has_more() || may_ask {
            return Duration::ZERO;
        }
        let may_connect = shared.counts.handshaking < self.handshakes_max && !shared.waiting.is_empty();
        let ramp_at = match &self.ramp {
            Some(ramp) => ramp.next_at.filter(|_| may_connect),
            None => may_connect.then_some(self.now),
        };
        let paced = [&self.churn, &self.rebinds, &self.closings].map(|pacer| pacer.next_at);
        let times = [ramp_at, shared.timers.next_at()].into_iter().chain(paced);
        let until = times.flatten().min().map(|at| at.saturating_duration_since(self.now));
        until.map_or(SLEEP_MAX, |until| until.min(SLEEP_MAX))
    }

    pub fn publish(&mut self) {
        let counts = &mut self.shared.counts;
        if self.cpu_read_at.is_none_or(|at| self.now.saturating_duration_since(at) >= CPU_INTERVAL) {
            counts.cpu_ns = cpu_ns();
            self.cpu_read_at = Some(self.now);
        }
        let mut published = *counts;
        published.closing += self.to_close.len() as u64;
        *self.owner.counts.lock().unwrap_or_else(PoisonError::into_inner) = published;
    }

    fn report(&mut self) -> GeneratorReport {
        self.shared.counts.cpu_ns = cpu_ns();
        let mut groups: Vec<GroupCounts> = self.shared.groups.iter().map(|group| group.gone.clone()).collect();
        let tunnels = self.shared.tunnels.clone();
        let mut report = GeneratorReport { counts: self.shared.counts, tunnels, ..GeneratorReport::default() };
        report.counts.closing += self.to_close.len() as u64;
        for client in &self.clients {
            client.flows.add_to(&mut groups);
            client.add_counters_to(&mut report.tunnels);
        }
        for (index, group) in (0..).zip(&mut groups) {
            (group.user_peak_up_bytes, group.user_peak_down_bytes) = self.shared.meters.peaks(index);
        }
        GeneratorReport { groups, failures: self.shared.failures.clone(), ..report }
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
