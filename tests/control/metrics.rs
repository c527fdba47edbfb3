//! Metrics of a real gateway: they agree with its counters and with what a client has sent, and the endpoint follows the configuration.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tollgate_test_support::deployment::Deployment;
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::scrape::{ENDPOINT, Scrape, ask};
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::SERVER_V4;

use crate::site::Site;

const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);
/// Longer than figures wait to be published.
const PUBLISHED: Duration = Duration::from_millis(500);

/// Longer than a client's own figures take, published by the core and then renewed.
const SETTLED: Duration = Duration::from_secs(3);
const OTHERS: &str = "user=\"other\",connection=\"other\"";

/// Has metrics served, with further `settings`.
fn serves_metrics(settings: &str) -> impl FnOnce(&Deployment) {
    let table = format!("[metrics]\nenabled = true\n{settings}[control]");
    move |deployment| deployment.edit_server("[control]", &table)
}

fn scrape(site: &Site) -> Scrape {
    Scrape::fetch(&site.topology.gateway).unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn metrics_agree_with_the_counters_and_with_what_a_client_has_sent() {
    let _turn = turn::together();
    let mut site = Site::start(serves_metrics(""));
    let mut client = site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
    let sources = [client.address.unwrap(), "198.19.128.99".parse().unwrap()];
    let packets = sources.map(|source| udp_packet(source, SERVER_V4.into(), &[0; 472]));
    for _ in 0..100 {
        packets.iter().for_each(|packet| client.send_packet(packet));
    }
    let are_there = || scrape(&site).sum("tollgate_received_datagram_frames_total") == 200.0;
    assert!(eventually(PATIENCE, are_there), "{:?}", scrape(&site));
    // What came after the last packet is to be published too.
    thread::sleep(PUBLISHED);
    let (scraped, status) = (scrape(&site), site.gateway.status());
    let sum = |name| scraped.sum(name);
    assert_eq!((sum("tollgate_up_packets_total"), sum("tollgate_up_bytes_total")), (100.0, 50_000.0));
    assert_eq!(scraped.value("tollgate_dropped_packets_total{reason=\"forged_source\"}"), 100.0);
    assert_eq!((sum("tollgate_clients"), sum("tollgate_users"), sum("tollgate_leased_addresses")), (1.0, 1.0, 1.0));
    assert_eq!((scraped.value("tollgate_shards"), scraped.value("tollgate_configured_users")), (2.0, 3.0));
    assert!(sum("tollgate_busy_seconds_total") > 0.0, "{scraped:?}");
    let taken = scraped.value("tollgate_pool_addresses") - scraped.value("tollgate_free_pool_addresses");
    let ended = |outcome| format!("tollgate_ended_handshakes_total{{kind=\"tls\",outcome=\"{outcome}\"}}");
    let logins = [ended("logged_in"), "tollgate_handshake_seconds_count{kind=\"tls\"}".to_owned()];
    assert_eq!((taken, logins.map(|name| scraped.value(&name))), (1.0, [1.0; 2]));
    let time = scraped.value("tollgate_handshake_seconds_sum{kind=\"tls\"}");
    assert!(time > 0.0 && time < PATIENCE.as_secs_f64(), "{scraped:?}");
    for shard in 0..2 {
        for (name, pointer) in [
            ("tollgate_up_packets_total", "/counters/up_packets"),
            ("tollgate_down_packets_total", "/counters/down_packets"),
            ("tollgate_handshakes_total", "/counters/handshakes"),
            ("tollgate_mesh_messages_total", "/counters/messages"),
            ("tollgate_udp_received_datagrams_total", "/traffic/udp_received_datagrams"),
            ("tollgate_tun_writes_total", "/traffic/tun_writes"),
            ("tollgate_owned_connections", "/owned_connections"),
            ("tollgate_memory_limit_bytes", "/memory/limit_bytes"),
        ] {
            let told = scraped.of_shard(shard, name);
            assert_eq!(told, status.of_shard(shard, pointer) as f64, "{name} of shard {shard}");
        }
    }
    client.close();
    let are_gone = || scrape(&site).sum("tollgate_owned_connections") == 0.0;
    assert!(eventually(PATIENCE, are_gone), "{:?}", scrape(&site));
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_clients_own_figures_are_what_it_has_sent_and_received_and_go_to_the_others_when_it_leaves() {
    let _turn = turn::together();
    let mut site = Site::start(serves_metrics("reporting_interval_s = 1\n"));
    let mut client = site.topology.gateway.run(|| TestTunnel::login(&site.deployment, "alice", GATEWAY.into(), None));
    let address = client.address.unwrap();
    let labels = format!("user=\"alice\",connection=\"{address}\"");
    let settle = |client: &mut TestTunnel| {
        let end = Instant::now() + PATIENCE;
        let (mut moved, mut since) = ([client.udp_sent, client.udp_received], Instant::now());
        while since.elapsed() < SETTLED {
            assert!(Instant::now() < end, "client and gateway do not come to rest");
            client.turn();
            // Whoever asks more often than figures are renewed has them no later.
            scrape(&site);
            thread::sleep(Duration::from_millis(5));
            if moved != [client.udp_sent, client.udp_received] {
                (moved, since) = ([client.udp_sent, client.udp_received], Instant::now());
            }
        }
        (scrape(&site), moved)
    };
    let (before, had) = settle(&mut client);
    for _ in 0..100 {
        client.send_packet(&udp_packet(address, SERVER_V4.into(), &[0; 472]));
    }
    let (scraped, has) = settle(&mut client);
    for (direction, had, has) in [("rx", had[0], has[0]), ("tx", had[1], has[1])] {
        let ([datagrams_before, bytes_before], [datagrams, bytes]) =
            (before.carried(direction, &labels), scraped.carried(direction, &labels));
        assert_eq!(
            [datagrams - datagrams_before, bytes - bytes_before],
            [has[0] - had[0], has[1] - had[1]],
            "{direction}"
        );
        assert!(direction == "tx" || datagrams >= datagrams_before + 100, "{scraped:?}");
        assert_eq!(scraped.carried(direction, OTHERS), [0, 0], "there is nobody else");
    }
    let path = |what| scraped.value(&format!("quincy_connection_{what}_seconds{{{labels}}}"));
    assert!((0.0..1.0).contains(&path("rtt")) && (1.0..60.0).contains(&path("duration")), "{scraped:?}");

    client.close();
    let sample = format!("quincy_bytes_rx_total{{{labels}}}");
    assert!(eventually(PATIENCE, || scrape(&site).find(&sample).is_none()), "{:?}", scrape(&site));
    let after = scrape(&site);
    for direction in ["rx", "tx"] {
        let (own, others) = (scraped.carried(direction, &labels), after.carried(direction, OTHERS));
        // Its goodbye is among it.
        assert!(
            others[0] >= own[0] && others[0] < own[0] + 10 && others[1] >= own[1],
            "{direction}: {own:?}, {others:?}"
        );
    }
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn a_reload_opens_moves_and_closes_the_endpoint_or_changes_nothing() {
    let _turn = turn::together();
    let mut site = Site::start(serves_metrics("port = 9090\n"));
    let is_served = |site: &Site, port: u16| {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        site.topology.gateway.run(|| TcpStream::connect_timeout(&address, PATIENCE)).is_ok()
    };
    scrape(&site);
    let (head, _) = ask(&site.topology.gateway, ENDPOINT, "POST /metrics HTTP/1.1\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");

    let _taken = site.topology.gateway.run(|| TcpListener::bind("127.0.0.1:9092")).unwrap();
    site.deployment.edit_server("port = 9090", "port = 9092");
    let said = site.order(&["reload"]);
    for word in ["127.0.0.1:9092", "[metrics]", "enabled = false"] {
        assert!(said.code == Some(1) && said.text.contains(word), "{said:?}");
    }
    scrape(&site);

    site.deployment.edit_server("port = 9092", "port = 9091");
    let said = site.order_done(&["reload"]);
    assert!(said.contains("port"), "{said}");
    assert_eq!([9090, 9091].map(|port| is_served(&site, port)), [false, true]);
    site.deployment.edit_server("enabled = true", "enabled = false");
    site.order_done(&["reload"]);
    assert_eq!([9090, 9091].map(|port| is_served(&site, port)), [false, false]);
    site.gateway.assert_sound();
}
