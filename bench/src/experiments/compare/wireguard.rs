//! A tunnel of WireGuard: the same program in user space on both ends, each in its own namespace.
//!
//! The programs are told what to do over their control sockets (the cross-platform userspace interface: `set=1`, then a key and a value on
//! each line); addresses and routes are set here.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use ipnet::{IpNet, Ipv4Net};
use rustix::fs::{Access, access};
use tollgate::netlink::Route;
use tollgate_testkit::{Namespace, Process};

use crate::deploy::RunningGateway;
use crate::deploy::scratch::Scratch;
use crate::experiments::tunnel::{Placement, START_TIMEOUT, Tunnel};
use crate::programs::{self, Gateway, Kind};

/// Where the programs make their control sockets, all of them.
const SOCKET_FOLDER: &str = "/var/run/wireguard";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PORT: u16 = 51_820;
/// The tunnel's, as with the other gateways. Bytes.
const INNER_MTU_BYTES: u32 = 1400;
const GATEWAY_INNER: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 128, 1), 24);
const CLIENT_INNER: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 128, 2), 24);
/// The network behind the gateway.
const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 0, 0), 24);

/// One end's program, with the interface and the control socket that it makes, and its keys, private and public.
struct End {
    process: Process,
    interface: String,
    socket: Scratch,
    keys: [String; 2],
}

/// Makes sure that the programs can make their control sockets, which no option of theirs moves elsewhere.
pub fn require_socket_folder(name: &str) -> Result<()> {
    let folder = Path::new(SOCKET_FOLDER);
    let nearest = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    if access(nearest, Access::WRITE_OK).is_err() {
        bail!("{name} makes its control socket in {SOCKET_FOLDER}, where this user may not: run as root");
    }
    Ok(())
}

/// Starts `program` as gateway and as client, and tells each of the other.
pub fn connect(program: &Gateway, placement: &Placement) -> Result<Tunnel> {
    let topology = Tunnel::topology()?;
    let site = &topology.clients[0];
    let mut gateway = End::start(program, &topology.gateway, &placement.gateway_cpus)?;
    let mut client = End::start(program, &site.namespace, &placement.load_cpus)?;
    let [gateway_key, client_key] = [&gateway.keys[1], &client.keys[1]].map(String::clone);
    let of_client = format!("public_key={client_key}\nallowed_ip={}/32\n", CLIENT_INNER.addr());
    gateway.set_up(&topology.gateway, &of_client, GATEWAY_INNER, None)?;
    // The gateway's address on the link to the client: its answers come from there, which connected sockets insist on.
    let of_gateway = format!(
        "public_key={gateway_key}\nendpoint={}:{PORT}\nallowed_ip={}\nallowed_ip={NETWORK}\n",
        site.first_hop_v4,
        GATEWAY_INNER.trunc()
    );
    client.set_up(&site.namespace, &of_gateway, CLIENT_INNER, Some(NETWORK))?;
    let running = RunningGateway::of(Kind::Wireguard, gateway.process, placement.gateway_cpus.len());
    Tunnel::over(topology, running, client.process, vec![gateway.socket, client.socket], placement)
}

impl End {
    fn start(program: &Gateway, namespace: &Namespace, cpus: &[usize]) -> Result<Self> {
        // No other process uses the name: interfaces are their namespace's own, but control sockets are named after them.
        static NAMED: AtomicU32 = AtomicU32::new(0);
        let interface = format!("tgb{}-{}", std::process::id(), NAMED.fetch_add(1, Ordering::Relaxed) % 1000);
        let socket = Scratch::expect(Path::new(SOCKET_FOLDER).join(format!("{interface}.sock")))?;
        let mut command = programs::command(&program.program);
        command.args(["--foreground", "--disable-drop-privileges"]);
        if program.name == "boringtun-cli" {
            // The other counts the CPUs that it may use.
            command.arg("--threads").arg(cpus.len().to_string());
        }
        command.arg(&interface);
        let process = namespace.spawn_pinned(command, cpus)?;
        Ok(End { process, interface, socket, keys: keys()? })
    }

    /// Tells the program about its peer, then gives its interface address, MTU and state, and a route through it.
    fn set_up(&mut self, namespace: &Namespace, peer: &str, address: Ipv4Net, behind: Option<Ipv4Net>) -> Result<()> {
        let request = format!("set=1\nprivate_key={}\nlisten_port={PORT}\nreplace_peers=true\n{peer}\n", self.keys[0]);
        let told = self.connected().and_then(|stream| exchange(stream, &request));
        told.with_context(|| format!("{} said:\n  {}", self.process.name(), self.process.lines().join("\n  ")))?;
        namespace.configure(|netlink| {
            let index = netlink.link(&self.interface)?.index;
            netlink.set_link_mtu(index, INNER_MTU_BYTES)?;
            netlink.add_address(index, IpNet::V4(address))?;
            netlink.set_link_up(index)?;
            behind.map_or(Ok(()), |network| netlink.add_route(&Route::on_link(IpNet::V4(network), index).foreign()))
        })?;
        Ok(())
    }

    /// Waits for the control socket as long as the program lives.
    fn connected(&mut self) -> Result<UnixStream> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match UnixStream::connect(self.socket.path()) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() >= deadline || self.process.exit_status()?.is_some() => {
                    return Err(error).with_context(|| format!("no control socket {}", self.socket.path().display()));
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// A new private key, and its public one, in hexadecimal.
fn keys() -> Result<[String; 2]> {
    let failed = |_| anyhow!("cannot make an X25519 key");
    let private = PrivateKey::generate(&X25519).map_err(failed)?;
    let bytes: Curve25519SeedBin = private.as_be_bytes().map_err(failed)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok([hex(bytes.as_ref()), hex(private.compute_public_key().map_err(failed)?.as_ref())])
}

/// Sends `request` and reads the answer: lines, an empty one at the end, and among them the error number.
fn exchange(mut stream: UnixStream, request: &str) -> Result<()> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    for line in BufReader::new(stream).lines() {
        match line?.strip_prefix("errno=") {
            Some("0") => return Ok(()),
            Some(number) => bail!("the program refused its configuration with error {number}"),
            None => {}
        }
    }
    bail!("the program closed its control socket without an answer")
}
