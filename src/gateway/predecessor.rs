//! An upgrade as the process sees it that takes over: it starts beside the other one, gets the homes of all users, and from one system call on all new
//! clients; then it waits for the other one's end.
//!
//! Until it serves it has nothing else to do, so it waits in place.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tollgate_config::ServerConfig;
use tollgate_shards::{CommandId, Generation, Shards, Snapshot};
use tracing::{error, info, warn};

use super::commands::CoreHandle;
use super::core::CoreCommand;
use super::groups::{Groups, Others, Predecessors};
use super::notices::Notice;
use super::reload::{Completed, Unanswered};
use super::sibling::{self, Said, SiblingLink};
use super::start::{Before, ByOrder, Prepared, Started, announce, forward};
use super::upkeep::Beside;
use super::{Gateway, GatewayError, Keys, Sibling, given_up};
use crate::host::{ForwardingPlan, Host, Request};
use crate::io::{Members, TunSteering, descriptors};
use crate::records::Recorder;
use crate::upgrade::{Handed, Introduction, Words};
use crate::usage::{Book, Entry};

/// How long the shards may take until they know what the other process's have told.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process may take to end after it has closed the link.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the process before this one may take to carry an order out: longer than it takes to find out which of its shards stands still.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// The process before this one, while it lives.
pub struct Predecessor {
    process: u32,
    /// `None` where it is dead already, or the kernel has no such descriptors.
    descriptor: Option<OwnedFd>,
    link: SiblingLink,
    groups: Predecessors,
    /// Clients that it has, as far as it has said.
    clients: Option<u64>,
    passing: Option<Passing>,
}

/// An order that both processes are to carry out, this one first.
struct Passing {
    order: CommandId,
    /// What the other one is told, when all cores of this one have executed the order.
    words: Vec<Words>,
    /// Cores of this process that have not.
    missing: usize,
    /// What it has come to there: the connections that were closed.
    there: Option<Result<u64, String>>,
    /// What it has come to here, and how long it is waited for the other one.
    here: Option<(Completed, Instant)>,
}

impl Passing {
    /// What it has come to in both processes. `None` while one of them is still at it.
    fn take_completed(&mut self, process: u32) -> Option<Completed> {
        let there = self.there.clone()?;
        let (here, _) = self.here.take()?;
        Some(match there {
            Ok(closed_connections) => here.with_closed(closed_connections),
            Err(reason) => here.unanswered(Unanswered::Predecessor { process, reason }),
        })
    }
}

impl Predecessor {
    /// The ID of that process.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Clients that it has, as far as it has said.
    pub fn clients(&self) -> Option<u64> {
        self.clients
    }

    /// When to look at it, if it says nothing.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.passing.as_ref()?.here.as_ref().map(|(_, deadline)| *deadline)
    }

    /// Has it stop too.
    pub fn stop(&self) {
        self.link.send(Words::Stop.encode());
    }

    /// Waits until its descriptors are closed, for a bounded time. It has closed the link.
    fn await_end(&self) {
        let Some(descriptor) = &self.descriptor else { return };
        let timeout = Timespec::try_from(END_TIMEOUT).ok();
        let ended = poll(&mut [PollFd::new(descriptor, PollFlags::IN)], timeout.as_ref());
        if !matches!(ended, Ok(1)) {
            warn!("process {} does not end: its sockets may stay for as long as it does", self.process);
        }
    }
}

