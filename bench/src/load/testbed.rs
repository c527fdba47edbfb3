//! Everything that a run consists of: namespaces, gateway, generators; started together, gone together.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Result, bail};
use tollgate_testkit::Topology;
use tollgate_testkit::chance::mixed;
use tollgate_testkit::deploy::user_entry;

use super::generator::{ClientPlan, GeneratorPlan};
use super::logins::Logins;
use super::report::{Counts, Report};
use super::scenario::Scenario;
use super::scrapes::Scraper;
use super::worker::{Order, Worker};
use crate::deploy::{CLIENTS_V4, GatewayFiles, KernelDrops, RunningGateway, SERVICE, network};
use crate::measure::cpus;
use crate::measure::units::count;
use crate::programs::{Gateway, Kind};
use tollgate::progress::Progress;

/// A run's parts. Their order is that of their end: clients first, namespaces last.
pub struct Testbed {
    generators: Vec<Worker>,
    pub gateway: RunningGateway,
    _files: GatewayFiles,
    kernel_before: KernelDrops,
    topology: Topology,
    pub gateway_cpus: Vec<usize>,
    pub harness_cpus: usize,
}

impl Testbed {
    /// Starts everything but connections.
    pub fn start(scenario: &Scenario, gateway: &Gateway, progress: &mut Progress) -> Result<Self> {
        for (cpus, whose) in [(&scenario.gateway.cpus, "gateway.cpus"), (&scenario.harness.cpus, "harness.cpus")] {
            cpus::require_usable(cpus, whose)?;
        }
        let (gateway_cpus, harness) = cpus::split(&scenario.gateway.cpus, &scenario.harness.cpus)?;
        let logins = logins(scenario, progress)?;
        progress.step(&format!("starting {}", gateway.name));
        cpus::pin(&harness)?;
        let plan = &scenario.gateway;
        let files = GatewayFiles::write(plan, &users_file(scenario, &logins), |file| logins.serve(file))?;
        let topology = network::build(plan.mtu_bytes)?;
        let kernel_before = KernelDrops::read(&topology)?;
        let gateway = RunningGateway::start(gateway, plan, &gateway_cpus, &files, &topology.gateway)?;
        let clients = clients(scenario, &logins, &files)?;
        let start = |(number, (clients, spare_sources))| {
            let (scenario, responder) = (Arc::new(scenario.clone()), network::responder_socket(&topology)?);
            let plan =
                GeneratorPlan { scenario, thread: number as u16, clients, spare_sources, remote: SERVICE, responder };
            Worker::start(plan, harness[number % harness.len()], &topology.clients[0].namespace)
        };
        Ok(Testbed {
            generators: clients.into_iter().enumerate().map(start).collect::<Result<_>>()?,
            gateway,
            _files: files,
            kernel_before,
            topology,
            gateway_cpus,
            harness_cpus: harness.len(),
        })
    }

    /// Somebody scrapes the metrics of a gateway of ours from now on, if anybody is to.
    pub fn start_scraper(&self, per_second: u32) -> Result<Option<Scraper>> {
        let is_wanted = per_second > 0 && self.gateway.kind == Kind::Tollgate;
        let start = || Scraper::start(&self.topology.gateway, self.gateway.process.id(), per_second);
        is_wanted.then(start).transpose()
    }

    /// Gives an order to every generator. Counts that are read afterwards show it: what it brings about is done or pending.
    pub fn order(&mut self, order: Order) -> Result<()> {
        if self.generators.iter().all(|generator| generator.order(order)) { Ok(()) } else { self.why_ended() }
    }

    /// Fails when a thread has ended, or the gateway has.
    pub fn require_all(&mut self) -> Result<()> {
        if self.generators.iter().any(Worker::has_ended) {
            return self.why_ended();
        }
        self.gateway.cpu_seconds().map(drop)
    }

    fn why_ended(&mut self) -> Result<()> {
        self.join()?;
        bail!("a thread of the harness has ended")
    }

