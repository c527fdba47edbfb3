//! The reference page and the example files say what the declarations of the keys say.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use tollgate_config::{Entry, Origin, Section, files, needs_restart};

use crate::common::{load_client, load_server, range, variable};

/// Writes the documents that are made from the declarations.
const COMMAND: &str = "TOLLGATE_WRITE_DOCUMENTS=1 cargo test --workspace --test configuration documents";

const PAGE: &str = "\
# Configuration

<!-- Made from the declarations in config/src. Do not edit: change those, and run
COMMAND -->

Every key of every file: what it means, what may be written, what holds without it, and whether a running gateway takes another value over
(`tollgate reload`) or has to be restarted. `tollgate check --config server.toml` lists every mistake in a file, and what would be right;
`--client` checks a client's. [config/examples](../config/examples) has files to begin with.

A relative path starts at the directory in which the program is started. An environment variable overrides a key of `server.toml` or
`client.toml`: `TOLLGATE_BIND_PORT=443`, or within a table `TOLLGATE_CONNECTION__MTU=1300`. The prefix `QUINCY_` does the same, and yields.
";

const SERVER_EXAMPLE: &str = "\
# The gateway's configuration. Every key that is commented out shows its default, or an example where it has none.
# Check it with `tollgate check --config server.toml`: it lists every mistake, and what would be right.
#
# A relative path starts at the directory in which the gateway is started.
# An environment variable overrides a key: TOLLGATE_BIND_PORT=443, or within a table TOLLGATE_CONNECTION__MTU=1300.
";

const CLIENT_EXAMPLE: &str = "\
# The client's configuration. Every key that is commented out shows its default, or an example where it has none.
# An environment variable overrides a key: TOLLGATE_CONNECTION_STRING=..., or within a table TOLLGATE_CONNECTION__MTU=1300.
";

