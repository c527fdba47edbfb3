//! A machine with the system's own systemd as its first process, in a network namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tollgate_test_support::pages::root;
use tollgate_test_support::{PATIENCE, eventually};
use tollgate_testkit::{Namespace, Process};

/// What services have in tests: they say to a file what they say, and need nothing that a minimal system lacks.
const DROP_IN: &str =
    "[Unit]\nDefaultDependencies=no\n[Service]\nStandardOutput=append:/out/log\nStandardError=append:/out/log\n";

/// A systemd that has nothing to do but what it is told.
pub struct Manager {
    out: TempDir,
    group: String,
    /// Killed with all that it has started.
    pub process: Process,
    /// Its number outside.
    first: String,
}

impl Manager {
    /// Starts it in `at`, with the `variables` that systemd.sh knows.
    pub fn start(at: &Namespace, variables: &[(&str, &Path)]) -> Self {
        let out = tempfile::tempdir().unwrap();
        let group = out.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.').to_owned();
        let mut command = Command::new("sh");
        command.args(["-ec", include_str!("systemd.sh")]).env("group", &group).env("out", out.path());
        command.env("source", root()).envs(variables.iter().copied());
        let process = at.spawn(command).unwrap();
        let mut manager = Manager { out, group, process, first: String::new() };
        let children = format!("/proc/{0}/task/{0}/children", manager.process.id());
        let has_started = || {
            manager.first = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            !manager.first.is_empty() && manager.run("systemctl show --property=Version").0
        };
        assert!(eventually(PATIENCE, has_started), "{}", manager.process.last_lines());
        manager
    }

    /// On a Debian that has nothing but what `cargo xtask debian` puts there.
    pub fn start_clean(at: &Namespace) -> Self {
        let folder = std::env::var_os("TOLLGATE_DEBIAN").map_or_else(|| root().join("target/debian"), PathBuf::from);
        assert!(folder.join("usr/bin/dpkg").exists(), "there is no Debian at {}: cargo xtask debian", folder.display());
        Self::start(at, &[("lower", &folder)])
    }

    /// Has `service` write what it says to the log, with more `settings`.
    pub fn prepare(&self, service: &str, settings: &str) {
        let folder = format!("/etc/systemd/system/{service}.service.d");
        self.run_done(&format!("mkdir -p {folder}; cat > {folder}/test.conf <<'END'\n{DROP_IN}{settings}\nEND\n"));
    }

    /// A folder of this machine that is /out on that one.
    pub fn out(&self) -> &Path {
        self.out.path()
    }

    /// What runs `commands` inside, as root.
    pub fn command(&self, commands: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first, "--mount", "--net", "--pid", "--root", "--cgroup", "--wd=/"]);
        command.args(["sh", "-euc", commands]).env("SYSTEMD_IGNORE_CHROOT", "1").env("NO_COLOR", "1");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs `commands`. Returns whether they went well, and what they said.
    pub fn run(&self, commands: &str) -> (bool, String) {
        let output = self.command(commands).output().unwrap();
        let complaints = if output.status.success() { Vec::new() } else { output.stderr };
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, complaints].concat()).into_owned())
    }

    pub fn run_done(&self, commands: &str) -> String {
        let (done, said) = self.run(commands);
        assert!(done, "{commands}\n{said}\n{}\n{}", self.log(), self.process.last_lines());
        said
    }

    /// A property of a service.
    pub fn show_of(&self, service: &str, property: &str) -> String {
        self.run_done(&format!("systemctl show {service} --value --property={property}")).trim().to_owned()
    }

    /// A property of the gateway's service.
    pub fn show(&self, property: &str) -> String {
        self.show_of("tollgate", property)
    }

    /// What the kernel says of its main process.
    pub fn kernel_says(&self, of: &str) -> String {
        let status = self.run_done(&format!("cat /proc/{}/status", self.show("MainPID")));
        let value = status.lines().find_map(|line| line.strip_prefix(of)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {of} in {status}")).trim().to_owned()
    }

    /// What services have said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.out.path().join("log")).unwrap_or_default()
    }

    pub fn wait_for_log(&self, words: &str) {
        assert!(eventually(PATIENCE, || self.log().contains(words)), "no {words:?} in\n{}", self.log());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let group = hierarchy.join(&self.group);
            eventually(PATIENCE, || remove_groups(&group));
        }
    }
}

/// Removes a control group and all below it, once nobody is in them. Returns whether it is gone.
fn remove_groups(group: &Path) -> bool {
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    below.filter(|entry| entry.path().is_dir()).for_each(|entry| _ = remove_groups(&entry.path()));
    !group.exists() || fs::remove_dir(group).is_ok()
}
