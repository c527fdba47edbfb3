//! Commands that find other files where the system has its own.

use std::process::Command;

/// `command`, which has a folder to run in, in a mount namespace of its own, after `mounts`.
pub fn after_mounts(mounts: &str, command: &Command) -> Command {
    let mut within = Command::new("unshare");
    within.args(["--mount", "--propagation", "private", "sh", "-ec", &format!("{mounts} && exec \"$0\" \"$@\"")]);
    within.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        within.env(name, value.unwrap_or_default());
    }
    within.current_dir(command.get_current_dir().expect("a folder to run in"));
    within
}
