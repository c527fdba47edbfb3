//! Where each file goes on a machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::notices::notices;
use super::{run, say};

/// Files of the repository, and where they go.
const FILES: [(&str, &str); 17] = [
    ("config/systemd/tollgate.service", "usr/lib/systemd/system/tollgate.service"),
    ("config/systemd/tollgate.conf", "usr/lib/sysusers.d/tollgate.conf"),
    ("config/examples/server.toml", "usr/share/doc/tollgate/examples/server.toml"),
    ("config/examples/users.toml", "usr/share/doc/tollgate/examples/users.toml"),
    ("config/examples/client.toml", "usr/share/doc/tollgate/examples/client.toml"),
    ("config/metrics/alerts.yml", "usr/share/doc/tollgate/examples/alerts.yml"),
    ("config/metrics/dashboard.json", "usr/share/doc/tollgate/examples/dashboard.json"),
    ("docs/quick-start.md", "usr/share/doc/tollgate/quick-start.md"),
    ("docs/migration.md", "usr/share/doc/tollgate/migration.md"),
    ("docs/deployment.md", "usr/share/doc/tollgate/deployment.md"),
    ("docs/operation.md", "usr/share/doc/tollgate/operation.md"),
    ("docs/configuration.md", "usr/share/doc/tollgate/configuration.md"),
    ("docs/metrics.md", "usr/share/doc/tollgate/metrics.md"),
    ("docs/limits.md", "usr/share/doc/tollgate/limits.md"),
    ("LICENSE-MIT", "usr/share/doc/tollgate/LICENSE-MIT"),
    ("LICENSE-APACHE", "usr/share/doc/tollgate/LICENSE-APACHE"),
    ("SECURITY.md", "usr/share/doc/tollgate/SECURITY.md"),
];

/// Shells, and where each looks for what completes commands.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/tollgate"),
    ("zsh", "usr/share/zsh/vendor-completions/_tollgate"),
    ("fish", "usr/share/fish/vendor_completions.d/tollgate.fish"),
];

/// Everything that is installed, below a folder.
pub struct Layout {
    pub root: PathBuf,
}

impl Layout {
    /// Lays out `binary` and what belongs to it below `to`, which is emptied before.
    pub fn make(root: &Path, binary: &Path, to: &Path) -> Result<Self> {
        if to.exists() {
            fs::remove_dir_all(to).with_context(|| format!("cannot empty {}", to.display()))?;
        }
        let layout = Layout { root: to.join("root") };
        let program =
            layout.put("usr/bin/tollgate", &fs::read(binary).with_context(|| binary.display().to_string())?, 0o755)?;
        run(Command::new("strip").arg("--strip-unneeded").arg(&program))?;
        for (from, to) in FILES {
            layout.put(to, &fs::read(root.join(from)).with_context(|| from.to_owned())?, 0o644)?;
        }
        layout.put("usr/share/doc/tollgate/THIRD-PARTY", notices(root)?.as_bytes(), 0o644)?;
        for (shell, to) in COMPLETIONS {
            let script = say(Command::new(&program).args(["completions", shell]))?;
            layout.put(to, format!("{script}\n").as_bytes(), 0o644)?;
        }
        let manual = layout.root.join("usr/share/man/man1");
        fs::create_dir_all(&manual)?;
        run(Command::new(&program).arg("man").arg(&manual).stdout(std::process::Stdio::null()))?;
        let pages = fs::read_dir(&manual)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        ensure!(!pages.is_empty(), "the program has written no man pages");
        run(Command::new("gzip").arg("-9n").args(pages))?;
        layout.set_modes()?;
        Ok(layout)
    }

    /// Writes a file, and returns where it is.
    pub fn put(&self, path: &str, bytes: &[u8], mode: u32) -> Result<PathBuf> {
        put(&self.root.join(path), bytes, mode)
    }

    /// Whatever the umask is.
    fn set_modes(&self) -> Result<()> {
        for entry in walkdir::WalkDir::new(&self.root) {
            let entry = entry?;
            let mode = if entry.file_type().is_dir() || entry.path().ends_with("bin/tollgate") { 0o755 } else { 0o644 };
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// Writes a file with its folders.
pub fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(path.to_owned())
}
