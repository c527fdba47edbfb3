//! The part of the file system that a process that serves may touch (landlock(7)): what libraries read of the kernel, and the folders of what the gateway
//! writes. Files of the configuration are opened by the helper.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    make_bitflags, path_beneath_rules,
};
use tollgate_config::ServerConfig;

use crate::{records, whole_file};

/// Rights that this program knows of. An older kernel has some of them.
const KNOWN: ABI = ABI::V6;
/// Of the kernel: this process, memory, CPUs, the control group, and what takes a descriptor's place.
const READ: [&str; 5] = ["/proc/self", "/proc/meminfo", "/sys/devices/system", "/sys/fs/cgroup", "/dev/null"];
const WRITTEN: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{ReadFile | WriteFile | ReadDir | MakeReg | RemoveFile | Truncate});

/// What a process that serves has of the file system for good.
#[derive(Debug)]
pub struct Paths {
    /// Beside what libraries read.
    read: Option<&'static str>,
    /// What is in them is written, made and removed.
    written: Vec<PathBuf>,
    /// What is in them is removed.
    emptied: Vec<PathBuf>,
}

impl Paths {
    /// Those of a gateway of `config`. Makes the folders that are missing, as far as that is possible.
    pub fn of(config: &ServerConfig) -> Self {
        let usage = config.usage.enabled.then_some(&*config.usage.file.path);
        let written = usage.into_iter().chain(records::files(config)).flat_map(folders).collect();
        Paths { read: records::read_file(config), written, emptied: folders(&config.control.socket.path).collect() }
    }

    /// Leaves the calling thread, and those that it starts, nothing else. Says whether the kernel sees to that.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn leave(&self) -> Result<bool, RulesetError> {
        // A path that is not there has no rule.
        let read =
            path_beneath_rules(READ.into_iter().chain(self.read), AccessFs::from_read(KNOWN) & !AccessFs::Execute);
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::ConnectTcp)?
            .create()?
            .add_rules(read)?
            .add_rules(path_beneath_rules(&self.written, WRITTEN))?
            .add_rules(path_beneath_rules(&self.emptied, AccessFs::RemoveFile))?;
        Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
    }
}

/// The folder of the file at `path`, and where that is a link, of what it leads to.
fn folders(path: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = whole_file::folder(path);
    let _ = fs::create_dir_all(folder);
    let linked = fs::canonicalize(path).ok().map(|real| whole_file::folder(&real).to_owned());
    [folder.to_owned()].into_iter().chain(linked)
}
