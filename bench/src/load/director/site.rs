//! Everything that a run consists of: namespaces, gateway, far end, crowds of clients; started together, gone together.

use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tollgate::lab;

use crate::deployment::faults::{FaultPlan, FaultyRelay, RelayCounts};
use crate::deployment::{
    CLIENTS_V4, Contender, FilesPlan, Gateway, GatewayFiles, KernelDrops, Network, SERVICE, TUNNEL_ADDRESSES,
    usable_cpus,
};
use crate::identities::{self, Identities};
use crate::load::crowd::{ClientPlan, Crowd, CrowdCounts, CrowdPlan, CrowdReport, Order, require_descriptors};
use crate::load::far_end::{FarEnd, FarTotals};
use crate::progress::Progress;
use crate::scenario::{GatewayPlan, NamedGateway, Scenario, Sources, StartedGateway};
use crate::units::count;

/// A crowd of this many threads needs a thread of the far end.
const CROWDS_OF_A_FAR_END: usize = 2;

/// A run's parts. Their order is that of their end: clients first, namespaces last.
pub(super) struct Site {
    crowds: Vec<Crowd>,
    ours: Option<Ours>,
    remote: SocketAddr,
    harness_cpus: usize,
    _pin: Pin,
}

/// What is there only of a gateway that was started.
struct Ours {
    relay: Option<FaultyRelay>,
    far_end: FarEnd,
    gateway: Gateway,
    _files: GatewayFiles,
    kernel_before: KernelDrops,
    network: Network,
}

/// Who uses which CPUs.
struct Placement {
    gateway: Vec<usize>,
    harness: Vec<usize>,
}

/// Holds this thread on the harness's CPUs, until it is dropped.
struct Pin(Option<CpuSet>);

/// What clients are told of the gateway.
struct Entrance {
    remote: SocketAddr,
    server_name: String,
    far_ends: Vec<SocketAddrV4>,
}

impl Site {
    /// Starts everything but connections. `has_relay` puts a relay before the far end.
    ///
    /// # Errors
    ///
    /// What is missing or does not start, in a line.
    pub fn start(scenario: &Scenario, contender: &Contender, has_relay: bool, progress: &mut Progress) -> Result<Self> {
        match &scenario.gateway {
            GatewayPlan::Started(plan) => Site::start_all(scenario, plan, contender, has_relay, progress),
            GatewayPlan::Named(_) if has_relay => bail!("there can be no relay behind a gateway that runs already"),
            GatewayPlan::Named(plan) => Site::start_clients_of(scenario, plan, progress),
        }
    }

    fn start_all(
        scenario: &Scenario,
        plan: &StartedGateway,
        contender: &Contender,
        has_relay: bool,
        progress: &mut Progress,
    ) -> Result<Self> {
        lab::prepare()?;
        lab::require_tun()?;
        let connections = scenario.connections();
        if connections > TUNNEL_ADDRESSES {
            bail!(
                "{} connections need as many inner addresses, but the tunnel network has {}: have fewer connections",
                count(connections.into()),
                count(TUNNEL_ADDRESSES.into())
            );
        }
        require_descriptors(sockets(scenario))?;
        let placement = Placement::of(scenario)?;
        let identities = generate(scenario, progress)?;
        progress.step(&format!("starting {}", contender.name));
        let pin = Pin::to(&placement.harness)?;
        let users = identities.users_file(scenario.users.limit.as_deref(), scenario.users.absent);
        let (mtu_bytes, idle_timeout) = (plan.mtu_bytes, plan.idle_timeout);
        let files = GatewayFiles::write(&FilesPlan { users: &users, mtu_bytes, idle_timeout })?;
        let network = Network::build(mtu_bytes)?;
        let kernel_before = KernelDrops::read(&network)?;
        let gateway = Gateway::start(contender, plan, &placement.gateway, &files, network.gateway())?;
        let threads = usize::from(scenario.harness.threads);
        let far_end = start_far_end(&network, threads, &placement, has_relay)?;
        let relay = has_relay.then(|| FaultyRelay::start(&network, far_end.addresses()[0])).transpose()?;
        let far_ends = relay.as_ref().map_or_else(|| far_end.addresses(), |relay| vec![relay.address()]);
        let far_ends = far_ends.into_iter().map(v4).collect::<Result<_>>()?;
        let entrance = Entrance { remote: SERVICE, server_name: SERVICE.ip().to_string(), far_ends };
        let trusted = identities::trusted(&files.certificate())?;
        let crowds = crowds(scenario, &identities, &trusted, &entrance, &placement)?
            .into_iter()
            .map(|plan| Crowd::start(plan, Some(network.clients())))
            .collect::<Result<_>>()?;
        let ours = Ours { relay, far_end, gateway, _files: files, kernel_before, network };
        Ok(Site { crowds, ours: Some(ours), remote: SERVICE, harness_cpus: placement.harness.len(), _pin: pin })
    }

