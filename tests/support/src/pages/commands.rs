//! Whether commands in documents are such as their programs know: subcommands and long options, held against `--help`; packages and tests of
//! cargo; scripts of the repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Block, Page};

/// Programs of others in the documents, whose options nobody checks here.
const PROGRAMS_OF_OTHERS: &str = "apt-get cat cd chgrp chmod cp echo git install ip kill mkdir nft pkill quincy-client quincy-server rm scp sed sysctl systemctl \
     systemd-sysusers";

/// Subcommands of cargo in the documents.
const CARGO: [&str; 10] = ["bench", "build", "check", "clippy", "deny", "doc", "fmt", "run", "test", "xtask"];

/// The packages that documents name, and their folders.
const PACKAGES: [(&str, &str); 7] = [
    ("tollgate", ""),
    ("tollgate-shards", "shards"),
    ("tollgate-sim", "shards/sim"),
    ("tollgate-config", "config"),
    ("tollgate-bench", "bench"),
    ("tollgate-testkit", "bench/testkit"),
    ("tollgate-fuzz", "tests/fuzz"),
];

/// Checks what documents say to run.
pub struct Checker {
    root: PathBuf,
    /// The programs that are known here, by name. Commands of others are somebody else's to check.
    programs: BTreeMap<&'static str, PathBuf>,
    helps: BTreeMap<Vec<String>, String>,
    /// How many commands of `programs` were checked.
    pub checked: usize,
}

impl Checker {
    /// Checks the commands of one program.
    pub fn of(root: &Path, name: &'static str, program: &str) -> Self {
        let programs = BTreeMap::from([(name, PathBuf::from(program))]);
        Checker { root: root.to_owned(), programs, helps: BTreeMap::new(), checked: 0 }
    }

    /// Every command in the blocks and between the backticks of `page`.
    pub fn check(&mut self, page: &Page) {
        for block in page.blocks() {
            let place = format!("{}:{}", page.path.display(), block.line);
            lines(&block).into_iter().for_each(|line| self.check_line(&place, line));
        }
        let place = page.path.display().to_string();
        for quoted in page.quoted() {
            let program = quoted.split(' ').next().unwrap_or_default();
            if quoted.contains(' ') && (program.starts_with("tollgate") || program == "cargo") {
                self.check_line(&place, quoted);
            }
        }
    }

