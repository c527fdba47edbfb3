//! The licences of everything that is linked into the program, with the texts that go with its binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::say;

/// How the names of such files begin, in upper case.
const TEXTS: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"];

/// A package of the registry.
struct Package {
    licence: String,
    folder: PathBuf,
}

/// What belongs beside a binary: each package with its licence, and each text once.
pub fn notices(root: &Path) -> Result<String> {
    let packages = packages(root)?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut notices =
        "Tollgate is linked with these packages, each under its own licence. Their texts follow.\n\n".to_owned();
    for name in linked(root)? {
        // Those of the workspace are under the program's own licence.
        let Some(Package { licence, folder }) = packages.get(&name) else { continue };
        writeln!(notices, "{name}: {licence}")?;
        for text in texts_of(folder)? {
            texts.entry(text).or_default().insert(name.clone());
        }
    }
    ensure!(!texts.is_empty(), "no package has the text of a licence");
    for (text, names) in texts {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        write!(notices, "\n{}\n{names}\n\n{}\n", "-".repeat(80), text.trim_end())?;
    }
    Ok(notices)
}

/// Names and versions of all that is linked.
fn linked(root: &Path) -> Result<BTreeSet<String>> {
    let tree = "tree --package tollgate --no-default-features --edges normal --prefix none --format {p} --locked";
    let tree = say(Command::new(env!("CARGO")).args(tree.split(' ')).current_dir(root))?;
    let name = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        Some(format!("{name} {}", rest.split(' ').next()?))
    };
    Ok(tree.lines().filter_map(name).collect())
}

/// Packages of the registry, by name and version.
fn packages(root: &Path) -> Result<BTreeMap<String, Package>> {
    let metadata =
        say(Command::new(env!("CARGO")).args(["metadata", "--format-version", "1", "--locked"]).current_dir(root))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let mut packages = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten().filter(|package| !package["source"].is_null())
    {
        let text = |key: &str| package[key].as_str().with_context(|| format!("a package without {key}: {package}"));
        let licence = text("license").or_else(|_| text("license_file"))?.to_owned();
        let folder = Path::new(text("manifest_path")?).parent().unwrap_or(root).to_owned();
        packages.insert(format!("{} {}", text("name")?, text("version")?), Package { licence, folder });
    }
    Ok(packages)
}

/// Those that a package brings, its own name and the years in them included.
fn texts_of(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.file_type()?.is_file() && TEXTS.iter().any(|text| name.starts_with(text)) {
            texts.push(String::from_utf8_lossy(&fs::read(entry.path())?).into_owned());
        }
    }
    Ok(texts)
}
