//! What an operator asks of a running gateway, with the real program's commands.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::deployment::Deployment;

#[derive(Debug)]
pub struct Answer {
    /// Whether the gateway has carried the order out.
    pub done: bool,
    pub said: String,
    pub took: Duration,
    /// When it had ended: the order was acknowledged before.
    pub at: Instant,
}

/// Has the gateway of `deployment` read its configuration again.
pub fn reload(deployment: &Deployment) -> Answer {
    ask(deployment, &["reload"])
}

/// Has the gateway of `deployment` close all connections of `user`.
pub fn kick(deployment: &Deployment, user: &str) -> Answer {
    ask(deployment, &["kick", user])
}

/// Has the gateway whose control socket is `socket` send its clients away, as `options` say.
pub fn drain(socket: &Path, options: &[&str]) -> Answer {
    ask_at(socket, &[&["drain"], options].concat())
}

/// Has it do what takes no options.
pub fn order(socket: &Path, order: &str) -> Answer {
    ask_at(socket, &[order])
}

fn ask_at(socket: &Path, arguments: &[&str]) -> Answer {
    let mut command = Command::new(crate::program());
    command.args(arguments).arg("--socket").arg(socket);
    answer(command)
}

/// Gives the gateway of `deployment` an order.
pub fn ask(deployment: &Deployment, arguments: &[&str]) -> Answer {
    let mut command = Command::new(crate::program());
    command.args(arguments).arg("--config").arg(deployment.path("server.toml"));
    answer(command)
}

fn answer(mut command: Command) -> Answer {
    command.env("NO_COLOR", "1");
    let start = Instant::now();
    let output = command.output().expect("the program starts");
    let at = Instant::now();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    Answer { done: output.status.success(), said, took: at - start, at }
}
