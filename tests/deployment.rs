//! The first deployment as docs/deployment.md tells it, and the commands of docs/operation.md on what has come of it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::IpNet;
use tempfile::TempDir;
use tollgate::netlink::VethPeer;
use tollgate_testkit::{Namespace, Process};

use tollgate_test_support::pages::{Block, Page, page, root};
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::wait_for_ping;
use tollgate_test_support::{PATIENCE, turn};

/// What the documents call by a name; they say that an address serves as well.
const SERVER: &str = "198.19.1.1";
/// A machine behind the server, which knows no way to the tunnel's network.
const BEHIND: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 2);
/// The server inside the tunnel.
const INSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Folders of a machine that the documents write to.
const FOLDERS: [&str; 1] = ["/etc/tollgate"];

/// A machine on which commands are run: a network namespace, and folders in place of the system's.
struct Machine {
    namespace: Namespace,
    files: TempDir,
    programs: PathBuf,
}

impl Machine {
    fn new(name: &str, programs: &Path) -> Self {
        Machine {
            namespace: Namespace::new(name).unwrap(),
            files: tempfile::tempdir().unwrap(),
            programs: programs.to_owned(),
        }
    }

    /// Where a file of the machine is.
    fn path(&self, path: &str) -> PathBuf {
        self.files.path().join(path.trim_start_matches('/'))
    }

    /// Starts the commands of a block; the last one takes the shell's place.
    fn start(&self, block: &Block<'_>) -> Process {
        let text = FOLDERS.iter().fold(block.text.replace("vpn.example.org", SERVER), |text, folder| {
            text.replace(folder, self.path(folder).to_str().unwrap())
        });
        let (first, last) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
        let last = if last == "END" || last.contains(" && ") { last.to_owned() } else { format!("exec {last}") };
        let mut command = Command::new("sh");
        command.arg("-euc").arg(format!("{first}\n{last}\n")).env("NO_COLOR", "1");
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.programs.display()));
        command.env("RUNTIME_DIRECTORY", self.files.path()).env("STATE_DIRECTORY", self.files.path());
        let here = self.path("/etc/tollgate");
        command.current_dir(if here.is_dir() { &here } else { self.files.path() });
        self.namespace.spawn(command).unwrap()
    }

    /// Runs the commands of a block to their end, and returns what they say.
    fn run(&self, page: &Page, block: &Block<'_>) -> Vec<String> {
        let mut process = self.start(block);
        let status = process.wait(PATIENCE).unwrap();
        let place = format!("{}:{}", page.path.display(), block.line);
        assert!(status.success(), "{place}: {status}: {:#?}", process.lines());
        process.lines()
    }
}

/// Joins two machines by a cable with an address at each end.
fn cable(near: (&Machine, &str, &str), far: (&Machine, &str, &str)) {
    let peer = VethPeer { name: far.1, namespace: far.0.namespace.as_fd() };
    near.0.namespace.configure(|netlink| netlink.add_veth(near.1, peer)).unwrap();
    for (machine, interface, address) in [near, far] {
        let set_up = |netlink: &mut tollgate::netlink::Netlink| {
            let index = netlink.link(interface)?.index;
            netlink.add_address(index, address.parse::<IpNet>().expect("an address"))?;
            netlink.set_link_up(index)
        };
        machine.namespace.configure(set_up).unwrap();
    }
}

/// A folder with the programs that the documents call by name and that are not the system's.
fn programs(peers: &Peers) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    symlink(env!("CARGO_BIN_EXE_tollgate"), folder.path().join("tollgate")).unwrap();
    symlink(peers.client(), folder.path().join("quincy-client")).unwrap();
    folder
}

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn the_first_deployment_works_as_written() {
    let _turn = turn::together();
    let root = root();
    let (deployment, operation) = (page(&root, "docs/deployment.md"), page(&root, "docs/operation.md"));
    let programs = programs(&Peers::find());
    let machine = |name| Machine::new(name, programs.path());
    let (client, server, behind) = (machine("client"), machine("server"), machine("behind"));
    cable((&server, "to-client", "198.19.1.1/24"), (&client, "wan0", "198.19.1.2/24"));
    cable((&server, "to-behind", "198.19.0.1/24"), (&behind, "lan0", "198.19.0.2/24"));

    // Identities and files; then the fingerprint goes where the document says.
    let said = client.run(&deployment, &deployment.block("client"));
    let fingerprint = said.last().filter(|line| line.starts_with("sha256:")).unwrap_or_else(|| panic!("{said:?}"));
    assert_eq!(fingerprint.len(), 7 + 64, "{fingerprint}");
    let blocks = deployment.blocks();
    for block in blocks.iter().filter(|block| block.mark == Some("server")) {
        let text = block.text.replace("sha256:the client's fingerprint", fingerprint);
        server.run(&deployment, &Block { text: &text, ..*block });
    }
    let gateway = server.start(&deployment.block("server, stays"));
    gateway.wait_for_line("listening on", PATIENCE).unwrap();

    // In place of the command that copies it.
    let certificate = "/etc/tollgate/server_cert.pem";
    assert!(deployment.block("client, by hand").text.contains(certificate));
    fs::copy(server.path(certificate), client.path(certificate)).unwrap();
    let mut connected: Vec<&Block<'_>> = blocks.iter().filter(|block| block.mark == Some("client, stays")).collect();
    let with_quincys = connected.pop().expect("two clients");
    assert!(with_quincys.text.starts_with("quincy-client ") && connected.len() == 1);

    let mut tunnel = client.start(connected[0]);
    tunnel.wait_for_line("connected: this machine is 198.18.0.2/24 on tollgate0", PATIENCE).unwrap();
    let reached = |address: Ipv4Addr| wait_for_ping(&client.namespace, IpAddr::V4(address));
    reached(INSIDE);
    reached(BEHIND);

    // What docs/operation.md says to run on both.
    let routes = client.run(&operation, &operation.block("client"));
    assert!(routes.iter().any(|line| line.starts_with("unreachable ")), "{routes:?}");
    server.run(&operation, &operation.block("server"));
    tunnel.kill().unwrap();
    assert!(!client.run(&operation, &operation.block("client")).is_empty(), "a killed client leaves routes behind");
    client.run(&operation, &operation.block("client, after it was killed"));
    assert!(client.run(&operation, &operation.block("client")).is_empty());

    let quincys = client.start(with_quincys);
    reached(INSIDE);
    reached(BEHIND);
    drop(quincys);
}
