//! Everything that a run consists of: namespaces, gateway, responder, generators; started together, gone together.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tollgate::tls::Clients;
use tollgate_testkit::chance::mixed;

use super::generator::{ClientPlan, Generator, GeneratorCounts, GeneratorPlan, GeneratorReport, Order};
use super::identities::{self, Identities};
use super::responder::{Responder, ResponderTotals};
use super::scenario::Scenario;
use crate::deploy::{CLIENTS_V4, GatewayFiles, KernelDrops, Network, RunningGateway, SERVICE};
use crate::measure::cpus;
use crate::measure::progress::Progress;
use crate::measure::units::count;
use crate::programs::Gateway;

/// Generators of this many threads need a thread of the responder.
const GENERATORS_OF_A_RESPONDER: usize = 2;

/// A run's parts. Their order is that of their end: clients first, namespaces last.
pub struct Testbed {
    generators: Vec<Generator>,
    responder: Responder,
    pub gateway: RunningGateway,
    _files: GatewayFiles,
    kernel_before: KernelDrops,
    network: Network,
    pub gateway_cpus: Vec<usize>,
    pub harness_cpus: usize,
    _pin: Pin,
}

/// Holds this thread on the harness's CPUs, until it is dropped.
struct Pin(CpuSet);

impl Testbed {
    /// Starts everything but connections.
    pub fn start(scenario: &Scenario, gateway: &Gateway, progress: &mut Progress) -> Result<Self> {
        for (cpus, whose) in [(&scenario.gateway.cpus, "gateway.cpus"), (&scenario.harness.cpus, "harness.cpus")] {
            cpus::require_usable(cpus, whose)?;
        }
        let (gateway_cpus, harness) = cpus::split(&scenario.gateway.cpus, &scenario.harness.cpus)?;
        let users = scenario.users.count;
        progress.step(&format!("making {} identities", count(users.into())));
        let identities = Identities::generate(users, |made| {
            progress.update(|| format!("{} of {} identities", count(made.into()), count(users.into())));
        })?;
        progress.step(&format!("starting {}", gateway.name));
        let pin = Pin::to(&harness)?;
        let plan = &scenario.gateway;
        let files = GatewayFiles::write(plan, &identities.users_file(&scenario.users))?;
        let network = Network::build(plan.mtu_bytes)?;
        let kernel_before = KernelDrops::read(&network)?;
        let gateway = RunningGateway::start(gateway, plan, &gateway_cpus, &files, network.gateway())?;
        let threads = usize::from(scenario.harness.threads);
        let sockets = (0..threads.div_ceil(GENERATORS_OF_A_RESPONDER)).map(|_| network.responder_socket());
        let responder = Responder::start(sockets.collect::<Result<_>>()?, &from(&harness, threads))?;
        let trusted = identities::trusted(&files.certificate())?;
        let generators = plans(scenario, &identities, &trusted, &responder.addresses(), &harness)?
            .into_iter()
            .map(|plan| Generator::start(plan, network.clients()))
            .collect::<Result<_>>()?;
        let harness_cpus = harness.len();
        Ok(Testbed {
            generators,
            responder,
            gateway,
            _files: files,
            kernel_before,
            network,
            gateway_cpus,
            harness_cpus,
            _pin: pin,
        })
    }

    /// How many threads the responder has.
    pub fn responder_threads(&self) -> usize {
        self.responder.addresses().len()
    }

    /// Gives an order to every generator.
    pub fn order(&mut self, order: Order) -> Result<()> {
        if self.generators.iter().any(|generator| generator.order(order).is_err()) {
            return self.why_ended();
        }
        Ok(())
    }

    /// Fails when a generator has ended, or the gateway has.
    pub fn require_all(&mut self) -> Result<()> {
        if self.generators.iter().any(Generator::has_ended) {
            return self.why_ended();
        }
        self.gateway.cpu_seconds().map(drop)
    }

    fn why_ended(&mut self) -> Result<()> {
        for generator in self.generators.drain(..).filter(Generator::has_ended) {
            generator.join()?;
        }
        bail!("a thread of clients has ended")
    }

    /// The counts of all generators.
    pub fn counts(&self) -> GeneratorCounts {
        let mut sum = GeneratorCounts::default();
        self.counts_of_each().for_each(|counts| sum += counts);
        sum
    }

    /// The counts of each generator.
    pub fn counts_of_each(&self) -> impl Iterator<Item = GeneratorCounts> {
        self.generators.iter().map(Generator::counts)
    }

