use std::net::UdpSocket as StdSocket;

use tollgate::io::{UdpGroup, UdpOptions};

use super::super::pattern::Pattern;
use super::super::sink::Sink;
use super::super::source::Source;
use super::super::wire::{self, FarCounts, FlowSpec, Header, Kind, SendSpec};
use super::*;

/// How long a message is waited for before it counts as lost. Loopback loses none.
const PATIENCE: Duration = Duration::from_secs(20);

/// A near end on one socket.
struct Near {
    socket: StdSocket,
    buffer: Vec<u8>,
    sent: u64,
    received: u64,
}

fn far_end() -> FarEnd {
    let sockets = UdpGroup::bind("127.0.0.1:0".parse().unwrap(), 1, &UdpOptions::default()).unwrap();
    FarEnd::start(sockets, &[]).unwrap()
}

fn plain() -> FlowSpec {
    FlowSpec { run: 1, down: None, answer_bytes: 0, acknowledge: false, lifetime_ms: 60_000 }
}

fn bulk() -> SendSpec {
    let sizes = vec![(1400, 2), (600, 1)];
    SendSpec { sizes, packets_per_second: None, window_bytes: Some(60_000), train_packets: 64 }
}

fn header(kind: Kind, flow: u32, sequence: u64, stamp_ns: u64) -> Header {
    Header { kind, group: 0, flow, sequence, stamp_ns }
}

impl Near {
    fn new(address: SocketAddr) -> Near {
        let socket = StdSocket::bind((address.ip(), 0)).unwrap();
        socket.connect(address).unwrap();
        Near { socket, buffer: vec![0; 65_536], sent: 0, received: 0 }
    }

    fn send(&mut self, header: &Header, body: &[u8]) {
        self.socket.send(&[&header.to_bytes(), body].concat()).unwrap();
        self.sent += 1;
    }

    fn send_payload(&mut self, header: &Header, inner_bytes: usize) {
        self.send(header, Pattern::shared().window(header, inner_bytes - 52));
    }

    /// The next message, with its body.
    fn receive(&mut self, patience: Duration) -> Option<(Header, Vec<u8>)> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let bytes = self.socket.recv(&mut self.buffer).ok()?;
        self.received += 1;
        let (header, body) = Header::parse(&self.buffer[..bytes]).unwrap();
        Some((header, body.to_vec()))
    }

    fn expect(&mut self, kind: Kind) -> (Header, Vec<u8>) {
        loop {
            let message = self.receive(PATIENCE).unwrap_or_else(|| panic!("no {kind:?}"));
            if message.0.kind == kind {
                return message;
            }
        }
    }

    fn open(&mut self, flow: u32, spec: &FlowSpec) {
        self.send(&Header::control(Kind::Open, 0, flow), &wire::encode(spec));
        assert_eq!(self.expect(Kind::Opened), (Header::control(Kind::Opened, 0, flow), Vec::new()));
    }

    fn close(&mut self, flow: u32) -> FarCounts {
        self.send(&Header::control(Kind::Close, 0, flow), b"");
        wire::decode(&self.expect(Kind::Report).1).unwrap()
    }
}

/// Both ends agree on every datagram, those of control included.
fn assert_balanced(far_end: FarEnd, nears: &[Near]) -> FarTotals {
    let totals = far_end.stop().unwrap();
    let (sent, received) =
        nears.iter().fold((0, 0), |(sent, received), near| (sent + near.sent, received + near.received));
    assert_eq!((totals.received_messages, totals.sent_messages), (sent, received));
    assert_eq!((totals.foreign, totals.unclaimed, totals.send_dropped, totals.replies_dropped), (0, 0, 0, 0));
    assert!(totals.passes > 0 && totals.cpu_ns > 0);
    totals
}

