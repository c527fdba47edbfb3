//! Commands for a gateway that runs: how they find it, and how they show what it answers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tollgate_config::control_socket;

use super::Environment;
use super::tables::{self, Sort};
use super::usage;
use crate::control::protocol::encode;
use crate::control::{Answer, Request, ask, ask_for_all, drain};
use crate::gateway::State;
use crate::log::say_last;
use crate::output::print;
use crate::signals::terminal_signals;
use crate::top;
use crate::trace::{self, Plan};
use crate::usage::{Day, Period};

/// How orders find the running gateway.
#[derive(Debug, Args)]
pub(super) struct Operator {
    /// The gateway's configuration file, which names its control socket.
    #[arg(
        long,
        visible_alias = "config-path",
        value_name = "FILE",
        default_value = "server.toml",
        conflicts_with = "socket"
    )]
    config: PathBuf,
    /// The gateway's control socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print what the gateway answers as one line of JSON, as docs/operation.md has it. An order that is refused ends with status 1 all the same.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    environment: Environment,
}

impl Operator {
    /// Has the gateway carry out `request`, and prints what it says.
    pub(super) fn order(&self, request: &Request) -> anyhow::Result<()> {
        self.show(&ask(&self.socket()?, request)?)
    }

    /// Prints `answer`, for people or for machines.
    fn show(&self, answer: &Answer) -> anyhow::Result<()> {
        let lines = answer.lines.join("\n");
        if self.json {
            print(String::from_utf8_lossy(&encode(answer)).trim_end())?;
        }
        anyhow::ensure!(answer.done, lines);
        if !self.json {
            print(&lines)?;
        }
        Ok(())
    }

    /// Where the gateway `must_be_ready`, one that takes no new clients is an error.
    pub(super) fn status(&self, must_be_ready: bool) -> anyhow::Result<()> {
        let answer = ask(&self.socket()?, &Request::Status { shards: self.json })?;
        let is_ready = answer.state == Some(State::Serving);
        self.show(&Answer { done: answer.done && (is_ready || !must_be_ready), ..answer })
    }

    pub(super) fn users(&self, sort: Sort) -> anyhow::Result<()> {
        let answer = ask_for_all(&self.socket()?, |after| Request::Users { after })?;
        let mut rows = answer.users.clone().unwrap_or_default();
        sort.users(&mut rows);
        self.show_table(Answer { users: Some(rows), ..answer }, |answer| tables::users(answer.users.as_deref()))
    }

    pub(super) fn connections(&self, user: Option<&str>, sort: Sort) -> anyhow::Result<()> {
        let request = |after| Request::Connections { user: user.map(str::to_owned), after };
        let answer = ask_for_all(&self.socket()?, request)?;
        let mut rows = answer.connections.clone().unwrap_or_default();
        sort.connections(&mut rows);
        let table = |answer: &Answer| tables::connections(answer.connections.as_deref());
        self.show_table(Answer { connections: Some(rows), ..answer }, table)
    }

    pub(super) fn usage(
        &self,
        user: Option<&str>,
        period: Period,
        since: Option<Day>,
        is_csv: bool,
    ) -> anyhow::Result<()> {
        let request = |after| Request::Usage { user: user.map(str::to_owned), period, since, after };
        let answer = ask_for_all(&self.socket()?, request)?;
        if is_csv && answer.done {
            answer.lines.iter().for_each(|line| say_last(&format!("tollgate: warning: {line}")));
            return Ok(print(&usage::csv(answer.usage.as_deref().unwrap_or_default(), period))?);
        }
        self.show_table(answer, |answer| usage::table(answer.usage.as_deref(), period))
    }

    /// Prints `answer` with what `table` makes of it before the lines.
    fn show_table(&self, mut answer: Answer, table: impl Fn(&Answer) -> Option<String>) -> anyhow::Result<()> {
        if !self.json {
            answer.lines = table(&answer).into_iter().chain(answer.lines).collect();
        }
        self.show(&answer)
    }

    pub(super) fn top(&self, interval: Duration) -> anyhow::Result<()> {
        Ok(top::run(&self.socket()?, interval)?)
    }

    pub(super) fn trace(
        &self,
        user: String,
        length: Option<Duration>,
        interval: Duration,
        qlog: Option<PathBuf>,
    ) -> anyhow::Result<()> {
        let plan = Plan { user, length, interval, json: self.json, qlog };
        Ok(trace::run(&self.socket()?, &plan, &terminal_signals()?)?)
    }

    pub(super) fn drain(&self, within: Duration, rate_per_s: Option<u32>) -> anyhow::Result<()> {
        let order = Request::Drain { within_ms: within.as_millis() as u64, rate_per_s };
        let (clients, took) = drain(&self.socket()?, &order)?;
        let line = format!(
            "drained: of {clients} client{} none is left after {:.1} s; the gateway takes none until `tollgate resume`",
            if clients == 1 { "" } else { "s" },
            took.as_secs_f64()
        );
        let took_ms = Some(took.as_secs_f64() * 1e3);
        let state = Some(State::Draining);
        self.show(&Answer { done: true, lines: vec![line], state, clients: Some(0), took_ms, ..Answer::default() })
    }

    pub(super) fn upgrade(&self, binary: Option<PathBuf>, within: Duration, rate: u32) -> anyhow::Result<()> {
        let program = binary.map(std::path::absolute).transpose()?;
        self.order(&Request::Upgrade { program, within_ms: within.as_millis() as u64, rate_per_s: Some(rate) })
    }

    fn socket(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.socket {
            return Ok(path.clone());
        }
        let socket = control_socket(&self.config, self.environment.variables());
        socket.context("the gateway's control socket is not known, name it by --config or --socket")
    }
}
