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
#     cargo run --profile dist --bin tollgate-bench -- engine --record
# A change that makes a benchmark dearer by more than the allowed share fails the gate; one that does so on purpose records anew.
";

/// What a count depends on besides the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// The compiler, as it calls itself.
    pub compiler: String,
    /// Cargo's profile, by the name of its folder: `dist`, `release`, `debug`.
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
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{HEADING}\n{}", toml::to_string(self)?);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Makes sure that counts of this program may be compared with these.
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

    #[test]
    fn counts_survive_the_file_and_what_is_no_count_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instructions.toml");
        let recorded = Recorded::new("valgrind-3", [("checksum", 12.345)]);
        recorded.write(&path).unwrap();
        let read = Recorded::read(&path).unwrap();
        assert_eq!((read.instructions["checksum"], read.require_same_conditions().is_ok()), (12.3, true));
        fs::write(&path, "allowed_share = 2.0").unwrap();
        assert!(format!("{:#}", Recorded::read(&path).unwrap_err()).contains("holds no recorded counts"));
    }
}