impl Gateway {
    /// Takes over from the process that has introduced itself on `stream`. Returns when new clients come to this one.
    ///
    /// # Errors
    ///
    /// Each with one line that says what to do. The other process goes on then.
    pub fn succeed(
        config: &ServerConfig,
        introduction: &Introduction,
        handed: Handed,
        stream: UnixStream,
        mut host: Host,
        recorder: Option<&Recorder>,
    ) -> Result<Self, GatewayError> {
        agree(config, introduction)?;
        let (generation, before) = match introduction.is_odd {
            true => (Generation::Even, Generation::Odd),
            false => (Generation::Odd, Generation::Even),
        };
        let before = Shards { generation: before, count: introduction.shards };
        let keys = Keys::derive(&introduction.master);
        let mut prepared = Prepared::of(
            config,
            keys,
            ByOrder {
                limits: introduction.limits.iter().cloned().collect(),
                over_quota: introduction.over_quota.iter().cloned().collect(),
            },
            (generation, introduction.version),
            &host.opener(),
        )?;
        prepared.sockets.address = introduction.address;
        prepared.tun.name = Some(introduction.interface.clone());
        let (others, map) = others(introduction, handed, &mut host).ok_or(GatewayError::Introduction)?;
        let joined = host.join_sockets(prepared.sockets.clone())?;
        let sockets = descriptors(&joined);
        let queues = joined.iter().map(|_| None).collect();
        let incarnation = introduction.incarnation;
        let before = Before { shards: before, incarnation, stream };
        let mut started = Started::of(config, &mut prepared, joined, queues, map.as_ref(), Some(before), recorder)?;
        started.panics.forbid();
        let link = started.link.take().ok_or(GatewayError::Introduction)?;
        let taken = take_memory(&started, &link).and_then(|gone| {
            let joined = host.join_tun(prepared.tun.clone(), introduction.is_adopted)?;
            let (by, address) = (prepared.sockets.options.steering, prepared.sockets.address);
            let groups = Groups::behind(generation, by, sockets, &joined.1, address, &others, map);
            // Had the other process lost its rules to one that then does not get ready, it would have to set them up again.
            let plan = ForwardingPlan::of(&config.host, config.tunnel_network, &introduction.interface);
            plan.map_or(Ok(()), |plan| host.change(Request::SetForwarding { plan, is_tried: true }))?;
            groups.take_over(&others, &mut host)?;
            Ok((gone, joined, groups))
        });
        let (gone, (tun, queues), groups) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                link.send(Words::Refused { reason: error.to_string() }.encode());
                link.close();
                return Err(error);
            }
        };
        for (core, queue) in started.cores.iter().zip(queues) {
            core.send(CoreCommand::Tun(queue, 0));
        }
        if let Err(error) = forward(config, tun.name(), &mut host) {
            error!("{error}: clients' packets are forwarded only while process {} is there", introduction.process);
        }
        link.send(Words::Serving.encode());
        announce(config, &prepared.cpus, &tun, groups.map().is_some());
        let mut gateway = Gateway::of(config, prepared, started, tun, (groups, host), Beside::Predecessor);
        gateway.commands.follow(CommandId(introduction.order));
        gateway.incarnations = incarnation;
        let process = introduction.process;
        let descriptor = Pid::from_raw(process as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let other = Predecessor { process, descriptor, link, groups: others, clients: None, passing: None };
        info!("taken over from process {process}, which keeps the clients that it has");
        gateway.sibling = match gone {
            Some(reason) => gateway.outlive(other, &reason, Instant::now()),
            None => Sibling::Predecessor(Box::new(other)),
        };
        Ok(gateway)
    }

    /// The process before this one, while it lives, and how many clients it has.
    pub fn predecessor(&self) -> Option<(u32, Option<u64>)> {
        match &self.sibling {
            Sibling::Predecessor(other) => Some((other.process(), other.clients())),
            _ => None,
        }
    }

    /// Hears what the process before this one says, or that it is gone.
    pub(super) fn hear_predecessor(&mut self, mut other: Box<Predecessor>, now: Instant) -> Sibling {
        while let Some(said) = other.link.poll() {
            match said {
                Said::Words(bytes) => self.handle_predecessors_words(&mut other, Words::decode(&bytes)),
                Said::Gone(reason) => {
                    tell_gone(&self.cores);
                    return self.outlive(*other, &reason, now);
                }
            }
        }
        if other.poll_timeout().is_some_and(|deadline| deadline <= now)
            && let Some(passing) = &mut other.passing
        {
            passing.there.get_or_insert_with(|| Err("it says nothing".to_owned()));
        }
        self.complete_passing(&mut other);
        Sibling::Predecessor(other)
    }

    fn handle_predecessors_words(&mut self, other: &mut Predecessor, words: Option<Words>) {
        let (order, there) = match words {
            Some(Words::Left { clients }) => return other.clients = Some(clients),
            Some(Words::Usage(rows)) => return self.hear_usage(rows),
            Some(Words::Done { order, closed_connections }) => (order, Ok(closed_connections)),
            Some(Words::NotDone { order, reason }) => (order, Err(reason)),
            _ => return,
        };
        if let Some(passing) = other.passing.as_mut().filter(|passing| passing.order.0 == order) {
            passing.there = Some(there);
        }
    }

    fn hear_usage(&mut self, rows: Vec<(String, Entry)>) {
        // Nobody takes it otherwise.
        if self.config.usage.enabled {
            rows.into_iter().for_each(|(user, entry)| self.told_usage.add(&user, entry));
        }
    }

    /// What clients of the process before this one have carried, as it has told since the last time.
    pub fn take_told_usage(&mut self) -> Book {
        std::mem::take(&mut self.told_usage)
    }

    fn complete_passing(&mut self, other: &mut Predecessor) {
        let process = other.process;
        if let Some(completed) = other.passing.as_mut().and_then(|passing| passing.take_completed(process)) {
            other.passing = None;
            self.completed.push_back(completed);
        }
    }

    /// The order that has just begun is the process's before this one too, if there is one: `words` say it, when all cores have executed it.
    pub(super) fn prepare_to_pass_on(&mut self, words: impl FnOnce(u64, &Snapshot) -> Vec<Words>) {
        if let Sibling::Predecessor(other) = &mut self.sibling {
            let order = self.commands.last_change();
            let words = words(order.0, &self.snapshot);
            other.passing = Some(Passing { order, words, missing: self.cores.len(), there: None, here: None });
        }
    }

    /// A core has executed an order. When all have, the process before this one is told.
    pub(super) fn pass_on(&mut self, order: CommandId) {
        if let Sibling::Predecessor(other) = &mut self.sibling
            && let Some(passing) = other.passing.as_mut().filter(|passing| passing.order == order)
        {
            passing.missing = passing.missing.saturating_sub(1);
            if passing.missing == 0 {
                std::mem::take(&mut passing.words).iter().for_each(|words| other.link.send(words.encode()));
            }
        }
    }

    /// What is carried out here waits for the process before this one. Returns what that one has no part in.
    pub(super) fn complete_with_predecessor(&mut self, completed: Completed, now: Instant) -> Option<Completed> {
        let Sibling::Predecessor(other) = &mut self.sibling else { return Some(completed) };
        let process = other.process;
        let Some(passing) = &mut other.passing else { return Some(completed) };
        if !matches!(
            completed,
            Completed::Reload(Ok(_)) | Completed::Kick(Ok(_)) | Completed::Limit(Ok(_)) | Completed::Bar(Ok(_))
        ) {
            return Some(completed);
        }
        passing.here = Some((completed, now + ORDER_TIMEOUT));
        passing.take_completed(process).inspect(|_| other.passing = None)
    }

    /// The process before this one is gone, and its connections with it, as the cores know.
    fn outlive(&mut self, other: Predecessor, reason: &str, now: Instant) -> Sibling {
        // It may take long to die. What comes, or has come since it was killed, need not wait for that.
        self.upkeep.take_all();
        let waiting = self.upkeep.groups().take_waiting(&other.groups);
        if let Some(core) = self.cores.first() {
            core.send(CoreCommand::Waiting(waiting));
        }
        other.await_end();
        let Predecessor { process, link, groups, passing, .. } = other;
        self.upkeep.let_leave(groups, now);
        self.panics.allow();
        self.completed.extend(passing.and_then(|passing| passing.here).map(|(completed, _)| completed));
        link.close();
        info!("process {process} has ended ({reason}): this one has the gateway alone");
        Sibling::Nobody
    }
}

