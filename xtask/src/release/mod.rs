//! The packages of a release, all laid out once: a package of Debian, an archive, an image of a container.
//!
//! The same sources and compiler give the same packages, byte for byte: times are those of the commit, owners root, names sorted.

mod debian;
mod image;
mod layout;
mod notices;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::layout::Layout;
use super::{cargo, docs, house, run};

/// Seconds that guards may take before a release.
const GUARDS_SECONDS: u64 = 60;

#[derive(Debug, Args)]
pub struct Options {
    /// Where they go
    #[arg(long, value_name = "FOLDER", default_value = "target/release-packages")]
    to: PathBuf,
    /// The number of the package among those of one version
    #[arg(long, value_name = "N", default_value_t = 1)]
    revision: u32,
    /// Make them of the tree as it is, without the checks that a release needs
    #[arg(long)]
    draft: bool,
    /// Pack this program instead of building one
    #[arg(long, value_name = "PATH", requires = "draft")]
    binary: Option<PathBuf>,
    /// Without the image of a container, which takes the libraries and nft of this machine
    #[arg(long)]
    no_image: bool,
}

/// What all packages are made of.
pub struct Release<'r> {
    pub root: &'r Path,
    pub layout: &'r Layout,
    pub version: String,
    pub revision: u32,
    pub is_draft: bool,
    /// As Debian calls it.
    pub architecture: String,
    /// Seconds since 1970 that each file bears.
    pub epoch: u64,
    /// Where packages go.
    pub to: PathBuf,
}

/// Checks the tree, builds the program, makes the packages and prints what has come of it.
pub fn run_all(root: &Path, options: &Options) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    if !options.draft {
        check(root, &version)?;
    }
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            // Without the demo and what that brings.
            let build = ["build", "--package", "tollgate", "--bin", "tollgate", "--no-default-features"];
            cargo(root, build.into_iter().chain(["--profile", "dist", "--locked"]))?;
            root.join("target/dist/tollgate")
        }
    };
    let to = root.join(&options.to);
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) => epoch.parse().context("SOURCE_DATE_EPOCH")?,
        Err(_) => say(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root))?.parse()?,
    };
    let architecture = say(Command::new("dpkg").arg("--print-architecture"))?;
    let layout = Layout::make(root, &binary, &to.join("stage"))?;
    let (revision, is_draft) = (options.revision, options.draft);
    let release = Release { root, layout: &layout, version, revision, is_draft, architecture, epoch, to };
    let mut made = vec![debian::package(&release)?, archive(&release)?];
    if !options.no_image {
        made.push(image::image(&release)?);
    }
    print_table(&release, &made)?;
    fs::remove_dir_all(release.to.join("stage")).context("cannot remove the stage")
}

/// What must hold before anything is released.
fn check(root: &Path, version: &str) -> Result<()> {
    let changed = say(Command::new("git").args(["status", "--porcelain"]).current_dir(root))?;
    ensure!(changed.is_empty(), "the tree has changes that no commit has:\n{changed}");
    let changes = fs::read_to_string(root.join("CHANGELOG.md")).context("CHANGELOG.md")?;
    let has_heading =
        changes.lines().any(|line| line == format!("## {version}") || line.starts_with(&format!("## {version} ")));
    ensure!(has_heading, "CHANGELOG.md has no heading `## {version}`");
    cargo(root, ["fmt", "--all", "--check"])?;
    house(root)?;
    docs(root)?;
    cargo(root, ["deny", "--locked", "check", "--hide-inclusion-graph"])?;
    cargo(root, ["test", "--workspace", "--locked", "--test", "documents", "--test", "configuration"])?;
    super::guards::run(root, &[], "", Some(std::time::Duration::from_secs(GUARDS_SECONDS)))
}

/// A compressed archive with everything below one folder.
fn archive(release: &Release<'_>) -> Result<PathBuf> {
    let Release { layout, version, architecture, epoch, to, .. } = release;
    let name = format!("tollgate-{version}-linux-{architecture}");
    let path = to.join(format!("{name}.tar.gz"));
    tar(&layout.root, *epoch, &[&format!("--transform=s,^\\.,{name},")], &path)?;
    Ok(path)
}

/// Puts what is below `folder` into a compressed archive.
fn tar(folder: &Path, epoch: u64, options: &[&str], to: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner"]);
    command.arg(format!("--mtime=@{epoch}")).args(options).arg("--use-compress-program=gzip -9n");
    run(command.arg("--file").arg(to).arg("--directory").arg(folder).arg("."))
}

/// What a program prints, without the end of its line.
fn say(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?} ended with {}: {said}", command.get_program(), output.status);
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

/// Names, sizes and sums, the last also in a file that `sha256sum --check` takes.
fn print_table(release: &Release<'_>, made: &[PathBuf]) -> Result<()> {
    let mut sums = String::new();
    for path in made {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let sum = sha256(path)?;
        println!("{:>12}  {sum}  {name}", fs::metadata(path)?.len());
        sums += &format!("{sum}  {name}\n");
    }
    let list = release.to.join("SHA256SUMS");
    fs::write(&list, sums).with_context(|| format!("cannot write {}", list.display()))?;
    println!("in {}", release.to.display());
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let said = say(Command::new("sha256sum").arg("--binary").arg(path))?;
    Ok(said.split(' ').next().unwrap_or_default().to_owned())
}
