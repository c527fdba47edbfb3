//! A gateway and a client as programs, each in its network namespace.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod clear;
pub mod uplinks;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use tempfile::TempDir;
use tollgate::identity::Identity;
use tollgate::lab::ping::{PingPlan, PingReport, ping};
use tollgate::lab::{Namespace, PathToGateway, Process, SERVICE_V4, SERVICE_V6, TUNNEL_V4, Topology, TopologyPlan};

/// For what must come, however loaded the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What the client says once its tunnel is up.
pub const CONNECTED: &str = "connected: this machine is 198.19.128.2/17 on tg-client";

/// Skips a test, and says so, where the privileges for namespaces or the TUN driver are missing.
#[macro_export]
macro_rules! require_privileges_or_skip {
    () => {
        if let Err(missing) = tollgate::lab::privileges().and_then(|()| tollgate::lab::require_tun()) {
            eprintln!("skipped: {missing}");
            return;
        }
    };
}

/// A gateway's and a client's files, and the namespaces to run them in.
pub struct Site {
    pub topology: Topology,
    pub directory: TempDir,
}

impl Site {
    pub fn new(path: PathToGateway) -> Self {
        let topology = Topology::build(&TopologyPlan { clients: 1, path, ..TopologyPlan::default() }).unwrap();
        let site = Site { topology, directory: TempDir::new().unwrap() };
        site.identity("server", &[&SERVICE_V4.to_string(), &SERVICE_V6.to_string()]);
        site.identity("stranger", &["stranger.test"]);
        let client = site.identity("client", &[]);
        site.write("users.toml", &format!("[users.alice]\nauthorized_certs = [\"{client}\"]\n"));
        let tunnel = format!("{}/{}", TUNNEL_V4.hosts().next().unwrap(), TUNNEL_V4.prefix_len());
        site.write(
            "server.toml",
            &format!(
                r#"
                name = "test"
                tunnel_network = "{tunnel}"
                users_file = "users.toml"
                interface_name = "tg-gateway"
                [protocol]
                mode = "tls"
                certificate_file = "server.pem"
                certificate_key_file = "server.key"
                [shards]
                count = 2
                key_file = "keys"
                [control]
                socket = "control"
                "#
            ),
        );
        site
    }

    /// The client's file, with `routes` into the tunnel and the certificate of `trusted`.
    pub fn client_file(&self, routes: &str, dns_servers: &str, trusted: &str) {
        self.write(
            "client.toml",
            &format!(
                r#"
                connection_string = "{SERVICE_V4}:55555"
                [protocol]
                mode = "tls"
                trusted_certificate_paths = ["{trusted}.pem"]
                client_certificate_file = "client.pem"
                client_certificate_key_file = "client.key"
                [network]
                routes = [{routes}]
                dns_servers = [{dns_servers}]
                interface_name = "tg-client"
                "#
            ),
        );
    }

    pub fn serve(&self) -> Process {
        let gateway = self.topology.gateway.spawn(self.command("serve", "server.toml")).unwrap();
        gateway.wait_for_line("listening on", PATIENCE).unwrap();
        gateway
    }

    pub fn connect(&self) -> Process {
        self.client().spawn(self.command("connect", "client.toml")).unwrap()
    }

    pub fn command(&self, verb: &str, file: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args([verb, "--config", file]).current_dir(self.directory.path());
        command.env("NO_COLOR", "1").env_remove("RUST_LOG");
        command
    }

    pub fn client(&self) -> &Namespace {
        &self.topology.clients[0].namespace
    }

    pub fn ping(&self, target: impl Into<IpAddr>) -> PingReport {
        let plan = PingPlan::new(target.into());
        self.client().run(|| ping(&plan)).unwrap()
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

    pub fn identity(&self, name: &str, sans: &[&str]) -> String {
        let identity = Identity::generate(name, sans).unwrap();
        identity.write(&self.path(&format!("{name}.pem")), &self.path(&format!("{name}.key")), false).unwrap();
        identity.fingerprint.to_string()
    }

    /// Makes the gateway's certificate anew, valid between two times since 1970.
    pub fn identity_valid(&self, from: Duration, until: Duration) {
        let sans = [SERVICE_V4.to_string(), SERVICE_V6.to_string()];
        let mut params = rcgen::CertificateParams::new(sans).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        (params.not_before, params.not_after) = (epoch + from, epoch + until);
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let key = rcgen::KeyPair::generate().unwrap();
        self.write("server.pem", &params.self_signed(&key).unwrap().pem());
        self.write("server.key", &key.serialize_pem());
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
