//! `tollgate connect` on a machine whose network changes under it: links, routers, addresses and routes come and go.
//!
//! Each test holds packets of the tunnel's inside against what crosses the physical links: none may, at any time.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::process::Signal;
use tollgate::io::{TunDevice, TunOptions};
use tollgate::netlink::{Netlink, Route};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::require_tun_or_skip;
use tollgate_testkit::{Process, SERVER_V4, SERVER_V6, SERVICE_V4, SERVICE_V6};

use tollgate_testkit::faults::{Faults, tell_of_clock_jump};
use tollgate_testkit::site::uplinks::{FIRST_ROUTER, OTHER_ROUTER, Uplinks, add_address, by_hand, net};
use tollgate_testkit::site::{CONNECTED, PATIENCE};

/// How soon packets pass again.
const SOON: Duration = Duration::from_secs(2);

/// What somebody does to the network of the client's machine.
type Change<'a> = &'a dyn Fn(&mut Netlink);

/// Both families, inside and outside alike.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn server(self) -> IpAddr {
        if self == Family::V4 { SERVER_V4.into() } else { SERVER_V6.into() }
    }

    fn service(self) -> IpAddr {
        if self == Family::V4 { SERVICE_V4.into() } else { SERVICE_V6.into() }
    }

    fn router(self, pair: [&str; 2]) -> IpAddr {
        pair[self as usize].parse().unwrap()
    }
}

/// A gateway and a client that is connected, all of a family led into the tunnel.
struct Tunnel {
    uplinks: Uplinks,
    family: Family,
    gateway: Process,
    client: Process,
}

impl Tunnel {
    fn start(family: Family, routes: &str) -> Self {
        let uplinks = Uplinks::new();
        uplinks.site.client_file(routes, "", "server");
        Tunnel::over(uplinks, family)
    }

    /// With a DNS server, which is told to a program that notes what it is told.
    fn start_with_dns() -> Self {
        let uplinks = Uplinks::new();
        uplinks.site.client_file("\"0.0.0.0/0\"", "\"198.19.0.53\"", "server");
        let resolvectl = uplinks.site.path("resolvectl");
        fs::write(&resolvectl, "#!/bin/sh\necho \"$@\" >> calls\n").unwrap();
        fs::set_permissions(&resolvectl, fs::Permissions::from_mode(0o755)).unwrap();
        Tunnel::over(uplinks, Family::V4)
    }

    fn over(uplinks: Uplinks, family: Family) -> Self {
        let gateway = match family {
            Family::V4 => uplinks.site.serve(),
            Family::V6 => {
                let mut command = uplinks.site.command("serve", "server.toml");
                command.env("TOLLGATE_BIND_ADDRESS", "::").env("TOLLGATE_TUNNEL_NETWORK", "fd00:19:80::1/64");
                let gateway = uplinks.site.topology.gateway.spawn(command).unwrap();
                gateway.wait_for_line("listening on", PATIENCE).unwrap();
                gateway
            }
        };
        let client = connect(&uplinks, family);
        client.wait_for_line("connected: this machine is", PATIENCE).unwrap();
        let tunnel = Tunnel { uplinks, family, gateway, client };
        assert!(tunnel.uplinks.time_until_answer(family.server()) < SOON);
        tunnel
    }

    /// Does `change` while packets for the tunnel are sent all the time, none of which may be seen outside, and says how long after its
    /// end they pass again.
    fn recovery<T>(&self, change: impl FnOnce() -> T) -> (Duration, T) {
        let watch = self.uplinks.watch_for_clear_traffic();
        let done = thread::scope(|scope| {
            let steady = scope.spawn(|| {
                let plan = PingPlan {
                    count: 100,
                    interval: Duration::from_millis(3),
                    timeout: Duration::ZERO,
                    ..PingPlan::new(self.family.server())
                };
                let (ended, start) = (Instant::now() + SOON * 3, Instant::now());
                while Instant::now() < ended {
                    // Refusals are as good as losses here.
                    let _ = self.uplinks.client().run(|| ping(&plan));
                }
                start
            });
            thread::sleep(Duration::from_millis(100));
            let value = change();
            let took = self.uplinks.time_until_answer(self.family.server());
            eprintln!("{:?}: packets pass again after {took:?}", self.family);
            steady.join().unwrap();
            (took, value)
        });
        watch.assert_none();
        done
    }