    /// The reports of all generators.
    pub fn report(&self) -> Result<GeneratorReport> {
        let mut sum = GeneratorReport::default();
        for generator in &self.generators {
            sum.merge(&generator.report()?);
        }
        Ok(sum)
    }

    /// What the responder counted so far.
    pub fn responder_totals(&self) -> ResponderTotals {
        self.responder.totals()
    }

    /// What the kernel has dropped since the namespaces were made.
    pub fn kernel_drops(&self) -> Result<KernelDrops> {
        Ok(KernelDrops::read(&self.network)?.since(&self.kernel_before))
    }

    /// Ends everything, the generators first. Returns what generators and responder had counted.
    pub fn stop(self) -> Result<(GeneratorReport, ResponderTotals)> {
        let mut report = GeneratorReport::default();
        for generator in self.generators {
            report.merge(&generator.join()?);
        }
        let totals = self.responder.stop()?;
        self.gateway.stop()?;
        Ok((report, totals))
    }
}

impl Pin {
    fn to(numbers: &[usize]) -> Result<Self> {
        let before = sched_getaffinity(None).context("cannot tell which CPUs may be used")?;
        cpus::pin(numbers)?;
        Ok(Pin(before))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // They could be used before.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// CPUs, beginning with number `first` of them, counted round.
fn from(cpus: &[usize], first: usize) -> Vec<usize> {
    let mut cpus = cpus.to_vec();
    let length = cpus.len();
    cpus.rotate_left(first % length);
    cpus
}

/// What each generator is told. Users go round the generators, each with all of its clients.
fn plans(
    scenario: &Scenario,
    identities: &Identities,
    trusted: &Clients,
    responders: &[SocketAddr],
    harness: &[usize],
) -> Result<Vec<GeneratorPlan>> {
    let shared = Arc::new(scenario.clone());
    let threads = scenario.harness.threads;
    let v4 = |address: &SocketAddr| match address {
        SocketAddr::V4(address) => Some(*address),
        SocketAddr::V6(_) => None,
    };
    let responders: Vec<SocketAddrV4> = responders.iter().filter_map(v4).collect();
    let mut plans: Vec<GeneratorPlan> = (0..threads)
        .map(|thread| GeneratorPlan {
            scenario: Arc::clone(&shared),
            thread,
            cpus: from(harness, thread.into())[..1].to_vec(),
            clients: Vec::new(),
            spare_sources: Vec::new(),
            remote: SERVICE,
            responders: responders.clone(),
        })
        .collect();
    let mut groups = groups(scenario).into_iter();
    let mut sources = CLIENTS_V4.hosts().map(IpAddr::V4);
    for user in 0..scenario.users.count {
        let tls = identities.client_tls(user, trusted)?;
        for (source, group) in sources.by_ref().zip(groups.by_ref()).take(scenario.users.connections as usize) {
            plans[(user % u32::from(threads)) as usize].clients.push(ClientPlan {
                user,
                tls: tls.clone(),
                source,
                group,
            });
        }
    }
    for (number, address) in sources.enumerate() {
        plans[number % usize::from(threads)].spare_sources.push(address);
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
    use crate::load::experiment::{scenario, traffic};
    use crate::load::scenario::TrafficKind;

    #[test]
    fn each_group_has_its_connections_and_the_rest_are_idle() {
        let mut scenario = scenario("s", 1000, Duration::from_secs(1));
        let kind = TrafficKind::Bulk { window_bytes: 65_536 };
        scenario.traffic = vec![traffic(&scenario, "a", 300, kind), traffic(&scenario, "b", 500, kind)];
        let first = groups(&scenario);
        let of = |groups: &[Option<u8>], wanted| groups.iter().filter(|group| **group == wanted).count();
        assert_eq!([Some(0), Some(1), None].map(|wanted| of(&first, wanted)), [300, 500, 200]);
        assert_eq!(groups(&scenario), first, "the same seed");
        let early = of(&first[..500], Some(0));
        assert!((100..200).contains(&early), "they are spread: {early}");
        scenario.harness.seed = 2;
        assert_ne!(groups(&scenario), first);
    }

    #[test]
    fn this_thread_is_back_on_its_cpus_when_the_run_is_over() {
        let before = cpus::usable().unwrap();
        let pin = Pin::to(&before[..1]).unwrap();
        assert_eq!(cpus::usable().unwrap(), before[..1]);
        drop(pin);
        assert_eq!(cpus::usable().unwrap(), before);
    }
}
