//! Names that the project no longer uses.

use regex::Regex;
use serde::Deserialize;

use super::Source;

/// Names that have gone.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    retired: Vec<Retired>,
}

/// A name that has gone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retired {
    /// The identifier, as a whole word.
    name: String,
    /// What to write instead.
    instead: String,
    /// Below which folders it must not stand; everywhere if there are none.
    #[serde(default)]
    folders: Vec<String>,
    /// Files and folders where it may stand: names that users see, other meanings of the word.
    #[serde(default)]
    except: Vec<String>,
    /// Whether the word is retired in comments too.
    #[serde(default)]
    in_comments: bool,
}

/// Places where a retired name stands.
pub fn check(rules: &Rules, sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for retired in &rules.retired {
        let pattern =
            Regex::new(&format!(r"\b{}\b", regex::escape(&retired.name))).expect("an escaped word is a pattern");
        for source in sources.iter().filter(|source| retired.concerns(&source.path)) {
            let code = if retired.in_comments { source.text.clone() } else { source.code() };
            let lines = (1..).zip(code.lines()).filter(|(_, line)| pattern.is_match(line));
            faults.extend(lines.map(|(number, _)| {
                format!("{}:{number}: `{}` is retired: write {}", source.path, retired.name, retired.instead)
            }));
        }
    }
    faults
}

impl Retired {
    fn concerns(&self, path: &str) -> bool {
        let lies_in = |folders: &[String]| folders.iter().any(|folder| path.starts_with(&**folder));
        (self.folders.is_empty() || lies_in(&self.folders)) && !lies_in(&self.except)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retired(name: &str, in_comments: bool) -> Rules {
        let (folders, except) = (vec!["src/".to_owned()], vec!["src/user.rs".to_owned()]);
        Rules { retired: vec![Retired { name: name.into(), instead: "waker".into(), folders, except, in_comments }] }
    }

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn a_retired_name_is_found_as_a_whole_word_in_its_folders() {
        let sources = [
            source("src/a.rs", "struct Bells;\nstruct Bell;\n// Bell\n"),
            source("src/user.rs", "struct Bell;"),
            source("tests/a.rs", "struct Bell;"),
        ];
        assert_eq!(check(&retired("Bell", false), &sources), ["src/a.rs:2: `Bell` is retired: write waker"]);
        assert_eq!(check(&retired("Bell", true), &sources).len(), 2);
    }
}
