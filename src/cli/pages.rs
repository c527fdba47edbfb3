//! What goes beside the program into a system: completions for shells, and man pages. Both are made of the commands themselves.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// What is wrong with a folder for man pages.
#[derive(Debug, thiserror::Error)]
#[error("man pages cannot be written to {folder}: {source}; name a folder that this user may write")]
pub(super) struct PagesError {
    folder: String,
    source: io::Error,
}

/// The script by which `shell` completes commands and options.
pub(super) fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tollgate", &mut script);
    String::from_utf8_lossy(&script).trim_end().to_owned()
}

/// Writes a page of section 1 for each command to `folder`, which is made where it is not there.
pub(super) fn write_manual(folder: &Path) -> Result<(), PagesError> {
    let written = fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    written.map_err(|source| PagesError { folder: folder.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use clap::{Command, ValueEnum};

    use super::*;

    /// All commands that are shown, each with the names that lead to it.
    fn commands() -> Vec<(Vec<String>, Command)> {
        let mut root = Cli::command();
        root.build();
        let mut all = vec![(vec![root.get_name().to_owned()], root)];
        let mut next = 0;
        while let Some((path, command)) = all.get(next).cloned() {
            let is_shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
            for sub in command.get_subcommands().filter(is_shown) {
                all.push(([&path[..], &[sub.get_name().to_owned()]].concat(), sub.clone()));
            }
            next += 1;
        }
        all
    }

    #[test]
    fn every_command_and_every_option_says_what_it_is_for() {
        let commands = commands();
        assert!(commands.len() > 20, "{} commands", commands.len());
        for (path, command) in &commands {
            assert!(command.get_about().is_some(), "{path:?} has no help");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{path:?}: {} has no help", argument.get_id());
            }
        }
    }

    #[test]
    fn every_command_has_a_man_page_with_its_options() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("share/man/man1");
        write_manual(&folder).unwrap();
        for (path, command) in commands() {
            let page = fs::read_to_string(folder.join(format!("{}.1", path.join("-"))));
            let page = page.unwrap_or_else(|error| panic!("{path:?}: {error}")).replace('\\', "");
            for option in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let is_there = option.get_long().is_none_or(|long| page.contains(&format!("--{long}")));
                assert!(is_there, "{path:?}: {} is not in its page", option.get_id());
            }
        }
        let file = folder.join("tollgate.1");
        let error = write_manual(&file).unwrap_err().to_string();
        assert!(error.contains("tollgate.1") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let script = completions(*shell);
            for (path, _) in commands() {
                let name = path.last().unwrap();
                assert!(script.contains(&name[..]), "{shell}: {path:?}");
            }
        }
    }
}