    fn assert_same_connection(&self) {
        let lines = self.client.lines();
        assert!(!lines.iter().any(|line| line.contains("tunnel lost")), "{lines:#?}");
    }

    fn tunnel_interface(&self) -> u32 {
        self.uplinks.index("tg-client")
    }

    fn tunnel_routes(&self) -> Vec<IpNet> {
        let index = self.tunnel_interface();
        let routes = self.uplinks.configure(|netlink| netlink.routes(index).unwrap());
        let of_family = |route: &IpNet| route.addr().is_ipv4() == (self.family == Family::V4);
        routes
            .into_iter()
            .map(|route| route.destination)
            .filter(of_family)
            .filter(|it| *it != net("fe80::/64"))
            .collect()
    }

    /// Waits until the log has `text`.
    fn says(&self, text: &str) {
        self.client.wait_for_line(text, PATIENCE).unwrap();
    }
}

fn connect(uplinks: &Uplinks, family: Family) -> Process {
    let mut command = uplinks.site.command("connect", "client.toml");
    command.env("PATH", uplinks.site.directory.path());
    if family == Family::V6 {
        command.env("TOLLGATE_CONNECTION_STRING", format!("[{SERVICE_V6}]:55555"));
    }
    uplinks.client().spawn(command).unwrap()
}

/// Each way of saying "all of it".
const FULL: [(Family, &str); 4] = [
    (Family::V4, "\"0.0.0.0/0\""),
    (Family::V4, "\"0.0.0.0/1\", \"128.0.0.0/1\""),
    (Family::V6, "\"::/0\""),
    (Family::V6, "\"::/1\", \"8000::/1\""),
];

#[test]
fn a_link_that_flaps_is_used_again_by_the_same_connection() {
    require_tun_or_skip!();
    for (family, routes) in FULL {
        let tunnel = Tunnel::start(family, routes);
        let (took, ()) = tunnel.recovery(|| {
            tunnel.uplinks.unplug("wan0");
            thread::sleep(Duration::from_secs(3));
            tunnel.uplinks.plug_in("wan0");
            tunnel.uplinks.add_default(FIRST_ROUTER, None);
        });
        assert!(took < SOON, "{family:?} {routes}: {took:?}");
        tunnel.assert_same_connection();
        assert_eq!(tunnel.uplinks.hop(family.service()), Some((Some(family.router(FIRST_ROUTER)), "wan0".to_owned())));
    }
}

#[test]
fn a_new_default_router_is_followed_by_the_same_connection() {
    require_tun_or_skip!();
    for (family, routes) in [FULL[0], FULL[2]] {
        let tunnel = Tunnel::start(family, routes);
        let (took, ()) = tunnel.recovery(|| {
            tunnel.uplinks.remove_default(FIRST_ROUTER);
            tunnel.uplinks.add_default(OTHER_ROUTER, None);
            // The old way leads nowhere from now on.
            let router = tunnel.uplinks.site.topology.router.as_ref().unwrap();
            router
                .configure(|netlink| {
                    let index = netlink.link("wan0")?.index;
                    netlink.set_link_down(index)
                })
                .unwrap();
        });
        assert!(took < SOON, "{family:?}: {took:?}");
        tunnel.assert_same_connection();
        assert_eq!(tunnel.uplinks.hop(family.service()), Some((Some(family.router(OTHER_ROUTER)), "lan0".to_owned())));
    }
}

#[test]
fn a_better_way_is_taken_when_it_appears_and_left_when_it_goes() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    tunnel.uplinks.remove_default(FIRST_ROUTER);
    tunnel.uplinks.add_default(FIRST_ROUTER, Some(600));
    for (interface, metric) in [("lan0", Some(100)), ("wan0", None)] {
        let (took, ()) = tunnel.recovery(|| match metric {
            Some(_) => tunnel.uplinks.add_default(OTHER_ROUTER, metric),
            None => tunnel.uplinks.unplug("lan0"),
        });
        assert!(took < SOON, "{interface}: {took:?}");
        assert_eq!(tunnel.uplinks.hop(SERVICE_V4).unwrap().1, interface);
    }
    tunnel.assert_same_connection();
}

