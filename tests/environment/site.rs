//! A gateway's files, and where it runs.

use std::fs;
use std::process::Command;

use tollgate_test_support::PATIENCE;
use tollgate_test_support::client::{Attached, Login};
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

/// A gateway's files, and where it runs.
pub struct Site {
    pub deployment: Deployment,
    pub topology: Topology,
}

impl Site {
    pub fn new(plan: &Plan) -> Self {
        let deployment = Deployment::write(plan);
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
        Site { deployment, topology }
    }

    /// A configuration as Quincy's server has it: none of our own tables.
    pub fn with_quincys_own_file(plan: &Plan) -> Self {
        let site = Site::new(plan);
        let path = site.deployment.path("server.toml");
        let mut table: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        for ours in ["shards", "control"] {
            table.remove(ours);
        }
        fs::write(path, table.to_string()).unwrap();
        site
    }

    /// `tollgate serve` with words in front, as of `prlimit`.
    pub fn command(&self, prefix: &[&str]) -> Command {
        let serve = Gateway::command(&self.deployment);
        if prefix.is_empty() {
            return serve;
        }
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(serve.get_program()).args(serve.get_args());
        command.env("NO_COLOR", "1").env("RUST_LOG", "info").current_dir(self.deployment.folder());
        command
    }

    pub fn start(&self, command: Command) -> Gateway {
        Gateway::start_with(command, &self.topology.gateway)
    }

    pub fn start_and_fail(&self, command: Command) -> String {
        let mut process = self.topology.gateway.spawn(command).unwrap();
        assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(1), "{:#?}", process.lines());
        let lines = process.lines();
        assert_eq!(lines.iter().filter(|line| line.contains("listening on")).count(), 0, "{lines:#?}");
        lines.last().cloned().unwrap_or_default()
    }

    /// A real client gets its address and answers; then the gateway ends as it should.
    pub fn assert_serves(&self, peers: &Peers, mut gateway: Gateway) {
        let inside = &self.topology.clients[0].namespace;
        let client = Attached::start(peers, &self.deployment, inside, &gateway, Login::of("alice"));
        wait_for_ping(inside, SERVER_V4);
        assert_pings(inside, SERVER_V4);
        assert_pings(&self.topology.network, client.address);
        gateway.assert_sound();
        let ended = gateway.process.stop(PATIENCE).unwrap();
        assert!(ended.success(), "{ended}: {:#?}", gateway.process.lines());
    }
}

/// Runs `tollgate` with `arguments` where the gateways' files are, and returns what it says.
pub fn order(site: &Site, variables: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).current_dir(site.deployment.folder()).envs(variables.iter().copied());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// Runs `ip` (iproute2) in the gateway's namespace.
pub fn ip(site: &Site, arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    let mut process = site.topology.gateway.spawn(command).unwrap();
    let status = process.wait(PATIENCE).unwrap();
    assert!(status.success(), "ip {arguments:?}: {:?}", process.lines());
}
