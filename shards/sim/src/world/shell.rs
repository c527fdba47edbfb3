//! Runs whose shards have the shell's cores around them: their turns, the kernel below, and the control plane's part.

use std::time::{Duration, Instant};

use tollgate::gateway::core::{CoreCommand, Next};
use tollgate::gateway::notices::Notice;
use tollgate_shards::{Received, ShardIndex};

use super::passes::Outputs;
use super::{Event, World};
use crate::gateway::Core;
use crate::oracle::Violation;
use crate::plan::Feature;
use crate::schedule::Time;
use crate::shell::kernel::Queue;
use crate::shell::steering::{apart, socket_of};
use crate::shell::{FATES, Machine, open_sockets};
use crate::trace::Who;

/// A core that has so many turns in a row, and nothing comes of them, will have more.
const IDLE_TURNS_MAX: u32 = 20_000;

/// What happens to the kernel's side of a core.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Happening {
    /// The kernel has sent what was in the send buffer of a core.
    Sent(u16),
    /// A descriptor breaks, or takes nothing.
    Break,
    /// The TUN queue of a core takes frames again.
    TunRoom(u16),
    /// The kernel refuses to send for a core, and then does not any more.
    Refuse,
    Allow(u16),
    /// The control plane makes the device anew that had this generation.
    RemakeTun(u64),
    /// The control plane has the sockets of this generation closed, to open others.
    ReleaseUdp(u64),
}

impl World {
    pub(super) fn machine(&mut self, index: u16) -> Option<&mut Machine> {
        self.gateway.cores[usize::from(index)].machine_mut()
    }

    /// The turn of a core, if it has one now.
    pub(super) fn turn(&mut self, index: u16) -> Result<(), Violation> {
        let now = self.instant();
        let core = &mut self.gateway.cores[usize::from(index)];
        core.dirty = false;
        let (Some(shell), Some(machine)) = (&mut self.shell, core.machine_mut()) else { return Ok(()) };
        if !machine.is_due(now) {
            self.schedule_turn(index);
            return Ok(());
        }
        let next = machine.turn(now, shell.turn_cost());
        if let Ok(Next::Gather(until)) = next
            && until.saturating_duration_since(now) > shell.plan.coalesce
        {
            let wait = until.saturating_duration_since(now);
            return Err(Violation::new("moderation", format!("{:?} lets work gather for {wait:?}", ShardIndex(index))));
        }
        if machine.idle_turns > IDLE_TURNS_MAX {
            return Err(Violation::new("rest", format!("{:?} has turns for nothing", ShardIndex(index))));
        }
        let events = shell.take_told();
        let sent = std::mem::take(&mut machine.live.borrow_mut().sent);
        let frames = std::mem::take(&mut machine.tun.borrow_mut().written);
        if !sent.is_empty() && machine.live.borrow().has_unsent() {
            self.schedule.at(self.now + shell.plan.send_time, Event::Kernel(Happening::Sent(index)));
        }
        for (transmit, bytes) in sent {
            self.transmit(index, &transmit, &bytes)?;
        }
        self.carry_out(index, Outputs { events, frames, ..Outputs::default() })?;
        if next.is_err() {
            self.begin_anew(index);
        }
        self.schedule_turn(index);
        while let Some(notice) = self.shell.as_ref().and_then(|shell| shell.next_notice()) {
            self.hear(notice);
        }
        for other in (0..self.plan.shards).filter(|&other| other != index) {
            if self.machine(other).is_some_and(|machine| machine.is_due(now)) {
                self.touch_shard(other);
            }
        }
        self.pass_ends(index)
    }

    fn schedule_turn(&mut self, index: u16) {
        let now = self.instant();
        let Some(at) = self.machine(index).and_then(|machine| machine.due(now)) else { return };
        let at = self.time_of(at).max(Time { ns: self.now.ns + 1 });
        let core = &mut self.gateway.cores[usize::from(index)];
        if core.wake.is_none_or(|wake| at < wake) {
            core.wake = Some(at);
            self.schedule.at(at, Event::WakeShard(index));
        }
    }

    fn time_of(&self, at: Instant) -> Time {
        Time::default() + at.saturating_duration_since(self.origin)
    }

