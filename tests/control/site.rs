//! A gateway that takes orders, where it runs, and what it reads.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::Value;
use tollgate_test_support::PATIENCE;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_testkit::{Topology, TopologyPlan};

/// A gateway, where it runs, and what it reads.
pub struct Site {
    pub gateway: Gateway,
    pub topology: Topology,
    pub deployment: Deployment,
}

/// What `tollgate` said to an operator.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub text: String,
}

impl Site {
    /// Starts a gateway without a client, after `prepare` has changed its files.
    pub fn start(prepare: impl FnOnce(&Deployment)) -> Self {
        Self::start_with_clients(1, prepare)
    }

    /// Starts a site with namespaces for `clients`.
    pub fn start_with_clients(clients: usize, prepare: impl FnOnce(&Deployment)) -> Self {
        let plan = Plan { users: users(&["alice", "bob", "carol"]), ..Plan::default() };
        let mut deployment = Deployment::write(&plan);
        deployment.write_identity("dave", &[]);
        prepare(&deployment);
        let topology = Topology::build(&TopologyPlan { clients, ..TopologyPlan::default() }).unwrap();
        let gateway = Gateway::start(&deployment, &topology.gateway);
        Site { gateway, topology, deployment }
    }

    pub fn order(&self, arguments: &[&str]) -> Said {
        order(&self.deployment, arguments)
    }

    /// Gives an order that must be carried out, and returns what the gateway answers.
    pub fn order_done(&self, arguments: &[&str]) -> String {
        let said = self.order(arguments);
        assert_eq!(said.code, Some(0), "{said:?}");
        said.text
    }

    /// Speaks to the control socket without `tollgate`, and returns the answer.
    pub fn say(&self, line: &[u8]) -> Value {
        let mut stream = UnixStream::connect(self.deployment.path("control")).unwrap();
        stream.write_all(line).unwrap();
        hear(&stream)
    }

    /// Changes the gateway's users, who have certificates already.
    pub fn write_users(&self, names: &[&str]) {
        self.deployment.write_users(&users(names));
    }

    /// Whether the gateway knows a user of that name. It has no connections to lose.
    pub fn knows(&self, user: &str) -> bool {
        self.order(&["kick", user]).code == Some(0)
    }
}

pub fn users(names: &[&str]) -> Vec<(String, Option<&'static str>)> {
    names.iter().map(|name| ((*name).to_owned(), None)).collect()
}

/// Runs `tollgate` with `arguments` on the configuration of `deployment`.
pub fn order(deployment: &Deployment, arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).current_dir(deployment.folder());
    let output = command.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    Said { code: output.status.code(), text }
}

pub fn hear(stream: &UnixStream) -> Value {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}