#[test]
fn a_link_without_carrier_gives_way_to_one_that_has_it() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    tunnel.uplinks.add_default(OTHER_ROUTER, Some(600));
    let (took, ()) = tunnel.recovery(|| {
        let router = tunnel.uplinks.site.topology.router.as_ref().unwrap();
        router
            .configure(|netlink| {
                let index = netlink.link("to-client0")?.index;
                netlink.set_link_down(index)
            })
            .unwrap();
    });
    assert!(took < SOON, "{took:?}");
    tunnel.assert_same_connection();
}

#[test]
fn another_address_of_the_machine_keeps_the_connection() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let index = tunnel.uplinks.index("wan0");
    let (took, ()) = tunnel.recovery(|| {
        tunnel.uplinks.configure(|netlink| {
            netlink.remove_address(index, net("198.18.1.2/24")).unwrap();
            add_address(netlink, index, "198.18.1.77/24");
            netlink.add_route(&by_hand(net("0.0.0.0/0"), FIRST_ROUTER[0])).unwrap();
        });
    });
    assert!(took < SOON, "{took:?}");
    tunnel.assert_same_connection();
}

#[test]
fn a_gateway_that_only_sends_learns_the_new_address_at_once() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"198.19.0.0/24\"");
    let index = tunnel.uplinks.index("wan0");
    // Nothing goes from the client to the gateway by itself.
    let to_client = || {
        let plan =
            PingPlan { count: 1, timeout: Duration::from_millis(50), ..PingPlan::new("198.19.128.2".parse().unwrap()) };
        tunnel.uplinks.site.topology.network.run(|| ping(&plan)).unwrap().received == 1
    };
    assert!(to_client());
    // What the exchange left to be acknowledged is over.
    thread::sleep(Duration::from_secs(1));
    tunnel.uplinks.configure(|netlink| {
        netlink.remove_address(index, net("198.18.1.2/24")).unwrap();
        add_address(netlink, index, "198.18.1.77/24");
        netlink.add_route(&by_hand(net("0.0.0.0/0"), FIRST_ROUTER[0])).unwrap();
    });
    let start = Instant::now();
    while !to_client() {
        assert!(start.elapsed() < SOON, "the gateway still sends to the old address");
    }
    tunnel.assert_same_connection();
}

#[test]
fn without_any_way_to_the_gateway_nothing_leaves_in_clear_and_a_new_interface_is_taken() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let (took, ()) = tunnel.recovery(|| {
        let wan = tunnel.uplinks.index("wan0");
        tunnel.uplinks.configure(|netlink| netlink.remove_link(wan).unwrap());
        thread::sleep(Duration::from_secs(1));
        tunnel.uplinks.add_default(OTHER_ROUTER, None);
    });
    assert!(took < SOON, "{took:?}");
    tunnel.assert_same_connection();
}

#[test]
fn an_attempt_to_connect_starts_anew_when_the_network_comes() {
    require_tun_or_skip!();
    let uplinks = Uplinks::new();
    uplinks.site.client_file("\"0.0.0.0/0\"", "", "server");
    let _gateway = uplinks.site.serve();
    uplinks.remove_default(FIRST_ROUTER);
    let client = connect(&uplinks, Family::V4);
    // By then it waits for 1.6 to 4.8 s between attempts.
    for _ in 0..5 {
        let lines = client.line_count();
        client.wait_for_line_from(lines, "no tunnel", PATIENCE).unwrap();
    }
    uplinks.add_default(OTHER_ROUTER, None);
    client.wait_for_line(CONNECTED, Duration::from_secs(1)).unwrap();
}

#[test]
fn a_host_route_of_somebody_else_is_used_and_left_alone() {
    require_tun_or_skip!();
    let uplinks = Uplinks::new();
    uplinks.site.client_file("\"0.0.0.0/0\"", "", "server");
    let theirs = by_hand(IpNet::from(IpAddr::from(SERVICE_V4)), OTHER_ROUTER[0]);
    uplinks.configure(|netlink| netlink.add_route(&theirs).unwrap());
    let before = uplinks.site.client_network();
    let _gateway = uplinks.site.serve();
    let mut client = connect(&uplinks, Family::V4);
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    assert_eq!(uplinks.hop(SERVICE_V4).unwrap().1, "lan0");
    // While it is gone there is one of ours; when it is back it counts again.
    uplinks.configure(|netlink| netlink.remove_route(&theirs).unwrap());
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    uplinks.configure(|netlink| netlink.replace_route(&theirs).unwrap());
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    assert_eq!(uplinks.hop(SERVICE_V4).unwrap().1, "lan0");
    assert!(client.stop(PATIENCE).unwrap().success());
    assert_eq!(uplinks.site.client_network(), before);
}

