//! Clients' links: what they do to datagrams, and what becomes of them in time.

use std::time::Duration;

use super::{Feature, Features, Plan};
use crate::random::Stream;

/// One direction of a client's link to the gateway.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkPlan {
    pub delay: Duration,
    /// The largest random delay on top of it.
    pub jitter: Duration,
    /// Datagrams lost, of a million.
    pub loss_ppm: u32,
    /// Datagrams delivered twice, of a million.
    pub duplicate_ppm: u32,
    /// Datagrams delayed so that others overtake them, of a million.
    pub reorder_ppm: u32,
    /// Runs of datagrams that are marked, of a million.
    pub mark_ppm: u32,
    /// Datagrams in which bits flip, of a million.
    pub corrupt_ppm: u32,
    /// Longer datagrams vanish.
    pub bytes_max: Option<usize>,
    /// The narrowest place; without one, datagrams do not wait for each other.
    pub bottleneck: Option<Bottleneck>,
}

impl LinkPlan {
    /// All arrives at once.
    pub const UNDISTURBED: LinkPlan = LinkPlan {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss_ppm: 0,
        duplicate_ppm: 0,
        reorder_ppm: 0,
        mark_ppm: 0,
        corrupt_ppm: 0,
        bytes_max: None,
        bottleneck: None,
    };
}

/// A queue in front of a wire: what finds it full is lost.
#[derive(Debug, Clone, Copy)]
pub struct Bottleneck {
    pub bits_per_s: u64,
    pub queue_bytes_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Up,
    Down,
    Both,
}

impl Direction {
    pub fn covers(self, other: Direction) -> bool {
        self == Direction::Both || self == other
    }
}

/// What becomes of a link at some time.
#[derive(Debug, Clone, Copy)]
pub struct LinkChange {
    pub at: Duration,
    pub direction: Direction,
    pub what: Becomes,
}

#[derive(Debug, Clone, Copy)]
pub enum Becomes {
    /// Nothing passes until then.
    DarkUntil(Duration),
    /// Longer datagrams vanish from now on.
    AtMost(usize),
}

/// Longest UDP payloads of paths, from what every path carries (RFC 9000, section 14) to those of Ethernet.
const PATH_BYTES: [usize; 8] = [1200, 1201, 1228, 1252, 1300, 1392, 1452, 1472];

impl Plan {
    /// What is rough about links beside chance.
    pub(super) fn draw_rough_links(&mut self) {
        let features = self.features;
        for (index, number) in (0..self.devices.len()).zip(0..) {
            let stream = |name| Stream::numbered(self.seed, name, number);
            if features.has(Feature::Asymmetry) {
                self.devices[index].down = draw_link(features, &mut stream("plan.asymmetry"));
            }
            let device = &mut self.devices[index];
            if features.has(Feature::Queues) {
                let mut random = stream("plan.queues");
                (device.up.bottleneck, device.down.bottleneck) = (draw_queue(&mut random), draw_queue(&mut random));
            }
            if features.has(Feature::Corruption) {
                let mut random = stream("plan.corruption");
                device.up.corrupt_ppm = random.log_uniform(100, 50_000) as u32;
                device.down.corrupt_ppm = random.log_uniform(100, 50_000) as u32;
            }
            if features.has(Feature::PathChanges) {
                let mut random = stream("plan.path-changes");
                let every = random.log_duration(Duration::from_secs(1), Duration::from_secs(30));
                let changes = times(every, self.safety, &mut random);
                let change = |at| {
                    let direction = random.pick(&[Direction::Both, Direction::Both, Direction::Up, Direction::Down]);
                    LinkChange { at, direction, what: Becomes::AtMost(random.pick(&PATH_BYTES)) }
                };
                device.changes.extend(changes.into_iter().map(change));
            }
            if features.has(Feature::Blackouts) {
                let mut random = stream("plan.blackouts");
                let every = random.log_duration(Duration::from_secs(3), Duration::from_secs(60));
                for at in times(every, self.safety, &mut random) {
                    device.changes.push(blackout(at, Duration::from_secs(8), &mut random));
                }
            }
        }
        if features.has(Feature::Partitions) {
            self.draw_partitions();
        }
        self.devices.iter_mut().for_each(|device| device.changes.sort_by_key(|change| change.at));
    }

    /// Now and then a group of clients loses the gateway all at once.
    fn draw_partitions(&mut self) {
        let mut random = Stream::new(self.seed, "plan.partitions");
        let every = random.log_duration(Duration::from_secs(5), Duration::from_secs(60));
        for at in times(every, self.safety, &mut random) {
            let blackout = blackout(at, Duration::from_secs(15), &mut random);
            let share = random.between(200, 1001) as u32;
            self.devices.iter_mut().filter(|_| random.permille(share)).for_each(|device| device.changes.push(blackout));
        }
    }
}

fn blackout(at: Duration, longest: Duration, random: &mut Stream) -> LinkChange {
    let direction = random.pick(&[Direction::Both, Direction::Up, Direction::Down]);
    let lasts = random.log_duration(Duration::from_millis(20), longest);
    LinkChange { at, direction, what: Becomes::DarkUntil(at + lasts) }
}

/// Moments before `end`, that far apart, about.
fn times(every: Duration, end: Duration, random: &mut Stream) -> Vec<Duration> {
    let mut at = Duration::ZERO;
    let next = || {
        at += random.around(every) + Duration::from_millis(1);
        (at < end).then_some(at)
    };
    std::iter::from_fn(next).collect()
}

/// Mostly one on which a tunnel is of use, with room for a few milliseconds up to a second; some have none.
fn draw_queue(random: &mut Stream) -> Option<Bottleneck> {
    let bits_per_s = random.log_uniform(250_000, 200_000_000);
    let room = random.log_duration(Duration::from_millis(5), Duration::from_secs(1));
    // Less than two datagrams would be no queue.
    let queue_bytes_max = (room.as_micros() as u64 * bits_per_s / 8_000_000).max(3000);
    random.permille(800).then_some(Bottleneck { bits_per_s, queue_bytes_max })
}

pub(super) fn draw_link(features: Features, random: &mut Stream) -> LinkPlan {
    let delay = random.log_duration(Duration::from_micros(50), Duration::from_millis(80));
    let jitter = random.log_duration(Duration::from_micros(1), Duration::from_millis(20));
    let loss_ppm = random.log_uniform(100, 150_000) as u32;
    let duplicate_ppm = random.log_uniform(100, 50_000) as u32;
    let reorder_ppm = random.log_uniform(100, 50_000) as u32;
    let mark_ppm = random.log_uniform(100, 100_000) as u32;
    let on = |feature, ppm| if features.has(feature) { ppm } else { 0 };
    LinkPlan {
        delay,
        jitter: if features.has(Feature::Jitter) { jitter } else { Duration::ZERO },
        loss_ppm: on(Feature::Loss, loss_ppm),
        duplicate_ppm: on(Feature::Duplication, duplicate_ppm),
        reorder_ppm: on(Feature::Reordering, reorder_ppm),
        mark_ppm: on(Feature::Congestion, mark_ppm),
        ..LinkPlan::UNDISTURBED
    }
}