    /// The counts of all generators.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        self.generators.iter().for_each(|generator| sum += generator.counts());
        sum
    }

    /// CPU time of each generator, in seconds.
    pub fn generators_cpu_seconds(&self) -> Result<Vec<f64>> {
        self.generators.iter().map(Worker::cpu_seconds).collect()
    }

    /// What the kernel has dropped since the namespaces were made.
    pub fn kernel_drops(&self) -> Result<KernelDrops> {
        Ok(KernelDrops::read(&self.topology)?.since(&self.kernel_before))
    }

    /// Ends all threads. Returns what they counted.
    pub fn join(&mut self) -> Result<Report> {
        let mut sum = Report::default();
        for generator in self.generators.drain(..) {
            sum.merge(generator.join()?);
        }
        Ok(sum)
    }
}

fn user_name(user: usize) -> String {
    format!("u{:05}", user + 1)
}

/// Credentials for all users.
fn logins(scenario: &Scenario, progress: &mut Progress) -> Result<Logins> {
    let users = scenario.users.count;
    progress.step(&format!("making {} identities", count(users.into())));
    let tell = |user: u32| progress.update(|| format!("{} of {} identities", count(user.into()), count(users.into())));
    Logins::make(scenario.users.handshake, users, |user| user_name(user as usize), tell)
}

/// The users file: all of these, and those whose keys nobody has.
fn users_file(scenario: &Scenario, logins: &Logins) -> String {
    let limit = scenario.users.limit.as_ref();
    let limit = limit.map(|limit| format!("bandwidth_limit = \"{limit}\"")).unwrap_or_default();
    let present = (0..logins.users()).map(|user| logins.entry(user, &user_name(user), &limit));
    let absent = |number| user_entry(&format!("absent{number:06}"), &format!("sha256:{number:064x}"), &limit);
    present.chain((1..=scenario.users.absent).map(absent)).collect()
}

/// The clients of each generator, and the outer addresses that are left for them. Users go round the generators, each with all of its clients.
fn clients(scenario: &Scenario, logins: &Logins, files: &GatewayFiles) -> Result<Vec<(Vec<ClientPlan>, Vec<IpAddr>)>> {
    let threads = usize::from(scenario.harness.threads);
    let mut plans: Vec<(Vec<ClientPlan>, Vec<IpAddr>)> = vec![Default::default(); threads];
    let mut groups = groups(scenario).into_iter();
    let mut sources = CLIENTS_V4.hosts().map(IpAddr::V4);
    for (user, login) in logins.logins(&files.certificate())?.into_iter().enumerate() {
        for (source, group) in sources.by_ref().zip(groups.by_ref()).take(scenario.users.connections as usize) {
            let client = ClientPlan { user: user as u32, login: login.clone(), source, group };
            plans[user % threads].0.push(client);
        }
    }
    for (number, address) in sources.enumerate() {
        plans[number % threads].1.push(address);
    }
    Ok(plans)
}

/// The group of each connection, as many of each as the scenario says, in an order that follows from its seed.
fn groups(scenario: &Scenario) -> Vec<Option<u8>> {
    let mut order: Vec<u32> = (0..scenario.connections()).collect();
    order.sort_by_key(|index| mixed(mixed(scenario.harness.seed) ^ u64::from(*index)));
    let mut groups = vec![None; order.len()];
    let members = (0..).zip(&scenario.traffic).flat_map(|(group, plan)| (0..plan.connections).map(move |_| group));
    for (index, group) in order.into_iter().zip(members) {
        groups[index as usize] = Some(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::scenario::{TrafficKind, TrafficPlan};

    #[test]
    fn each_group_has_its_connections_and_the_rest_are_idle() {
        let mut scenario = Scenario::new("s", 1000, Duration::from_secs(1));
        scenario.traffic =
            [("a", 300), ("b", 500)].map(|(name, n)| TrafficPlan::new(name, n, TrafficKind::Bulk)).into();
        let first = groups(&scenario);
        let of = |wanted, groups: &[Option<u8>]| groups.iter().filter(|group| **group == wanted).count();
        assert_eq!([Some(0), Some(1), None].map(|wanted| of(wanted, &first)), [300, 500, 200]);
        assert!((100..200).contains(&of(Some(0), &first[..500])), "they are spread");
        scenario.harness.seed = 2;
        assert_ne!(groups(&scenario), first);
    }
}
