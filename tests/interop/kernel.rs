//! Kernels that make it hard for a gateway: a firewall that drops at random, a table of connections that is full, a limit on memory, a clock
//! that is set.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tollgate_testkit::{Namespace, SERVER_V4, Topology, TopologyPlan};

use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::datagrams::{DatagramPlan, send};
use tollgate_test_support::deployment::{Deployment, PORT, Plan};
use tollgate_test_support::faults::Faults;
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, bulk_both_ways, bulk_server, wait_for_ping};
use tollgate_test_support::{PATIENCE, turn};

const MIB: u64 = 1 << 20;
const BULK_BYTES: u64 = 20 * MIB;
/// A year, in seconds.
const YEAR_S: i64 = 365 * 24 * 3600;

/// Has `nft` do so inside. Returns what it says.
fn nft(inside: &Namespace, rules: &str) -> Vec<String> {
    let mut command = Command::new("nft");
    command.args(rules.split_whitespace());
    let mut process = inside.spawn(command).expect("nft, of Debian's nftables");
    let status = process.wait(PATIENCE).unwrap();
    assert!(status.success(), "nft {rules}: {:?}", process.lines());
    process.lines()
}

#[test]
#[ignore = "needs root, nft and Quincy's programs: cargo xtask test --full"]
fn bulk_arrives_whole_and_nobody_is_lost_where_a_firewall_drops_one_datagram_in_fifty() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan::default()).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let inside = &topology.clients[0].namespace;
    nft(&topology.gateway, "add table ip lossy");
    for (hook, port) in [("input", "dport"), ("output", "sport")] {
        nft(&topology.gateway, &format!("add chain ip lossy {hook} {{ type filter hook {hook} priority 0 ; }}"));
        let drop = format!("add rule ip lossy {hook} udp {port} {PORT} numgen random mod 100 < 2 counter drop");
        nft(&topology.gateway, &drop);
    }
    let mut attached = Attached::start(&peers, &deployment, inside, &gateway, Login::of("alice"));
    wait_for_ping(inside, SERVER_V4);
    bulk_both_ways(inside, bulk_server(&topology.network, SERVER_V4).address(), BULK_BYTES);
    let rules = nft(&topology.gateway, "list table ip lossy");
    let drops: Vec<_> = rules.iter().filter(|rule| rule.contains(" drop")).collect();
    let have_dropped = drops.iter().all(|rule| !rule.contains("packets 0 "));
    assert!(drops.len() == 2 && have_dropped, "{rules:#?}");
    assert_eq!(attached.client.process.exit_status().unwrap(), None);
    assert_eq!(gateway.count_lines("client disconnected"), 0, "{:#?}", gateway.process.lines());
    gateway.assert_sound();
}

/// What the kernel does while its table of connections is full: a packet of a flow that is not in it is dropped, and whoever sends one is refused.
#[test]
#[ignore = "needs root, nft and Quincy's programs: cargo xtask test --full"]
fn a_full_table_of_connections_stops_no_client_that_is_in_it_and_others_for_no_longer_than_it_is_full() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [alice, bob] = [0, 1].map(|client| &topology.clients[client].namespace);
    nft(&topology.gateway, "add table ip tracked");
    nft(&topology.gateway, "add chain ip tracked in { type filter hook prerouting priority 0 ; }");
    nft(&topology.gateway, "add chain ip tracked out { type filter hook output priority 0 ; }");
    nft(&topology.gateway, "add rule ip tracked in ct state new counter");
    let _alice = Attached::start(&peers, &deployment, alice, &gateway, Login::of("alice"));
    wait_for_ping(alice, SERVER_V4);

    for chain in ["in", "out"] {
        nft(&topology.gateway, &format!("add rule ip tracked {chain} ct state new meta l4proto udp drop"));
    }
    let late = Client::start(&peers, &deployment, bob, Login::of("bob"));
    bulk_both_ways(alice, bulk_server(&topology.network, SERVER_V4).address(), MIB);
    assert_pings(alice, SERVER_V4);
    assert_eq!(gateway.count_lines("client connected"), 1, "nothing of the other reaches the gateway");
    drop(late);
    nft(&topology.gateway, "flush table ip tracked");
    let _bob = Attached::start(&peers, &deployment, bob, &gateway, Login::of("bob"));
    wait_for_ping(bob, SERVER_V4);
    assert_pings(alice, SERVER_V4);
    gateway.assert_sound();
}

/// A control group with a limit on memory, of whichever version the machine has.
struct MemoryGroup {
    folder: PathBuf,
    is_first_version: bool,
}