#[test]
fn what_somebody_takes_from_the_tunnel_is_put_back_and_said() {
    require_tun_or_skip!();
    for (family, routes) in [FULL[0], FULL[2]] {
        let mut tunnel = Tunnel::start(family, routes);
        let (interface, before) = (tunnel.tunnel_interface(), tunnel.tunnel_routes());
        let index = interface;
        let changes: [(&str, Change<'_>); 5] = [
            ("routes", &|netlink| {
                for route in netlink.routes(index).unwrap() {
                    netlink.remove_route(&route).unwrap();
                }
            }),
            ("state", &|netlink| {
                netlink.set_link_down(index).unwrap();
            }),
            ("down and up", &|netlink| {
                netlink.set_link_down(index).unwrap();
                netlink.set_link_up(index).unwrap();
            }),
            ("address", &|netlink| {
                for address in netlink.addresses(index).unwrap() {
                    netlink.remove_address(index, address).unwrap();
                }
            }),
            ("MTU", &|netlink| netlink.set_link_mtu(index, 1300).unwrap()),
        ];
        for (what, change) in changes {
            let (took, ()) = tunnel.recovery(|| tunnel.uplinks.configure(|netlink| change(netlink)));
            assert!(took < SOON, "{family:?} {what}: {took:?}");
            let mut now = tunnel.tunnel_routes();
            let mut expected = before.clone();
            now.sort();
            expected.sort();
            assert_eq!(now, expected, "{what}");
            assert_eq!(
                tunnel.uplinks.configure(|netlink| netlink.link_by_index(index).unwrap().mtu_bytes),
                1400,
                "{what}"
            );
        }
        tunnel.says("restored");
        tunnel.assert_same_connection();
        assert!(tunnel.client.stop(PATIENCE).unwrap().success());
    }
}

#[test]
fn a_deleted_interface_is_made_anew_under_the_same_connection() {
    require_tun_or_skip!();
    let mut tunnel = Tunnel::start_with_dns();
    for _ in 0..2 {
        let (took, ()) = tunnel.recovery(|| {
            let index = tunnel.tunnel_interface();
            tunnel.uplinks.configure(|netlink| netlink.remove_link(index).unwrap());
        });
        assert!(took < SOON, "{took:?}");
    }
    tunnel.assert_same_connection();
    tunnel.says("restored");
    let calls = fs::read_to_string(tunnel.uplinks.site.path("calls")).unwrap();
    assert_eq!(calls, "dns tg-client 198.19.0.53\ndomain tg-client ~.\n".repeat(3));
    assert!(tunnel.client.stop(PATIENCE).unwrap().success());
}

#[test]
fn routes_that_are_all_flushed_or_replaced_are_put_back_or_complained_of() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let own = || {
        let mut routes = tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap());
        routes.sort_by_key(|route| (route.destination, route.metric));
        routes
    };
    let (before, start) = (own(), Instant::now());
    tunnel.uplinks.configure(|netlink| before.iter().for_each(|route| netlink.remove_route(route).unwrap()));
    while own() != before {
        assert!(start.elapsed() < SOON, "{:?} instead of {before:?}", own());
        thread::sleep(Duration::from_millis(5));
    }
    tunnel.says("restored");
    let theirs = by_hand(net("128.0.0.0/1"), FIRST_ROUTER[0]);
    tunnel.uplinks.configure(|netlink| netlink.replace_route(&theirs).unwrap());
    tunnel.says("packets leave past the tunnel: network.routes: 128.0.0.0/1 has a route already");
    tunnel.uplinks.configure(|netlink| netlink.remove_route(&theirs).unwrap());
    assert!(tunnel.uplinks.time_until_answer(SERVER_V4) < SOON);
    assert_eq!(own(), before);
    tunnel.assert_same_connection();
}

