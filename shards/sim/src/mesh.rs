//! The channels between shards: ordered, slow, and lossy for what may be lost.
//!
//! This module never looks into a message but for what would be lost with it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tollgate_shards::{Message, PacketMessage, SHARDS_MAX, ShardIndex, Shards, Users, sibling};

use crate::plan::Disturbances;
use crate::random::Stream;
use crate::schedule::Time;

/// A message on its way.
#[derive(Debug)]
struct Carried {
    arrives: Time,
    what: What,
    /// Inner packets that are lost with it.
    inner_packets: u64,
}

#[derive(Debug)]
enum What {
    Message(Message),
    /// To another process.
    Bytes(Vec<u8>),
}

#[derive(Debug)]
pub struct Mesh {
    shards: u16,
    channels: BTreeMap<(ShardIndex, ShardIndex), VecDeque<Carried>>,
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
            channels: BTreeMap::new(),
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
        assert_eq!(delays.len(), usize::from(self.shards).pow(2));
        self.fixed_delays = Some(delays);
    }

    pub fn calm(&mut self) {
        self.loss_ppm = 0;
    }

    /// Sends `message` of a shard that has `users`. Returns when it arrives; `Err` with what is lost with it if it never does.
    pub fn send(
        &mut self,
        now: Time,
        (from, users): (ShardIndex, &Users),
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
            self.push(now, (from, users), to, again, tick);
        }
        Ok(self.push(now, (from, users), to, message, tick))
    }

    fn push(
        &mut self,
        now: Time,
        (from, users): (ShardIndex, &Users),
        to: ShardIndex,
        message: Message,
        tick: Duration,
    ) -> Time {
        let delay = match &self.fixed_delays {
            // Whatever goes to another process takes as long as the slowest.
            Some(delays) if from.0.max(to.0) < self.shards => {
                delays[from.place() * usize::from(self.shards) + to.place()]
            }
            Some(delays) => delays.iter().copied().max().unwrap_or_default(),
            None => self.random.duration(Duration::ZERO, self.delay),
        };
        let inner_packets = match &message {
            Message::Packet(message @ (PacketMessage::Hairpin { .. } | PacketMessage::Frame(_))) => message.packets(),
            _ => 0,
        };
        let what = if from.generation() == to.generation() {
            What::Message(message)
        } else {
            What::Bytes(sibling::encode(to, message, users).expect("what shards of two processes say to each other"))
        };
        let channel = self.channels.entry((from, to)).or_default();
        let last = channel.back().map_or(now, |last| last.arrives);
        let arrives = (now + delay).round_up(tick).max(last);
        channel.push_back(Carried { arrives, what, inner_packets });
        self.under_way += 1;
        arrives
    }

    /// The next that has arrived by `now` on the channel `from` -> `to`, at a shard that has `users`.
    pub fn receive(&mut self, now: Time, from: ShardIndex, to: ShardIndex, users: &Users) -> Option<Message> {
        let channel = self.channels.get_mut(&(from, to))?;
        channel.front().filter(|first| first.arrives <= now)?;
        self.under_way -= 1;
        channel.pop_front().map(|carried| match carried.what {
            What::Message(message) => message,
            What::Bytes(bytes) => {
                let process = Shards { generation: to.generation(), count: SHARDS_MAX };
                let (heard_by, message) = sibling::decode(&bytes, process, users).expect("it was encoded");
                assert_eq!(heard_by, to);
                message
            }
        })
    }

    /// What a process's end does to the channels: all of its own, and those to it, are no more.
    pub fn cut(&mut self, gone: Shards) {
        let is_cut = |from: ShardIndex, to: ShardIndex| gone.contains(from) || gone.contains(to);
        for (_, channel) in self.channels.extract_if(.., |&(from, to), _| is_cut(from, to)) {
            self.under_way -= channel.len();
            self.lost_packets += channel.iter().map(|carried| carried.inner_packets).sum::<u64>();
        }
    }

    /// Whether anything of `process` is under way to another one.
    pub fn carries_from(&self, process: Shards) -> bool {
        let mut channels = self.channels.iter();
        channels.any(|(&(from, to), channel)| process.contains(from) && !process.contains(to) && !channel.is_empty())
    }

    /// What a death does to the channels: of what the dead shard said, the end is lost; of what was said to it, the beginning. What is left of that
    /// goes to whoever takes its place.
    pub fn die(&mut self, dead: ShardIndex) {
        for other in (0..self.shards).map(ShardIndex).filter(|&other| other != dead) {
            let length = |mesh: &mut Mesh, from, to| mesh.channels.entry((from, to)).or_default().len();
            let said = length(self, dead, other);
            let lost = self.some(said);
            self.channels.entry((dead, other)).or_default().truncate(said - lost);
            self.under_way -= lost;
            let told = length(self, other, dead);
            let lost = self.some(told);
            self.channels.entry((other, dead)).or_default().drain(..lost);
            self.under_way -= lost;
        }
    }

    /// None, all, or something between.
    fn some(&mut self, count: usize) -> usize {
        let between = self.random.between(0, count as u64 + 1) as usize;
        self.random.pick(&[0, count, between])
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
        let all = std::iter::from_fn(|| mesh.receive(late, from, to, &Users::default()));
        let number = |message| match message {
            Message::Control(ControlMessage::Barrier { command, .. }) => command.0,
            other => panic!("{other:?}"),
        };
        all.map(number).collect()
    }

    #[test]
    fn what_must_not_be_lost_arrives_in_order() {
        let (mut mesh, users) = (mesh(1), Users::default());
        for id in 0..100 {
            mesh.send(Time { ns: id }, (A, &users), B, barrier(id), TICK).unwrap();
        }
        assert_eq!(barriers(&mut mesh, A, B), (0..100).collect::<Vec<_>>());
        let packets = || Message::Packet(PacketMessage::Frame(bytes::Bytes::from_static(&[0; 40])));
        let lost = (0..100).filter(|_| mesh.send(Time::default(), (A, &users), B, packets(), TICK).is_err()).count();
        assert!((20..80).contains(&lost) && mesh.lost_packets == lost as u64, "{lost}");
    }

    #[test]
    fn of_what_the_dead_said_the_end_is_lost_and_of_what_they_were_told_the_beginning() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let (mut mesh, users) = (mesh(seed), Users::default());
            for id in 0..20 {
                mesh.send(Time::default(), (A, &users), B, barrier(id), TICK).unwrap();
                mesh.send(Time::default(), (B, &users), A, barrier(id), TICK).unwrap();
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
