//! Keeps the gateway's interface and sockets as they should be: the thread that watches the host and makes changes there.
//!
//! The netlink watch is its first source of events; shards tell it of descriptors that are out of order, and never wait for it. What others
//! changed is put back at once, and with growing pauses while somebody changes it again and again; the same holds for what cannot be done now.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::client_mtus::{Carried, Known, Mtus};
use super::core::Order;
use super::mesh::Bell;
use crate::host::{Host, HostError, Interface, Request, Restored, SocketPlan};
use crate::io::{TunDevice, TunSteering, Wake};
use crate::netlink::{NetlinkError, NetlinkWatch};
use crate::pump::Lost;

/// From the first notification to a look at the host: changes come in groups.
const QUIET: Duration = Duration::from_millis(50);
/// The longest pause between two looks. It bounds how long the end of a fault goes unnoticed.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long nothing must have been wrong until the next fault is the first of its row again.
const ROW: Duration = Duration::from_secs(10);
/// Lines of a row that are logged at once; those behind are counted and told once every [`LINES_PAUSE`].
const LINES_MAX: u32 = 5;
const LINES_PAUSE: Duration = Duration::from_secs(60);
/// How long a shard may take to close its socket.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// A message to the upkeep thread.
#[derive(Debug)]
pub enum Task {
    /// A shard's TUN queue, of this generation, is out of order.
    LostTun(u64),
    /// A shard's UDP socket, of this generation, is out of order.
    LostUdp(u64),
    /// The gateway ends.
    Stop,
}

/// Tells the thread. It never waits, so that a shard may do it.
#[derive(Clone)]
pub struct Tasks {
    sender: Sender<Task>,
    known: Known,
    wake: Arc<Wake>,
}

impl Tasks {
    /// The tasks of a thread to come, and where it finds them.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn new() -> io::Result<(Tasks, TaskSource)> {
        let (sender, receiver) = unbounded();
        let (wake, known) = (Arc::new(Wake::new()?), Known::default());
        let source = TaskSource { receiver, known: known.clone(), wake: wake.clone() };
        Ok((Tasks { sender, known, wake }, source))
    }

    /// How one shard tells what its clients' paths carry.
    pub fn client_mtus(&self) -> Mtus {
        Mtus::new(self.known.clone(), self.wake.clone())
    }

    /// Queues `task` and wakes the thread.
    pub fn tell(&self, task: Task) {
        // Where the thread has ended, nobody has to know any more.
        let _ = self.sender.send(task);
        self.wake.notify();
    }
}

/// Where the thread finds what it is told.
pub struct TaskSource {
    receiver: Receiver<Task>,
    known: Known,
    wake: Arc<Wake>,
}

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

#[derive(Debug, Default)]
struct Counters {
    restored_links: AtomicU64,
    restored_addresses: AtomicU64,
    restored_routes: AtomicU64,
    remade_devices: AtomicU64,
    remade_sockets: AtomicU64,
    failures: AtomicU64,
}

impl Counters {
    fn report(&self) -> HostReport {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HostReport {
            restored_links: of(&self.restored_links),
            restored_addresses: of(&self.restored_addresses),
            restored_routes: of(&self.restored_routes),
            remade_devices: of(&self.remade_devices),
            remade_sockets: of(&self.remade_sockets),
            failures: of(&self.failures),
        }
    }

