//! Cores and clocks that stop. A core that is paused handles nothing: what comes waits, as far as there is room, and is then handled all at
//! once. A clock that stands shows the same time to a core that works on.

use std::time::Duration;

use tollgate_shards::{Machine, Received, ShardIndex};

use super::{Event, World};
use crate::oracle::Violation;
use crate::random::Stream;
use crate::schedule::Time;
use crate::trace::Who;

/// What the kernel keeps for a core: of a UDP socket, and of a TUN queue.
const SOCKET_BYTES_MAX: usize = 4 << 20;
const FRAMES_MAX: usize = 500;
/// Inputs of a pass.
const BATCH: usize = 256;
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// A core is paused.
#[derive(Debug)]
pub(crate) struct Pause {
    until: Time,
    waiting: Vec<Input>,
    socket_bytes: usize,
    frames: usize,
}

#[derive(Debug)]
pub(crate) enum Input {
    Udp(Received),
    /// A frame that stands for so many inner packets.
    Frame(Vec<u8>, u64),
}

impl Pause {
    fn new(until: Time) -> Self {
        Pause { until, waiting: Vec::new(), socket_bytes: 0, frames: 0 }
    }

    fn keep(&mut self, input: Input) {
        let has_room = match &input {
            Input::Udp(received) => {
                self.socket_bytes += received.data.len();
                self.socket_bytes <= SOCKET_BYTES_MAX
            }
            Input::Frame(..) => {
                self.frames += 1;
                self.frames <= FRAMES_MAX
            }
        };
        if has_room {
            self.waiting.push(input);
        }
    }
}

impl World {
    /// The kernel has something for a core.
    pub(crate) fn input(&mut self, index: u16, input: Input) {
        if let Some(pause) = &mut self.gateway.cores[usize::from(index)].pause {
            return pause.keep(input);
        }
        let now = self.shard_instant(index);
        match input {
            Input::Udp(received) => self.shard_mut(index).handle_udp(now, received),
            Input::Frame(frame, packets) => {
                self.frames_in += packets;
                self.shard_mut(index).handle_frame(now, &frame);
            }
        }
    }

    /// A core stops, or all do, and then time may have stopped for them as well.
    pub(super) fn pause(&mut self) {
        if self.is_calm {
            return;
        }
        let until = self.now + self.halt.log_duration(Duration::from_millis(20), PAUSE_MAX);
        let one = self.any_shard();
        let (all, time_stops) = (self.halt.permille(300), self.halt.permille(500));
        for index in self.gateway.cores.indices() {
            let core = &mut self.gateway.cores[usize::from(index)];
            if (all || index == one) && core.pause.is_none() {
                core.pause = Some(Pause::new(until));
                if all && time_stops {
                    self.gateway.clocks[usize::from(index)].stand(self.now, until, false);
                }
                self.trace.note(self.now, Who::Shard(index), "stops", (until - self.now).as_millis() as u64);
                self.schedule.at(until, Event::Resume(index));
            }
        }
        self.disturb_again(self.plan.surroundings.pause_every, Event::Pause);
    }

    /// A core goes on, and its clock, if they are to by now.
    pub(super) fn resume(&mut self, index: u16) -> Result<(), Violation> {
        let leap = self.gateway.clocks[usize::from(index)].go_on(self.now);
        if !leap.is_zero() {
            self.trace.note(self.now, Who::Shard(index), "reads another time", leap.as_millis() as u64);
            self.oracle.clock_leaps(self.now, leap);
        }
        self.touch_shard(index);
        let core = &mut self.gateway.cores[usize::from(index)];
        let Some(pause) = core.pause.take_if(|pause| pause.until <= self.now) else { return Ok(()) };
        self.trace.note(self.now, Who::Shard(index), "goes on", pause.waiting.len() as u64);
        let mut waiting = pause.waiting.into_iter().peekable();
        self.catching_up = Some(index);
        while waiting.peek().is_some() {
            waiting.by_ref().take(BATCH).for_each(|input| self.input(index, input));
            self.pass_shard(index)?;
        }
        self.catching_up = None;
        for from in self.gateway.cores.indices().into_iter().map(ShardIndex) {
            self.leave_channel(from, ShardIndex(index));
        }
        self.order(index);
        self.touch_shard(index);
        Ok(())
    }

    /// A clock stands still while its core works.
    pub(super) fn stand(&mut self) {
        if self.is_calm {
            return;
        }
        let index = self.any_shard();
        let until = self.now + self.halt.log_duration(Duration::from_millis(1), Duration::from_secs(4));
        if self.gateway.clocks[usize::from(index)].stand(self.now, until, true) {
            self.trace.note(self.now, Who::Shard(index), "reads the same time", (until - self.now).as_millis() as u64);
            self.schedule.at(until, Event::Resume(index));
        }
        self.disturb_again(self.plan.surroundings.stand_every, Event::Stand);
    }

    /// All cores go on.
    pub(crate) fn resume_all(&mut self) {
        for index in self.gateway.cores.indices() {
            if let Some(pause) = &mut self.gateway.cores[usize::from(index)].pause {
                pause.until = self.now;
                self.schedule.at(self.now, Event::Resume(index));
            }
        }
    }

    /// A shard of either process.
    fn any_shard(&mut self) -> u16 {
        let all = self.gateway.cores.indices();
        all[self.halt.between(0, all.len() as u64) as usize]
    }
}

pub(super) fn stream(seed: u64) -> Stream {
    Stream::new(seed, "halt")
}
