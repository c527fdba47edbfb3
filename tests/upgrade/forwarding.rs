//! Clients reach machines that know no way back, by rules that the gateway sets up, hands on and takes away.

use std::fs;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Pid, Signal};
use tollgate_test_support::client::{Client, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::deploy::GATEWAY_TUN;
use tollgate_testkit::{Namespace, SERVER_V4, Topology, TopologyPlan};

use crate::site::{Serving, Site};

const SETTINGS: &str = "\n[host]\nmasquerade = true\nmss_clamp = true\n";
/// Of the link behind the gateway: less than the tunnel's.
const NARROW_MTU: &str = "1300";
const NARROW_MSS: u32 = 1260;
const SWITCHES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Runs a command in a namespace, and returns whether it went well, and what it said.
fn run(at: &Namespace, words: &str) -> (bool, String) {
    let words: Vec<&str> = words.split(' ').collect();
    let output = at.run(|| Command::new(words[0]).args(&words[1..]).stderr(Stdio::null()).output()).unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run_done(at: &Namespace, words: &str) -> String {
    let (done, said) = run(at, words);
    assert!(done, "{words}: {said}");
    said
}

/// The gateway's rules, if it has any.
fn rules(at: &Namespace, family: &str) -> Option<String> {
    let (is_there, rules) = run(at, &format!("nft list table {family} tollgate_{GATEWAY_TUN}"));
    is_there.then_some(rules)
}

fn forwards(at: &Namespace) -> [String; 2] {
    at.run(|| SWITCHES.map(|path| fs::read_to_string(path).unwrap().trim().to_owned()))
}

/// A gateway that forwards nothing by itself, before a network that knows no way to the tunnel; the process that serves starts with `settings`.
fn start(plan: &Plan, settings: &str, prepare: impl FnOnce(&Topology)) -> Site {
    let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
    for path in SWITCHES {
        topology.gateway.sysctl(path.trim_start_matches("/proc/sys/"), "0").unwrap();
    }
    for family in ["-4", "-6"] {
        run_done(&topology.network, &format!("ip {family} route del default"));
    }
    prepare(&topology);
    let deployment = Deployment::write(plan);
    add_settings(&deployment, settings);
    Site::start_deployed(topology, deployment, |_| {})
}

fn add_settings(deployment: &Deployment, settings: &str) {
    let path = deployment.path("server.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, text + settings).unwrap();
}

/// The process that changes the host for `serving`.
fn helper(serving: Serving) -> Serving {
    let process = serving.0.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    let is_helper = |child: &&str| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "tollgate-host")
    };
    let found = children.split_whitespace().find(is_helper).unwrap_or_else(|| panic!("no helper in {children:?}"));
    Serving(Pid::from_raw(found.parse().unwrap()).unwrap())
}

fn assert_undone(site: &Site, family: &str) {
    let gateway = &site.topology.gateway;
    assert!(eventually(PATIENCE, || rules(gateway, family).is_none()), "{:?}", rules(gateway, family));
}

#[test]
#[ignore = "needs root, nft and Quincy's programs: cargo xtask test --full"]
fn clients_reach_a_network_that_knows_no_way_back_until_the_gateway_ends() {
    let peers = Peers::find();
    let _turn = turn::together();
    let leftover = |topology: &Topology| {
        let at = &topology.gateway;
        run_done(at, &format!("nft add table ip tollgate_{GATEWAY_TUN}"));
        run_done(
            at,
            &format!(
                "nft add chain ip tollgate_{GATEWAY_TUN} forward {{ type filter hook forward priority 0 ; policy drop ; }}"
            ),
        );
        run_done(at, "nft add table ip others");
        run_done(at, &format!("ip link set to-network mtu {NARROW_MTU}"));
    };
    let mut site = start(&Plan::default(), SETTINGS, leftover);
    let (gateway, inside) = (&site.topology.gateway, &site.topology.clients[0].namespace);
    assert_eq!(forwards(gateway), ["1", "0"], "{:#?}", site.gateway.process.lines());
    assert_eq!(site.gateway.count_lines("the kernel forwarded no packets: it does from now on"), 1);
    let told = rules(gateway, "ip").expect("rules");
    assert!(told.contains("ip saddr 198.19.128.0/24 oifname != ") && !told.contains("policy drop"), "{told}");

    let client = Client::start(&peers, &site.deployment, inside, Login::of("alice"));
    client.wait_for_address();
    wait_for_ping(inside, SERVER_V4);
    assert_pings(inside, SERVER_V4);
    assert_clamped(&site.topology);

    site.first().signal(Signal::TERM);
    assert!(site.gateway.process.wait(PATIENCE).unwrap().success());
    assert_undone(&site, "ip");
    assert_eq!(forwards(&site.topology.gateway), ["1", "0"], "others may need it by now");
    run_done(&site.topology.gateway, "nft list table ip others");
}

/// Fails unless TCP knows of the narrow link from the first packet on.
fn assert_clamped(topology: &Topology) {
    let listener = topology.network.run(|| TcpListener::bind((IpAddr::from(SERVER_V4), 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let _client = topology.clients[0].namespace.run(|| TcpStream::connect(address)).unwrap();
    let _server = listener.accept().unwrap();
    let said = run_done(&topology.network, "ss -Htin state established");
    let mss = said.split_whitespace().find_map(|word| word.strip_prefix("mss:")?.parse::<u32>().ok());
    assert!(mss.is_some_and(|mss| mss <= NARROW_MSS && mss > NARROW_MSS / 2), "{said}");
}

#[test]
#[ignore = "needs root and nft: cargo xtask test --full"]
fn rules_go_with_a_gateway_that_is_killed_and_what_is_left_of_both_its_processes_is_replaced() {
    let _turn = turn::together();
    let mut site = start(&Plan { tunnel: "fd00:19:80::1/64", ..Plan::default() }, SETTINGS, |_| {});
    assert_eq!(forwards(&site.topology.gateway), ["0", "1"]);
    assert!(rules(&site.topology.gateway, "ip6").expect("rules").contains("ip6 saddr fd00:19:80::/64"));
    site.first().signal(Signal::KILL);
    site.gateway.process.wait(PATIENCE).unwrap();
    assert_undone(&site, "ip6");

    site.gateway = Gateway::start(&site.deployment, &site.topology.gateway);
    let (first, helper) = (site.first(), helper(site.first()));
    helper.signal(Signal::KILL);
    first.signal(Signal::KILL);
    site.gateway.process.wait(PATIENCE).unwrap();
    assert!(helper.is_gone_within(PATIENCE));
    let left = rules(&site.topology.gateway, "ip6").expect("nobody is left who could take them away");
    site.gateway = Gateway::start(&site.deployment, &site.topology.gateway);
    assert_ne!(rules(&site.topology.gateway, "ip6").expect("rules"), left);
    site.first().signal(Signal::TERM);
    assert_undone(&site, "ip6");
}

#[test]
#[ignore = "needs root, nft and Quincy's programs: cargo xtask test --full"]
fn an_upgrade_hands_the_rules_on_without_a_gap_and_the_last_process_takes_them_away() {
    let peers = Peers::find();
    let _turn = turn::together();
    let site = start(&Plan::default(), SETTINGS, |_| {});
    let (gateway, inside) = (&site.topology.gateway, &site.topology.clients[0].namespace);
    let client = Client::start(&peers, &site.deployment, inside, Login::of("alice"));
    client.wait_for_address();
    wait_for_ping(inside, SERVER_V4);
    let (of_first, is_over) = (rules(gateway, "ip").unwrap(), AtomicBool::new(false));
    let (second, looks) = thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut looks = 0;
            while !is_over.load(Ordering::Relaxed) {
                let seen = rules(gateway, "ip").unwrap_or_default();
                assert!(seen.contains("masquerade"), "after {looks} looks: {seen:?}");
                looks += 1;
            }
            looks
        });
        // One that does not take over, one that does, and the end of the first one.
        let program = site.write_program("exit 1");
        site.upgrade_in_vain(&["--binary", &program]);
        assert_eq!(rules(gateway, "ip").unwrap(), of_first);
        let second = site.upgrade(&["--within", "1h"]);
        assert_ne!(rules(gateway, "ip").unwrap(), of_first, "they are the second one's");
        assert_pings(inside, SERVER_V4);
        let its_helper = helper(site.first());
        site.first().signal(Signal::KILL);
        assert!(its_helper.is_gone_within(PATIENCE));
        is_over.store(true, Ordering::Relaxed);
        (second, looker.join().unwrap())
    });
    println!("{looks} looks at the rules");
    assert!(looks > 10, "{looks}");
    site.wait_for_one();
    second.signal(Signal::TERM);
    assert_undone(&site, "ip");
}

