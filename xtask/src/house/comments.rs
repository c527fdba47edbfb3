//! Documentation that says no more than the name does.

use std::sync::LazyLock;

use regex::Regex;

use super::Source;

/// A pronoun, or a possessive with one word behind it, and nothing else.
static PRONOUN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\s*//[/!] (Which|Whose|What|Who|Where|When|How|It|Its \w+|Their \w+|That|Those|These|They|Them)\.$")
        .expect("the pattern is constant")
});

/// Doc comments of one pronoun.
pub fn check(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        for (number, line) in (1..).zip(source.text.lines()) {
            if PRONOUN.is_match(line) {
                let comment = line.trim();
                faults.push(format!(
                    "{}:{number}: `{comment}` says nothing: say what it is, or leave it out",
                    source.path
                ));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_of_one_pronoun_is_found_and_one_that_says_something_is_not() {
        let text = "/// Which.\npub a: u8,\n    /// Its name.\n/// Which shard owns it.\n// Which.\n/// Its length, in bytes.\n";
        let faults = check(&[Source { path: "a.rs".into(), text: text.into() }]);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("a.rs:1: ") && faults[1].starts_with("a.rs:3: "), "{faults:?}");
    }
}
