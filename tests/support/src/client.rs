//! quincy-client, the real program, in a namespace.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use ipnet::IpNet;
use tollgate_testkit::{Namespace, Process};

use crate::deployment::{CLIENT_TUN, Deployment};
use crate::gateway::Gateway;
use crate::peers::Peers;
use crate::{PATIENCE, eventually};

#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    pub user: &'a str,
    /// The gateway's address, as in `connection_string`.
    pub endpoint: &'a str,
    /// As in the file: "tls" or "noise".
    pub mode: &'a str,
    pub key_exchange: &'a str,
}

impl<'a> Login<'a> {
    /// To the gateway's IPv4 address, with the client's own default of key exchange.
    pub fn of(user: &'a str) -> Self {
        Login { user, endpoint: "198.18.0.1:55555", mode: "tls", key_exchange: "hybrid" }
    }

    /// The same, by Noise with keys of that kind.
    pub fn by_noise(user: &'a str, key_exchange: &'a str) -> Self {
        Login { mode: "noise", key_exchange, ..Login::of(user) }
    }
}

#[derive(Debug)]
pub struct Client {
    pub process: Process,
}

/// A client that has its address.
#[derive(Debug)]
pub struct Attached {
    pub client: Client,
    pub address: IpAddr,
    pub owner: usize,
}

impl Client {
    pub fn start(peers: &Peers, deployment: &Deployment, namespace: &Namespace, login: Login<'_>) -> Self {
        let config = deployment.write_client(login);
        Self::start_with(peers, deployment, namespace, &config)
    }

    pub fn start_with(peers: &Peers, deployment: &Deployment, namespace: &Namespace, config: &Path) -> Self {
        let mut command = Command::new(peers.client());
        command.arg("--config-path").arg(config).env("NO_COLOR", "1").current_dir(deployment.folder());
        Client { process: namespace.spawn(command).expect("quincy-client starts") }
    }

    /// Waits until it says which address it has received.
    pub fn wait_for_address(&self) -> IpAddr {
        let line = self.process.wait_for_line("Received client address: ", PATIENCE).expect("an address");
        let (_, address) = line.rsplit_once("Received client address: ").expect("just found");
        let address: String = address.chars().take_while(|c| c.is_ascii_hexdigit() || ".:/".contains(*c)).collect();
        address.parse::<IpNet>().unwrap_or_else(|error| panic!("{line:?}: {error}")).addr()
    }
}

impl Attached {
    /// Starts a client and waits until its interface is up with the address that it was given.
    pub fn start(
        peers: &Peers,
        deployment: &Deployment,
        namespace: &Namespace,
        gateway: &Gateway,
        login: Login<'_>,
    ) -> Self {
        let first = gateway.process.line_count();
        let client = Client::start(peers, deployment, namespace, login);
        let address = client.wait_for_address();
        let connected = gateway.wait_for_client_of(first, login.user);
        assert!(eventually(PATIENCE, || has_address(namespace, address)), "{:#?}", client.process.lines());
        Attached { client, address, owner: connected.owner }
    }
}

fn has_address(namespace: &Namespace, address: IpAddr) -> bool {
    namespace
        .configure(|netlink| {
            let link = netlink.link(CLIENT_TUN)?;
            Ok(link.is_up && netlink.addresses(link.index)?.iter().any(|found| found.addr() == address))
        })
        .unwrap_or(false)
}
