//! What holds for the shape of the tree: which folder may import which, names that have gone, comments that say nothing, sizes of files, tests that
//! run alone.
//!
//! `xtask/house.toml` has the lists.

mod comments;
mod imports;
mod names;
mod sizes;
mod source;
mod turns;

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

pub use source::Source;

/// The lists that the tree is held against.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    imports: imports::Rules,
    names: names::Rules,
    sizes: sizes::Rules,
    /// Files and folders whose comments and sizes are not looked at yet.
    pending: Vec<String>,
}

/// Everything that is not in order below `root`, a line each: `path:line: what is wrong and what would be right`.
///
/// # Errors
///
/// When the lists or a source file cannot be read.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let path = root.join("xtask/house.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules: Rules = toml::from_str(&text).context("xtask/house.toml")?;
    let mut sources = source::read(root)?;
    let config =
        std::fs::read_to_string(root.join(turns::PATH)).with_context(|| format!("cannot read {}", turns::PATH))?;
    let mut faults = imports::check(&rules.imports, &sources);
    faults.extend(turns::check(&config, &sources)?);
    faults.extend(names::check(&rules.names, &sources));
    sources.retain(|source| !rules.pending.iter().any(|path| source.path.starts_with(&**path)));
    faults.extend(comments::check(&sources));
    faults.extend(sizes::check(&rules.sizes, &sources));
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_tree_is_in_order() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let faults = super::check(root).unwrap();
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    }
}
