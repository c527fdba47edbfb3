//! A package of Debian. dpkg's own tools make it of the layout.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::layout::put;
use super::{Release, run, say};

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Makes the package, and returns where it is.
pub fn package(release: &Release<'_>) -> Result<PathBuf> {
    let Release { root, layout, version, revision, architecture, epoch, to, .. } = release;
    let stage = to.join("stage/debian");
    run(Command::new("cp").arg("--archive").arg(&layout.root).arg(&stage))?;
    put(&stage.join("usr/share/doc/tollgate/copyright"), COPYRIGHT.as_bytes(), 0o644)?;
    let sums = say(Command::new("sh")
        .args(["-ec", "find usr -type f | LC_ALL=C sort | xargs -d '\\n' md5sum"])
        .current_dir(&stage))?;
    let control = stage.join("DEBIAN");
    fs::create_dir_all(&control)?;
    fs::set_permissions(&control, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    put(&control.join("md5sums"), format!("{sums}\n").as_bytes(), 0o644)?;
    for script in SCRIPTS {
        let text =
            fs::read(root.join("packages/debian").join(script)).with_context(|| format!("packages/debian/{script}"))?;
        put(&control.join(script), &text, 0o755)?;
    }
    let (depends, size) =
        (libraries(release)?, say(Command::new("du").args(["-sk", "--apparent-size"]).arg(stage.join("usr")))?);
    let size = size.split('\t').next().unwrap_or("0");
    let text = format!(
        "Package: tollgate\nVersion: {version}-{revision}\nArchitecture: {architecture}\nSection: net\nPriority: optional\n\
         Maintainer: Tollgate contributors <packages@tollgate.invalid>\nInstalled-Size: {size}\n\
         Depends: {depends}, init-system-helpers, passwd\nRecommends: nftables\nSuggests: ethtool, prometheus\n\
         Homepage: {}\nDescription: {}\n One shard a core, QUIC datagrams, TLS 1.3 or Noise. Serves Quincy's clients with Quincy's files.\n",
        env!("CARGO_PKG_REPOSITORY"),
        "QUIC VPN gateway that scales by the core"
    );
    put(&control.join("control"), text.as_bytes(), 0o644)?;
    // A draft is unpacked at once.
    let compression = if release.is_draft { "-Zgzip" } else { "-Zxz" };
    let path = to.join(format!("tollgate_{version}-{revision}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    build.arg("--root-owner-group").arg(compression).arg("--build").arg(&stage).arg(&path);
    say(build.env("SOURCE_DATE_EPOCH", epoch.to_string()))?;
    Ok(path)
}

/// The packages whose libraries the program takes, as dpkg knows them.
fn libraries(release: &Release<'_>) -> Result<String> {
    let folder = release.to.join("stage/shlibs");
    put(&folder.join("debian/control"), b"Source: tollgate\n\nPackage: tollgate\nArchitecture: any\n", 0o644)?;
    let mut ask = Command::new("dpkg-shlibdeps");
    let said = say(ask.arg("-O").arg(release.layout.root.join("usr/bin/tollgate")).current_dir(folder))?;
    let depends = said.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    depends.map(str::to_owned).with_context(|| format!("dpkg-shlibdeps says {said}"))
}

/// Debian's machine-readable form.
const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: tollgate

Files: *
Copyright: Tollgate contributors
License: MIT or Apache-2.0
 The texts are beside this file: LICENSE-MIT and LICENSE-APACHE.
";
