//! Upkeep of the gateway's interface and sockets: what others change is put back, what is out of order is made anew.
//!
//! The netlink watch says when to look at the host; cores tell which descriptors they have lost. Changes are put back at once, and with growing
//! pauses while somebody repeats them; the same holds for what cannot be done now. Nothing here waits for a core.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tollgate_netlink::{NetlinkError, NetlinkWatch};
use tollgate_shards::ShardIndex;
use tracing::{debug, warn};

use super::client_mtus::ClientMtus;
use super::commands::CoreHandle;
use super::core::CoreCommand;
use super::groups::{Groups, Predecessors};
use super::recurrence::{LINES_MAX, Recurrence};
use crate::host::{Host, HostError, Interface, Request, Restored, SocketPlan};
use crate::io::TunDevice;
use crate::packet_io::Lost;

/// How long a core may take to close its sockets.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// What was put back on the host.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostReport {
    /// Times the name, the MTU, the queue length or the state of the interface was put back.
    pub restored_links: u64,
    /// Times its address was put back.
    pub restored_addresses: u64,
    /// Routes that were put back.
    pub restored_routes: u64,
    /// Times the TUN device was made anew.
    pub remade_devices: u64,
    /// Times the UDP sockets were opened anew.
    pub remade_sockets: u64,
    /// Times something could not be put back yet.
    pub failures: u64,
}

impl HostReport {
    fn count(&mut self, restored: &Restored) {
        match restored {
            Restored::Name(_) | Restored::Mtu(_) | Restored::QueueLength(_) | Restored::Up => self.restored_links += 1,
            Restored::Address(_) => self.restored_addresses += 1,
            Restored::Route(_) | Restored::ClientRoute(_) => self.restored_routes += 1,
        }
    }
}

/// What is kept as it is.
pub struct Upkeep {
    interface: Interface,
    device: TunDevice,
    groups: Groups,
    sockets: SocketPlan,
    client_mtus: ClientMtus,
    host: Host,
    watch: Option<Arc<NetlinkWatch>>,
    report: HostReport,
    faults: Recurrence,
    /// What cores have lost, and do not have again yet.
    lost: Lost,
    /// Times that the device and the sockets were made anew.
    tun_generation: u64,
    udp_generation: u64,
    /// The sockets are being closed, to be opened anew.
    release: Option<Release>,
    /// When to look at the host.
    due: Option<Instant>,
    beside: Beside,
}

/// The other process of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// There is none.
    Nobody,
    /// It was there before. What is shared with it is not made anew while it lives.
    Predecessor,
    /// It has taken over, and the interface with it.
    Successor,
}

/// Cores that have not closed their sockets yet.
struct Release {
    waiting: BTreeSet<u16>,
    deadline: Instant,
}

impl Upkeep {
    /// Begins in the network namespace of the calling thread. Where the host cannot be watched, only what cores lose is made anew, and one
    /// line says so.
    pub fn new(
        interface: Interface,
        device: TunDevice,
        groups: Groups,
        sockets: SocketPlan,
        client_mtus: ClientMtus,
        beside: Beside,
        mut host: Host,
    ) -> Self {
        let watch = NetlinkWatch::open().map_err(|error| unwatched(interface.name(), &error)).ok();
        if beside == Beside::Nobody {
            remove_stale_routes(&interface, &mut host);
        }
        Upkeep {
            interface,
            device,
            groups,
            sockets,
            client_mtus,
            host,
            watch: watch.map(Arc::new),
            report: HostReport::default(),
            faults: Recurrence::default(),
            lost: Lost::default(),
            tun_generation: 0,
            udp_generation: 0,
            release: None,
            // For what happened before the watch was there.
            due: Some(Instant::now()),
            beside,
        }
    }

    /// Its groups in the kernel.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Has everything steered to this process again.
    pub fn take_all(&mut self) {
        self.groups.take_all(&mut self.host);
    }

    /// What changes the host.
    pub fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    /// The device and the sockets.
    pub fn shared(&self) -> (&TunDevice, &SocketPlan) {
        (&self.device, &self.sockets)
    }

    /// Another process is there from now on, or not any more.
    pub fn set_beside(&mut self, beside: Beside, now: Instant) {
        self.beside = beside;
        if beside == Beside::Nobody {
            self.look_soon(now);
        }
    }