    /// The kernel gets datagrams for the gateway.
    pub(super) fn deliver_udp(&mut self, received: Received) {
        let (shard, is_handshake) = socket_of(&received.data, &self.plan.layout, self.plan.shards);
        let index = self.gateway.mistaken(shard);
        self.trace.note(self.now, Who::Shard(index), "udp in", received.data.len() as u64);
        let Some(machine) = self.machine(index) else { return };
        let lost = if is_handshake {
            let mut socket = machine.handshakes.borrow_mut();
            apart(received).map(|received| u64::from(!socket.deliver(received))).sum()
        } else {
            u64::from(!machine.live.borrow_mut().deliver(received))
        };
        if let Some(shell) = &mut self.shell {
            shell.lost += lost;
        }
        self.touch_shard(index);
    }

    /// The kernel gets a frame for a TUN queue.
    pub(crate) fn deliver_frame(&mut self, index: u16, frame: Vec<u8>, packets: u64) {
        let Some(machine) = self.machine(index) else { return };
        if machine.tun.borrow_mut().deliver(frame, packets) {
            self.frames_in += packets;
        } else if let Some(shell) = &mut self.shell {
            shell.lost += 1;
        }
        self.touch_shard(index);
    }

    /// The control plane hears of a core.
    fn hear(&mut self, notice: Notice) {
        let pause = self.shell.as_mut().map_or(Duration::ZERO, |shell| {
            shell.random.log_duration(Duration::from_millis(1), Duration::from_millis(500))
        });
        let (shell_tun, shell_udp) =
            self.shell.as_ref().map_or((0, 0), |shell| (shell.tun_generation, shell.udp_generation));
        match notice {
            Notice::Done { command, shard, .. } => self.gateway.cores[usize::from(shard)].completed(command),
            Notice::LostTun(generation) if generation == shell_tun => {
                self.schedule.at(self.now + pause, Event::Kernel(Happening::RemakeTun(generation)));
            }
            Notice::LostUdp(generation) if generation == shell_udp => {
                self.schedule.at(self.now + pause, Event::Kernel(Happening::ReleaseUdp(generation)));
            }
            Notice::ReleasedUdp { shard } => self.released(shard),
            _ => {}
        }
    }

    pub(super) fn happen_in_kernel(&mut self, happening: Happening) {
        match happening {
            Happening::Sent(index) => {
                if self.machine(index).is_some_and(|machine| machine.live.borrow_mut().drain()) {
                    self.touch_shard(index);
                }
            }
            Happening::Break => self.break_something(),
            Happening::TunRoom(index) => {
                if let Some(machine) = self.machine(index) {
                    machine.tun.borrow_mut().room_frames = usize::MAX;
                }
            }
            Happening::Refuse => self.refuse(),
            Happening::Allow(index) => {
                if let Some(machine) = self.machine(index) {
                    machine.live.borrow_mut().refuses = false;
                }
            }
            Happening::RemakeTun(generation) => self.remake_tun(generation),
            Happening::ReleaseUdp(generation) => {
                let Some(shell) = &mut self.shell else { return };
                if shell.udp_generation == generation && shell.releasing.is_empty() {
                    shell.releasing = (0..self.plan.shards).collect();
                    self.command_all(|_| CoreCommand::ReleaseUdp);
                }
            }
        }
    }

    /// The cores begin, and something will break.
    pub(super) fn schedule_breaks(&mut self) {
        let Some(shell) = &mut self.shell else { return };
        let after = shell.random.around(shell.plan.breaks_every);
        self.schedule.at(self.now + after, Event::Kernel(Happening::Break));
        if self.plan.features.has(Feature::Refusals) {
            self.schedule.at(self.now + after, Event::Kernel(Happening::Refuse));
        }
        (0..self.plan.shards).for_each(|index| self.touch_shard(index));
    }

