//! Why a run failed, and whether another one failed in the same way.

use std::fmt;
use std::time::Duration;

use tollgate_sim::Violation;

/// Words of a failure's text that tell its kind.
const WORDS: usize = 4;

#[derive(Debug, Clone)]
pub struct Failure {
    what: String,
    /// When, if it is known.
    pub at: Option<Duration>,
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Failure { what: violation.to_string(), at: violation.at.map(|at| at.since_start()) }
    }
}

impl Failure {
    pub fn panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no words".to_owned());
        Failure { what: format!("panic: {text}"), at: None }
    }

    /// Whether it is of the same kind: the same oracle says the same, whatever of.
    pub fn is_like(&self, other: &Failure) -> bool {
        self.kind().eq(other.kind())
    }

    /// Its oracle and what that begins with, but for numbers, and for things and what is in them.
    fn kind(&self) -> impl Iterator<Item = &str> {
        let outside = self.what.split('{').map(|part| part.rsplit_once('}').map_or(part, |(_, outside)| outside));
        let words = outside.flat_map(|part| part.split(' '));
        let is_word = |word: &&str| {
            let letters = word.trim_end_matches(':');
            !letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_lowercase())
        };
        words.filter(is_word).take(1 + WORDS)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(what: &str) -> Failure {
        Failure { what: what.to_owned(), at: None }
    }

    #[test]
    fn failures_are_alike_by_what_is_said_and_not_by_what_of() {
        let first = failure("packets: packet 80 of FlowSpec { source: 10.77.0.3, port: Some(1) }: it arrived at Tun");
        assert!(
            first.is_like(&failure("packets: packet 7 of FlowSpec { source: fd00::3, port: None }: it arrived at Tun"))
        );
        assert!(
            !first
                .is_like(&failure("packets: packet 80 of FlowSpec { source: 10.77.0.3, port: None }: it was dropped"))
        );
        assert!(!first.is_like(&failure("panic: packet 80 of nobody")));
    }
}