fn tell_gone(cores: &[CoreHandle]) {
    cores.iter().for_each(|core| _ = core.send(CoreCommand::PredecessorGone));
}

/// Tells the process that waits at the other end of `stream` that this one does not take over, and why.
pub fn refuse(stream: &UnixStream, reason: &str) {
    // Where it is gone, nobody wants to know.
    let _ = sibling::say(stream, &Words::Refused { reason: reason.to_owned() }.encode());
}

/// Whether the configuration is one that this process can take over with.
fn agree(config: &ServerConfig, introduction: &Introduction) -> Result<(), GatewayError> {
    let differs = |((key, now), (_, before)): (&(String, String), &(String, String))| {
        (now != before).then(|| format!("{key} ({before} -> {now})"))
    };
    let ours = config.alike();
    let keys: Vec<String> = ours.iter().zip(&introduction.alike).filter_map(differs).collect();
    if ours.len() == introduction.alike.len() && keys.is_empty() {
        return Ok(());
    }
    Err(GatewayError::NotAlike(if keys.is_empty() { "what must be alike".to_owned() } else { keys.join(", ") }))
}

/// What the other process has lent. `None` where it cannot be.
fn others(
    introduction: &Introduction,
    handed: Handed,
    host: &mut Host,
) -> Option<(Predecessors, Option<Arc<TunSteering>>)> {
    let Handed { sockets, queues, map, .. } = handed;
    let of = |descriptors: Vec<OwnedFd>, members: Members| {
        members.can_be_in_front().then_some(Others { descriptors, members })
    };
    let others = Predecessors { sockets: of(sockets, introduction.sockets)?, queues: of(queues, introduction.queues)? };
    let map = match map {
        Some(map) => Some(TunSteering::with(map)),
        // One queue needs no steering, two do. Where there were more, it is not to be had.
        None if introduction.shards == 1 => host.steering_map().map_err(|error| warn!("{error}")).ok(),
        None => None,
    };
    Some((others, map.map(Arc::new)))
}

/// Has the other process's shards hand over, and waits until those of this one know all. Returns why that process is gone, if it is.
fn take_memory(started: &Started, link: &SiblingLink) -> Result<Option<String>, GatewayError> {
    link.send(Words::Ready { shards: started.cores.len() as u16 }.encode());
    let deadline = Instant::now() + MEMORY_TIMEOUT;
    let (mut missing, mut gone) = (started.cores.len(), None);
    loop {
        started.wake.drain();
        while let Ok(notice) = started.notices.try_recv() {
            match notice {
                Notice::TakenOver { .. } => missing -= 1,
                Notice::GivenUp { shard, because } => return Err(given_up(shard, because)),
                Notice::Ended { shard } => return Err(GatewayError::Stuck { shard }),
                _ => {}
            }
        }
        while let Some(said) = link.poll() {
            if let Said::Gone(reason) = said {
                gone = Some(reason);
                tell_gone(&started.cores);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if missing == 0 {
            return Ok(gone);
        }
        if left.is_zero() {
            return Err(GatewayError::NoMemory);
        }
        let timeout = Timespec::try_from(left).ok();
        let _ = poll(&mut [PollFd::new(&started.wake.as_fd(), PollFlags::IN)], timeout.as_ref());
    }
}
