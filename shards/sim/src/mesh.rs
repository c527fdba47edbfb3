//! The channels between shards: ordered, slow, and lossy for what may be lost.
//!
//! This module never looks into a message but for what would be lost with it.

use std::collections::VecDeque;
use std::time::Duration;

use tollgate_shards::{Message, PacketMessage, ShardIndex};

use crate::plan::Disturbances;
use crate::random::Stream;
use crate::schedule::Time;

#[derive(Debug)]
pub struct Mesh {
    shards: u16,
    channels: Vec<VecDeque<(Time, Message)>>,
    delay: Duration,
    /// One for each channel, instead of drawn ones.
    fixed_delays: Option<Vec<Duration>>,
    loss_ppm: u32,
    random: Stream,
    pub under_way: usize,
    pub lost_packets: u64,
    pub lost_leases: u64,
    /// For tests of the simulator: a hairpin is delivered twice.
    pub deliver_hairpins_twice: bool,
}

impl Mesh {
    pub fn new(shards: u16, plan: &Disturbances, random: Stream) -> Self {
        Mesh {
            shards,
            channels: (0..shards * shards).map(|_| VecDeque::new()).collect(),
            delay: plan.mesh_delay,
            fixed_delays: None,
            loss_ppm: plan.mesh_loss_ppm,
            random,
            under_way: 0,
            lost_packets: 0,
            lost_leases: 0,
            deliver_hairpins_twice: false,
        }
    }

    /// From now on every message takes as long as `delays` says of its channel: those of the first shard come first, one to each shard.
    pub fn fix_delays(&mut self, delays: Vec<Duration>) {
        assert_eq!(delays.len(), self.channels.len());
        self.fixed_delays = Some(delays);
    }

    pub fn calm(&mut self) {
        self.loss_ppm = 0;
    }

    /// Sends `message`. Returns when it arrives; `Err` with what is lost with it if it never does.
    pub fn send(
        &mut self,
        now: Time,
        from: ShardIndex,
        to: ShardIndex,
        message: Message,
        tick: Duration,
    ) -> Result<Time, u64> {
        if let Some(packets) = message.expendable()
            && self.loss_ppm > 0
            && self.random.ppm(self.loss_ppm)
        {
            match message {
                Message::Packet(PacketMessage::Hairpin { .. } | PacketMessage::Frame(_)) => {
                    self.lost_packets += packets
                }
                Message::Packet(PacketMessage::Datagram(_)) | Message::Load { .. } => {}
                _ => self.lost_leases += 1,
            }
            return Err(packets);
        }
        if self.deliver_hairpins_twice
            && let Message::Packet(PacketMessage::Hairpin { connection, packets }) = &message
        {
            let again = PacketMessage::Hairpin { connection: *connection, packets: packets.clone() };
            let again = Message::Packet(again);
            self.push(now, from, to, again, tick);
        }
        Ok(self.push(now, from, to, message, tick))
    }

    fn push(&mut self, now: Time, from: ShardIndex, to: ShardIndex, message: Message, tick: Duration) -> Time {
        let channel = self.place(from, to);
        let delay = match &self.fixed_delays {
            Some(delays) => delays[channel],
            None => self.random.duration(Duration::ZERO, self.delay),
        };
        let last = self.channels[channel].back().map_or(now, |&(at, _)| at);
        let at = (now + delay).round_up(tick).max(last);
        self.channels[channel].push_back((at, message));
        self.under_way += 1;
        at
    }

    /// The next that has arrived by `now` on the channel `from` -> `to`.
    pub fn receive(&mut self, now: Time, from: ShardIndex, to: ShardIndex) -> Option<Message> {
        let channel = self.place(from, to);
        let channel = &mut self.channels[channel];
        channel.front().filter(|(at, _)| *at <= now)?;
        self.under_way -= 1;
        channel.pop_front().map(|(_, message)| message)
    }

    /// What a death does to the channels: of what the dead shard said, the end is lost; of what was said to it, the beginning. What is left of that
    /// goes to whoever takes its place.
    pub fn die(&mut self, dead: ShardIndex) {
        for other in (0..self.shards).map(ShardIndex).filter(|&other| other != dead) {
            let (from, to) = (self.place(dead, other), self.place(other, dead));
            let lost = self.some(self.channels[from].len());
            let left = self.channels[from].len() - lost;
            self.channels[from].truncate(left);
            self.under_way -= lost;
            let lost = self.some(self.channels[to].len());
            self.channels[to].drain(..lost);
            self.under_way -= lost;
        }
    }

    /// None, all, or something between.
    fn some(&mut self, count: usize) -> usize {
        let between = self.random.between(0, count as u64 + 1) as usize;
        self.random.pick(&[0, count, between])
    }

    fn place(&self, from: ShardIndex, to: ShardIndex) -> usize {
        usize::from(from.0) * usize::from(self.shards) + usize::from(to.0)
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::{CommandId, ControlMessage};

    use super::*;
    use crate::plan::{Features, Plan};

    const A: ShardIndex = ShardIndex(0);
    const B: ShardIndex = ShardIndex(1);
    const TICK: Duration = Duration::from_nanos(1);

    fn mesh(seed: u64) -> Mesh {
        let mut plan = Plan::new(seed, Features::ALL, Duration::from_secs(1)).disturbances;
        (plan.mesh_delay, plan.mesh_loss_ppm) = (Duration::from_millis(1), 500_000);
        Mesh::new(2, &plan, Stream::new(seed, "mesh"))
    }

    fn barrier(id: u64) -> Message {
        Message::Control(ControlMessage::Barrier { from: A, command: CommandId(id), revoked: Vec::new() })
    }

    fn barriers(mesh: &mut Mesh, from: ShardIndex, to: ShardIndex) -> Vec<u64> {
        let late = Time { ns: 1 << 40 };
        let all = std::iter::from_fn(|| mesh.receive(late, from, to));
        let number = |message| match message {
            Message::Control(ControlMessage::Barrier { command, .. }) => command.0,
            other => panic!("{other:?}"),
        };
        all.map(number).collect()
    }

    #[test]
    fn what_must_not_be_lost_arrives_in_order() {
        let mut mesh = mesh(1);
        for id in 0..100 {
            mesh.send(Time { ns: id }, A, B, barrier(id), TICK).unwrap();
        }
        assert_eq!(barriers(&mut mesh, A, B), (0..100).collect::<Vec<_>>());
        let packets = || Message::Packet(PacketMessage::Frame(bytes::Bytes::from_static(&[0; 40])));
        let lost = (0..100).filter(|_| mesh.send(Time::default(), A, B, packets(), TICK).is_err()).count();
        assert!((20..80).contains(&lost) && mesh.lost_packets == lost as u64, "{lost}");
    }

    #[test]
    fn of_what_the_dead_said_the_end_is_lost_and_of_what_they_were_told_the_beginning() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let mut mesh = mesh(seed);
            for id in 0..20 {
                mesh.send(Time::default(), A, B, barrier(id), TICK).unwrap();
                mesh.send(Time::default(), B, A, barrier(id), TICK).unwrap();
            }
            mesh.die(A);
            let said = barriers(&mut mesh, A, B);
            assert_eq!(said, (0..said.len() as u64).collect::<Vec<_>>());
            let heard = barriers(&mut mesh, B, A);
            assert_eq!(heard, (20 - heard.len() as u64..20).collect::<Vec<_>>());
            assert_eq!(mesh.under_way, 0);
            lengths.insert((said.len(), heard.len()));
        }
        assert!(lengths.len() > 5);
    }
}
