use std::net::SocketAddr;
use std::time::Duration;

use tollgate_shards::{Ecn, Received};

use super::super::testnet::{Ethernet, in_network_namespace};
use super::super::udp::tests::set_option;
use super::super::{Poller, ReceiveBatch, UdpOptions, UdpSocket, Wake};
use super::*;

fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().unwrap(), &UdpOptions::default()).unwrap()
}

fn run(remote: SocketAddr, bytes: usize, segment_bytes: usize) -> Transmit {
    Transmit { remote, local_ip: None, ecn: None, bytes, segment_bytes }
}

/// Adds a run of bytes that count up from `first`.
fn fill(batch: &mut TransmitBatch, transmit: Transmit, first: u8) {
    assert!(batch.fill(|buf| {
        assert!(buf.is_empty());
        buf.extend((0..transmit.bytes).map(|index| first.wrapping_add(index as u8)));
        Some(transmit)
    }));
}

fn receive(socket: &UdpSocket, datagrams: usize) -> Vec<Received> {
    let mut batch = ReceiveBatch::new(16);
    let (mut got, mut count) = (Vec::new(), 0);
    for _ in 0..1000 {
        count += socket.receive(&mut batch, &mut |received| got.push(received)).unwrap().datagrams;
        if count >= datagrams {
            assert_eq!(count, datagrams);
            return got;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{count} of {datagrams} datagrams arrived");
}

fn assert_run(received: &Received, bytes: usize, segment_bytes: usize, first: u8) {
    assert_eq!((received.data.len(), received.segment_bytes), (bytes, segment_bytes));
    for (index, byte) in received.data.iter().enumerate() {
        assert_eq!(*byte, first.wrapping_add(index as u8), "byte {index}");
    }
}

#[test]
fn a_run_arrives_whole_with_its_boundaries_source_and_ecn() {
    let (server, client) = (bind("0.0.0.0:0"), bind("0.0.0.0:0"));
    let to = SocketAddr::from(([127, 0, 0, 3], server.local_address().port()));
    let mut batch = TransmitBatch::new(4);
    let local_ip = Some("127.0.0.2".parse().unwrap());
    fill(&mut batch, Transmit { local_ip, ecn: Some(Ecn::Ect0), ..run(to, 40 * 1200 + 300, 1200) }, 7);
    let outcome = client.send(&mut batch);
    assert_eq!(outcome, SendOutcome { sends: 1, datagrams: 41, ..SendOutcome::default() });
    let got = receive(&server, 41);
    assert_eq!(got.len(), 1, "one aggregate");
    assert_run(&got[0], 40 * 1200 + 300, 1200, 7);
    assert_eq!(got[0].remote, SocketAddr::from(([127, 0, 0, 2], client.local_address().port())));
    assert_eq!(got[0].local_ip, Some("127.0.0.3".parse().unwrap()));
    assert_eq!(got[0].ecn, Some(Ecn::Ect0));
    let counters = batch.counters();
    assert_eq!((counters.data_sends, counters.data_datagrams, counters.calls), (1, 41, 1));
}

#[test]
fn a_dual_stack_socket_speaks_both_families_and_answers_what_it_received() {
    let server = bind("[::]:0");
    for (client, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
        let client = bind(client);
        let to = SocketAddr::new(to.parse().unwrap(), server.local_address().port());
        let mut batch = TransmitBatch::new(1);
        fill(&mut batch, Transmit { ecn: Some(Ecn::Ce), ..run(to, 3000, 1000) }, 1);
        assert_eq!(client.send(&mut batch).datagrams, 3);
        let got = receive(&server, 3).pop().unwrap();
        assert_run(&got, 3000, 1000, 1);
        assert_eq!((got.remote, got.local_ip, got.ecn), (client.local_address(), Some(to.ip()), Some(Ecn::Ce)));
        let answer = Transmit { local_ip: got.local_ip, ecn: Some(Ecn::Ect1), ..run(got.remote, 2500, 1000) };
        fill(&mut batch, answer, 9);
        assert_eq!(server.send(&mut batch).datagrams, 3);
        let got = receive(&client, 3).pop().unwrap();
        assert_run(&got, 2500, 1000, 9);
        assert_eq!((got.remote, got.ecn), (to, Some(Ecn::Ect1)));
    }
}

#[test]
fn runs_of_different_sizes_and_receivers_go_in_one_call_and_in_order() {
    let (one, two, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let mut batch = TransmitBatch::new(8);
    let sizes = [(14140, 1414), (52, 52), (2000, 1000), (600, 60), (1, 1)];
    for (index, (bytes, segment)) in sizes.into_iter().enumerate() {
        let to = if index == 2 { two.local_address() } else { one.local_address() };
        fill(&mut batch, run(to, bytes, segment), index as u8);
    }
    let outcome = client.send(&mut batch);
    assert_eq!((outcome.sends, outcome.datagrams, batch.counters().calls), (5, 24, 1));
    assert_eq!((batch.counters().data_sends, batch.counters().data_datagrams), (2, 12));
    assert!(batch.is_empty());
    let got = receive(&one, 22);
    let expected = [(14140, 1414, 0), (52, 52, 1), (600, 60, 3), (1, 1, 4)];
    assert_eq!(got.len(), expected.len());
    for (received, (bytes, segment, first)) in got.iter().zip(expected) {
        assert_run(received, bytes, segment, first);
    }
    assert_run(&receive(&two, 2)[0], 2000, 1000, 2);
}

#[test]
fn a_run_of_very_many_datagrams_goes_in_pieces_that_every_kernel_takes() {
    let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let mut batch = TransmitBatch::new(2);
    fill(&mut batch, run(server.local_address(), 150 * 40 + 7, 40), 3);
    let outcome = client.send(&mut batch);
    assert_eq!((outcome.sends, outcome.datagrams, batch.counters().calls), (3, 151, 1));
    let data: Vec<u8> = receive(&server, 151).iter().flat_map(|received| received.data.to_vec()).collect();
    assert!(data.iter().enumerate().all(|(index, byte)| *byte == 3u8.wrapping_add(index as u8)));
    assert_eq!((data.len(), batch.counters().gso_refused), (6007, 0));
}

#[test]
fn buffers_are_used_again() {
    let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let mut batch = TransmitBatch::new(2);
    let mut places = std::collections::BTreeSet::new();
    for _ in 0..50 {
        for _ in 0..2 {
            fill(&mut batch, run(server.local_address(), 1000, 1000), 0);
        }
        places.extend(batch.runs.iter().map(|run| (run.buf.as_ptr(), run.buf.capacity())));
        assert!(batch.is_full() && !batch.fill(|_| panic!("polled though full")));
        assert_eq!(client.send(&mut batch).sends, 2);
    }
    assert_eq!(places.len(), 2);
}

#[test]
fn a_run_that_cannot_be_sent_is_dropped_and_the_others_are_not() {
    let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let mut batch = TransmitBatch::new(8);
    fill(&mut batch, run(server.local_address(), 3000, 1000), 0);
    // Of the other family, to no port, empty, too long for the network.
    fill(&mut batch, run("[::1]:9".parse().unwrap(), 3000, 1000), 0);
    fill(&mut batch, run("127.0.0.1:0".parse().unwrap(), 2000, 1000), 0);
    fill(&mut batch, run(server.local_address(), 0, 1), 0);
    fill(&mut batch, run(server.local_address(), 65530, 65530), 0);
    fill(&mut batch, run(server.local_address(), 4000, 1000), 5);
    let outcome = client.send(&mut batch);
    assert_eq!(
        outcome,
        SendOutcome { sends: 2, datagrams: 7, dropped: 3 + 2 + 1, blocked: false, error: Some(libc::EMSGSIZE) }
    );
    assert_eq!(batch.counters().errors, 4);
    let got = receive(&server, 7);
    assert_run(&got[0], 3000, 1000, 0);
    assert_run(&got[1], 4000, 1000, 5);
}

#[test]
fn a_refused_run_goes_as_single_datagrams_and_proof_switches_segmentation_off() {
    let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let mut batch = TransmitBatch::new(8);
    // The kernel refuses to segment without checksums: EINVAL.
    set_option(&client, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
    for sent in 1..=u64::from(GSO_REFUSALS_MAX) + 2 {
        fill(&mut batch, run(server.local_address(), 3500, 1000), sent as u8);
        assert_eq!(client.send(&mut batch).datagrams, 4);
        let got = receive(&server, 4);
        let data: Vec<u8> = got.iter().flat_map(|received| received.data.to_vec()).collect();
        assert!(data.iter().enumerate().all(|(index, byte)| *byte == (sent as u8).wrapping_add(index as u8)));
        assert_eq!(batch.counters().gso_refused, sent.min(u64::from(GSO_REFUSALS_MAX)));
    }
    assert!(!client.gso.get());
}

#[test]
fn segmentation_that_works_in_between_keeps_it_on() {
    let (server, client) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let mut batch = TransmitBatch::new(8);
    for _ in 0..2 * GSO_REFUSALS_MAX {
        for refuse in [1, 0] {
            set_option(&client, libc::SOL_SOCKET, libc::SO_NO_CHECK, refuse);
            fill(&mut batch, run(server.local_address(), 2000, 1000), 0);
            assert_eq!(client.send(&mut batch).datagrams, 2);
        }
    }
    assert!(client.gso.get());
    assert_eq!(batch.counters().gso_refused, u64::from(2 * GSO_REFUSALS_MAX));
}

#[test]
fn a_run_from_an_address_that_is_not_ours_proves_nothing_against_segmentation() {
    let (server, client) = (bind("127.0.0.1:0"), bind("0.0.0.0:0"));
    let mut batch = TransmitBatch::new(8);
    let local_ip = Some("198.18.255.1".parse().unwrap());
    for _ in 0..2 * GSO_REFUSALS_MAX {
        fill(&mut batch, Transmit { local_ip, ..run(server.local_address(), 2000, 1000) }, 0);
        assert_eq!(client.send(&mut batch).dropped, 2);
    }
    assert!(client.gso.get());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_full_socket_keeps_the_rest_until_it_is_writable_again() {
    in_network_namespace(|| {
        // Packets to a neighbour that does not answer wait in the kernel, at the sender's expense.
        let mut ethernet = Ethernet::create();
        let remote: SocketAddr = "198.18.9.2:9".parse().unwrap();
        let options = UdpOptions { send_buffer_bytes: 8192, ..UdpOptions::default() };
        let client = UdpSocket::for_remote(remote, &options).unwrap();
        let poller = Poller::new(Some(&client), None, &Wake::new().unwrap()).unwrap();
        let mut batch = TransmitBatch::new(4);
        for first in 0..4 {
            fill(&mut batch, run(remote, 12_000, 1200), first);
        }
        let outcome = client.send(&mut batch);
        assert!(outcome.blocked && outcome.sends > 0 && outcome.dropped == 0, "{outcome:?}");
        let waiting = batch.len();
        assert_eq!(waiting, 4 - outcome.sends);
        assert!(waiting > 0 && !batch.is_full(), "the runs that went make room");
        assert_eq!(batch.runs[0].buf[0], outcome.sends as u8, "in order");
        assert_eq!(client.send(&mut batch), SendOutcome { blocked: true, ..SendOutcome::default() });
        poller.want_udp(true, true).unwrap();
        assert!(!poller.wait(Some(Duration::ZERO)).unwrap().udp_writable);
        ethernet.answer_arp();
        while !batch.is_empty() {
            assert!(poller.wait(Some(Duration::from_secs(5))).unwrap().udp_writable);
            client.send(&mut batch);
        }
        assert_eq!((batch.counters().datagrams, batch.counters().dropped), (40, 0));
    });
}
