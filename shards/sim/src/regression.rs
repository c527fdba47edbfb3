//! Seeds that have failed once. They are kept and replayed.

use std::time::Duration;

use clap::ValueEnum;

use crate::plan::{Feature, Features};

/// A run to replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regression {
    /// The seed that failed.
    pub seed: u64,
    /// The features that were allowed.
    pub features: Features,
    /// The length of the phase with faults.
    pub safety: Duration,
}

/// Reads lines of `seed [seconds] [without,these,features]`. Empty lines and what follows a `#` mean nothing.
///
/// # Errors
///
/// The first line that cannot be read.
pub fn parse(text: &str) -> Result<Vec<Regression>, String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &str) -> Result<Regression, String> {
    let unreadable = |what: &str| format!("'{line}': {what}");
    let mut words = line.split_whitespace();
    let seed = words.next().unwrap_or_default().parse().map_err(|_| unreadable("no seed"))?;
    let seconds = words.next().map_or(Ok(60), str::parse).map_err(|_| unreadable("no number of seconds"))?;
    let without = words
        .next()
        .map_or(Ok(Vec::new()), |names| names.split(',').map(|name| Feature::from_str(name, false)).collect());
    let without: Vec<Feature> = without.map_err(|error: String| unreadable(&error))?;
    Ok(Regression { seed, features: Features::ALL.without(&without), safety: Duration::from_secs(seconds) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_with_what_was_left_out() {
        let all = parse("# kept\n7\n8 20 # short\n9 30 loss,restart\n").unwrap();
        assert_eq!(
            all.iter().map(|one| (one.seed, one.safety.as_secs())).collect::<Vec<_>>(),
            [(7, 60), (8, 20), (9, 30)]
        );
        assert!(!all[2].features.has(Feature::Loss) && all[2].features.has(Feature::Kick));
        assert!(parse("x").is_err() && parse("1 60 nothing").is_err());
    }
}
