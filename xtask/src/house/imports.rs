//! Which module of a crate imports which other: arrows between them point one way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

use super::Source;

static GROUP: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?s)\bcrate::\{([^;]*)\};").expect("the pattern is constant"));
static PATH: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bcrate::(\w+)").expect("the pattern is constant"));

/// Which crates are looked at, and what is forbidden in them beside circles.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Folders of sources, from the root of the workspace.
    crates: Vec<String>,
    forbidden: Vec<Forbidden>,
}

/// What must not be mentioned below a folder, or in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forbidden {
    /// The folder or file.
    within: String,
    /// Paths as they are written in the source, such as `crate::quic` or `glommio`.
    paths: Vec<String>,
    /// The reason, for whoever wants to do it.
    because: String,
}

/// Circles of imports, and imports that are forbidden.
pub fn check(rules: &Rules, sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for root in &rules.crates {
        let circles = circles(&arrows(root, sources));
        faults.extend(circles.into_iter().map(|modules| {
            format!(
                "{root}: {} import each other in a circle: let the arrows between them point one way",
                modules.join(", ")
            )
        }));
    }
    for Forbidden { within, paths, because } in &rules.forbidden {
        for path in paths {
            let pattern = Regex::new(&format!(r"\b{}\b", regex::escape(path))).expect("an escaped path is a pattern");
            let concerned = |source: &&Source| source.path.starts_with(&**within) && !source.is_test();
            for source in sources.iter().filter(concerned) {
                let code = source.code();
                let lines = (1..).zip(code.lines()).filter(|(_, line)| pattern.is_match(line));
                faults.extend(lines.map(|(number, _)| {
                    format!("{}:{number}: {within} must not know `{path}`: {because}", source.path)
                }));
            }
        }
    }
    faults
}

/// Which top-level module of the crate at `root` names which others, tests left out.
fn arrows(root: &str, sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let mut arrows = BTreeMap::<String, BTreeSet<String>>::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let Some(below) = source.path.strip_prefix(root).and_then(|path| path.strip_prefix('/')) else { continue };
        let module = below.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        let code = source.code();
        let grouped = GROUP.captures_iter(&code).flat_map(|group| heads(&group[1]));
        let named = PATH.captures_iter(&code).map(|path| path[1].to_owned());
        arrows.entry(module.to_owned()).or_default().extend(grouped.chain(named));
    }
    let modules: BTreeSet<_> = arrows.keys().cloned().collect();
    for (module, others) in &mut arrows {
        others.retain(|other| other != module && modules.contains(other));
    }
    arrows
}

/// The first parts of the paths in a braced list.
fn heads(list: &str) -> Vec<String> {
    let mut depth = 0;
    let top: String = list
        .chars()
        .filter(|character| {
            depth += i32::from(*character == '{');
            let is_top = depth == 0;
            depth -= i32::from(*character == '}');
            is_top
        })
        .collect();
    let head = |path: &str| path.trim().split("::").next().unwrap_or_default().to_owned();
    top.split(',').map(head).filter(|head| !head.is_empty()).collect()
}

/// The modules of each circle: those that reach each other.
fn circles(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let reached: BTreeMap<_, _> = arrows.keys().map(|module| (module, reach(module, arrows))).collect();
    let circles: BTreeSet<Vec<String>> = reached
        .iter()
        .filter(|(module, others)| others.contains(**module))
        .map(|(module, others)| others.iter().filter(|other| reached[other].contains(*module)).cloned().collect())
        .collect();
    circles.into_iter().collect()
}

fn reach(module: &str, arrows: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![module];
    while let Some(module) = next.pop() {
        for other in arrows.get(module).into_iter().flatten() {
            if reached.insert(other.clone()) {
                next.push(other);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    fn circles_of(sources: &[Source]) -> Vec<String> {
        check(&Rules { crates: vec!["src".into()], forbidden: Vec::new() }, sources)
    }

    #[test]
    fn a_circle_is_found_however_it_is_imported() {
        let one_way =
            [source("src/a.rs", "use crate::{b::{self, c}, d};"), source("src/b/mod.rs", ""), source("src/d.rs", "")];
        assert_eq!(circles_of(&one_way), Vec::<String>::new());
        let mut circle = one_way.to_vec();
        circle[2].text = "fn f() { crate::b::f() }".into();
        circle[1].text = "use crate::{\n    d::X,\n};\n// use crate::a;".into();
        let faults = circles_of(&circle);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("src: b, d import each other"), "{faults:?}");
    }

    #[test]
    fn tests_may_import_what_they_like() {
        let sources = [
            source("src/a.rs", "use crate::b;"),
            source("src/b/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::a;\n}"),
            source("src/b/tests.rs", "use crate::a;"),
        ];
        assert_eq!(circles_of(&sources), Vec::<String>::new());
    }

    #[test]
    fn what_is_forbidden_is_found_in_its_folder_only() {
        let forbidden =
            Forbidden { within: "engine/".into(), paths: vec!["glommio".into()], because: "it does no I/O".into() };
        let sources = [source("engine/a.rs", "use glommio::X;"), source("shell/a.rs", "use glommio::X;")];
        let faults = check(&Rules { crates: Vec::new(), forbidden: vec![forbidden] }, &sources);
        assert_eq!(faults, ["engine/a.rs:1: engine/ must not know `glommio`: it does no I/O"]);
    }
}
