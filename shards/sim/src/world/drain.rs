//! The gateway drains for a while: no shard takes a client but those who were logging in when another process took over, and all who are there are sent
//! away in time.

use std::time::Duration;

use tollgate_shards::{Command, ShardIndex};

use super::{Event, World};
use crate::oracle::Violation;
use crate::plan::Feature;
use crate::random::Stream;
use crate::schedule::Time;
use crate::trace::Who;

/// Beyond its time a drain may last so long, in which a core may be at something else.
const SLACK: Duration = Duration::from_secs(2);

/// How clients are to be sent away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrainTimes {
    over: Duration,
    within: Duration,
    to_successor: bool,
}

impl DrainTimes {
    pub fn draw(random: &mut Stream) -> Self {
        let [over, within] = [(); 2].map(|()| random.log_duration(Duration::from_millis(10), Duration::from_secs(20)));
        DrainTimes { over, within, to_successor: false }
    }

    /// Another process takes the clients.
    pub fn to_successor(self) -> Self {
        DrainTimes { to_successor: true, ..self }
    }

    /// When all are gone.
    fn time(self) -> Duration {
        if self.to_successor { self.within } else { self.over.min(self.within) }
    }
}

/// What a shard was told last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draining {
    pace: DrainTimes,
    obeyed: Option<Obeyed>,
    /// Where the shell's core has put another shard in the place of one that has panicked: how many looks later that one obeys, this turn's included.
    obeys_within: Option<u32>,
}

/// How a shard was when it was first seen to obey.
#[derive(Debug, Clone, Copy)]
struct Obeyed {
    at: Time,
    /// How many clients it had last.
    clients: usize,
    /// How many will have logged in, now and in its time before, if every handshake that is under way does.
    logins_max: u64,
}

impl World {
    /// Schedules a drain, another one of another pace in half of the runs, and their end.
    pub(super) fn schedule_drain(&mut self) {
        if !self.plan.features.has(Feature::Drain) {
            return;
        }
        let mut random = self.plan.draws.stream("drain");
        let mut at = random.duration(Duration::ZERO, self.plan.safety);
        for _ in 0..1 + random.index(2) {
            let pace = DrainTimes::draw(&mut random);
            self.schedule_orders(at, Some(pace), &mut random);
            at += random.log_duration(Duration::from_millis(100), Duration::from_secs(20));
        }
        self.schedule_orders(at, None, &mut random);
    }

    fn schedule_orders(&mut self, at: Duration, pace: Option<DrainTimes>, random: &mut Stream) {
        if self.plan.features.has(Feature::Upgrade) {
            // Whose order it is is not known yet.
            return self.schedule.at(self.now + at, Event::OrderDrain(pace));
        }
        for index in 0..self.plan.shards {
            let after = at + random.duration(Duration::ZERO, self.plan.disturbances.order_spread);
            self.schedule.at(self.now + after, Event::Drain(index, pace));
        }
    }

    /// The process that serves is told to drain, or to take clients again.
    pub(super) fn order_drain(&mut self, pace: Option<DrainTimes>) {
        for shard in self.serving().iter() {
            let after = self.drains.duration(Duration::ZERO, self.plan.disturbances.order_spread);
            self.schedule.at(self.now + after, Event::Drain(shard.0, pace));
        }
    }

    /// A shard is told to drain, or to take clients again.
    pub(super) fn drain_shard(&mut self, index: u16, pace: Option<DrainTimes>) {
        if self.is_calm && pace.is_some() {
            return;
        }
        if self.gateway.cores[usize::from(index)].pause.is_some() {
            self.schedule.at(self.now + Duration::from_millis(10), Event::Drain(index, pace));
            return;
        }
        let what = if pace.is_some() { "is to drain" } else { "is to take clients again" };
        self.trace.note(self.now, Who::Shard(index), what, 0);
        let drain = |DrainTimes { over, within, to_successor }| Command::Drain { over, within, to_successor };
        let command = pace.map_or(Command::Resume, drain);
        match pace {
            Some(pace) => self.draining.insert(ShardIndex(index), Draining { pace, obeyed: None, obeys_within: None }),
            None => _ = self.draining.remove(ShardIndex(index)),
        }
        self.hits.command(&command);
        let now = self.shard_instant(index);
        self.touch_shard(index);
        match self.gateway.cores[usize::from(index)].machine_mut() {
            Some(machine) => machine.order(command),
            None => self.shard_mut(index).handle_command(now, command),
        }
    }

    /// A shard that was started anew is told again; by the shell's core, where there is one.
    pub(super) fn drain_anew(&mut self, index: u16) {
        if let Some(Draining { pace, obeyed, obeys_within }) = self.draining.get_mut(ShardIndex(index)) {
            *obeyed = None;
            if self.shell.is_some() {
                *obeys_within = Some(2);
                return;
            }
            let pace = *pace;
            self.schedule.at(self.now, Event::Drain(index, Some(pace)));
        }
    }

    /// All shards take clients again.
    pub(crate) fn end_drains(&mut self) {
        for index in self.draining.indices() {
            self.schedule.at(self.now, Event::Drain(index, None));
        }
    }

    /// A shard's pass is over: one that drains has no more clients than before, and none once its time is over.
    pub(super) fn judge_drain(&mut self, index: u16) -> Result<(), Violation> {
        let Some(Draining { pace, obeyed, obeys_within }) = self.draining.get_mut(ShardIndex(index)) else {
            return Ok(());
        };
        let shard = self.gateway.cores[usize::from(index)].shard();
        if shard.inspect().takes_clients() {
            return match obeys_within {
                Some(looks) if *looks > 1 => {
                    *looks -= 1;
                    Ok(())
                }
                Some(_) => Err(Violation::new("drain", format!("{:?} came back and does not drain", shard.index()))),
                None => Ok(()),
            };
        }
        *obeys_within = None;
        let (clients, logins) = (shard.clients(), shard.counters().handshakes);
        let logins_max = logins + shard.inspect().handshakes_admitted() as u64;
        let before = *obeyed.get_or_insert(Obeyed { at: self.now, clients, logins_max });
        *obeyed = Some(Obeyed { clients, ..before });
        self.hits.states(shard);
        let is_measured = !self.plan.features.has(Feature::Clocks) && !self.plan.features.has(Feature::Pauses);
        let has_more = clients > before.clients || logins > before.logins_max;
        let what = if has_more && !pace.to_successor {
            format!("drains, and has {clients} clients after {}, and {logins} logins", before.clients)
        } else if clients > 0 && is_measured && self.now > before.at + pace.time() + SLACK {
            format!("drains since {:?} and still has {clients} clients", before.at)
        } else {
            return Ok(());
        };
        Err(Violation::new("drain", format!("{:?} {what}", shard.index())))
    }
}
