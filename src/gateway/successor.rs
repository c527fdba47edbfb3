//! An upgrade as the process sees it that is replaced: it starts the next one, lets the homes of its users go over to it, and serves the clients it has.
//!
//! Nothing is lost where the other process does not get ready, is of another version, or dies at any time: then this one goes on.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate_shards::{CommandId, Generation, SessionLimits, Shards, Snapshot, User};
use tracing::{error, info, warn};

use super::core::CoreCommand;
use super::reload::{Change, Completed, Unanswered};
use super::sibling::{Said, SiblingEnd, SiblingLink};
use super::start::forward;
use super::upkeep::Beside;
use super::{Gateway, Sibling, quotas};
use crate::host::{Host, HostError};
use crate::upgrade::{Handed, Introduction, IntroductionError, Listeners, Words, words};
use crate::usage::Book;

/// How long the next process may take until its shards are there.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take from there until new clients come to it.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(10);

/// Another process serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgraded {
    /// The ID of that process.
    pub process: u32,
    /// Time from the order to the moment from which new clients come to it.
    pub took: Duration,
}

/// Why this process goes on as if nothing had been.
#[derive(Debug, thiserror::Error)]
pub enum NotUpgraded {
    /// Another one is not over.
    #[error("the upgrade before is not over: process {0}, which it replaces, still has clients")]
    UnderWay(u32),
    /// The container would end.
    #[error(
        "this gateway is the first process of its container, which would end with it: start a container with the new program instead"
    )]
    FirstProcess,
    /// It has been replaced.
    #[error("process {0} has taken over: give the order again")]
    Replaced(u32),
    /// The program cannot be started.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Its first words cannot be said.
    #[error(transparent)]
    Introduction(#[from] IntroductionError),
    /// The system is out of something.
    #[error("the upgrade cannot begin: {0}")]
    System(#[from] io::Error),
    /// The new process has ended, or was ended.
    #[error("the new process has not taken over, and the old one goes on: {0}")]
    Failed(String),
}

/// The process that is to take over, or has.
pub struct Replacement {
    process: u32,
    link: SiblingLink,
    /// The cores' ends of the link, until they have them.
    ends: Vec<SiblingEnd>,
    generation: Generation,
    order: CommandId,
    stage: Stage,
    began: Instant,
    /// When the stage must be over.
    deadline: Option<Instant>,
    refusal: Option<String>,
    /// Whether both processes are to stop.
    is_stopping: bool,
    /// Users of the snapshot that is being said.
    users: Vec<User>,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    HandingOver,
    Serving,
}

impl Replacement {
    /// When to look at it, if it says nothing.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether new clients come to it.
    pub fn is_serving(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// The ID of that process.
    pub fn process(&self) -> u32 {
        self.process
    }

    fn say(&self, words: &Words) {
        self.link.send(words.encode());
    }

    /// Nothing more is said. What the cores have said is written first.
    pub fn close(self) {
        self.link.close();
    }

    /// It does not take over any more.
    pub fn give_up(self, host: &mut Host) {
        host.end_successor(true);
        self.link.close();
    }
}

impl Gateway {
    /// Starts `program`, or the one that this gateway was started with, which is to take over; [`Gateway::poll_completed`] tells when it has, or that it does not. It gets
    /// `listeners`.
    ///
    /// # Errors
    ///
    /// Where that cannot be: then nothing has changed.
    pub fn begin_upgrade(
        &mut self,
        program: Option<PathBuf>,
        listeners: Listeners,
        now: Instant,
    ) -> Result<(), NotUpgraded> {
        match &self.sibling {
            Sibling::Nobody => {}
            Sibling::Successor(other) => return Err(NotUpgraded::Replaced(other.process())),
            Sibling::Predecessor(other) => return Err(NotUpgraded::UnderWay(other.process())),
        }
        if process::id() == 1 {
            return Err(NotUpgraded::FirstProcess);
        }
        let order = self.commands.reserve();
        self.incarnations += 1;
        let (introduction, handed) = self.introduce(order, listeners)?;
        let (here, there) = UnixStream::pair()?;
        introduction.send(&here, &handed)?;
        let process = self.upkeep.host().start_successor(program, there)?;
        let wakers: Vec<_> = self.cores.iter().map(|core| core.waker.clone()).collect();
        let (link, ends) = SiblingLink::start(here, &wakers, self.wake.clone())?;
        info!("process {process} was started to take over");
        let generation = match self.shards.generation {
            Generation::Even => Generation::Odd,
            Generation::Odd => Generation::Even,
        };
        self.sibling = Sibling::Successor(Box::new(Replacement {
            process,
            link,
            ends,
            generation,
            order,
            stage: Stage::Starting,
            began: now,
            deadline: Some(now + READY_TIMEOUT),
            refusal: None,
            is_stopping: false,
            users: Vec::new(),
        }));
        Ok(())
    }

    fn introduce(&self, order: CommandId, listeners: Listeners) -> Result<(Introduction, Handed), NotUpgraded> {
        let groups = self.upkeep.groups();
        let [sockets, queues] = groups.lend()?;
        let map = groups.map().map(|map| map.map().try_clone_to_owned()).transpose()?;
        let (device, plan) = self.upkeep.shared();
        let [of_sockets, of_queues] = groups.members();
        let (path, control) = listeners.control.unzip();
        let (metrics_address, metrics) = listeners.metrics.unzip();
        let introduction = Introduction {
            process: process::id(),
            is_odd: self.shards.generation == Generation::Odd,
            shards: self.shards.count,
            incarnation: self.incarnations,
            order: order.0,
            version: self.snapshot.version,
            limits: self.limits.told(),
            over_quota: quotas::told(&self.over_quota),
            master: self.master.clone(),
            address: plan.address,
            interface: device.name().to_owned(),
            is_adopted: device.is_adopted(),
            sockets: of_sockets,
            queues: of_queues,
            alike: self.config.alike(),
            control: path,
            metrics: metrics_address,
            has_map: map.is_some(),
        };
        Ok((introduction, Handed { sockets, queues, map, control, metrics }))
    }

    /// The process that has taken over, if there is one.
    pub fn successor(&self) -> Option<u32> {
        match &self.sibling {
            Sibling::Successor(other) if other.is_serving() => Some(other.process()),
            _ => None,
        }
    }

    /// Tells the process that has taken over how many clients are left here.
    pub fn tell_left(&self, clients: u64) {
        if let Sibling::Successor(other) = &self.sibling {
            other.say(&Words::Left { clients });
        }
    }

    /// Tells the process that has taken over what clients have carried here.
    pub fn tell_usage(&self, book: Book) {
        if let Sibling::Successor(other) = &self.sibling {
            words::usage(book).iter().for_each(|words| other.say(words));
        }
    }

    /// Hears what the process that is to take over says, or that it is gone.
    pub(super) fn hear_successor(&mut self, mut other: Box<Replacement>, now: Instant) -> Sibling {
        while let Some(said) = other.link.poll() {
            match said {
                Said::Words(bytes) => match Words::decode(&bytes) {
                    Some(words) => self.handle_words(&mut other, words, now),
                    None => return self.take_back(*other, "it says what is not understood"),
                },
                Said::Gone(reason) => return self.take_back(*other, &reason),
            }
        }
        match other.deadline {
            Some(deadline) if deadline <= now => self.take_back(*other, "it takes too long"),
            _ => Sibling::Successor(other),
        }
    }

    fn handle_words(&mut self, other: &mut Replacement, words: Words, now: Instant) {
        match (words, other.stage) {
            (Words::Ready { shards }, Stage::Starting) => {
                self.panics.forbid();
                self.upkeep.set_beside(Beside::Successor, now);
                let to = Shards { generation: other.generation, count: shards };
                let (id, incarnation) = (other.order, self.incarnations);
                for (core, end) in self.cores.iter().zip(other.ends.drain(..)) {
                    core.send(CoreCommand::Sibling(end));
                    core.send(CoreCommand::HandOver { id, to, incarnation });
                }
                (other.stage, other.deadline) = (Stage::HandingOver, Some(now + TAKE_OVER_TIMEOUT));
            }
            (Words::Serving, Stage::HandingOver) => {
                (other.stage, other.deadline) = (Stage::Serving, None);
                let (process, took) = (other.process(), now.duration_since(other.began));
                self.completed.push_back(Completed::Upgrade(Ok(Upgraded { process, took })));
            }
            (Words::Refused { reason }, _) => other.refusal = Some(reason),
            (Words::Users(users), Stage::Serving) => other.users.extend(users),
            (Words::Limits(limits), Stage::Serving) => self.limits = limits.into_iter().collect(),
            (Words::Apply { order, version, isolate_clients, session_limits }, Stage::Serving) => {
                let users = std::mem::take(&mut other.users);
                let given = (version, users, isolate_clients, session_limits);
                self.apply_for(other, CommandId(order), given, now);
            }
            (Words::Kick { order, user }, Stage::Serving) => match self.snapshot.users.find_name(&user) {
                Some(user) => {
                    let id = CommandId(order);
                    let command = |id| CoreCommand::Kick { id, user };
                    self.commands.begin_change_as(id, &self.cores, now, Change::ForSuccessor { order: id }, command);
                }
                None => other.say(&Words::Done { order, closed_connections: 0 }),
            },
            (Words::Stop, _) => {
                other.is_stopping = true;
                self.completed.push_back(Completed::Stop);
            }
            _ => {}
        }
    }

    fn apply_for(
        &mut self,
        other: &Replacement,
        id: CommandId,
        (version, users, isolate_clients, session_limits): (u64, Vec<User>, bool, SessionLimits),
        now: Instant,
    ) {
        let users = match self.snapshot.users.succeed(users) {
            Ok(users) => Arc::new(users),
            Err(error) => return other.say(&Words::NotDone { order: id.0, reason: error.to_string() }),
        };
        let over = users.users().filter(|(_, user)| user.is_over_quota).map(|(_, user)| user.name.clone());
        self.over_quota = over.collect();
        let handshakes = self.snapshot.handshakes.listing(users.clone());
        self.snapshot = Arc::new(Snapshot { version, users, isolate_clients, session_limits, handshakes });
        let (change, snapshot) = (Change::ForSuccessor { order: id }, &self.snapshot);
        let command = |id| CoreCommand::Apply { id, snapshot: snapshot.clone() };
        self.commands.begin_change_as(id, &self.cores, now, change, command);
    }

    /// An order of the process that has taken over is carried out, or not as far as is known.
    pub(super) fn answer_successor(&self, id: CommandId, result: Result<u64, Unanswered>) {
        let Sibling::Successor(other) = &self.sibling else { return };
        other.say(&match result {
            Ok(closed_connections) => Words::Done { order: id.0, closed_connections },
            Err(error) => Words::NotDone { order: id.0, reason: error.to_string() },
        });
    }

    /// Ends the other process, if it lives, and goes on as if it had never been.
    fn take_back(&mut self, other: Replacement, why: &str) -> Sibling {
        let Replacement { process, link, stage, refusal, is_stopping, .. } = other;
        let end = self.upkeep.host().end_successor(false);
        link.close();
        if is_stopping {
            return Sibling::Nobody;
        }
        let reason = refusal.unwrap_or_else(|| format!("{why}; {end}"));
        if stage != Stage::Starting {
            self.incarnations += 1;
            let (id, incarnation) = (self.commands.reserve(), self.incarnations);
            for core in &self.cores {
                core.send(CoreCommand::TakeBack { id, incarnation });
            }
            self.upkeep.take_all();
            let interface = self.upkeep.shared().0.name().to_owned();
            let forwarded = match self.stop_by {
                None => forward(&self.config, &interface, self.upkeep.host()),
                Some(_) => Ok(()),
            };
            forwarded.unwrap_or_else(|error| warn!("{error}"));
            self.upkeep.set_beside(Beside::Nobody, Instant::now());
            self.panics.allow();
        }
        match stage {
            Stage::Serving => {
                error!("process {process}, which had taken over, is gone, and this one serves again: {reason}");
                self.completed.push_back(Completed::SuccessorLost);
            }
            Stage::Starting | Stage::HandingOver => {
                self.completed.push_back(Completed::Upgrade(Err(NotUpgraded::Failed(reason))));
            }
        }
        Sibling::Nobody
    }
}