impl MemoryGroup {
    fn new(bytes_max: u64) -> Self {
        let first = PathBuf::from("/sys/fs/cgroup/memory");
        let is_first_version = first.exists();
        let root = if is_first_version { first } else { PathBuf::from("/sys/fs/cgroup") };
        let folder = root.join(format!("tollgate-test-{}", std::process::id()));
        fs::create_dir(&folder).expect("root, and the memory controller of control groups");
        let group = MemoryGroup { folder, is_first_version };
        let limit = if is_first_version { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(group.folder.join(limit), bytes_max.to_string()).expect("a limit on memory");
        group
    }

    fn read(&self, of_first_version: &str, of_second: &str) -> String {
        let file = if self.is_first_version { of_first_version } else { of_second };
        fs::read_to_string(self.folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// What it took at most, in bytes.
    fn peak_bytes(&self) -> u64 {
        self.read("memory.max_usage_in_bytes", "memory.peak").trim().parse().expect("a number")
    }

    /// How many of its processes the kernel has killed.
    fn killed(&self) -> u64 {
        let events = self.read("memory.oom_control", "memory.events");
        let killed = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        killed.and_then(|killed| killed.parse().ok()).unwrap_or_else(|| panic!("no oom_kill in {events:?}"))
    }

    /// Has whatever `command` starts live in the group.
    fn wrap(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg("echo $$ > \"$GROUP/cgroup.procs\" && exec \"$@\"").arg("sh");
        shell.arg(command.get_program()).args(command.get_args()).env("GROUP", &self.folder);
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        shell
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
#[ignore = "needs root, control groups and Quincy's programs: cargo xtask test --full"]
fn a_gateway_in_a_control_group_keeps_within_its_memory_though_clients_read_nothing() {
    let peers = Peers::find();
    let _turn = turn::alone();
    let group = MemoryGroup::new(96 * MIB);
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    deployment.edit_server("[control]", "[connection]\ndatagram_send_buffer_size = 268435456\n[control]");
    let command = group.wrap(&Gateway::command(&deployment));
    let mut gateway = Gateway::start_with(command, &topology.gateway);
    let [silent, live] = [0, 1].map(|client| &topology.clients[client].namespace);
    let stopped = Attached::start(&peers, &deployment, silent, &gateway, Login::of("alice"));
    let _bob = Attached::start(&peers, &deployment, live, &gateway, Login::of("bob"));
    wait_for_ping(live, SERVER_V4);

    stopped.client.process.signal(rustix::process::Signal::STOP).unwrap();
    let target = SocketAddr::new(stopped.address, 9);
    let plan = DatagramPlan { per_second: Some(40_000), ..DatagramPlan::new(target, 240_000) };
    topology.network.run(|| send(&plan));
    assert_pings(live, SERVER_V4);
    let held = gateway.status().sum("/memory/queued_bytes") + gateway.status().sum("/memory/waiting_bytes");
    println!("peak {} of 96 MiB, {} MiB are queued", group.peak_bytes() / MIB, held / MIB);
    assert!(held > 4 * MIB, "the client that reads nothing has a queue: {held}");
    assert_eq!(group.killed(), 0, "killed for memory");
    assert!(gateway.status().sum("/counters/drops/memory_limit") > 0, "the bound was reached");
    stopped.client.process.signal(rustix::process::Signal::CONT).unwrap();
    gateway.assert_sound();
    drop(gateway);
}

#[test]
#[ignore = "needs root, a C compiler and Quincy's programs: cargo xtask test --full"]
fn a_wall_clock_that_is_set_or_wrong_keeps_nobody_out() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let deployment = Deployment::write(&Plan::default());
    let faults = Faults::build();
    // A machine without a battery: it begins in the past, and learns the time later. And one that is far ahead.
    for ahead_s in [-40 * YEAR_S, 40 * YEAR_S] {
        faults.set_wall_clock(ahead_s);
        let mut command = Gateway::command(&deployment);
        faults.prepare(&mut command);
        let mut gateway = Gateway::start_with(command, &topology.gateway);
        let _alice = Attached::start(&peers, &deployment, &topology.clients[0].namespace, &gateway, Login::of("alice"));
        wait_for_ping(&topology.clients[0].namespace, SERVER_V4);
        faults.set_wall_clock(0);
        thread::sleep(Duration::from_secs(1));
        assert_pings(&topology.clients[0].namespace, SERVER_V4);
        let _bob = Attached::start(&peers, &deployment, &topology.clients[1].namespace, &gateway, Login::of("bob"));
        wait_for_ping(&topology.clients[1].namespace, SERVER_V4);
        assert_eq!(gateway.count_lines("client disconnected"), 0, "{:#?}", gateway.process.lines());
        gateway.assert_sound();
    }
}
