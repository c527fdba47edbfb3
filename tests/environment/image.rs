//! The image of a container: its parts are those that it names, and a gateway runs from it with nothing else around.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tollgate_test_support::deployment::Plan;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::turn;

use crate::packages;
use crate::site::Site;

/// What an engine gives a container: its files, its devices, a root that nobody writes to.
const SURROUNDINGS: &str = "\
mount --bind $root $root; mount -o remount,ro,bind $root; mount -t proc none $root/proc; mount -t sysfs -o ro none $root/sys; \
mount -t tmpfs none $root/dev; mkdir $root/dev/net; mknod -m 666 $root/dev/net/tun c 10 200; \
for name in null urandom; do touch $root/dev/$name; mount --bind /dev/$name $root/dev/$name; done; \
for folder in run/tollgate tmp var/lib/tollgate; do mount -t tmpfs none $root/$folder; done; \
mount --bind -o ro $files $root/etc/tollgate; \
exec env -i NO_COLOR=1 RUST_LOG=info PATH=/usr/sbin:/usr/bin chroot $root /usr/bin/tollgate serve --config /etc/tollgate/server.toml";

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A part of an image, by what another part says of it.
fn part(image: &Path, told: &Value) -> PathBuf {
    let digest = told["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = image.join("blobs/sha256").join(digest);
    assert_eq!(fs::metadata(&path).unwrap().len(), told["size"].as_u64().unwrap());
    assert!(run(Command::new("sha256sum").arg(&path)).starts_with(digest));
    path
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
#[ignore = "needs root, nft and Quincy's programs: cargo xtask test --full"]
fn a_gateway_serves_and_masquerades_from_the_image_alone() {
    let peers = Peers::find();
    let _turn = turn::together();
    let folder = tempfile::tempdir().unwrap();
    let made = packages::command(folder.path(), 1).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let archive = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let archive = archive.into_iter().find(|path| path.to_string_lossy().contains("-oci-")).expect("an image");
    let (image, files) = (folder.path().join("image"), folder.path().join("root"));
    [&image, &files].iter().for_each(|folder| fs::create_dir(folder).unwrap());
    run(Command::new("tar").arg("--extract").arg("--file").arg(archive).arg("--directory").arg(&image));
    assert_eq!(read(&image.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let manifest = read(&part(&image, &read(&image.join("index.json"))["manifests"][0]));
    let config = read(&part(&image, &manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/tollgate");
    let layer = part(&image, &manifest["layers"][0]);
    let unpacked = run(Command::new("sh").args(["-ec", "gzip -dc $0 | sha256sum"]).arg(&layer));
    let told = config["rootfs"]["diff_ids"][0].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    assert!(unpacked.starts_with(&told), "{unpacked}: {told}");
    run(Command::new("tar").arg("--extract").arg("--file").arg(layer).arg("--directory").arg(&files));

    let site = Site::with_quincys_own_file(&Plan::default());
    let path = site.deployment.path("server.toml");
    let text = fs::read_to_string(&path).unwrap().replace(site.deployment.folder().to_str().unwrap(), "/etc/tollgate");
    fs::write(&path, format!("{text}\n[host]\nmasquerade = true\n")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", SURROUNDINGS]);
    command.env("root", &files).env("files", site.deployment.folder());
    let gateway = site.start(command);
    let rules = || run(Command::new("nft").args(["list", "table", "ip", "tollgate_tollgate0"]));
    assert!(site.topology.gateway.run(rules).contains("masquerade"));
    site.assert_serves(&peers, gateway);
}