#[test]
fn a_fight_over_the_routes_is_fought_quietly() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let index = tunnel.tunnel_interface();
    let lines = tunnel.client.line_count();
    let (took, ()) = tunnel.recovery(|| {
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            tunnel.uplinks.configure(|netlink| {
                let _ = netlink.remove_route(&Route::on_link(net("0.0.0.0/1"), index));
                let _ = netlink.remove_route(&Route::on_link(net("128.0.0.0/1"), index));
            });
            thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(took < SOON, "{took:?}");
    let said = tunnel.client.line_count() - lines;
    assert!((1..=3).contains(&said), "{said} lines: {:#?}", tunnel.client.lines());
}

#[test]
fn a_client_that_was_killed_is_succeeded_over_another_router_without_a_packet_in_clear() {
    require_tun_or_skip!();
    for (family, routes) in [FULL[0], FULL[2]] {
        let mut tunnel = Tunnel::start(family, routes);
        let ended = tunnel.uplinks.watch_for_clear_traffic();
        tunnel.client.kill().unwrap();
        let (took, client) = tunnel.recovery(|| {
            tunnel.uplinks.remove_default(FIRST_ROUTER);
            tunnel.uplinks.unplug("wan0");
            tunnel.uplinks.add_default(OTHER_ROUTER, None);
            connect(&tunnel.uplinks, family)
        });
        assert!(took < SOON, "{family:?}: {took:?}");
        ended.assert_none();
        let mut client = client;
        assert!(client.stop(PATIENCE).unwrap().success());
        // Nothing of either is left.
        let ours = tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap());
        assert_eq!(ours, []);
        assert_eq!(tunnel.uplinks.hop(family.service()).unwrap().1, "lan0");
    }
}

#[test]
fn what_a_killed_client_left_is_removed_by_one_that_leads_less_into_the_tunnel() {
    require_tun_or_skip!();
    let mut tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    tunnel.client.kill().unwrap();
    tunnel.uplinks.site.client_file("\"198.19.0.0/24\"", "", "server");
    let mut client = connect(&tunnel.uplinks, Family::V4);
    client.wait_for_line("connected: this machine is", PATIENCE).unwrap();
    assert!(tunnel.uplinks.time_until_answer(SERVER_V4) < SOON);
    // The rest of the world is reached as before the first client: the first router says that it knows no way.
    assert_eq!(tunnel.uplinks.hop("198.51.100.1".parse::<IpAddr>().unwrap()).unwrap().1, "wan0");
    assert!(client.stop(PATIENCE).unwrap().success());
    assert_eq!(tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap()), []);
}

#[test]
fn a_client_leaves_alone_what_belongs_to_another_that_lives() {
    require_tun_or_skip!();
    let mut tunnel = Tunnel::start(Family::V4, "\"128.0.0.0/1\"");
    let another = |interface: &str| {
        let mut command = tunnel.uplinks.site.command("connect", "client.toml");
        command.env("TOLLGATE_NETWORK__INTERFACE_NAME", interface).env("TOLLGATE_NETWORK__ROUTES", "[\"192.0.0.0/4\"]");
        let client = tunnel.uplinks.client().spawn(command).unwrap();
        client.wait_for_line("connected: this machine is", PATIENCE).unwrap();
        client
    };
    another("tg-second").kill().unwrap();
    let mut third = another("tg-third");
    assert!(third.stop(PATIENCE).unwrap().success());
    assert_eq!(tunnel.uplinks.hop(SERVICE_V4).unwrap().1, "wan0");
    assert_eq!(tunnel.uplinks.hop("130.0.0.1".parse::<IpAddr>().unwrap()).unwrap().1, "tg-client");
    assert!(tunnel.uplinks.time_until_answer(SERVER_V4) < SOON);
    assert!(tunnel.client.stop(PATIENCE).unwrap().success());
    assert_eq!(tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap()), []);
}

#[test]
fn a_hangup_ends_the_client_with_everything_cleaned_up() {
    require_tun_or_skip!();
    let mut tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    tunnel.client.signal(Signal::HUP).unwrap();
    assert!(tunnel.client.wait(PATIENCE).unwrap().success());
    tunnel.gateway.wait_for_line("closed by the client: Client shutdown (code 0x01)", PATIENCE).unwrap();
    assert_eq!(tunnel.uplinks.configure(|netlink| netlink.own_routes().unwrap()), []);
    assert_eq!(tunnel.uplinks.hop(SERVER_V4).unwrap().1, "wan0");
}