    /// The process before this one has ended.
    pub fn let_leave(&mut self, before: Predecessors, now: Instant) {
        self.groups.let_leave(before, &mut self.host);
        remove_stale_routes(&self.interface, &mut self.host);
        self.set_beside(Beside::Nobody, now);
    }

    /// Leaves the device as it is to the process that has taken over, if there is one.
    pub fn finish(mut self) {
        // Where this process is the first one of a container, the helper does not outlive it.
        if let Err(error) = self.host.change(Request::UndoForwarding) {
            debug!("{error}");
        }
        if self.beside == Beside::Successor {
            self.device.leave();
        }
    }

    /// What was put back so far.
    pub fn report(&self) -> HostReport {
        self.report
    }

    /// The watch, readable when something has changed on the host.
    pub fn watch(&self) -> Option<&Arc<NetlinkWatch>> {
        self.watch.as_ref()
    }

    /// Takes the changes that the watch has seen.
    pub fn handle_host(&mut self, now: Instant) {
        // A look reads all routes there are, and clients' routes come and go with every login.
        let own = self.host.port();
        let changes = self.watch.as_ref().map(|watch| watch.drain_of_others(own)).unwrap_or_default();
        if !changes.is_empty() && changes.concern(self.interface.index()) {
            self.look_soon(now);
        }
    }

    /// A core has lost the TUN queue of this generation. One that was made anew meanwhile is not meant.
    pub fn handle_lost_tun(&mut self, generation: u64, now: Instant) {
        if generation == self.tun_generation {
            self.lost.tun = true;
            self.look_soon(now);
        }
    }

    /// A core has lost the UDP sockets of this generation.
    pub fn handle_lost_udp(&mut self, generation: u64, now: Instant) {
        if generation == self.udp_generation {
            self.lost.udp = true;
            self.look_soon(now);
        }
    }

    /// A core has closed its UDP sockets, or has ended.
    pub fn handle_released_udp(&mut self, shard: u16, now: Instant) {
        if let Some(release) = &mut self.release {
            release.waiting.remove(&shard);
            if release.waiting.is_empty() {
                self.due = Some(now);
            }
        }
    }

    /// Gives clients whose paths carry less than the interface their routes.
    pub fn handle_client_mtus(&mut self, now: Instant) {
        for (client, mtu_bytes) in self.client_mtus.changes() {
            self.set_client_mtu(client, mtu_bytes, now);
        }
    }

    /// The connections of an earlier incarnation of a shard are gone, and the routes of their clients with them.
    pub fn handle_begun_anew(&mut self, shard: ShardIndex, incarnation: u32, now: Instant) {
        for (client, mtu_bytes) in self.client_mtus.forget_before(shard, incarnation) {
            self.set_client_mtu(client, mtu_bytes, now);
        }
    }

