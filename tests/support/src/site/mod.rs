//! The testbed of `tollgate connect`: it and the gateway as programs, each in its network namespace.

pub mod clear;
pub mod uplinks;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use toml::Table;

pub use crate::PATIENCE;
use crate::deployment::{Deployment, Plan};
use crate::gateway::Gateway;
use crate::program;
use crate::traffic::ping_ten;
use tollgate_testkit::deploy::{ConfigFile, service};
use tollgate_testkit::ping::PingReport;
use tollgate_testkit::{Namespace, PathToGateway, Process, SERVICE_V4, SERVICE_V6, Topology, TopologyPlan};

pub const CONNECTED: &str = "connected: this machine is 198.19.128.2/17 on tg-client";

#[derive(Debug)]
pub struct Site {
    /// One client's, with a router before the gateway if the path has one.
    pub topology: Topology,
    /// All files, in the folder where the programs run.
    pub deployment: Deployment,
}

impl Site {
    /// A gateway with the user alice. The client has no file yet.
    pub fn new(path: PathToGateway) -> Self {
        let topology = Topology::build(&TopologyPlan { clients: 1, path, ..TopologyPlan::default() }).unwrap();
        let users = vec![("alice".to_owned(), None)];
        let mut deployment = Deployment::write(&Plan { tunnel: "198.19.128.1/17", users, ..Plan::default() });
        deployment.write_identity("stranger", &["stranger.test"]);
        Site { topology, deployment }
    }

    /// The client's file, with `routes` into the tunnel and the certificate of `trusted`. Lists are as in TOML, without their brackets.
    pub fn client_file(&self, routes: &str, dns_servers: &str, trusted: &str) {
        let list = |text: &str| format!("list = [{text}]").parse::<Table>().unwrap()["list"].clone();
        ConfigFile::client(self.deployment.folder(), "alice", &service())
            .set("protocol.trusted_certificate_paths", [self.path(&format!("{trusted}_cert.pem"))])
            .set("network.routes", list(routes))
            .set("network.dns_servers", list(dns_servers))
            .set("network.interface_name", "tg-client")
            .write(&self.path("client.toml"))
            .unwrap();
    }

    pub fn serve(&self) -> Process {
        self.serve_with(self.command("serve", "server.toml"))
    }

    /// A gateway of IPv6, inside and outside.
    pub fn serve_ipv6(&self) -> Process {
        let mut command = self.command("serve", "server.toml");
        command.env("TOLLGATE_BIND_ADDRESS", "::").env("TOLLGATE_TUNNEL_NETWORK", "fd00:19:80::1/64");
        self.serve_with(command)
    }

    fn serve_with(&self, command: Command) -> Process {
        Gateway::start_with(command, &self.topology.gateway).process
    }

    pub fn connect(&self) -> Process {
        self.client().spawn(self.command("connect", "client.toml")).unwrap()
    }

    /// `tollgate VERB`, with a file of the directory.
    pub fn command(&self, verb: &str, file: &str) -> Command {
        let mut command = Command::new(program());
        command.args([verb, "--config", file]).current_dir(self.deployment.folder());
        command.env("NO_COLOR", "1").env_remove("RUST_LOG");
        command
    }

    pub fn client(&self) -> &Namespace {
        &self.topology.clients[0].namespace
    }

    /// Pings `target` ten times from the client's machine.
    pub fn ping(&self, target: impl Into<IpAddr>) -> PingReport {
        ping_ten(self.client(), target)
    }

    /// Every route of the client's machine, in words; and its interfaces.
    pub fn client_network(&self) -> Vec<String> {
        let mut netlink = self.client().netlink().unwrap();
        let links = netlink.links().unwrap();
        let mut words: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
        for link in links {
            words.extend(netlink.routes(link.index).unwrap().iter().map(ToString::to_string));
        }
        words
    }

    /// Where the client's routes of IPv4 into the tunnel lead.
    pub fn tunnel_routes(&self) -> Vec<IpNet> {
        let mut netlink = self.client().netlink().unwrap();
        let index = netlink.link("tg-client").unwrap().index;
        netlink
            .routes(index)
            .unwrap()
            .into_iter()
            .map(|route| route.destination)
            .filter(|it| it.addr().is_ipv4())
            .collect()
    }

    /// Makes the gateway's certificate anew, valid between two times since 1970.
    pub fn identity_valid(&self, from: Duration, until: Duration) {
        let sans = [SERVICE_V4.to_string(), SERVICE_V6.to_string()];
        let mut params = rcgen::CertificateParams::new(sans).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        (params.not_before, params.not_after) = (epoch + from, epoch + until);
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(self.path("server_cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(self.path("server_key.pem"), key.serialize_pem()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.deployment.path(name)
    }
}