    fn check_line(&mut self, place: &str, line: &str) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        if words.first() == Some(&"sudo") {
            // Its own options, `env`, and variables.
            let is_program =
                |word: &&str| !word.starts_with('-') && !word.contains('=') && !["sudo", "env"].contains(word);
            words = words.iter().copied().skip_while(|word| !is_program(word)).collect();
        }
        words = words.into_iter().skip_while(|word| word.contains('=')).collect();
        let Some((&program, arguments)) = words.split_first() else { return };
        let name = program.rsplit('/').next().unwrap_or(program);
        if name == "cargo" {
            return self.check_cargo(place, line, arguments);
        }
        if name.starts_with("tollgate") {
            return self.check_own(place, line, name, arguments);
        }
        if program.contains('/') {
            return assert!(self.root.join(program).is_file(), "{place}: {line}: there is no {program}");
        }
        let is_known = PROGRAMS_OF_OTHERS.split(' ').any(|known| known == program);
        assert!(is_known, "{place}: {line}: {program} is not among the programs known");
    }

    fn check_own(&mut self, place: &str, line: &str, name: &str, arguments: &[&str]) {
        let known = ["tollgate", "tollgate-bench", "tollgate-sim"];
        assert!(known.contains(&name), "{place}: {line}: there is no program {name}");
        if !self.programs.contains_key(name) {
            return;
        }
        let mut path = vec![name.to_owned()];
        for argument in arguments {
            let help = self.help(&path);
            if argument.starts_with("--") {
                let option = argument.split('=').next().unwrap_or(argument);
                let is_known = help.split([' ', '\n', ']']).any(|word| word == option);
                assert!(is_known, "{place}: {line}: {} has no option {option}", path.join(" "));
            } else if let Some((_, commands)) = help.split_once("\nCommands:\n") {
                let (commands, _) = commands.split_once("\n\n").unwrap_or((commands, ""));
                let is_command = commands.lines().any(|known| known.split_whitespace().next() == Some(argument));
                assert!(is_command, "{place}: {line}: {} has no command {argument}", path.join(" "));
                path.push((*argument).to_owned());
            }
        }
        self.checked += 1;
    }

    fn check_cargo(&mut self, place: &str, line: &str, arguments: &[&str]) {
        let command = arguments.first().copied().unwrap_or_default();
        assert!(CARGO.contains(&command), "{place}: {line}: {command} is not among cargo's commands known");
        let (own, others) = match arguments.iter().position(|argument| *argument == "--") {
            Some(end) => (&arguments[..end], &arguments[end + 1..]),
            None => (arguments, &arguments[..0]),
        };
        let after = |option: &str| {
            let place = own.iter().position(|argument| *argument == option)?;
            own.get(place + 1).copied()
        };
        // Each program has the name of its package.
        let package = after("-p").or(after("--bin")).unwrap_or("tollgate");
        let folder = PACKAGES.iter().find(|(name, _)| *name == package);
        let (_, folder) = folder.unwrap_or_else(|| panic!("{place}: {line}: there is no package {package}"));
        if let Some(test) = after("--test") {
            let tests = |folder: &str| self.root.join(folder).join("tests");
            let is_there = |folder: &str| {
                tests(folder).join(format!("{test}.rs")).is_file() || tests(folder).join(test).join("main.rs").is_file()
            };
            let is_there =
                is_there(folder) || own.contains(&"--workspace") && PACKAGES.iter().any(|(_, it)| is_there(it));
            assert!(is_there, "{place}: {line}: there is no test {test}");
        }
        if command == "xtask" {
            self.check_task(place, line, &own[1..]);
        }
        if command == "run" {
            self.check_own(place, line, package, others);
        }
    }

    /// A task and its options, held against their declaration: no test of this package has the program.
    fn check_task(&self, place: &str, line: &str, arguments: &[&str]) {
        let tasks = std::fs::read_to_string(self.root.join("xtask/src/main.rs")).expect("the tasks");
        let (_, tasks) = tasks.split_once("enum Task {").expect("their declaration");
        let (tasks, _) = tasks.split_once("\n}\n").expect("its end");
        for argument in arguments {
            let is_known = match argument.strip_prefix("--") {
                // A place for the reader's own word.
                None if argument.bytes().all(|byte| byte.is_ascii_uppercase()) => true,
                Some(option) => tasks.contains(&format!(" {option}: ")),
                None => tasks
                    .lines()
                    .filter_map(|known| known.trim().split(['(', ',', ' ', '{']).next())
                    .any(|known| known.eq_ignore_ascii_case(argument)),
            };
            assert!(is_known, "{place}: {line}: cargo xtask does not know {argument}");
        }
    }

    fn help(&mut self, path: &[String]) -> String {
        let program = &self.programs[path[0].as_str()];
        let read = || {
            let output = Command::new(program).args(&path[1..]).arg("--help").output().expect("a program of ours");
            assert!(output.status.success(), "{path:?} --help: {output:?}");
            String::from_utf8(output.stdout).expect("help is text")
        };
        self.helps.entry(path.to_vec()).or_insert_with(read).clone()
    }
}

/// The commands of a block: no comments, no files that are written, commands that belong together apart.
fn lines<'a>(block: &Block<'a>) -> Vec<&'a str> {
    let mut commands = Vec::new();
    let mut end = None;
    for line in block.text.lines() {
        if let Some(word) = end {
            if line == word {
                end = None;
            }
            continue;
        }
        let line = line.split(" #").next().unwrap_or(line).trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some((_, word)) = line.split_once("<<'") {
            end = word.strip_suffix('\'');
        }
        commands.extend(line.split(" && ").map(str::trim));
    }
    commands
}
