//! docs/quick-start.md to the letter: three clean Debian systems, a server and two clients, and a machine behind the server that knows no way back.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use ipnet::IpNet;
use tollgate::netlink::{Netlink, VethPeer};
use tollgate_test_support::pages::{Block, page, root};
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, turn};
use tollgate_testkit::Namespace;

use crate::manager::Manager;
use crate::packages;

/// What the document calls by a name; it says that an address serves as well.
const SERVER: &str = "198.19.1.1";
/// A machine behind the server, which knows no way to the tunnel's network.
const BEHIND: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);

/// A Debian with a network of its own. The network goes last.
struct Machine {
    manager: Manager,
    namespace: Namespace,
}

impl Machine {
    fn start(name: &str) -> Self {
        let namespace = Namespace::new(name).unwrap();
        let manager = Manager::start_clean(&namespace);
        Machine { manager, namespace }
    }

    /// Runs commands of the document to their end, and returns what they say.
    fn run(&self, text: &str) -> Vec<String> {
        let said = self.manager.run_done(&format!("cd /root\n{}", text.replace("vpn.example.org", SERVER)));
        said.lines().map(str::to_owned).collect()
    }
}

/// Joins two machines by a cable with an address at each end.
fn cable(near: (&Namespace, &str, &str), far: (&Namespace, &str, &str)) {
    let peer = VethPeer { name: far.1, namespace: far.0.as_fd() };
    near.0.configure(|netlink| netlink.add_veth(near.1, peer)).unwrap();
    for (namespace, interface, address) in [near, far] {
        let set_up = |netlink: &mut Netlink| {
            let index = netlink.link(interface)?.index;
            netlink.add_address(index, address.parse::<IpNet>().expect("an address"))?;
            netlink.set_link_up(index)
        };
        namespace.configure(set_up).unwrap();
    }
}

#[test]
#[ignore = "needs root, systemd and a Debian of cargo xtask debian: cargo xtask test --full"]
fn the_quick_start_works_to_the_letter() {
    let _turn = turn::together();
    let quick_start = page(&root(), "docs/quick-start.md");
    let [server, alice, bob] = ["server", "alice", "bob"].map(Machine::start);
    let behind = Namespace::new("behind").unwrap();
    cable((&server.namespace, "to-alice", "198.19.1.1/24"), (&alice.namespace, "wan0", "198.19.1.2/24"));
    cable((&server.namespace, "to-bob", "198.19.2.1/24"), (&bob.namespace, "wan0", "198.19.2.2/24"));
    cable((&server.namespace, "to-behind", "198.19.0.1/24"), (&behind, "lan0", "198.19.0.2/24"));
    bob.manager.run_done(&format!("ip route add {SERVER} via 198.19.2.1"));
    packages::make(server.manager.out(), 1);
    for machine in [&server, &alice, &bob] {
        for entry in fs::read_dir(server.manager.out()).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.extension().is_some_and(|extension| extension == "deb") && !std::ptr::eq(machine, &server) {
                fs::copy(&entry, machine.manager.out().join(entry.file_name().unwrap())).unwrap();
            }
        }
        machine.manager.prepare("tollgate", "");
        machine.manager.run_done("cp /out/tollgate_*.deb /root/");
        machine.run(quick_start.block("all").text);
    }

    // Fingerprints go where the document says.
    let fingerprint = |machine: &Machine, mark: &str| {
        let said = machine.run(quick_start.block(mark).text);
        let last = said.last().filter(|line| line.starts_with("sha256:") && line.len() == 7 + 64);
        last.unwrap_or_else(|| panic!("{said:?}")).clone()
    };
    let (of_alice, of_bob) = (fingerprint(&alice, "alice"), fingerprint(&bob, "bob"));
    let text = quick_start.block("server").text.replace("sha256:alice's fingerprint", &of_alice);
    server.run(&text.replace("sha256:bob's fingerprint", &of_bob));
    assert_eq!(server.manager.show("ActiveState"), "active", "{}", server.manager.log());
    let blocks = quick_start.blocks();
    let then: Vec<&Block<'_>> = blocks.iter().filter(|block| block.mark == Some("server, then")).collect();
    let said = server.run(then[0].text);
    assert!(said.iter().all(|line| !line.starts_with("missing")), "{said:#?}");

    // In place of the command that copies it.
    let certificate = server.manager.run_done("cat /etc/tollgate/server_cert.pem");
    let stays = quick_start.block("alice, stays").text.replace("vpn.example.org", SERVER);
    let mut tunnels = Vec::new();
    for (machine, name) in [(&alice, "alice"), (&bob, "bob")] {
        machine.manager.run_done(&format!("cat > /etc/tollgate/server_cert.pem <<'END'\n{certificate}END\n"));
        let text = stays.replace("alice", name);
        let (first, last) = text.trim_end().rsplit_once('\n').unwrap();
        let command = machine.manager.command(&format!("{first}\nexec {last}\n"));
        let tunnel = machine.namespace.spawn(command).unwrap();
        tunnel.wait_for_line("connected: this machine is 198.18.0.", PATIENCE).unwrap();
        tunnels.push(tunnel);
        wait_for_ping(&machine.namespace, IpAddr::V4(BEHIND));
        assert_pings(&machine.namespace, IpAddr::V4(BEHIND));
    }
    let said = server.run(then[1].text);
    assert!(["alice", "bob"].iter().all(|name| said.iter().any(|line| line.contains(name))), "{said:#?}");
}
