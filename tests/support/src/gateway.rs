//! `tollgate serve`, the real program, in a namespace.

use std::process::Command;

use rustix::process::Signal;
use tollgate_testkit::{Namespace, Process};

use crate::PATIENCE;
use crate::deployment::Deployment;
use crate::status::Status;

#[derive(Debug)]
pub struct Gateway {
    pub process: Process,
}

/// A client as the gateway's log tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    pub user: String,
    pub owner: usize,
}

impl Gateway {
    /// The command that serves what `deployment` configures.
    pub fn command(deployment: &Deployment) -> Command {
        let mut command = Command::new(crate::program());
        command.arg("serve").arg("--config").arg(deployment.path("server.toml"));
        // The log is read by the tests.
        command.env("NO_COLOR", "1").env("RUST_LOG", "info").current_dir(deployment.folder());
        command
    }

    /// Starts it in `namespace` and waits until it listens.
    pub fn start(deployment: &Deployment, namespace: &Namespace) -> Self {
        Self::start_with(Self::command(deployment), namespace)
    }

    pub fn start_with(command: Command, namespace: &Namespace) -> Self {
        let process = namespace.spawn(command).expect("the gateway starts");
        process.wait_for_line("listening on", PATIENCE).expect("the gateway listens");
        Gateway { process }
    }

    pub fn status(&self) -> Status {
        let first = self.process.line_count();
        self.process.signal(Signal::USR1).expect("the gateway runs");
        let line = self.process.wait_for_line_from(first, "{\"shards\":", PATIENCE).expect("the counters");
        Status::parse(&line)
    }

    /// Waits for the next client after line `first` of the log.
    pub fn wait_for_client(&self, first: usize) -> Connected {
        self.wait_for_connected(first, "client connected")
    }

    /// Waits for a client of `user` after line `first` of the log, where that of another one may be on its way.
    pub fn wait_for_client_of(&self, first: usize, user: &str) -> Connected {
        self.wait_for_connected(first, &format!("client connected user=\"{user}\""))
    }

    fn wait_for_connected(&self, first: usize, words: &str) -> Connected {
        let line = self.process.wait_for_line_from(first, words, PATIENCE).expect("a client");
        let field = |name: &str| {
            let (_, rest) = line.split_once(name).unwrap_or_else(|| panic!("no {name} in {line:?}"));
            rest.split_whitespace().next().unwrap_or_default().trim_matches('"').to_owned()
        };
        Connected { user: field("user="), owner: field("shard=").parse().expect("a shard's number") }
    }

    /// How many lines of its log contain `pattern`.
    pub fn count_lines(&self, pattern: &str) -> usize {
        self.process.lines().iter().filter(|line| line.contains(pattern)).count()
    }

    /// Fails if it has panicked or ended.
    pub fn assert_sound(&mut self) {
        assert_eq!(self.count_lines("panicked at "), 0, "{:#?}", self.process.lines());
        assert_eq!(self.process.exit_status().expect("the gateway's state"), None, "{:#?}", self.process.lines());
    }
}
