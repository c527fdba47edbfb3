//! In every order of steps: no shard sleeps on what waits for it, and messages arrive once and in their order.

use std::net::IpAddr;

use loom::thread;
use tollgate_models::gateway::mesh::Mesh;
use tollgate_models::gateway::waker::Waker;
use tollgate_models::io::Wake;
use tollgate_shards::{ConnectionKey, ControlMessage, Message, PacketMessage, ShardIndex};

/// Of channels, so that they fill.
const MESSAGES_MAX: usize = 2;

/// All orders in which no more than so many threads lose their turn before they have to; few faults need more than two.
const PREEMPTIONS_MAX: usize = 3;

fn model(run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(run);
}

fn mesh(shards: usize) -> (Vec<Mesh>, Vec<Waker>) {
    let wakers: Vec<_> = (0..shards).map(|_| Waker::new(Wake::default())).collect();
    (Mesh::between(&wakers, MESSAGES_MAX), wakers)
}

/// A control message with a number.
fn control(number: u32) -> Message {
    let connection = ConnectionKey { owner: ShardIndex(0), slot: number, generation: 0 };
    Message::Control(ControlMessage::Route { address: IpAddr::from([198, 18, 0, 1]), connection })
}

fn packet() -> Message {
    Message::Packet(PacketMessage::Frame(Default::default()))
}

/// What a shard has received.
#[derive(Default)]
struct Received {
    numbers: Vec<u32>,
    packets: u64,
}

impl Received {
    fn count(&self) -> usize {
        self.numbers.len() + self.packets as usize
    }

    /// One pass. Returns whether there was anything.
    fn take(&mut self, end: &mut Mesh) -> bool {
        end.receive(|message| match message {
            Message::Control(ControlMessage::Route { connection, .. }) => self.numbers.push(connection.slot),
            Message::Packet(_) => self.packets += 1,
            _ => panic!("nobody has sent that"),
        })
    }

    /// Passes and sleeps as a core does, until so many messages have come. Nothing ends a sleep but a wake-up.
    fn run(&mut self, end: &mut Mesh, waker: &Waker, count: usize) {
        while self.count() < count {
            if !self.take(end) {
                sleep(end, waker);
            }
        }
    }
}

/// A sleep. It does not happen where something waits.
fn sleep(end: &Mesh, waker: &Waker) {
    if waker.fall_asleep(|| end.is_idle()) {
        waker.descriptor().wait();
    }
    waker.end_sleep(waker.descriptor().is_readable());
}

#[test]
fn no_shard_sleeps_on_a_message() {
    model(|| {
        let (mut ends, wakers) = mesh(2);
        let (mut end, mut other) = (ends.remove(0), ends.remove(0));
        let sender = thread::spawn(move || {
            for number in 0..2 {
                other.send(ShardIndex(0), control(number));
                other.flush();
            }
        });
        let mut received = Received::default();
        received.run(&mut end, &wakers[0], 2);
        assert_eq!(received.numbers, [0, 1]);
        sender.join().unwrap();
    });
}

#[test]
fn no_shard_sleeps_on_a_message_of_one_of_two() {
    model(|| {
        let (mut ends, wakers) = mesh(3);
        let mut end = ends.remove(0);
        let senders: Vec<_> = ends
            .into_iter()
            .enumerate()
            .map(|(number, mut other)| {
                thread::spawn(move || {
                    other.send(ShardIndex(0), control(number as u32));
                    other.flush();
                })
            })
            .collect();
        let mut received = Received::default();
        received.run(&mut end, &wakers[0], 2);
        received.numbers.sort_unstable();
        assert_eq!(received.numbers, [0, 1]);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn two_shards_that_wake_each_other_come_to_an_end() {
    model(|| {
        let (mut ends, wakers) = mesh(2);
        let (mut end, mut other) = (ends.remove(0), ends.remove(0));
        let waker = wakers[1].clone();
        let echo = thread::spawn(move || {
            let mut received = Received::default();
            received.run(&mut other, &waker, 1);
            other.send(ShardIndex(0), control(1));
            other.flush();
        });
        end.send(ShardIndex(1), control(0));
        end.flush();
        let mut received = Received::default();
        received.run(&mut end, &wakers[0], 1);
        assert_eq!(received.numbers, [1]);
        echo.join().unwrap();
    });
}

#[test]
fn what_a_full_channel_holds_back_comes_in_order_and_what_is_lost_is_counted() {
    model(|| {
        let (mut ends, wakers) = mesh(2);
        let (mut end, mut other) = (ends.remove(0), ends.remove(0));
        let controls = MESSAGES_MAX as u32 + 2;
        let sender = thread::spawn(move || {
            let mut lost = 0;
            for number in 0..controls {
                assert_eq!(other.send(ShardIndex(0), control(number)), 0, "none is lost");
            }
            lost += other.send(ShardIndex(0), packet());
            while other.flush() {
                thread::yield_now();
            }
            lost
        });
        let mut received = Received::default();
        // The packet may be lost.
        while received.numbers.len() < controls as usize {
            if !received.take(&mut end) {
                sleep(&end, &wakers[0]);
            }
        }
        assert_eq!(received.numbers, (0..controls).collect::<Vec<_>>());
        let lost = sender.join().unwrap();
        received.take(&mut end);
        assert_eq!(received.packets + lost, 1);
    });
}

#[test]
fn a_notification_that_comes_late_ends_one_sleep_only() {
    model(|| {
        let (mut ends, wakers) = mesh(2);
        let (mut end, mut other) = (ends.remove(0), ends.remove(0));
        let sender = thread::spawn(move || {
            other.send(ShardIndex(0), control(0));
            other.flush();
        });
        // Something else ends a sleep, whatever the sender has done of its steps by then.
        let waker = &wakers[0];
        waker.fall_asleep(|| end.is_idle());
        waker.end_sleep(waker.descriptor().is_readable());
        sender.join().unwrap();
        Received::default().take(&mut end);
        let mut ended = 0;
        for _ in 0..3 {
            assert!(waker.fall_asleep(|| end.is_idle()));
            let is_readable = waker.descriptor().is_readable();
            ended += u32::from(is_readable);
            waker.end_sleep(is_readable);
        }
        assert!(ended <= 1, "{ended} sleeps of 3 were ended for nothing");
    });
}