#[test]
fn a_client_that_was_told_to_ignore_hangups_does() {
    require_tun_or_skip!();
    let uplinks = Uplinks::new();
    uplinks.site.client_file("\"198.19.0.0/24\"", "", "server");
    let _gateway = uplinks.site.serve();
    let command = uplinks.site.command("connect", "client.toml");
    let mut ignoring = Command::new("/bin/sh");
    ignoring.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    ignoring.current_dir(uplinks.site.directory.path()).env("NO_COLOR", "1").env_remove("RUST_LOG");
    let mut client = uplinks.client().spawn(ignoring).unwrap();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    client.signal(Signal::HUP).unwrap();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(client.exit_status().unwrap(), None);
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    assert!(client.stop(PATIENCE).unwrap().success());
}

#[test]
fn a_name_that_is_taken_meanwhile_is_waited_for() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    let (took, ()) = tunnel.recovery(|| {
        let index = tunnel.tunnel_interface();
        tunnel.uplinks.client().run(|| {
            let mut netlink = Netlink::open().unwrap();
            netlink.remove_link(index).unwrap();
            let taken = TunDevice::create(Some("tg-client"), 1, 1400, &TunOptions::default());
            thread::sleep(Duration::from_millis(500));
            drop(taken);
        });
    });
    assert!(took < SOON, "{took:?}");
    tunnel.assert_same_connection();
}

#[test]
fn a_socket_that_somebody_destroys_is_opened_anew_under_the_same_connection() {
    require_tun_or_skip!();
    let tunnel = Tunnel::start(Family::V4, "\"0.0.0.0/0\"");
    for _ in 0..2 {
        let (took, destroyed) = tunnel
            .recovery(|| tunnel.uplinks.client().run(|| Command::new("ss").args(["-K", "-u", "-a"]).output().unwrap()));
        assert!(took < SOON, "{took:?}: {destroyed:?}");
    }
    tunnel.assert_same_connection();
}

/// How long a gateway waits for a client here, how long a client sleeps, and when it would speak by itself.
const FORGOTTEN: Duration = Duration::from_secs(5);
const ASLEEP: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(4);

#[test]
fn a_machine_that_was_suspended_has_its_tunnel_again_at_once_and_a_clock_that_is_set_costs_nothing() {
    require_tun_or_skip!();
    let uplinks = Uplinks::new();
    uplinks.site.client_file("\"0.0.0.0/0\"", "", "server");
    let append = |file: &str, text: String| {
        let mut file = fs::OpenOptions::new().append(true).open(uplinks.site.path(file)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append("server.toml", format!("[connection]\nconnection_timeout_s = {}\n", FORGOTTEN.as_secs()));
    append("client.toml", format!("[connection]\nkeep_alive_interval_s = {}\n", KEEP_ALIVE.as_secs()));
    let _gateway = uplinks.site.serve();
    let faults = Faults::build();
    let mut command = uplinks.site.command("connect", "client.toml");
    command.env("PATH", uplinks.site.directory.path());
    faults.prepare(&mut command);
    let client = uplinks.client().spawn(command).unwrap();
    client.wait_for_line(CONNECTED, PATIENCE).unwrap();
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    let is_lost = || client.lines().iter().any(|line| line.contains("tunnel lost"));

    // The clock is set while all is well.
    assert_eq!(tell_of_clock_jump(client.id()), 1, "the client watches the clock");
    assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    assert!(!is_lost(), "{:#?}", client.lines());

    let watch = uplinks.watch_for_clear_traffic();
    let mut still = Duration::ZERO;
    // Suspended, the client's clock has stood still and it is told so; stopped, it knows by its clock.
    for suspended in [true, false] {
        assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
        // What the exchange left to be acknowledged is over.
        thread::sleep(Duration::from_secs(1));
        let lines = client.line_count();
        let asleep = Instant::now();
        client.signal(Signal::STOP).unwrap();
        thread::sleep(ASLEEP);
        if suspended {
            still += asleep.elapsed();
            faults.stop_clock(still);
        }
        client.signal(Signal::CONT).unwrap();
        let awake = Instant::now();
        if suspended {
            tell_of_clock_jump(client.id());
        }
        // Nothing goes into the tunnel meanwhile that would make the gateway answer.
        client.wait_for_line_from(lines, "connected: this machine is", PATIENCE).unwrap();
        let took = awake.elapsed();
        eprintln!("suspended {suspended}: connected again after {took:?}");
        assert!(took < SOON, "suspended {suspended}: {took:?}: {:#?}", client.lines());
        assert!(uplinks.time_until_answer(SERVER_V4) < SOON);
    }
    watch.assert_none();
}