/// `path`, from the repository's root.
fn document(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Holds the file at `path` against `text`, or writes it.
fn hold(path: &str, text: &str) {
    if std::env::var_os("TOLLGATE_WRITE_DOCUMENTS").is_some() {
        fs::write(document(path), text).unwrap();
    }
    let there = fs::read_to_string(document(path)).unwrap_or_default();
    let line = there.lines().zip(text.lines()).take_while(|(there, made)| there == made).count() + 1;
    assert!(
        there == text,
        "{path} is not what the declarations make, from line {line} on. Write it with\n    {COMMAND}"
    );
}

/// A key's text as lines.
fn lines(text: &[&str], before: &str) -> String {
    text.iter().map(|line| format!("{before}{}\n", line.trim_start())).collect()
}

fn reference() -> String {
    let mut page = PAGE.replace("COMMAND", COMMAND);
    for (file, sections) in files() {
        let _ = writeln!(page, "\n## `{file}`");
        if file == "client.toml" {
            page.push_str("\nThe client reads it once, when it starts.\n");
        }
        for section in &sections {
            if !section.name.is_empty() {
                let _ = write!(page, "\n### `[{}]` of `{file}`\n\n{}", section.name, lines(section.text, ""));
            }
            for entry in &section.entries {
                let _ = write!(
                    page,
                    "\n#### `{}`\n\n{}\n{}\n",
                    entry.name,
                    lines(entry.text, ""),
                    facts(file, section, entry)
                );
            }
        }
    }
    page
}

/// `text` with a capital.
fn sentence(text: &str) -> String {
    text[..1].to_uppercase() + &text[1..]
}

/// What is declared of a key besides its text.
fn facts(file: &str, section: &Section, entry: &Entry) -> String {
    let mut facts = format!("{}. ", sentence(&entry.expected));
    facts += &match (&entry.value, entry.absent) {
        _ if entry.traits.is_required => "Required. ".to_owned(),
        (Some(value), _) => format!("Default: `{value}`. "),
        (None, "") => String::new(),
        (None, absent) => format!("Without it: {absent}. "),
    };
    if file != "client.toml" {
        facts += match entry.traits.is_live {
            true => "Changes by a reload. ",
            false if needs_restart(&section.path(entry)) => "Changes by a restart. ",
            false => "Changes by an upgrade. ",
        };
    }
    if let Some(reason) = entry.traits.without_effect {
        let _ = write!(facts, "Another value has no effect: {reason}. ");
    }
    if file != "users.toml" {
        let _ = write!(facts, "Variable: `{}`. ", variable(&section.path(entry)));
    }
    facts + if entry.origin == Origin::Quincy { "Quincy has it too." } else { "Quincy does not have it." }
}

fn example(head: &str, sections: &[Section]) -> String {
    let mut text = head.to_owned();
    for section in sections {
        if !section.name.is_empty() {
            let comment = if section.is_alternative { "# " } else { "" };
            let _ = write!(text, "\n{}{comment}[{}]\n", lines(section.text, "# "), section.name);
        }
        for entry in &section.entries {
            let _ = write!(text, "\n{}", lines(entry.text, "# "));
            if range(entry).is_some() {
                let _ = writeln!(text, "# {}.", sentence(&entry.expected));
            }
            let line = match entry.traits.example.or(entry.value.as_deref()) {
                Some(value) => format!("{} = {value}", entry.name),
                None => format!("{}: {}", entry.name, entry.expected),
            };
            let _ = writeln!(
                text,
                "{}{line}",
                if entry.traits.is_in_example && !section.is_alternative { "" } else { "# " }
            );
        }
    }
    text
}

/// The keys of `files()`: server's, users', client's.
fn sections(file: usize) -> Vec<Section> {
    files()[file].1.clone()
}

#[test]
fn the_reference_page_has_every_key() {
    hold("docs/configuration.md", &reference());
}

#[test]
fn the_examples_have_every_key() {
    hold("config/examples/server.toml", &example(SERVER_EXAMPLE, &sections(0)));
    hold("config/examples/client.toml", &example(CLIENT_EXAMPLE, &sections(2)));
    let users = fs::read_to_string(document("config/examples/users.toml")).unwrap();
    for entry in &sections(1)[0].entries {
        assert!(users.contains(entry.name), "config/examples/users.toml does not say what {} is", entry.name);
    }
}

#[test]
fn the_examples_are_valid_and_their_comments_tell_the_defaults() {
    let users = document("config/examples/users.toml");
    let variables = [("TOLLGATE_USERS_FILE", users.to_str().unwrap())];
    let text = example(SERVER_EXAMPLE, &sections(0));
    let config = load_server(&text, &variables).unwrap();
    assert_eq!(config.users.len(), 3);
    // Whoever takes an alternative leaves the other out.
    let usual: Vec<Section> = sections(0).into_iter().filter(|section| !section.is_alternative).collect();
    let uncommented = load_server(&uncomment(&example(SERVER_EXAMPLE, &usual)), &variables).unwrap();
    assert_eq!(differences(&config.effective(), &uncommented.effective()), examples(&usual));

    let text = example(CLIENT_EXAMPLE, &sections(2));
    let config = load_client(&text, &[]).unwrap();
    let uncommented = load_client(&uncomment(&text), &[]).unwrap();
    assert_eq!(differences(&config.effective(), &uncommented.effective()), examples(&sections(2)));
}

/// The keys that have an example but no default, and are commented out.
fn examples(sections: &[Section]) -> Vec<&'static str> {
    let entries = sections.iter().flat_map(|section| &section.entries);
    let names = entries.filter(|entry| entry.traits.example.is_some() && !entry.traits.is_in_example);
    // It is shown only where it has an effect.
    names
        .flat_map(
            |entry| if entry.name == "max_connections" { vec![entry.name, "when_reached"] } else { vec![entry.name] },
        )
        .collect()
}

/// The keys whose lines differ.
fn differences<'t>(before: &str, after: &'t str) -> Vec<&'t str> {
    let is_new = |line: &&str| !line.starts_with('#') && !before.lines().any(|old| old == *line);
    after.lines().filter(is_new).map(|line| line.split(' ').next().unwrap()).collect()
}

/// Puts every commented `key = value` line in force.
fn uncomment(text: &str) -> String {
    let is_name = |key: &str| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let uncommented = |line: &str| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| is_name(key)) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(uncommented).collect()
}
