use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;

use super::super::super::sink::{CREDIT_AFTER, CREDIT_PACKETS};
use super::super::super::source::STALL_AFTER;
use super::super::super::wire::{FarCounts, HEADER_BYTES, SendSpec};
use super::*;

const MS: Duration = Duration::from_millis(1);
const FLOWS_MAX: usize = 5;

/// A service and its clock.
struct World {
    service: Service,
    now: Instant,
}

/// A message that the service sent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    remote: SocketAddr,
    header: Header,
    body: Vec<u8>,
    is_intact: bool,
}

fn near(last: u8) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, last], 4000))
}

/// No data down, no acknowledgements.
fn plain() -> FlowSpec {
    FlowSpec { run: 1, down: None, answer_bytes: 0, acknowledge: false, lifetime_ms: 60_000 }
}

fn down(packets_per_second: Option<f64>, window_bytes: Option<u32>) -> FlowSpec {
    let sizes = vec![(1000, 1)];
    let train_packets = if packets_per_second.is_some() { 1 } else { 64 };
    FlowSpec { down: Some(SendSpec { sizes, packets_per_second, window_bytes, train_packets }), ..plain() }
}

fn header(kind: Kind, flow: u32, sequence: u64, stamp_ns: u64) -> Header {
    Header { kind, group: 2, flow, sequence, stamp_ns }
}

fn payload(header: &Header, bytes: usize) -> Vec<u8> {
    let mut payload = header.to_bytes().to_vec();
    payload.extend(Pattern::shared().window(header, bytes - HEADER_BYTES));
    payload
}

impl World {
    fn new() -> World {
        let now = Instant::now();
        World { service: Service::new(now, FLOWS_MAX), now }
    }

    fn receive(&mut self, remote: SocketAddr, datagrams: &[Vec<u8>]) {
        let data = BytesMut::from(&datagrams.concat()[..]);
        let received = Received { remote, local_ip: None, ecn: None, segment_bytes: datagrams[0].len(), data };
        self.service.handle(self.now, &received, None);
    }

    fn control(&mut self, remote: SocketAddr, kind: Kind, flow: u32, body: &[u8]) {
        let message = [&Header::control(kind, 2, flow).to_bytes(), body].concat();
        self.receive(remote, &[message]);
    }

    fn open(&mut self, remote: SocketAddr, flow: u32, spec: &FlowSpec) -> Vec<Sent> {
        self.control(remote, Kind::Open, flow, &wire::encode(spec));
        self.sent()
    }

    fn close(&mut self, remote: SocketAddr, flow: u32) -> FarCounts {
        self.control(remote, Kind::Close, flow, b"");
        let report = self.sent().pop().unwrap();
        assert_eq!((report.header, report.remote), (Header::control(Kind::Report, 2, flow), remote));
        wire::decode(&report.body).unwrap()
    }

    /// The runs that it sends now.
    fn runs(&mut self) -> Vec<Vec<Sent>> {
        self.service.handle_timeout(self.now);
        let (mut runs, mut buf) = (Vec::new(), Vec::new());
        while let Some(transmit) = self.service.poll_transmit(self.now, &mut buf) {
            assert!(transmit.bytes == buf.len() && transmit.datagrams() <= RUN_DATAGRAMS_MAX);
            let messages = buf.chunks(transmit.segment_bytes).map(|payload| {
                let (header, body) = Header::parse(payload).unwrap();
                let is_intact = Pattern::shared().is_intact(&header, body);
                Sent { remote: transmit.remote, header, body: body.to_vec(), is_intact }
            });
            runs.push(messages.collect());
            buf.clear();
        }
        runs
    }

    fn sent(&mut self) -> Vec<Sent> {
        self.runs().concat()
    }

    /// Lets time pass as the driver does, and returns what was sent meanwhile, and when.
    fn pass(&mut self, time: Duration) -> Vec<(Instant, Sent)> {
        let (end, mut sent) = (self.now + time, Vec::new());
        loop {
            let now = self.now;
            sent.extend(self.sent().into_iter().map(|message| (now, message)));
            let next_at = self.service.next_at(self.now).unwrap_or(end).max(self.now + Duration::from_nanos(1));
            if next_at > end {
                self.now = end;
                return sent;
            }
            self.now = next_at;
        }
    }
}