    fn start_clients_of(scenario: &Scenario, plan: &NamedGateway, progress: &mut Progress) -> Result<Self> {
        require_descriptors(sockets(scenario))?;
        let placement = Placement::of(scenario)?;
        progress.step("reading identities");
        let identities = Identities::load(&plan.identities, scenario.users.count)?;
        let trusted = identities::trusted(&plan.trusted_certificates)?;
        let entrance =
            Entrance { remote: plan.address, server_name: plan.server_name.clone(), far_ends: vec![v4(plan.far_end)?] };
        let pin = Pin::to(&placement.harness)?;
        let crowds = crowds(scenario, &identities, &trusted, &entrance, &placement)?
            .into_iter()
            .map(|plan| Crowd::start(plan, None))
            .collect::<Result<_>>()?;
        Ok(Site { crowds, ours: None, remote: plan.address, harness_cpus: placement.harness.len(), _pin: pin })
    }

    /// The gateway's name in results.
    pub fn gateway_name(&self, contender: &Contender) -> String {
        match self.ours {
            Some(_) => contender.name.to_owned(),
            None => self.remote.to_string(),
        }
    }

    /// Where clients connect to.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// How many CPUs the harness may use.
    pub fn harness_cpus(&self) -> usize {
        self.harness_cpus
    }

    /// How many threads the far end has here.
    pub fn far_threads(&self) -> usize {
        self.ours.as_ref().map_or(0, |ours| ours.far_end.addresses().len())
    }

    /// The gateway, if it was started.
    pub fn gateway(&mut self) -> Option<&mut Gateway> {
        self.ours.as_mut().map(|ours| &mut ours.gateway)
    }

    /// Gives an order to every crowd.
    ///
    /// # Errors
    ///
    /// Why a crowd has ended.
    pub fn order(&mut self, order: Order) -> Result<()> {
        if self.crowds.iter().any(|crowd| crowd.order(order).is_err()) {
            return self.why_ended();
        }
        Ok(())
    }

    /// Fails when a crowd has ended, or the gateway has.
    ///
    /// # Errors
    ///
    /// Why it ended.
    pub fn require_all(&mut self) -> Result<()> {
        if self.crowds.iter().any(Crowd::has_ended) {
            return self.why_ended();
        }
        self.gateway().map_or(Ok(()), |gateway| gateway.cpu_seconds().map(drop))
    }

    fn why_ended(&mut self) -> Result<()> {
        for crowd in self.crowds.drain(..).filter(Crowd::has_ended) {
            crowd.join()?;
        }
        bail!("a thread of clients has ended")
    }

    /// The counts of all crowds.
    pub fn counts(&self) -> CrowdCounts {
        self.crowds.iter().map(Crowd::counts).fold(CrowdCounts::default(), CrowdCounts::plus)
    }

    /// The counts of each crowd.
    pub fn counts_of_each(&self) -> Vec<CrowdCounts> {
        self.crowds.iter().map(Crowd::counts).collect()
    }

    /// The reports of all crowds.
    ///
    /// # Errors
    ///
    /// When one has ended.
    pub fn report(&self) -> Result<CrowdReport> {
        let mut sum = CrowdReport::default();
        for crowd in &self.crowds {
            sum.merge(&crowd.report()?);
        }
        Ok(sum)
    }

    /// What the far end counted so far; nothing of one elsewhere.
    pub fn far_totals(&self) -> FarTotals {
        self.ours.as_ref().map(|ours| ours.far_end.totals()).unwrap_or_default()
    }