    /// When to call [`Upkeep::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let release = self.release.as_ref().map(|release| release.deadline);
        [self.due, release, self.faults.poll_timeout()].into_iter().flatten().min()
    }

    /// Looks at the host when that is due.
    pub fn handle_timeout(&mut self, now: Instant, cores: &[CoreHandle]) {
        self.faults.handle_timeout(now);
        let is_late = self.release.as_ref().is_some_and(|release| release.deadline <= now);
        if is_late || self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.look(now, cores);
        }
    }

    /// Removes the clients' routes: an interface that was there before the gateway stays when the gateway ends.
    pub fn remove_client_routes(&mut self, now: Instant) {
        for client in self.interface.clients() {
            self.set_client_mtu(client, None, now);
        }
    }

    fn set_client_mtu(&mut self, client: IpAddr, mtu_bytes: Option<u32>, now: Instant) {
        // A look tries again and says what is in the way.
        if self.interface.set_client_mtu(&mut self.host, client, mtu_bytes).is_err() {
            self.look_soon(now);
        }
    }

    fn look_soon(&mut self, now: Instant) {
        let due = now + self.faults.pause(now);
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Looks at everything once, and puts back what is not as it should be.
    fn look(&mut self, now: Instant, cores: &[CoreHandle]) {
        let results = match self.beside {
            Beside::Nobody => {
                vec![self.restore_sockets(now, cores), self.restore_device(now, cores), self.restore_interface(now)]
            }
            Beside::Predecessor => vec![self.restore_interface(now)],
            Beside::Successor => Vec::new(),
        };
        match results.into_iter().collect::<Result<Vec<bool>, HostError>>() {
            Ok(done) if done.contains(&true) => self.faults.happened(now),
            Ok(_) => {}
            Err(error) => self.failed(now, &error),
        }
        if let Some(pause) = self.interface.look_again_after() {
            let due = now + pause;
            self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    fn failed(&mut self, now: Instant, error: &HostError) {
        self.report.failures += 1;
        self.faults.happened(now);
        self.due = Some(now + self.faults.pause(now));
        self.faults.failure(
            now,
            &format!("{} or its sockets are not as they should be, trying again: {error}", self.interface.name()),
        );
    }

    /// Puts back what others have changed about the interface. Returns whether there was anything.
    fn restore_interface(&mut self, now: Instant) -> Result<bool, HostError> {
        let mut restored = Vec::new();
        let result = self.interface.restore(&mut self.host, &mut restored);
        if self.beside == Beside::Predecessor {
            // That one takes the routes of its clients away when they leave it, also of those who come here.
            restored.retain(|restored| !matches!(restored, Restored::ClientRoute(_)));
        }
        restored.iter().for_each(|restored| self.report.count(restored));
        if !restored.is_empty() {
            let parts: Vec<_> = restored.iter().take(LINES_MAX as usize).map(ToString::to_string).collect();
            let more = restored.len() - parts.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let name = self.interface.name();
            let line = format!("{name}: somebody else changed it; put back {}{more}", parts.join(", "));
            self.faults.line(now, &line);
        }
        result.map(|()| !restored.is_empty())
    }

    /// Makes the device anew where it is gone, or where a core cannot use its queue. Returns whether it did.
    fn restore_device(&mut self, now: Instant, cores: &[CoreHandle]) -> Result<bool, HostError> {
        let is_there = self.interface.is_there(&mut self.host)?;
        if is_there && !self.lost.tun {
            return Ok(false);
        }
        if is_there {
            self.host.change(Request::RemoveLink { interface: self.interface.index() })?;
        }
        let (device, queues) = self.host.make_tun(self.interface.plan())?;
        self.groups.replace_queues(&queues, &mut self.host);
        self.interface.replaced(&device);
        self.device = device;
        self.lost.tun = false;
        self.tun_generation += 1;
        for (core, queue) in cores.iter().zip(queues) {
            core.send(CoreCommand::Tun(queue, self.tun_generation));
        }
        self.host.change(Request::SetUp { interface: self.interface.index() })?;
        // The routes that were on it; they are no fault of their own.
        self.interface.restore(&mut self.host, &mut Vec::new())?;
        self.report.remade_devices += 1;
        self.faults.line(now, &format!("{} was gone: made anew, with its address and queues", self.interface.name()));
        Ok(true)
    }

    /// Opens all sockets anew where a core has none that works. Steering goes by their order, and closing one changes it, so all are closed
    /// first: a later call opens them, when all cores have answered or their time is over. Returns whether it did.
    fn restore_sockets(&mut self, now: Instant, cores: &[CoreHandle]) -> Result<bool, HostError> {
        let Some(release) = &self.release else {
            if self.lost.udp {
                let shards = 0..cores.len() as u16;
                let waiting = shards.filter(|&shard| cores[usize::from(shard)].send(CoreCommand::ReleaseUdp)).collect();
                self.release = Some(Release { waiting, deadline: now + RELEASE_TIMEOUT });
            }
            return Ok(false);
        };
        if !release.waiting.is_empty() && release.deadline > now {
            return Ok(false);
        }
        self.release = None;
        let sockets = self.host.bind_sockets(self.sockets.clone())?;
        self.lost.udp = false;
        self.udp_generation += 1;
        self.groups.replace_sockets(&sockets);
        for (core, sockets) in cores.iter().zip(sockets) {
            core.send(CoreCommand::Udp(sockets, self.udp_generation));
        }
        self.report.remade_sockets += 1;
        let line = format!("a UDP socket of {} was out of order: all are opened anew", self.sockets.address);
        self.faults.line(now, &line);
        Ok(true)
    }
}

fn remove_stale_routes(interface: &Interface, host: &mut Host) {
    if let Err(error) = interface.remove_stale_routes(host) {
        debug!(%error, "routes of an earlier run");
    }
}

fn unwatched(name: &str, error: &NetlinkError) {
    warn!("{name} is not watched, and what others change about it stays so: {error}");
}