    /// As a rule of a firewall does, or a route that is gone.
    fn refuse(&mut self) {
        let shards = u64::from(self.plan.shards);
        let Some(shell) = self.shell.as_mut().filter(|_| !self.is_calm) else { return };
        let index = shell.refusals.between(0, shards) as u16;
        let lasts = shell.refusals.log_duration(Duration::from_millis(1), Duration::from_secs(1));
        let again = lasts + shell.refusals.around(shell.plan.breaks_every);
        self.schedule.at(self.now + again, Event::Kernel(Happening::Refuse));
        self.schedule.at(self.now + lasts, Event::Kernel(Happening::Allow(index)));
        self.trace.note(self.now, Who::Shard(index), "may not send", lasts.as_millis() as u64);
        if let Some(machine) = self.machine(index) {
            machine.live.borrow_mut().refuses = true;
        }
    }

    /// A core is to panic soon.
    pub(super) fn doom(&mut self, index: u16) {
        let Some(shell) = &mut self.shell else { return };
        let (which, times) = (shell.panics.index(FATES), shell.panics.log_uniform(1, 64) - 1);
        self.trace.note(self.now, Who::Shard(index), "is to panic", which as u64);
        if let Some(machine) = self.machine(index) {
            machine.panic_at(which, times);
        }
    }

    fn break_something(&mut self) {
        if self.is_calm {
            return;
        }
        let shards = u64::from(self.plan.shards);
        let Some(shell) = &mut self.shell else { return };
        let (index, what) = (shell.random.between(0, shards) as u16, shell.random.between(0, 4));
        let (pause, every) =
            (shell.random.duration(Duration::ZERO, Duration::from_millis(50)), shell.plan.breaks_every);
        let again = shell.random.around(every) + Duration::from_millis(1);
        self.schedule.at(self.now + again, Event::Kernel(Happening::Break));
        self.trace.note(self.now, Who::Shard(index), "loses a descriptor", what);
        let Some(machine) = self.machine(index) else { return };
        match what {
            0 => machine.live.borrow_mut().is_broken = true,
            1 => machine.handshakes.borrow_mut().is_broken = true,
            2 => machine.tun.borrow_mut().is_broken = true,
            _ => {
                machine.tun.borrow_mut().room_frames = 0;
                self.schedule.at(self.now + pause, Event::Kernel(Happening::TunRoom(index)));
            }
        }
        self.touch_shard(index);
    }

    fn command_all(&mut self, mut command: impl FnMut(&mut Machine) -> CoreCommand<crate::shell::kernel::Simulated>) {
        for index in 0..self.plan.shards {
            if let Some(machine) = self.machine(index) {
                let command = command(machine);
                machine.command(command);
            }
            self.touch_shard(index);
        }
    }

    fn remake_tun(&mut self, generation: u64) {
        let Some(shell) = &mut self.shell else { return };
        if shell.tun_generation != generation {
            return;
        }
        shell.tun_generation += 1;
        let (frames_max, generation) = (shell.plan.tun_frames_max, shell.tun_generation);
        let mut left = 0;
        self.command_all(|machine| {
            left += machine.tun.borrow_mut().destroy();
            let (queue, state) = Queue::open(frames_max);
            machine.tun = state;
            CoreCommand::Tun(queue, generation)
        });
        self.frames_in -= left;
        self.shell.iter_mut().for_each(|shell| shell.lost += left);
    }

    /// A core has closed its sockets. When all have, there are others.
    fn released(&mut self, shard: u16) {
        let Some(shell) = &mut self.shell else { return };
        if !shell.releasing.remove(&shard) || !shell.releasing.is_empty() {
            return;
        }
        shell.udp_generation += 1;
        let (plan, generation) = (shell.plan, shell.udp_generation);
        let mut left = 0;
        self.command_all(|machine| {
            let (sockets, live, handshakes) = open_sockets(&plan);
            left += machine.live.borrow().left() + machine.handshakes.borrow().left();
            (machine.live, machine.handshakes) = (live, handshakes);
            CoreCommand::Udp(sockets, generation)
        });
        self.shell.iter_mut().for_each(|shell| shell.lost += left);
    }

    /// Messages between shards that have not been taken.
    pub(crate) fn messages_under_way(&self) -> usize {
        let waits = |core: &&Core| {
            core.machine().is_some_and(|machine| !machine.core.seat.mesh.is_idle() || machine.core.seat.mesh.holds())
        };
        self.mesh.under_way + self.gateway.cores.iter().filter(waits).count()
    }
}