#[test]
fn a_flow_is_opened_once_however_often_it_is_asked_for() {
    let mut world = World::new();
    for _ in 0..3 {
        let opened = world.open(near(1), 7, &plain());
        assert_eq!(opened.len(), 1);
        assert_eq!((opened[0].header, &opened[0].body[..]), (Header::control(Kind::Opened, 2, 7), &b""[..]));
        world.receive(near(1), &[payload(&header(Kind::Data, 7, 0, 5), 100)]);
    }
    assert_eq!((world.service.totals().flows, world.service.totals().flows_opened), (1, 1));
    let counts = world.close(near(1), 7);
    assert_eq!((counts.received_packets, counts.duplicated_packets), (1, 2));
    // The same name in another run is another flow.
    world.open(near(1), 7, &FlowSpec { run: 2, ..plain() });
    assert_eq!(world.close(near(1), 7), FarCounts::default());
    assert_eq!((world.service.totals().flows, world.service.totals().flows_opened), (1, 2));
}

#[test]
fn what_cannot_be_opened_is_refused_in_words() {
    let mut world = World::new();
    let short = SendSpec { sizes: vec![(51, 1)], packets_per_second: Some(1.0), window_bytes: None, train_packets: 1 };
    for (spec, told) in [
        (FlowSpec { down: Some(short), ..plain() }, "packet size 51"),
        (FlowSpec { answer_bytes: 40, ..plain() }, "answer of 40 bytes"),
        (FlowSpec { lifetime_ms: u64::MAX, ..plain() }, "lifetime of 18446744073709551615 ms"),
        (down(None, None), "neither packets a second nor a window"),
    ] {
        let answer = world.open(near(1), 1, &spec).pop().unwrap();
        let why = String::from_utf8(answer.body).unwrap();
        assert!(answer.header.kind == Kind::Opened && why.contains(told), "{why}");
    }
    world.control(near(1), Kind::Open, 1, b"nonsense");
    assert!(!world.sent().pop().unwrap().body.is_empty());
    for flow in 0..FLOWS_MAX as u32 {
        assert!(world.open(near(1), flow, &plain())[0].body.is_empty());
    }
    let why = world.open(near(1), 99, &plain()).pop().unwrap().body;
    assert!(String::from_utf8(why).unwrap().contains("5 flows already"));
    assert_eq!((world.service.totals().flows_refused, world.service.totals().flows), (6, 5));
}

#[test]
fn a_report_says_exactly_what_came() {
    let mut world = World::new();
    world.open(near(1), 7, &plain());
    let numbers = [0, 1, 2, 5, 4, 4, 6];
    let datagrams: Vec<Vec<u8>> =
        numbers.iter().map(|number| payload(&header(Kind::Data, 7, *number, 9), 1000)).collect();
    world.receive(near(1), &datagrams);
    let mut damaged = payload(&header(Kind::Data, 7, 7, 9), 500);
    damaged[499] ^= 1;
    world.receive(near(1), &[damaged]);
    let expected = FarCounts {
        sent_packets: 0,
        received_packets: 7,
        received_bytes: 6 * 1028 + 528,
        reordered_packets: 1,
        duplicated_packets: 1,
        corrupted_packets: 1,
    };
    assert_eq!(world.close(near(1), 7), expected);
    // What was still on the way is in the next report.
    world.receive(near(1), &[payload(&header(Kind::Data, 7, 3, 9), 1000)]);
    let later = world.close(near(1), 7);
    assert_eq!((later.received_packets, later.reordered_packets), (8, 2));
    let totals = world.service.totals();
    assert_eq!((totals.received_messages, totals.foreign, totals.unclaimed), (12, 0, 0));
}

