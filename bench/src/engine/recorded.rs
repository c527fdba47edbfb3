//! The counts that a change is held against: `bench/instructions.toml`.
//!
//! A count belongs to a compiler, a profile and a target: others make other code of the same source.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Longest file of recorded counts, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// How much more than recorded a benchmark may cost, unless the file says something else.
const ALLOWED_SHARE: f64 = 0.02;

const HEADING: &str = "\
# Instructions of the engine for each unit of work, counted by callgrind. Written by:
#     cargo run --release -p tollgate-bench -- engine --record
# A change that makes a benchmark dearer by more than the allowed share fails the gate; one that does so on purpose records anew.
";

/// What a count depends on besides the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// The compiler, as it calls itself.
    pub compiler: String,
    /// Cargo's profile, `release` or `debug`.
    pub profile: String,
    /// The target, a triple.
    pub target: String,
}

/// Recorded counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// How much more than recorded a benchmark may cost, 0 to 1.
    pub allowed_share: f64,
    /// What counted them.
    pub valgrind: String,
    /// What they depend on.
    pub conditions: Conditions,
    /// Instructions for each unit, by benchmark.
    pub instructions: BTreeMap<String, f64>,
}

impl Conditions {
    /// Those of this program.
    pub fn here() -> Self {
        Conditions {
            compiler: env!("TOLLGATE_BENCH_COMPILER").to_owned(),
            profile: env!("TOLLGATE_BENCH_PROFILE").to_owned(),
            target: env!("TOLLGATE_BENCH_TARGET").to_owned(),
        }
    }
}

impl Recorded {
    /// New counts.
    pub fn new(valgrind: &str, counts: impl IntoIterator<Item = (&'static str, f64)>) -> Self {
        let rounded = counts.into_iter().map(|(name, count)| (name.to_owned(), (count * 10.0).round() / 10.0));
        Recorded {
            allowed_share: ALLOWED_SHARE,
            valgrind: valgrind.to_owned(),
            conditions: Conditions::here(),
            instructions: rounded.collect(),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    ///
    /// In one line: it cannot be read, or makes no sense.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let absent = || format!("cannot read the recorded counts in {shown}: name the file, or make it with --record");
        if fs::metadata(path).with_context(absent)?.len() > FILE_BYTES_MAX {
            bail!("{shown} is longer than {FILE_BYTES_MAX} bytes: it holds no recorded counts");
        }
        let text = fs::read_to_string(path).with_context(absent)?;
        let recorded: Recorded = toml::from_str(&text)
            .map_err(|error| error.message().replace('\n', " "))
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("{shown} holds no recorded counts (make it anew with --record)"))?;
        if !(0.0..=1.0).contains(&recorded.allowed_share) {
            bail!("{shown}: allowed_share is {}: it must be 0 to 1", recorded.allowed_share);
        }
        Ok(recorded)
    }

    /// Writes the file, over what was there.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{HEADING}\n{}", toml::to_string(self)?);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Makes sure that counts of this program may be compared with these.
    ///
    /// # Errors
    ///
    /// If they were made by another compiler, with another profile or for another target.
    pub fn require_same_conditions(&self) -> Result<()> {
        let (then, here) = (&self.conditions, Conditions::here());
        let pairs = [
            ("compiler", &then.compiler, &here.compiler),
            ("profile", &then.profile, &here.profile),
            ("target", &then.target, &here.target),
        ];
        for (what, then, here) in pairs {
            if then != here {
                bail!(
                    "the recorded counts belong to the {what} '{then}', but this program was built with '{here}': \
                     counts of the two cannot be compared; build it likewise, or record anew with --record"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Recorded {
        Recorded::new("valgrind-3.19.0", [("up_1400", 1234.56), ("down_1400", 99.0)])
    }

    #[test]
    fn what_is_recorded_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instructions.toml");
        recorded().write(&path).unwrap();
        let read = Recorded::read(&path).unwrap();
        assert_eq!(read, recorded());
        assert_eq!(read.instructions["up_1400"], 1234.6);
        read.require_same_conditions().unwrap();
    }

    #[test]
    fn counts_of_another_compiler_profile_or_target_are_not_compared() {
        for name in ["compiler 'other'", "profile 'other'", "target 'other'"] {
            let mut recorded = recorded();
            let Conditions { compiler, profile, target } = &mut recorded.conditions;
            let changed = [("compiler", compiler), ("profile", profile), ("target", target)];
            changed
                .into_iter()
                .filter(|(what, _)| name.starts_with(what))
                .for_each(|(_, value)| *value = "other".into());
            let error = recorded.require_same_conditions().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("--record"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_refused_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instructions.toml");
        let refused = || format!("{:#}", Recorded::read(&path).unwrap_err());
        assert!(refused().contains("--record"), "{}", refused());
        for text in ["", "allowed_share = 0.02\n", "= ="] {
            fs::write(&path, text).unwrap();
            assert!(refused().contains("instructions.toml holds no recorded counts"), "{}", refused());
            assert_eq!(refused().lines().count(), 1);
        }
        Recorded { allowed_share: 2.0, ..recorded() }.write(&path).unwrap();
        assert!(refused().contains("allowed_share is 2"), "{}", refused());
    }
}
