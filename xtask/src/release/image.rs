//! An image of a container, in the layout of the Open Container Initiative, made without an engine: the program, nft, and the libraries of both.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::layout::put;
use super::{Release, run, say, sha256, tar};

/// What the gateway runs beside itself, for `[host]`.
const NFT: &str = "/usr/sbin/nft";
/// Folders that it writes to, or that belong to any root.
const FOLDERS: [&str; 8] =
    ["run/tollgate", "var/lib/tollgate", "etc/tollgate", "tmp", "proc", "sys", "dev", "usr/sbin"];
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Makes the image, and returns where it is: an archive that `docker load` and `skopeo copy oci-archive:` take.
pub fn image(release: &Release<'_>) -> Result<PathBuf> {
    let Release { version, architecture, epoch, to, .. } = release;
    let stage = to.join("stage/image");
    fs::create_dir_all(&stage)?;
    let root = fill(release, &to.join("stage/image-root"))?;
    let layer = stage.join("layer.tar.gz");
    tar(&root, *epoch, &[], &layer)?;
    let unpacked = say(Command::new("sh").args(["-ec", "gzip -dc \"$0\" | sha256sum"]).arg(&layer))?;
    let layer = Blob::keep(&stage, LAYER, &layer)?;
    let created = say(Command::new("date").args(["--utc", "--iso-8601=seconds"]).arg(format!("--date=@{epoch}")))?;
    let config = json!({
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/sbin:/usr/bin"],
            "Entrypoint": ["/usr/bin/tollgate"],
            "Cmd": ["serve", "--config", "/etc/tollgate/server.toml"],
            "Volumes": { "/var/lib/tollgate": {} },
            "ExposedPorts": { "55555/udp": {} },
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "tollgate",
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", unpacked.split(' ').next().unwrap_or_default())] },
    });
    let config = Blob::write(&stage, CONFIG, &config)?;
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config.told(), "layers": [layer.told()] });
    let mut manifest = Blob::write(&stage, MANIFEST, &manifest)?.told();
    manifest["annotations"] = json!({
        "org.opencontainers.image.ref.name": version,
        "io.containerd.image.name": format!("tollgate:{version}"),
    });
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest] });
    put(&stage.join("index.json"), index.to_string().as_bytes(), 0o644)?;
    put(&stage.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    let path = to.join(format!("tollgate-{version}-oci-{architecture}.tar"));
    let mut pack = Command::new("tar");
    pack.args(["--create", "--sort=name", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner"]);
    run(pack.arg(format!("--mtime=@{epoch}")).arg("--file").arg(&path).arg("--directory").arg(&stage).args([
        "blobs",
        "index.json",
        "oci-layout",
    ]))?;
    Ok(path)
}

/// Lays the image's root out at `root`.
fn fill(release: &Release<'_>, root: &Path) -> Result<PathBuf> {
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder))?;
    }
    ensure!(Path::new(NFT).exists(), "{NFT} is missing: apt-get install nftables, or --no-image");
    let program = release.layout.root.join("usr/bin/tollgate");
    put(&root.join("usr/bin/tollgate"), &fs::read(&program)?, 0o755)?;
    put(&root.join(&NFT[1..]), &fs::read(NFT)?, 0o755)?;
    put(&root.join("etc/passwd"), b"root:x:0:0:root:/:/usr/sbin/nologin\n", 0o644)?;
    put(&root.join("etc/group"), b"root:x:0:\n", 0o644)?;
    let mut packages = BTreeSet::from(["nftables".to_owned()]);
    for library in libraries(&[&program, Path::new(NFT)])? {
        let bytes = fs::read(&library).with_context(|| library.display().to_string())?;
        put(&root.join(library.strip_prefix("/").unwrap_or(&library)), &bytes, 0o755)?;
        packages.insert(package_of(&library)?);
    }
    // Whoever passes programs of others on passes on what their licences ask for.
    for package in packages {
        let path = format!("usr/share/doc/{package}/copyright");
        let text = fs::read(Path::new("/").join(&path)).with_context(|| path.clone())?;
        put(&root.join(&path), &text, 0o644)?;
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        put(&root.join("usr/share/doc/tollgate").join(licence), &fs::read(release.root.join(licence))?, 0o644)?;
    }
    Ok(root.to_owned())
}

/// The libraries that programs are linked with, and the linker, where the programs look for them.
fn libraries(programs: &[&Path]) -> Result<BTreeSet<PathBuf>> {
    let said = say(Command::new("ldd").args(programs))?;
    let paths = said.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    Ok(paths.map(PathBuf::from).collect())
}

/// The package of Debian that a library is of. The folders that once were apart are links now, and dpkg knows some files by the one, some by the other.
fn package_of(library: &Path) -> Result<String> {
    let real = fs::canonicalize(library)?;
    let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let said = say(Command::new("dpkg-query").arg("--search").arg(format!("*/{name}")))?;
    let package = said.lines().next().and_then(|line| line.split([':', ',']).next());
    package.map(str::to_owned).with_context(|| format!("dpkg knows no package of {}", real.display()))
}

/// A part of an image, kept under its sum.
struct Blob {
    media_type: &'static str,
    sum: String,
    bytes: u64,
}

impl Blob {
    fn write(stage: &Path, media_type: &'static str, text: &serde_json::Value) -> Result<Self> {
        let path = put(&stage.join("blob"), text.to_string().as_bytes(), 0o644)?;
        Self::keep(stage, media_type, &path)
    }

    fn keep(stage: &Path, media_type: &'static str, path: &Path) -> Result<Self> {
        let (sum, bytes) = (sha256(path)?, fs::metadata(path)?.len());
        fs::create_dir_all(stage.join("blobs/sha256"))?;
        fs::rename(path, stage.join("blobs/sha256").join(&sum))?;
        Ok(Blob { media_type, sum, bytes })
    }

    /// As other parts name it.
    fn told(&self) -> serde_json::Value {
        json!({ "mediaType": self.media_type, "digest": format!("sha256:{}", self.sum), "size": self.bytes })
    }
}
