//! Files that have outgrown one subject.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Source;

/// Lines that a file may have without a reason.
const LINES_MAX: usize = 500;

/// Files that may be longer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Why each of them is one file, by path.
    long: BTreeMap<String, String>,
}

/// Files over the bound that have no reason, and reasons for files that are not over it.
pub fn check(rules: &Rules, sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        let (lines, path) = (source.text.lines().count(), &source.path);
        match rules.long.get(path) {
            None if lines > LINES_MAX => {
                faults.push(format!(
                    "{path}:1: {lines} lines: split it by subject, or give the reason under [sizes.long]"
                ));
            }
            Some(_) if lines <= LINES_MAX => {
                faults.push(format!("{path}:1: {lines} lines need no reason under [sizes.long]"))
            }
            _ => {}
        }
    }
    let is_there = |path: &str| sources.iter().any(|source| source.path == path);
    let gone = rules.long.keys().filter(|path| !is_there(path));
    faults.extend(gone.map(|path| format!("xtask/house.toml: {path} is not there: take it out of [sizes.long]")));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, lines: usize) -> Source {
        Source { path: path.into(), text: "\n".repeat(lines) }
    }

    #[test]
    fn long_files_need_a_reason_and_short_ones_none() {
        let long = BTreeMap::from(["b.rs", "c.rs", "d.rs"].map(|path| (path.to_owned(), "one table".to_owned())));
        let faults = check(
            &Rules { long },
            &[source("a.rs", 501), source("b.rs", 501), source("c.rs", 500), source("e.rs", 500)],
        );
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].starts_with("a.rs:1: 501 lines: split"), "{faults:?}");
        assert!(faults[1].starts_with("c.rs:1: 500 lines need no reason"), "{faults:?}");
        assert!(faults[2].contains("d.rs is not there"), "{faults:?}");
    }
}