#[test]
#[ignore = "needs root and nft: cargo xtask test --full"]
fn a_process_whose_successor_dies_has_its_rules_again() {
    let _turn = turn::together();
    let site = start(&Plan::default(), SETTINGS, |_| {});
    let second = site.upgrade(&["--within", "1h"]);
    let its_helper = helper(second);
    let first = site.gateway.process.line_count();
    second.signal(Signal::KILL);
    site.gateway.process.wait_for_line_from(first, "this one serves again", PATIENCE).unwrap();
    assert!(its_helper.is_gone_within(PATIENCE));
    assert!(rules(&site.topology.gateway, "ip").expect("rules").contains("masquerade"));
    site.first().signal(Signal::TERM);
    assert_undone(&site, "ip");
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn without_nft_a_gateway_that_needs_it_does_not_start_and_names_the_package() {
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 0, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    add_settings(&deployment, SETTINGS);
    let without = "for nft in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do \
                   [ ! -e $nft/nft ] || mount --bind /dev/null $nft/nft; done";
    let serve = Gateway::command(&deployment);
    let command = tollgate_test_support::mounts::after_mounts(without, &serve);
    let mut process = topology.gateway.spawn(command).unwrap();
    assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(1));
    let lines = process.lines();
    assert!(lines.last().is_some_and(|line| line.contains("apt-get install nftables")), "{lines:#?}");
    assert!(rules(&topology.gateway, "ip").is_none());
    // Nor is anything left of its interface.
    assert!(!run(&topology.gateway, &format!("ip link show {GATEWAY_TUN}")).0);
}
