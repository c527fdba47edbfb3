//! Tests that run alone: whoever calls `turn::alone` is in the group of that name in `.config/nextest.toml`.
//!
//! A test that is not panics, but only where all tests run, by nextest.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;
use serde::Deserialize;

use super::Source;

pub const PATH: &str = ".config/nextest.toml";
const GROUP: &str = "alone";
const CALL: &str = "turn::alone()";

/// What this reads of nextest's filters: a binary, all of it or the tests whose names match.
static TERM: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"binary\((?<binary>\w+)\)(?: & test\(/(?<names>[^/]+)/\))?").expect("the pattern is constant")
});
static FUNCTION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bfn (\w+)").expect("the pattern is constant"));

#[derive(Deserialize)]
struct Config {
    profile: Profiles,
}

#[derive(Deserialize)]
struct Profiles {
    default: Profile,
}

#[derive(Deserialize)]
struct Profile {
    #[serde(default)]
    overrides: Vec<Override>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Override {
    filter: String,
    test_group: Option<String>,
}

/// Calls of `turn::alone` in functions that `config`, the text of nextest's configuration, does not name.
///
/// # Errors
///
/// If `config` cannot be read.
pub fn check(config: &str, sources: &[Source]) -> Result<Vec<String>> {
    let config: Config = toml::from_str(config).context(PATH)?;
    let groups = config.profile.default.overrides;
    let filters = groups.iter().filter(|group| group.test_group.as_deref() == Some(GROUP)).map(|group| &group.filter);
    let mut named = Vec::new();
    for term in filters.flat_map(|filter| TERM.captures_iter(filter)) {
        // Without names, all of them.
        let names = term.name("names").map_or("", |names| names.as_str());
        named.push((term["binary"].to_owned(), Regex::new(names).context(PATH)?));
    }
    let mut faults = Vec::new();
    for source in sources {
        let Some((binary, module)) = place(&source.path) else { continue };
        let mut function = "";
        for (number, line) in (1..).zip(source.text.lines()) {
            function = FUNCTION.captures(line).map_or(function, |found| found.extract::<1>().1[0]);
            let test = format!("{module}{function}");
            if line.contains(CALL) && !named.iter().any(|(of, names)| of == binary && names.is_match(&test)) {
                faults.push(format!(
                    "{}:{number}: {test} runs alone: name it in the group `{GROUP}` of {PATH}",
                    source.path
                ));
            }
        }
    }
    Ok(faults)
}

/// The test program of a source file, and what stands before the names of its tests.
fn place(path: &str) -> Option<(&str, String)> {
    let (_, inner) = path.rsplit_once("tests/")?;
    let inner = inner.strip_suffix(".rs")?;
    Some(match inner.split_once('/') {
        None => (inner, String::new()),
        Some((binary, "main")) => (binary, String::new()),
        Some((binary, module)) => (binary, format!("{}::", module.replace('/', "::"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        [[profile.default.overrides]]
        filter = "binary(all) | (binary(some) & test(/^(one|two)::/)) | (binary(root) & test(/a_slow/))"
        test-group = "alone"

        [[profile.default.overrides]]
        filter = "binary(others)"
    "#;

    #[test]
    fn whoever_runs_alone_and_is_not_named_is_found() {
        let source = |path: &str, function: &str| Source {
            path: path.into(),
            text: format!("fn before() {{}}\nfn {function}() {{\n    let _turn = turn::alone();\n}}\n"),
        };
        let sources = [
            source("tests/all/any.rs", "thing"),
            source("tests/some/two.rs", "thing"),
            source("bench/tests/root.rs", "a_slow_one"),
            source("tests/some/three.rs", "thing"),
            source("tests/root.rs", "a_quick_one"),
            source("tests/others/main.rs", "thing"),
        ];
        let faults = check(CONFIG, &sources).unwrap();
        let found: Vec<_> = faults.iter().map(|fault| fault.split(' ').nth(1).unwrap()).collect();
        assert_eq!(found, ["three::thing", "a_quick_one", "thing"], "{faults:?}");
        assert!(faults[0].starts_with("tests/some/three.rs:3: "), "{faults:?}");
    }
}