    fn count(&self, restored: &Restored) {
        let counter = match restored {
            Restored::Name(_) | Restored::Mtu(_) | Restored::QueueLength(_) | Restored::Up => &self.restored_links,
            Restored::Address(_) => &self.restored_addresses,
            Restored::Route(_) => &self.restored_routes,
        };
        add(counter);
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The interface, sockets and cores that the thread looks after.
pub struct Kept {
    /// The interface as it should be.
    pub interface: Interface,
    /// The TUN device behind the interface.
    pub device: TunDevice,
    /// The program in the kernel that steers to its queues.
    pub steering: Option<Arc<TunSteering>>,
    /// How the UDP sockets are opened.
    pub sockets: SocketPlan,
    /// Orders for each shard, and its bell.
    pub cores: Vec<(Sender<Order>, Bell)>,
}

/// The running thread. It ends with this value.
pub struct Upkeep {
    tasks: Tasks,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// Starts the thread in the network namespace of this one. Where the host cannot be watched, it only does what it is told, and one line
    /// says so.
    ///
    /// # Errors
    ///
    /// When threads run out.
    pub fn start(kept: Kept, tasks: Tasks, source: TaskSource) -> io::Result<Upkeep> {
        let counters = Arc::new(Counters::default());
        let watch = NetlinkWatch::open().map_err(|error| unwatched(kept.interface.name(), &error)).ok();
        let host = Host::open().map_err(|error| warn!("{error}")).ok();
        let keeper = Keeper {
            carried: Carried::new(source.known.clone()),
            kept,
            host,
            watch,
            source,
            counters: counters.clone(),
            row: Row::default(),
            lost: Lost::default(),
            tun_generation: 0,
            udp_generation: 0,
            due: None,
        };
        let thread = thread::Builder::new().name("tollgate-host".to_owned()).spawn(move || keeper.run())?;
        Ok(Upkeep { tasks, counters, thread: Some(thread) })
    }

    /// What was put back so far.
    pub fn report(&self) -> HostReport {
        self.counters.report()
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.tasks.tell(Task::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
    }
}

fn unwatched(name: &str, error: &NetlinkError) {
    warn!("{name} is not watched, and what others change about it stays so: {error}");
}

struct Keeper {
    kept: Kept,
    /// What clients' paths carry.
    carried: Carried,
    host: Option<Host>,
    watch: Option<NetlinkWatch>,
    source: TaskSource,
    counters: Arc<Counters>,
    row: Row,
    /// What shards have given up, and do not have again yet.
    lost: Lost,
    /// How often the device and the sockets were made anew.
    tun_generation: u64,
    udp_generation: u64,
    /// When to look at the host.
    due: Option<Instant>,
}

impl Keeper {
    fn run(mut self) {
        if let Some(host) = &mut self.host
            && let Err(error) = self.kept.interface.remove_stale_routes(host)
        {
            debug!(%error, "routes of an earlier run");
        }
        // What happened before the watch was there.
        self.due = Some(Instant::now());
        loop {
            let now = Instant::now();
            if self.due.is_some_and(|due| due <= now) {
                self.due = None;
                self.tend(now);
                continue;
            }
            let until = [self.due, self.row.line_due].into_iter().flatten().min();
            self.wait(until.map(|until| until.saturating_duration_since(now)));
            self.row.tell_of_silence(Instant::now());
            if !self.take_tasks() {
                return self.remove_client_routes();
            }
            self.take_client_mtus();
            // A look reads all routes there are, and clients' routes come and go with every login.
            let own = self.host.as_ref().map(Host::port);
            let changes = self.watch.as_ref().map(|watch| watch.drain_of_others(own)).unwrap_or_default();
            if !changes.is_empty() && changes.concern(self.kept.interface.index()) {
                self.look_soon();
            }
        }
    }

    fn wait(&self, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let wake = PollFd::new(&*self.source.wake, PollFlags::IN);
        let waited = match &self.watch {
            Some(watch) => poll(&mut [wake, PollFd::new(watch, PollFlags::IN)], timeout.as_ref()),
            None => poll(&mut [wake], timeout.as_ref()),
        };
        match waited {
            Ok(_) | Err(Errno::INTR) => {}
            // Out of memory: whatever it is, not a loop.
            Err(_) => thread::sleep(QUIET),
        }
        self.source.wake.drain();
    }

    fn look_soon(&mut self) {
        let now = Instant::now();
        let due = now + self.row.pause(now);
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
    }

    /// Takes what the thread was told. Returns whether to go on.
    fn take_tasks(&mut self) -> bool {
        while let Ok(task) = self.source.receiver.try_recv() {
            match task {
                Task::Stop => return false,
                // What was made anew meanwhile is not meant.
                Task::LostTun(generation) if generation == self.tun_generation => {
                    self.lost.tun = true;
                    self.look_soon();
                }
                Task::LostUdp(generation) if generation == self.udp_generation => {
                    self.lost.udp = true;
                    self.look_soon();
                }
                Task::LostTun(_) | Task::LostUdp(_) => {}
            }
        }
        true
    }

    /// Gives clients whose paths carry less than the interface their routes.
    fn take_client_mtus(&mut self) {
        for (client, mtu_bytes) in self.carried.changes() {
            self.set_client_mtu(client, mtu_bytes);
        }
    }

    fn set_client_mtu(&mut self, client: IpAddr, mtu_bytes: Option<u32>) {
        // It may be open again by the next look, which tries again and says what is in the way.
        let Some(mut host) = self.host.take().map_or_else(Host::open, Ok).ok() else { return self.look_soon() };
        if self.kept.interface.set_client_mtu(&mut host, client, mtu_bytes).is_err() {
            self.look_soon();
        }
        self.host = Some(host);
    }

    /// An interface that was there before the gateway stays when the gateway ends.
    fn remove_client_routes(&mut self) {
        for client in self.kept.interface.clients() {
            self.set_client_mtu(client, None);
        }
    }

    /// Looks at everything once, and puts back what is not as it should be.
    fn tend(&mut self, now: Instant) {
        let mut host = match self.host.take().map_or_else(Host::open, Ok) {
            Ok(host) => host,
            Err(error) => return self.failed(now, &error),
        };
        let results =
            [self.tend_sockets(&mut host, now), self.tend_device(&mut host, now), self.tend_interface(&mut host, now)];
        self.host = Some(host);
        match results.into_iter().collect::<Result<Vec<bool>, HostError>>() {
            Ok(done) if done.contains(&true) => self.row.happened(now),
            Ok(_) => {}
            Err(error) => self.failed(now, &error),
        }
    }

    fn failed(&mut self, now: Instant, error: &HostError) {
        add(&self.counters.failures);
        self.row.happened(now);
        self.due = Some(now + self.row.pause(now));
        self.row.failure(
            now,
            &format!("{} or its sockets are not as they should be, trying again: {error}", self.kept.interface.name()),
        );
    }

    /// Puts back what others have changed about the interface. Returns whether there was anything.
    fn tend_interface(&mut self, host: &mut Host, now: Instant) -> Result<bool, HostError> {
        let mut restored = Vec::new();
        let result = self.kept.interface.restore(host, &mut restored);
        restored.iter().for_each(|restored| self.counters.count(restored));
        if !restored.is_empty() {
            let parts: Vec<_> = restored.iter().take(LINES_MAX as usize).map(ToString::to_string).collect();
            let more = restored.len() - parts.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let line = format!(
                "{}: somebody else changed it; put back {}{more}",
                self.kept.interface.name(),
                parts.join(", ")
            );
            self.row.line(now, &line);
        }
        result.map(|()| !restored.is_empty())
    }

    /// Makes the device anew where it is gone, or where a shard cannot use its queue. Returns whether it did.
    fn tend_device(&mut self, host: &mut Host, now: Instant) -> Result<bool, HostError> {
        let is_there = self.kept.interface.is_there(host)?;
        if is_there && !self.lost.tun {
            return Ok(false);
        }
        if is_there {
            host.change(Request::RemoveLink { interface: self.kept.interface.index() })?;
        }
        let (device, queues) = host.make_tun(self.kept.interface.plan())?;
        if let Some(steering) = &self.kept.steering
            && let Some(queue) = queues.first()
            && let Err(error) = steering.attach_again(queue)
        {
            warn!("{error}");
        }
        self.kept.interface.replaced(&device);
        self.kept.device = device;
        self.lost.tun = false;
        self.tun_generation += 1;
        for ((orders, bell), queue) in self.kept.cores.iter().zip(queues) {
            let _ = orders.send(Order::Tun(queue, self.tun_generation));
            bell.ring();
        }
        host.change(Request::SetUp { interface: self.kept.interface.index() })?;
        // The routes that were on it; they are no fault of their own.
        self.kept.interface.restore(host, &mut Vec::new())?;
        add(&self.counters.remade_devices);
        self.row.line(now, &format!("{} was gone: made anew, with its address and queues", self.kept.interface.name()));
        Ok(true)
    }

    /// Opens all sockets anew where a shard has none that works. Their order is what steering goes by, and closing one changes it, so all are
    /// closed first. Returns whether it did.
    fn tend_sockets(&mut self, host: &mut Host, now: Instant) -> Result<bool, HostError> {
        if !self.lost.udp {
            return Ok(false);
        }
        let (released, all_released) = bounded(self.kept.cores.len());
        for (orders, bell) in &self.kept.cores {
            let _ = orders.send(Order::ReleaseUdp(released.clone()));
            bell.ring();
        }
        drop(released);
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        // It ends before the deadline when every shard has answered, or ended.
        while all_released.recv_deadline(deadline).is_ok() {}
        let sockets = host.bind_sockets(self.kept.sockets.clone())?;
        self.lost.udp = false;
        self.udp_generation += 1;
        for ((orders, bell), socket) in self.kept.cores.iter().zip(sockets) {
            let _ = orders.send(Order::Udp(socket, self.udp_generation));
            bell.ring();
        }
        add(&self.counters.remade_sockets);
        self.row
            .line(now, &format!("a UDP socket of {} was out of order: all are opened anew", self.kept.sockets.address));
        Ok(true)
    }
}

/// Faults that follow each other.
#[derive(Debug)]
struct Row {
    last: Option<Instant>,
    /// How long to wait before the next look of this row.
    pause: Duration,
    lines: u32,
    silent: u32,
    /// When the lines that were not written are told of.
    line_due: Option<Instant>,
    /// Whether the fault of now was told of.
    told: bool,
}

impl Default for Row {
    fn default() -> Row {
        Row { last: None, pause: QUIET, lines: 0, silent: 0, line_due: None, told: false }
    }
}

impl Row {
    fn is_over(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.duration_since(last) > ROW)
    }

    fn pause(&self, now: Instant) -> Duration {
        if self.is_over(now) { QUIET } else { self.pause }
    }

    /// Something was wrong, and is put back or not yet.
    fn happened(&mut self, now: Instant) {
        self.pause = (2 * self.pause(now)).min(PAUSE_MAX);
        self.last = Some(now);
    }

    /// Logs what was done.
    fn line(&mut self, now: Instant, line: &str) {
        self.told = false;
        if self.is_over(now) {
            self.lines = 0;
        }
        if self.lines >= LINES_MAX {
            self.silent += 1;
            self.line_due.get_or_insert(now + LINES_PAUSE);
            return;
        }
        self.lines += 1;
        warn!("{line}");
    }

    /// Logs what cannot be done, once until something was done.
    fn failure(&mut self, now: Instant, line: &str) {
        if !self.told {
            self.line(now, line);
            self.told = true;
        }
    }

    fn tell_of_silence(&mut self, now: Instant) {
        if self.line_due.is_some_and(|due| due <= now) {
            self.line_due = None;
            info!("the host was put right {} more times: somebody keeps changing it", std::mem::take(&mut self.silent));
        }
    }
}
