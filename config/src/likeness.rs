//! Which of several words a misspelt one was meant to be.

/// From which likeness on a word is suggested for another.
const LIKENESS_MIN: f64 = 0.6;

/// The candidate that `word` was most likely meant to be, if any is near enough.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    candidates
        .map(|candidate| (likeness(&word, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// How alike two words are, from 0 to 1: by the letters to change, or by a common beginning and end, as `cert_file` has with
/// `certificate_file`.
fn likeness(a: &str, b: &str) -> f64 {
    let backwards = |word: &str| word.chars().rev().collect::<String>();
    let ends = (strsim::jaro_winkler(a, b) + strsim::jaro_winkler(&backwards(a), &backwards(b))) / 2.0;
    strsim::normalized_damerau_levenshtein(a, b).max(ends - 0.2)
}