#[test]
fn a_flow_belongs_to_the_address_that_opened_it() {
    let mut world = World::new();
    world.open(near(1), 7, &plain());
    let data = [payload(&header(Kind::Data, 7, 0, 9), 100)];
    world.receive(near(2), &data);
    world.receive(SocketAddr::new(near(1).ip(), 4001), &data);
    world.control(near(2), Kind::Close, 7, b"");
    assert_eq!(world.sent(), []);
    assert_eq!(world.service.totals().unclaimed, 3);
    // Somebody else may have a flow of the same number.
    world.open(near(2), 7, &plain());
    world.receive(near(2), &data);
    assert_eq!((world.close(near(1), 7).received_packets, world.close(near(2), 7).received_packets), (0, 1));
}

#[test]
fn datagrams_that_are_no_messages_are_counted_apart() {
    let mut world = World::new();
    world.receive(near(1), &[b"GET / HTTP/1.1\r\n\r\n\r\n\r\n\r\n".to_vec(), vec![0]]);
    let totals = world.service.totals();
    assert_eq!((totals.foreign, totals.received_messages, totals.unclaimed), (2, 0, 0));
    assert_eq!(world.sent(), []);
}

#[test]
fn each_request_is_answered_once_with_its_stamp_in_the_order_of_arrival() {
    let mut world = World::new();
    world.open(near(1), 7, &plain());
    world.open(near(2), 8, &FlowSpec { answer_bytes: 1400, ..plain() });
    let requests = |flow, numbers: &[u64]| -> Vec<Vec<u8>> {
        numbers.iter().map(|number| payload(&header(Kind::Request, flow, *number, 100 + number), 200)).collect()
    };
    world.receive(near(1), &requests(7, &[0, 1, 1, 2]));
    world.receive(near(2), &requests(8, &[0]));
    world.receive(near(1), &requests(7, &[3]));
    let runs = world.runs();
    assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1, 1], "one run for what is alike");
    let answers = runs.concat();
    assert!(answers.iter().all(|answer| answer.header.kind == Kind::Answer && answer.is_intact));
    let of_7: Vec<_> = answers.iter().filter(|answer| answer.header.flow == 7).collect();
    assert_eq!(of_7.iter().map(|answer| answer.header.sequence).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(of_7.iter().map(|answer| answer.header.stamp_ns).collect::<Vec<_>>(), [100, 101, 102, 103]);
    assert!(of_7.iter().all(|answer| answer.body.len() == 200 - HEADER_BYTES && answer.remote == near(1)));
    assert_eq!(answers[3].body.len(), 1400 - 28 - HEADER_BYTES);
    assert_eq!(world.close(near(1), 7).sent_packets, 4);
}

#[test]
fn answers_and_data_of_one_flow_are_numbered_together() {
    let mut world = World::new();
    world.open(near(1), 7, &down(Some(1000.0), None));
    let mut numbers = Vec::new();
    for request in 0..10 {
        world.receive(near(1), &[payload(&header(Kind::Request, 7, request, 1), 100)]);
        numbers.extend(world.pass(5 * MS).into_iter().map(|(_, sent)| sent.header.sequence));
    }
    assert!(numbers.len() >= 50);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert_eq!(world.close(near(1), 7).sent_packets, numbers.len() as u64);
}

#[test]
fn data_goes_down_at_an_even_rate_until_the_flow_is_closed() {
    let mut world = World::new();
    world.open(near(1), 7, &down(Some(50.0), None));
    let sent = world.pass(Duration::from_secs(20));
    assert!((1000..=1001).contains(&sent.len()), "{}", sent.len());
    for (number, (at, message)) in sent.iter().enumerate() {
        assert!(message.is_intact && message.header.kind == Kind::Data && message.header.sequence == number as u64);
        assert_eq!(message.header.stamp_ns, stamp_ns(world.service.origin, *at), "sent exactly when it was due");
        assert_eq!(message.body.len(), 1000 - 28 - HEADER_BYTES);
    }
    let stamps: Vec<u64> = sent.iter().map(|(_, message)| message.header.stamp_ns).collect();
    assert!(stamps.windows(2).all(|pair| (pair[1] - pair[0]).abs_diff(20_000_000) <= 1));
    assert_eq!(world.close(near(1), 7).sent_packets, sent.len() as u64);
    assert_eq!(world.pass(Duration::from_secs(20)), []);
    assert_eq!((world.service.totals().late_packets, world.service.totals().stalls), (0, 0));
}