    /// What the kernel has dropped since the namespaces were made; `None` where they are not ours.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn kernel_drops(&self) -> Result<Option<KernelDrops>> {
        let since = |ours: &Ours| Ok(KernelDrops::read(&ours.network)?.since(&ours.kernel_before));
        self.ours.as_ref().map(since).transpose()
    }

    /// From now on the relay, if there is one, commits these faults.
    pub fn plan_faults(&self, faults: Option<FaultPlan>) {
        if let Some(relay) = self.ours.as_ref().and_then(|ours| ours.relay.as_ref()) {
            relay.plan(faults);
        }
    }

    /// What the relay did, if there is one.
    pub fn relay_counts(&self) -> RelayCounts {
        self.ours.as_ref().and_then(|ours| ours.relay.as_ref()).map(FaultyRelay::counts).unwrap_or_default()
    }

    /// Ends everything, the crowds first. Returns what crowds and far end had counted.
    ///
    /// # Errors
    ///
    /// When something had ended before, or does not end as it should.
    pub fn stop(self) -> Result<(CrowdReport, Option<FarTotals>)> {
        let mut report = CrowdReport::default();
        for crowd in self.crowds {
            report.merge(&crowd.join()?);
        }
        let Some(ours) = self.ours else { return Ok((report, None)) };
        let Ours { relay, far_end, gateway, .. } = ours;
        drop(relay);
        let far = far_end.stop()?;
        gateway.stop()?;
        Ok((report, Some(far)))
    }
}

impl Placement {
    fn of(scenario: &Scenario) -> Result<Self> {
        let usable = usable_cpus()?;
        let mut gateway = Vec::new();
        if let GatewayPlan::Started(plan) = &scenario.gateway {
            gateway = chosen("gateway", &plan.cpus, &usable)?.unwrap_or_else(|| usable[..1].to_vec());
        }
        let others: Vec<usize> = usable.iter().copied().filter(|cpu| !gateway.contains(cpu)).collect();
        let default = if others.is_empty() { usable.clone() } else { others };
        let harness = chosen("harness", &scenario.harness.cpus, &usable)?.unwrap_or(default);
        Ok(Placement { gateway, harness })
    }

    /// The CPUs of the harness, beginning with its number `first`, counted round.
    fn harness_from(&self, first: usize) -> Vec<usize> {
        let mut cpus = self.harness.clone();
        cpus.rotate_left(first % self.harness.len());
        cpus
    }
}

/// The CPUs that a scenario names, if any.
fn chosen(whose: &str, cpus: &[usize], usable: &[usize]) -> Result<Option<Vec<usize>>> {
    if let Some(cpu) = cpus.iter().find(|cpu| !usable.contains(cpu)) {
        let list: Vec<String> = usable.iter().map(ToString::to_string).collect();
        bail!("the scenario gives CPU {cpu} to the {whose}, but this process may use only {}", list.join(", "));
    }
    Ok((!cpus.is_empty()).then(|| cpus.to_vec()))
}

impl Pin {
    fn to(cpus: &[usize]) -> Result<Self> {
        let before = sched_getaffinity(None).context("cannot tell which CPUs may be used")?;
        let mut set = CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu));
        sched_setaffinity(None, &set).context("cannot stay on the harness's CPUs")?;
        Ok(Pin(Some(before)))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // They could be used before.
        let _ = self.0.take().map(|before| sched_setaffinity(None, &before));
    }
}

/// How many sockets the clients will have.
fn sockets(scenario: &Scenario) -> u64 {
    match scenario.harness.sources {
        Sources::Addresses => scenario.harness.threads.into(),
        Sources::Ports => scenario.connections().into(),
    }
}

fn generate(scenario: &Scenario, progress: &mut Progress) -> Result<Identities> {
    let users = scenario.users.count;
    progress.step(&format!("making {} identities", count(users.into())));
    Identities::generate(users, |made| {
        progress.update(|| format!("{} of {} identities", count(made.into()), count(users.into())));
    })
}

fn start_far_end(network: &Network, crowds: usize, placement: &Placement, has_relay: bool) -> Result<FarEnd> {
    let threads = if has_relay { 1 } else { crowds.div_ceil(CROWDS_OF_A_FAR_END) };
    let sockets = (0..threads).map(|_| network.far_socket(0)).collect::<Result<_>>()?;
    FarEnd::start(sockets, &placement.harness_from(crowds))
}

fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => {
            bail!("the far end is {address}, but only tunnels of IPv4 can be loaded: use an IPv4 address")
        }
    }
}