#[test]
fn data_up_is_counted_exactly_and_damage_is_found() {
    let far_end = far_end();
    let mut near = Near::new(far_end.addresses()[0]);
    near.open(5, &plain());
    for number in (0..2000).filter(|number| number % 500 != 7) {
        near.send_payload(&header(Kind::Data, 5, number, number), 100);
        // No more than any socket buffer holds.
        let sent = near.sent;
        while number % 50 == 0 && far_end.totals().received_messages < sent {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let damaged = header(Kind::Data, 5, 2000, 2000);
    let mut body = Pattern::shared().window(&damaged, 500).to_vec();
    body[250] ^= 0x20;
    near.send(&damaged, &body);
    let expected = FarCounts {
        sent_packets: 0,
        received_packets: 1997,
        received_bytes: 1996 * 100 + 552,
        reordered_packets: 0,
        duplicated_packets: 0,
        corrupted_packets: 1,
    };
    assert_eq!(near.close(5), expected);
    assert_eq!(near.close(5), expected, "as often as it is asked");
    assert_balanced(far_end, &[near]);
}

#[test]
fn data_down_comes_at_its_rate_complete_and_in_order() {
    let far_end = far_end();
    let mut near = Near::new(far_end.addresses()[0]);
    let sizes = vec![(64, 1), (1400, 1)];
    let spec = SendSpec { sizes, packets_per_second: Some(2000.0), window_bytes: None, train_packets: 1 };
    near.open(9, &FlowSpec { down: Some(spec), ..plain() });
    let mut sink = Sink::new();
    let mut stamps = Vec::new();
    while stamps.len() < 500 {
        let (header, body) = near.expect(Kind::Data);
        let is_intact = Pattern::shared().is_intact(&header, &body);
        assert!(sink.take(Instant::now(), header.sequence, body.len() + 52, is_intact));
        stamps.push(header.stamp_ns);
    }
    near.send(&Header::control(Kind::Close, 0, 9), b"");
    let report = loop {
        let (header, body) = near.receive(PATIENCE).unwrap();
        if header.kind == Kind::Report {
            break wire::decode::<FarCounts>(&body).unwrap();
        }
        assert!(sink.take(Instant::now(), header.sequence, body.len() + 52, true));
    };
    assert_eq!(sink.counts(0).received_packets, report.sent_packets);
    assert!(stamps.windows(2).all(|pair| pair[1] - pair[0] == 500_000), "every 0.5 ms, however late it was sent");
    assert_balanced(far_end, &[near]);
}

#[test]
fn windows_go_both_ways_at_once() {
    let far_end = far_end();
    let mut near = Near::new(far_end.addresses()[0]);
    near.open(3, &FlowSpec { down: Some(bulk()), acknowledge: true, ..plain() });
    let (mut source, mut sink) = (Source::new(&bulk(), Instant::now()).unwrap(), Sink::new());
    let deadline = Instant::now() + PATIENCE;
    while sink.counts(0).received_packets < 5000 || source.sequence() < 5000 {
        let now = Instant::now();
        assert!(now < deadline, "{} up, {:?}", source.sequence(), sink.counts(0));
        while let Some(next) = source.poll(now).filter(|_| now < deadline) {
            near.send_payload(&header(Kind::Data, 3, next.sequence, 1), usize::from(next.inner_bytes));
        }
        let Some((header, body)) = near.receive(Duration::from_millis(1)) else { continue };
        match header.kind {
            Kind::Credit => assert!(source.handle_credit(now, header.stamp_ns)),
            _ => assert!(sink.take(now, header.sequence, body.len() + 52, Pattern::shared().is_intact(&header, &body))),
        }
        if let Some(credit) = sink.credit_due(now) {
            near.send(&Header::credit(0, 3, credit.received, credit.highest_plus_1), b"");
        }
    }
    near.send(&Header::control(Kind::Close, 0, 3), b"");
    let mut report = None;
    while let Some((header, body)) = near.receive(if report.is_none() { PATIENCE } else { Duration::from_millis(50) }) {
        match header.kind {
            Kind::Report => report = Some(wire::decode::<FarCounts>(&body).unwrap()),
            Kind::Data => assert!(sink.take(Instant::now(), header.sequence, body.len() + 52, true)),
            _ => {}
        }
    }
    let report = report.unwrap();
    assert_eq!(report.received_packets, source.sequence());
    assert_eq!((report.reordered_packets, report.duplicated_packets, report.corrupted_packets), (0, 0, 0));
    assert_eq!(sink.counts(0).received_packets, report.sent_packets);
    assert_balanced(far_end, &[near]);
}

#[test]
fn requests_of_many_near_ends_are_each_answered() {
    let far_end = far_end();
    let mut nears: Vec<Near> = (0..8).map(|_| Near::new(far_end.addresses()[0])).collect();
    for (flow, near) in nears.iter_mut().enumerate() {
        near.open(flow as u32, &FlowSpec { answer_bytes: 800, ..plain() });
    }
    for number in 0..100 {
        for (flow, near) in nears.iter_mut().enumerate() {
            near.send_payload(&header(Kind::Request, flow as u32, number, 1_000_000 * number), 200);
        }
        for (flow, near) in nears.iter_mut().enumerate() {
            let (answer, body) = near.expect(Kind::Answer);
            assert_eq!(answer, header(Kind::Answer, flow as u32, number, 1_000_000 * number));
            assert!(body.len() == 800 - 52 && Pattern::shared().is_intact(&answer, &body));
        }
    }
    for (flow, near) in nears.iter_mut().enumerate() {
        let counts = near.close(flow as u32);
        assert_eq!((counts.sent_packets, counts.received_packets, counts.received_bytes), (100, 100, 20_000));
    }
    assert_balanced(far_end, &nears);
}

#[test]
fn each_socket_has_a_thread_and_flows_of_its_own() {
    let bind = || UdpGroup::bind("127.0.0.1:0".parse().unwrap(), 1, &UdpOptions::default()).unwrap().remove(0);
    let cpu = (0..CpuSet::MAX_CPU).find(|cpu| rustix::thread::sched_getaffinity(None).unwrap().is_set(*cpu)).unwrap();
    let far_end = FarEnd::start(vec![bind(), bind()], &[cpu]).unwrap();
    let mut nears: Vec<Near> = far_end.addresses().into_iter().map(Near::new).collect();
    for near in &mut nears {
        near.open(1, &plain());
        near.send_payload(&header(Kind::Data, 1, 0, 0), 100);
        assert_eq!(near.close(1).received_packets, 1);
    }
    let totals = assert_balanced(far_end, &nears);
    assert_eq!((totals.flows, totals.flows_opened, totals.received_messages), (2, 2, 6));
}

#[test]
fn a_far_end_on_all_addresses_answers_from_the_one_that_was_asked() {
    let sockets = UdpGroup::bind("0.0.0.0:0".parse().unwrap(), 1, &UdpOptions::default()).unwrap();
    let far_end = FarEnd::start(sockets, &[]).unwrap();
    let port = far_end.addresses()[0].port();
    // The near end's socket is connected, and hears nobody else.
    let mut near =
        Near { socket: StdSocket::bind("127.0.0.1:0").unwrap(), buffer: vec![0; 2000], sent: 0, received: 0 };
    near.socket.connect(("127.0.0.77", port)).unwrap();
    near.open(1, &plain());
    near.send_payload(&header(Kind::Request, 1, 0, 4), 100);
    assert_eq!(near.expect(Kind::Answer).0.stamp_ns, 4);
    assert_balanced(far_end, &[near]);
}

#[test]
fn a_cpu_that_is_not_there_is_refused_with_its_number() {
    let sockets = UdpGroup::bind("127.0.0.1:0".parse().unwrap(), 1, &UdpOptions::default()).unwrap();
    let address = sockets[0].local_address();
    let error = format!("{:#}", FarEnd::start(sockets, &[CpuSet::MAX_CPU - 1]).unwrap_err());
    assert!(error.contains("CPU 1023 cannot be used") && error.contains(&address.to_string()), "{error}");
    // Nothing keeps the port.
    UdpGroup::bind(address, 1, &UdpOptions::default()).unwrap();
}

#[test]
fn threads_end_with_their_far_end() {
    let far_end = far_end();
    let address = far_end.addresses()[0];
    let mut near = Near::new(address);
    near.open(1, &FlowSpec { down: Some(bulk()), ..plain() });
    drop(far_end);
    UdpGroup::bind(address, 1, &UdpOptions::default()).unwrap();
}