#[test]
fn runs_are_equally_long_but_for_their_last_and_keep_the_order() {
    let mut world = World::new();
    let sizes = vec![(64, 7), (576, 4), (1400, 1)];
    let spec = SendSpec { sizes, packets_per_second: Some(10_000.0), window_bytes: None, train_packets: 64 };
    world.open(near(1), 7, &FlowSpec { down: Some(spec), ..plain() });
    world.now += 100 * MS;
    let mut number = 0;
    for run in std::iter::repeat_with(|| {
        world.now += Duration::from_nanos(1);
        world.runs()
    })
    .take(20)
    .flatten()
    {
        let first = run[0].body.len();
        let (last, others) = run.split_last().unwrap();
        assert!(others.iter().all(|message| message.body.len() == first) && last.body.len() <= first);
        for message in &run {
            assert!(message.is_intact && message.header.sequence == number);
            number += 1;
        }
    }
    assert_eq!(number, 16 * 64, "a train every 6.4 ms");
    assert!(world.service.totals().lateness_max_ns >= 90_000_000, "and that it was late is told");
    assert!((880..=910).contains(&world.service.totals().late_packets));
}

#[test]
fn a_train_goes_in_one_run_and_late_ones_in_runs_of_their_own() {
    for train_packets in [1, 8] {
        let mut world = World::new();
        let spec =
            SendSpec { sizes: vec![(1000, 1)], packets_per_second: Some(10_000.0), window_bytes: None, train_packets };
        world.open(near(1), 7, &FlowSpec { down: Some(spec), ..plain() });
        world.now += 5 * MS;
        let lengths: Vec<usize> = world.runs().iter().map(Vec::len).collect();
        // The first was sent when the flow was opened.
        let expected = 50 / usize::from(train_packets);
        assert_eq!(lengths, vec![usize::from(train_packets); expected], "{train_packets}");
    }
}

#[test]
fn a_window_waits_for_credit_and_a_swallowed_one_begins_anew() {
    let mut world = World::new();
    let sent = world.open(near(1), 7, &down(None, Some(20_000)));
    assert_eq!((sent[0].header.kind, sent.len()), (Kind::Opened, 21));
    assert_eq!(world.pass(100 * MS), []);
    world.receive(near(1), &[header(Kind::Credit, 7, 5, 5).to_bytes().to_vec()]);
    let more = world.sent();
    assert_eq!(more.iter().map(|message| message.header.sequence).collect::<Vec<_>>(), [20, 21, 22, 23, 24]);
    // Nobody answers any more: a window every 200 ms.
    let swallowed = world.pass(STALL_AFTER * 3 + MS);
    assert_eq!(swallowed.len(), 60);
    assert_eq!(world.service.totals().stalls, 3);
    assert_eq!(world.close(near(1), 7).sent_packets, 85);
}

#[test]
fn a_window_of_the_near_end_is_acknowledged_in_number_and_in_time() {
    let mut world = World::new();
    world.open(near(1), 7, &FlowSpec { acknowledge: true, ..plain() });
    let data = |numbers: std::ops::Range<u64>| -> Vec<Vec<u8>> {
        numbers.map(|number| payload(&header(Kind::Data, 7, number, 1), 100)).collect()
    };
    let full = u64::from(CREDIT_PACKETS);
    world.receive(near(1), &data(1..full + 3));
    let credits = world.sent();
    assert_eq!(credits.len(), 1);
    assert_eq!(credits[0].header, header(Kind::Credit, 7, full, full + 1));
    let timed = world.pass(10 * MS);
    assert_eq!(timed.len(), 1, "{timed:?}");
    assert_eq!(timed[0].1.header, header(Kind::Credit, 7, full + 2, full + 3));
    // As it was told in number meanwhile, the time begins anew with the first message after that.
    let start = world.now;
    world.receive(near(1), &data(50..51));
    world.now += CREDIT_AFTER / 2;
    world.receive(near(1), &data(51..51 + full + 5));
    assert_eq!(world.sent().len(), 1);
    let timed = world.pass(10 * MS);
    assert_eq!(timed.len(), 1);
    assert_eq!(timed[0].0, start + CREDIT_AFTER / 2 + CREDIT_AFTER);
    assert_eq!(timed[0].1.header.stamp_ns, 51 + full + 5);
}