/// What each crowd is told. Users go round the crowds, each with all of its clients.
fn crowds(
    scenario: &Scenario,
    identities: &Identities,
    trusted: &tollgate::tls::Clients,
    entrance: &Entrance,
    placement: &Placement,
) -> Result<Vec<CrowdPlan>> {
    let shared = Arc::new(scenario.clone());
    let threads = scenario.harness.threads;
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let mut plans: Vec<CrowdPlan> = (0..threads)
        .map(|thread| CrowdPlan {
            scenario: Arc::clone(&shared),
            thread,
            cpus: placement.harness_from(thread.into())[..1].to_vec(),
            clients: Vec::new(),
            spare_sources: Vec::new(),
            remote: entrance.remote,
            server_name: entrance.server_name.clone(),
            far_ends: entrance.far_ends.clone(),
            run,
        })
        .collect();
    let groups = groups(scenario);
    let mut sources = (scenario.harness.sources == Sources::Addresses).then(|| CLIENTS_V4.hosts().map(IpAddr::V4));
    for user in 0..scenario.users.count {
        let tls = identities.client_tls(user, trusted)?;
        for number in 0..scenario.users.connections {
            let index = user * u32::from(scenario.users.connections) + u32::from(number);
            let source = sources.as_mut().and_then(Iterator::next);
            plans[(user % u32::from(threads)) as usize].clients.push(ClientPlan {
                index,
                user,
                tls: tls.clone(),
                source,
                group: groups[index as usize],
            });
        }
    }
    for (number, address) in sources.into_iter().flatten().enumerate() {
        plans[number % usize::from(threads)].spare_sources.push(address);
    }
    Ok(plans)
}

/// The group of each connection, as many of each as the scenario says, in an order that follows from its seed.
fn groups(scenario: &Scenario) -> Vec<Option<u8>> {
    let mut order: Vec<u32> = (0..scenario.connections()).collect();
    order.sort_by_key(|index| mixed(scenario.harness.seed, *index));
    let mut groups = vec![None; order.len()];
    let members = (0..).zip(&scenario.traffic).flat_map(|(group, plan)| (0..plan.connections).map(move |_| group));
    for (index, group) in order.into_iter().zip(members) {
        groups[index as usize] = Some(group);
    }
    groups
}

/// A number that looks like chance (the finalizer of SplitMix64).
fn mixed(seed: u64, index: u32) -> u64 {
    let mut mixed = seed.wrapping_add(u64::from(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Resident memory of this process in bytes, and its open descriptors.
pub(super) fn own_memory_and_descriptors() -> Result<(u64, u64)> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    let descriptors = fs::read_dir("/proc/self/fd").context("cannot read /proc/self/fd")?.count() as u64;
    Ok((kib.context("the kernel does not tell this process's memory")? * 1024, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Direction;
    use crate::scenario::{Sizes, TrafficKind, TrafficPlan};

    fn scenario(connections: u32, groups: &[u32]) -> Scenario {
        let mut scenario = Scenario::default();
        scenario.users.count = connections;
        let group = |connections| TrafficPlan {
            name: "group".to_owned(),
            connections,
            flows: 1,
            kind: TrafficKind::Constant { packets_per_second: 1.0, train_packets: 1 },
            direction: Direction::Up,
            sizes: Sizes::fixed(100),
        };
        scenario.traffic = groups.iter().copied().map(group).collect();
        scenario
    }

    #[test]
    fn each_group_has_its_connections_and_the_rest_are_idle() {
        let mut scenario = scenario(1000, &[300, 500]);
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
    fn the_gateway_has_the_first_cpu_and_the_harness_the_others() {
        let usable = usable_cpus().unwrap();
        let mut scenario = scenario(1, &[]);
        let placement = Placement::of(&scenario).unwrap();
        assert_eq!(placement.gateway, usable[..1]);
        assert_eq!(placement.harness, if usable.len() > 1 { &usable[1..] } else { &usable[..] });
        let GatewayPlan::Started(plan) = &mut scenario.gateway else { unreachable!("it is started by default") };
        plan.cpus = usable.clone();
        let placement = Placement::of(&scenario).unwrap();
        assert_eq!((&placement.gateway, &placement.harness), (&usable, &usable));
        assert_eq!(placement.harness_from(usable.len() + 1)[0], usable[1 % usable.len()]);
        scenario.harness.cpus = vec![CpuSet::MAX_CPU];
        let error = Placement::of(&scenario).map(drop).unwrap_err().to_string();
        assert!(error.contains("to the harness, but this process may use only"), "{error}");
    }

    #[test]
    fn this_thread_is_back_on_its_cpus_when_the_run_is_over() {
        let before = usable_cpus().unwrap();
        let pin = Pin::to(&before[..1]).unwrap();
        assert_eq!(usable_cpus().unwrap(), before[..1]);
        drop(pin);
        assert_eq!(usable_cpus().unwrap(), before);
    }
}
