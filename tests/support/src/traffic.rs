//! Traffic through the tunnels.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use crate::datagrams::{DatagramPlan, DatagramReceiver, FlowCounts, send_while};
use tollgate_testkit::Namespace;
use tollgate_testkit::bulk::{BulkPlan, BulkReport, BulkServer, Direction, transfer};
use tollgate_testkit::ping::{PingPlan, PingReport, ping};

use crate::{PATIENCE, eventually};

const BULK_DEADLINE: Duration = Duration::from_secs(300);

pub fn bulk_server(namespace: &Namespace, address: impl Into<IpAddr>) -> BulkServer {
    let address = address.into();
    let listener = namespace.run(|| TcpListener::bind((address, 0))).expect("a free port");
    BulkServer::start(listener).expect("a bulk server")
}

/// Moves `bytes` bytes between `namespace` and a server, and checks each.
pub fn bulk(namespace: &Namespace, server: SocketAddr, direction: Direction, bytes: u64) -> BulkReport {
    let plan = BulkPlan { deadline: BULK_DEADLINE, ..BulkPlan::new(server, direction, bytes) };
    let report = namespace.run(|| transfer(&plan, |_| {})).expect("a bulk transfer");
    assert_eq!(report.bytes, bytes, "{report:?}");
    assert!(report.is_intact(), "{report:?}");
    report
}

pub fn bulk_both_ways(namespace: &Namespace, server: SocketAddr, bytes: u64) {
    for direction in [Direction::Upload, Direction::Download] {
        bulk(namespace, server, direction, bytes);
    }
}

pub fn ping_ten(namespace: &Namespace, target: impl Into<IpAddr>) -> PingReport {
    let plan = PingPlan { timeout: Duration::from_secs(5), ..PingPlan::new(target.into()) };
    namespace.run(|| ping(&plan)).expect("a raw socket")
}

/// Fails unless all of ten pings are answered once.
pub fn assert_pings(namespace: &Namespace, target: impl Into<IpAddr>) {
    let target = target.into();
    let report = ping_ten(namespace, target);
    assert_eq!((report.received, report.duplicates), (10, 0), "ping of {target} from {}", namespace.name());
}

/// Waits until a ping is answered; the route may come a moment after the address.
pub fn wait_for_ping(namespace: &Namespace, target: impl Into<IpAddr>) {
    let target = target.into();
    let plan = PingPlan { count: 1, timeout: Duration::from_millis(50), ..PingPlan::new(target) };
    let answered = || namespace.run(|| ping(&plan)).is_ok_and(|report| report.received == 1);
    assert!(eventually(PATIENCE, answered), "{target} does not answer {}", namespace.name());
}

pub fn datagram_receiver(namespace: &Namespace, address: impl Into<IpAddr>) -> DatagramReceiver {
    let address = address.into();
    let socket = namespace.run(|| UdpSocket::bind((address, 0))).expect("a free port");
    DatagramReceiver::start(socket)
}

/// Sends `datagrams` numbered datagrams evenly at `per_second`, and says how many of them were lost and what the receiver counted.
pub fn paced_flow(
    from: &Namespace,
    receiver: &DatagramReceiver,
    flow: u32,
    datagrams: u64,
    per_second: u32,
) -> (u64, FlowCounts) {
    paced_flow_while(from, receiver, flow, datagrams, per_second, || true)
}

/// The same, but no longer than it `goes_on`.
pub fn paced_flow_while(
    from: &Namespace,
    receiver: &DatagramReceiver,
    flow: u32,
    datagrams: u64,
    per_second: u32,
    goes_on: impl Fn() -> bool + Send,
) -> (u64, FlowCounts) {
    let plan = DatagramPlan { flow, per_second: Some(per_second), ..DatagramPlan::new(receiver.address(), datagrams) };
    let (offered, sent) = from.run(|| send_while(&plan, goes_on));
    assert_eq!(sent, offered, "the kernel took every datagram");
    let counts = || receiver.counts().remove(&flow);
    // The last ones may be under way.
    eventually(Duration::from_secs(1), || counts().is_some_and(|counts| counts.lost(sent) == 0));
    let counts = counts().expect("something arrived");
    (counts.lost(sent), counts)
}