#[test]
fn flows_of_a_vanished_peer_end_by_themselves() {
    let mut world = World::new();
    let lifetime = Duration::from_secs(10);
    world.open(near(1), 1, &FlowSpec { lifetime_ms: 10_000, ..down(Some(100.0), None) });
    world.open(near(2), 2, &FlowSpec { lifetime_ms: 10_000, ..down(None, Some(5000)) });
    world.open(near(3), 3, &FlowSpec { lifetime_ms: 10_000, acknowledge: true, ..plain() });
    let sent = world.pass(lifetime);
    assert!(sent.iter().any(|(_, message)| message.header.flow == 1) && sent.len() > 1000);
    assert_eq!(world.pass(LINGER - MS), []);
    assert_eq!(world.service.totals().flows, 3, "their counts may be asked for yet");
    world.pass(2 * MS);
    let totals = world.service.totals();
    assert_eq!((totals.flows, totals.flows_expired), (0, 3));
    assert_eq!(world.service.next_at(world.now), None, "nothing is left to wait for");
}

#[test]
fn a_closed_flow_is_forgotten_when_nobody_asks_again() {
    let mut world = World::new();
    world.open(near(1), 1, &down(Some(1.0), None));
    world.close(near(1), 1);
    world.pass(LINGER / 2);
    world.close(near(1), 1);
    world.pass(LINGER - MS);
    assert_eq!(world.service.totals().flows, 1);
    world.pass(2 * MS);
    assert_eq!((world.service.totals().flows, world.service.totals().flows_expired), (0, 0));
    world.control(near(1), Kind::Close, 1, b"");
    assert_eq!((world.sent().len(), world.service.totals().unclaimed), (0, 1));
    // The slot is free for others, whose schedule is their own.
    world.open(near(2), 2, &down(Some(10.0), None));
    assert!((9..=11).contains(&world.pass(Duration::from_secs(1)).len()));
}

#[test]
fn a_full_socket_delays_but_loses_nothing() {
    let mut world = World::new();
    world.open(near(1), 1, &down(Some(1000.0), None));
    // The driver does not ask for anything while the socket is full.
    for _ in 0..50 {
        world.now += 100 * MS;
        world.service.handle_timeout(world.now);
    }
    let sent = world.pass(MS);
    assert!((4999..=5002).contains(&sent.len()), "{}", sent.len());
    assert!(sent.iter().enumerate().all(|(number, (_, message))| message.header.sequence == number as u64));
    let totals = world.service.totals();
    assert!((4980..=4992).contains(&totals.late_packets), "{}", totals.late_packets);
}

#[test]
fn answers_that_nobody_fetches_are_bounded_and_counted() {
    let mut world = World::new();
    world.open(near(1), 7, &plain());
    assert!(world.service.has_room());
    let mut number = 0;
    while number < REPLIES_MAX as u64 + 640 {
        let requests: Vec<Vec<u8>> =
            (number..number + 64).map(|number| payload(&header(Kind::Request, 7, number, 1), 52)).collect();
        world.receive(near(1), &requests);
        number += 64;
    }
    assert!(!world.service.has_room());
    assert_eq!(world.service.totals().replies_dropped, 640);
    let answers = world.sent();
    assert_eq!(answers.len(), REPLIES_MAX);
    assert!(
        answers.iter().enumerate().all(|(number, answer)| answer.header.sequence == number as u64),
        "without a gap"
    );
    assert!(world.service.has_room());
}

#[test]
fn a_near_end_may_speak_ipv6() {
    let mut world = World::new();
    let remote: SocketAddr = "[fd00::7]:4000".parse().unwrap();
    let sent = world.open(remote, 7, &down(None, Some(1000)));
    assert_eq!((sent.len(), sent[1].remote, sent[1].body.len()), (2, remote, 1000 - 48 - HEADER_BYTES));
    world.receive(remote, &[payload(&header(Kind::Data, 7, 0, 9), 100)]);
    assert_eq!(world.close(remote, 7).received_bytes, 148);
}
