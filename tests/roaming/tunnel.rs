//! A gateway and a client that is connected, while somebody changes the network of the client's machine.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tollgate::netlink::Netlink;
use tollgate_test_support::site::PATIENCE;
use tollgate_test_support::site::uplinks::{Uplinks, net};
use tollgate_testkit::ping::{PingPlan, ping};
use tollgate_testkit::{Process, SERVER_V4, SERVER_V6, SERVICE_V4, SERVICE_V6};

/// How soon packets pass again, where the machine is busy with other things too. Without what the tests are about it takes half a minute.
pub const SOON: Duration = Duration::from_secs(5);
/// For how long packets are sent around a change.
const WATCHED: Duration = Duration::from_secs(6);

/// What somebody does to the network of the client's machine.
pub type Change<'a> = &'a dyn Fn(&mut Netlink);

/// Both families, inside and outside alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn server(self) -> IpAddr {
        if self == Family::V4 { SERVER_V4.into() } else { SERVER_V6.into() }
    }

    pub fn service(self) -> IpAddr {
        if self == Family::V4 { SERVICE_V4.into() } else { SERVICE_V6.into() }
    }

    pub fn router(self, pair: [&str; 2]) -> IpAddr {
        pair[self as usize].parse().unwrap()
    }
}

/// A gateway and a client that is connected, all of a family led into the tunnel.
pub struct Tunnel {
    pub uplinks: Uplinks,
    pub family: Family,
    pub gateway: Process,
    pub client: Process,
}

impl Tunnel {
    pub fn start(family: Family, routes: &str) -> Self {
        let uplinks = Uplinks::new();
        uplinks.site.client_file(routes, "", "server");
        Tunnel::over(uplinks, family)
    }

    /// With a DNS server, which is told to a program that notes what it is told.
    pub fn start_with_dns() -> Self {
        let uplinks = Uplinks::new();
        uplinks.site.client_file("\"0.0.0.0/0\"", "\"198.19.0.53\"", "server");
        let resolvectl = uplinks.site.path("resolvectl");
        fs::write(&resolvectl, "#!/bin/sh\necho \"$@\" >> calls\n").unwrap();
        fs::set_permissions(&resolvectl, fs::Permissions::from_mode(0o755)).unwrap();
        Tunnel::over(uplinks, Family::V4)
    }

    pub fn over(uplinks: Uplinks, family: Family) -> Self {
        let gateway = match family {
            Family::V4 => uplinks.site.serve(),
            Family::V6 => uplinks.site.serve_ipv6(),
        };
        let client = connect(&uplinks, family);
        client.wait_for_line("connected: this machine is", PATIENCE).unwrap();
        let tunnel = Tunnel { uplinks, family, gateway, client };
        assert!(tunnel.uplinks.time_until_answer(family.server()) < SOON);
        tunnel
    }

    /// Does `change` while packets for the tunnel are sent all the time, none of which may be seen outside, and says how long after its
    /// end they pass again.
    pub fn recovery<T>(&self, change: impl FnOnce() -> T) -> (Duration, T) {
        let watch = self.uplinks.watch_for_clear_traffic();
        let done = thread::scope(|scope| {
            let steady = scope.spawn(|| {
                let plan = PingPlan {
                    count: 100,
                    interval: Duration::from_millis(3),
                    timeout: Duration::ZERO,
                    ..PingPlan::new(self.family.server())
                };
                let (ended, start) = (Instant::now() + WATCHED, Instant::now());
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

    pub fn assert_same_connection(&self) {
        let lines = self.client.lines();
        assert!(!lines.iter().any(|line| line.contains("tunnel lost")), "{lines:#?}");
    }

    pub fn tunnel_interface(&self) -> u32 {
        self.uplinks.index("tg-client")
    }

    pub fn tunnel_routes(&self) -> Vec<IpNet> {
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
    pub fn says(&self, text: &str) {
        self.client.wait_for_line(text, PATIENCE).unwrap();
    }
}

pub fn connect(uplinks: &Uplinks, family: Family) -> Process {
    let mut command = uplinks.site.command("connect", "client.toml");
    command.env("PATH", uplinks.site.deployment.folder());
    if family == Family::V6 {
        command.env("TOLLGATE_CONNECTION_STRING", format!("[{SERVICE_V6}]:55555"));
    }
    uplinks.client().spawn(command).unwrap()
}

/// Each way of saying "all of it".
pub const FULL: [(Family, &str); 4] = [
    (Family::V4, "\"0.0.0.0/0\""),
    (Family::V4, "\"0.0.0.0/1\", \"128.0.0.0/1\""),
    (Family::V6, "\"::/0\""),
    (Family::V6, "\"::/1\", \"8000::/1\""),
];
