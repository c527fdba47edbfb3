//! A tunnel of WireGuard: the same program on both ends, each in its own namespace.
//!
//! The programs are told what to do over their control sockets; addresses and routes are set here. No other tool is needed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net};
use rustix::fs::{Access, access};
use tollgate::lab::{Namespace, Process, Topology};
use tollgate::netlink::Route;

use super::contender::{Contender, Placement, WireguardProgram, bare_command};
use super::tunnel::{START_TIMEOUT, Tunnel};
use super::uapi::{self, End, KeyPair};
use crate::scratch::ScratchFile;

/// Where the programs make their control sockets, all of them.
const SOCKET_FOLDER: &str = "/var/run/wireguard";
/// How many names of interfaces there are for a process, which then begin anew.
const INTERFACES_MAX: u32 = 1000;
const PORT: u16 = 51_820;
/// The tunnel's, as with the other gateways. Bytes.
const INNER_MTU_BYTES: u32 = 1400;

const GATEWAY_INNER: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 128, 1), 24);
const CLIENT_INNER: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 128, 2), 24);
/// The network behind the gateway.
const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 0, 0), 24);

/// One end's program, with the interface and the control socket that it makes.
struct Started {
    process: Process,
    interface: String,
    socket: ScratchFile,
}

/// Makes sure that the programs can make their control sockets, which no option of theirs moves elsewhere.
///
/// # Errors
///
/// In one line, with the remedy.
pub(super) fn require_socket_folder(name: &str) -> Result<()> {
    let folder = Path::new(SOCKET_FOLDER);
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    if access(nearest, Access::WRITE_OK).is_err() {
        bail!("{name} makes its control socket in {SOCKET_FOLDER}, where this user may not: run as root");
    }
    Ok(())
}

/// Starts `contender` as gateway and as client, and tells each of the other.
pub(super) fn connect(
    topology: &Topology,
    program: WireguardProgram,
    contender: &Contender,
    placement: &Placement,
) -> Result<Tunnel> {
    let site = &topology.clients[0];
    let gateway = start(program, &contender.program, &topology.gateway, &[placement.gateway_cpu])?;
    let client = start(program, &contender.client, &site.namespace, &placement.load_cpus)?;
    let (gateway_keys, client_keys) = (KeyPair::generate()?, KeyPair::generate()?);
    let gateway_end = End {
        keys: &gateway_keys,
        port: PORT,
        peer: &client_keys,
        peer_address: None,
        peer_networks: &[IpNet::V4(Ipv4Net::new_assert(CLIENT_INNER.addr(), 32))],
    };
    // The gateway's address on the link to the client: its answers come from there, which connected sockets insist on.
    let client_end = End {
        keys: &client_keys,
        port: PORT,
        peer: &gateway_keys,
        peer_address: Some(SocketAddr::new(site.first_hop_v4.into(), PORT)),
        peer_networks: &[IpNet::V4(GATEWAY_INNER.trunc()), IpNet::V4(NETWORK)],
    };
    let gateway = set_up(gateway, &topology.gateway, &gateway_end, GATEWAY_INNER, None)?;
    let client = set_up(client, &site.namespace, &client_end, CLIENT_INNER, Some(NETWORK))?;
    Ok(Tunnel { gateway: gateway.process, client: client.process, sockets: vec![gateway.socket, client.socket] })
}

/// Starts `path` in `namespace` on `cpus`.
fn start(program: WireguardProgram, path: &Path, namespace: &Namespace, cpus: &[usize]) -> Result<Started> {
    let interface = interface_name();
    let socket = ScratchFile::expect(Path::new(SOCKET_FOLDER).join(format!("{interface}.sock")))?;
    let mut command = bare_command(path);
    command.args(arguments(program, cpus.len())).arg(&interface);
    let process = namespace.spawn_pinned(command, cpus)?;
    Ok(Started { process, interface, socket })
}

/// A name that no other process uses: interfaces are their namespace's own, but control sockets are named after them.
fn interface_name() -> String {
    static NAMED: AtomicU32 = AtomicU32::new(0);
    let number = NAMED.fetch_add(1, Ordering::Relaxed) % INTERFACES_MAX;
    format!("tgb{}-{number}", process::id())
}

/// What a program is started with, besides the interface's name, to run on `cpus` CPUs and in the foreground with the rights it has.
fn arguments(program: WireguardProgram, cpus: usize) -> Vec<String> {
    let words: &[&str] = match program {
        WireguardProgram::Boringtun => &["--foreground", "--disable-drop-privileges", "--threads"],
        WireguardProgram::Gotatun => &["--foreground", "--disable-drop-privileges"],
        WireguardProgram::WireguardGo => &["--foreground"],
    };
    let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    // The others count the CPUs that they may use.
    if program == WireguardProgram::Boringtun {
        arguments.push(cpus.to_string());
    }
    arguments
}

/// Tells the program its end of the tunnel, then gives its interface address, MTU and state, and a route through it.
fn set_up(
    mut started: Started,
    namespace: &Namespace,
    end: &End<'_>,
    address: Ipv4Net,
    behind: Option<Ipv4Net>,
) -> Result<Started> {
    let Started { process, interface, socket } = &mut started;
    let is_alive = || Ok(process.exit_status()?.is_none());
    let configured = uapi::configure(socket.path(), end, Instant::now() + START_TIMEOUT, is_alive);
    configured.with_context(|| format!("{} said:\n  {}", process.name(), process.lines().join("\n  ")))?;
    namespace.configure(|netlink| {
        let index = netlink.link(interface)?.index;
        netlink.set_link_mtu(index, INNER_MTU_BYTES)?;
        netlink.add_address(index, IpNet::V4(address))?;
        netlink.set_link_up(index)?;
        behind.map_or(Ok(()), |network| netlink.add_route(&Route::on_link(IpNet::V4(network), index).foreign()))
    })?;
    Ok(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_stays_in_the_foreground_and_takes_its_cpus() {
        let of = |program| arguments(program, 3).join(" ");
        assert_eq!(of(WireguardProgram::Boringtun), "--foreground --disable-drop-privileges --threads 3");
        assert_eq!(of(WireguardProgram::Gotatun), "--foreground --disable-drop-privileges");
        assert_eq!(of(WireguardProgram::WireguardGo), "--foreground");
    }

    #[test]
    fn interfaces_never_share_a_control_socket() {
        let names: Vec<String> = (0..2).map(|_| interface_name()).collect();
        assert_ne!(names[0], names[1]);
        // The kernel's limit, with the largest process ID that it gives and the longest number.
        assert!(format!("tgb{}-{}", 1 << 22, INTERFACES_MAX - 1).len() <= 15);
    }
}
