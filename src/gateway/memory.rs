//! The bound on memory for others' packets and connections, and the return of free memory to the system.
//!
//! The bound follows the smaller of what the machine has and what the control groups that the process is in allow, on the way to their root.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the program itself takes, in bytes, with its configuration and a few users.
const PROGRAM_BYTES: u64 = 12 << 20;
/// The share of memory that the allocator loses to fragmentation: one part in this many.
const WASTE_SHARE: u64 = 8;
/// A shard's least bound, in bytes: less would not hold its buffers and a few queues.
const SHARD_BYTES_MIN: u64 = 12 << 20;
/// Memory assumed where the system reports none, in bytes.
const UNKNOWN_BYTES: u64 = 512 << 20;
/// Least amount that is worth returning, in bytes.
const TRIM_BYTES_MIN: u64 = 4 << 20;
/// How long a shard must have been idle before its free memory is returned.
const TRIM_DELAY: Duration = Duration::from_secs(1);
/// The same for what has come free since the last time, where the shard has held nothing more meanwhile.
const REST_BYTES_MIN: u64 = 512 << 10;
const REST_DELAY: Duration = Duration::from_secs(5);

/// What each of `shards` may hold, in bytes: its part of what is configured for the whole program, or of half of what the system allows.
pub fn shard_bytes_max(configured_bytes: Option<u64>, shards: usize) -> usize {
    let total = configured_bytes.unwrap_or_else(|| system_bytes_max(Path::new("/")) / 2);
    let held = (total - total / WASTE_SHARE).saturating_sub(PROGRAM_BYTES);
    usize::try_from((held / shards.max(1) as u64).max(SHARD_BYTES_MIN)).unwrap_or(usize::MAX)
}

/// The smaller of the machine's memory and the control groups' limits, as the files below `root` say.
fn system_bytes_max(root: &Path) -> u64 {
    let limits = [physical_bytes(root), control_group_bytes(root)];
    limits.into_iter().flatten().min().unwrap_or(UNKNOWN_BYTES)
}

fn physical_bytes(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit of the groups that the process is in, of either version.
fn control_group_bytes(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        let (is_v2, is_memory) = (number == "0", controllers.split(',').any(|name| name == "memory"));
        (is_v2 || is_memory).then(|| smallest_limit(root, &mounts, Path::new(group), is_v2)).flatten()
    });
    limits.min()
}

/// The smallest limit between `group` and the root of its hierarchy, as far as it is mounted.
fn smallest_limit(root: &Path, mounts: &str, group: &Path, is_v2: bool) -> Option<u64> {
    let (mount, mounted) = mounts.lines().find_map(|line| mount_of(line, is_v2))?;
    // A container may see only its own group, mounted as if it were the root, or name groups outside of what it sees.
    let inside = group.strip_prefix(&mounted).unwrap_or(Path::new(""));
    let inside = if inside.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { inside };
    let mount = root.join(mount.strip_prefix("/").unwrap_or(&mount));
    let files: &[&str] = if is_v2 { &["memory.max", "memory.high"] } else { &["memory.limit_in_bytes"] };
    let folders = inside.ancestors().map(|part| mount.join(part.strip_prefix("/").unwrap_or(part)));
    let limits = folders.flat_map(|folder| files.iter().map(move |file| folder.join(file)));
    limits.filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok()).min()
}

/// Where the hierarchy with the memory controller is mounted, and which of its groups is seen there, from a line of `mountinfo`.
fn mount_of(line: &str, is_v2: bool) -> Option<(PathBuf, PathBuf)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut kind = kind.split_whitespace();
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let is_wanted =
        if is_v2 { name == "cgroup2" } else { name == "cgroup" && options.split(',').any(|option| option == "memory") };
    let mut fields = mount.split_whitespace().skip(3);
    let (group, place) = (fields.next()?, fields.next()?);
    is_wanted.then(|| (place.into(), group.into()))
}

/// Gives memory back to the system once a shard holds much less than it did and is idle.
#[derive(Debug, Default)]
pub struct Trim {
    most_bytes: u64,
    /// Held when there was nothing to do last.
    idle_bytes: u64,
    due: Option<Instant>,
}

impl Trim {
    /// Takes note of what is held when a shard has nothing to do. Returns whether it is time to give memory back.
    pub fn handle_idle(&mut self, now: Instant, held_bytes: u64) -> bool {
        self.idle_bytes = held_bytes;
        let free_bytes = self.most_bytes.saturating_sub(held_bytes);
        if free_bytes < REST_BYTES_MIN {
            self.due = None;
            return false;
        }
        let by = now + if free_bytes < TRIM_BYTES_MIN { REST_DELAY } else { TRIM_DELAY };
        let due = self.due.map_or(by, |due| due.min(by));
        self.due = Some(due);
        if now < due {
            return false;
        }
        (self.most_bytes, self.due) = (held_bytes, None);
        true
    }

    /// Takes note of what is held while there is work.
    pub fn handle_pass(&mut self, held_bytes: u64) {
        self.most_bytes = self.most_bytes.max(held_bytes);
        if held_bytes > self.idle_bytes && self.most_bytes - self.idle_bytes < TRIM_BYTES_MIN {
            self.due = None;
        }
    }

    /// When [`Trim::handle_idle`] is wanted without any work.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }
}

/// Gives all that the allocator has free back to the system. It takes the longer the more that is: for an idle moment.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, from any thread, and takes an integer.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn bytes_max(files: &[(&str, &str)]) -> u64 {
        let meminfo = [("proc/meminfo", "MemTotal:        1048576 kB\nMemFree: 5 kB\n")];
        system_bytes_max(system(&[&meminfo, files].concat()).path())
    }

    #[test]
    fn without_control_groups_it_is_what_the_machine_has() {
        assert_eq!(bytes_max(&[]), 1024 * MIB);
        assert_eq!(system_bytes_max(Path::new("/nowhere")), UNKNOWN_BYTES);
    }

    #[test]
    fn the_smallest_limit_on_the_way_to_the_root_counts() {
        let groups = [
            ("proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "268435456\n"),
        ];
        assert_eq!(bytes_max(&groups), 256 * MIB);
        let high = [("sys/fs/cgroup/a.slice/b.service/memory.high", "134217728\n")];
        assert_eq!(bytes_max(&[&groups[..], &high].concat()), 128 * MIB);
    }

    #[test]
    fn a_container_sees_its_group_as_the_root() {
        let limit = ("sys/fs/cgroup/memory.max", "134217728\n");
        let namespaced = [("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", V2_MOUNT), limit];
        assert_eq!(bytes_max(&namespaced), 128 * MIB);
        let bound = "30 23 0:26 /docker/abc /sys/fs/cgroup ro shared:4 - cgroup2 cgroup rw\n";
        let host = [("proc/self/cgroup", "0::/docker/abc\n"), ("proc/self/mountinfo", bound), limit];
        assert_eq!(bytes_max(&host), 128 * MIB);
        let outside = [("proc/self/cgroup", "0::/../other\n"), ("proc/self/mountinfo", V2_MOUNT), limit];
        assert_eq!(bytes_max(&outside), 128 * MIB);
    }

    #[test]
    fn the_first_version_has_a_hierarchy_for_memory() {
        let mounts = "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      32 23 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";
        let groups = [
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/a/b\n"),
            ("proc/self/mountinfo", mounts),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "67108864\n"),
        ];
        assert_eq!(bytes_max(&groups), 64 * MIB);
    }

    #[test]
    fn what_is_configured_is_divided_among_the_shards() {
        assert_eq!(shard_bytes_max(Some(256 * MIB), 4), 53 << 20);
        assert_eq!(shard_bytes_max(Some(16 * MIB), 4) as u64, SHARD_BYTES_MIN);
    }

    #[test]
    fn memory_is_given_back_once_after_a_flood_and_not_during() {
        let mut trim = Trim::default();
        let start = Instant::now();
        trim.handle_pass(100 * MIB);
        assert!(!trim.handle_idle(start, 99 * MIB), "nothing came free");
        assert!(!trim.handle_idle(start, 10 * MIB), "not at once");
        assert_eq!(trim.poll_timeout(), Some(start + TRIM_DELAY));
        assert!(trim.handle_idle(start + TRIM_DELAY, 10 * MIB));
        assert!(!trim.handle_idle(start + 2 * TRIM_DELAY, 10 * MIB), "once");
        assert_eq!(trim.poll_timeout(), None);
    }
    #[test]
    fn the_rest_is_given_back_once_the_shard_is_quiet() {
        let mut trim = Trim::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        trim.handle_pass(100 * MIB);
        trim.handle_idle(start, 13 * MIB);
        assert!(trim.handle_idle(at(1), 13 * MIB), "but for what is still in use");
        assert!(!trim.handle_idle(at(2), 10 * MIB));
        assert_eq!(trim.poll_timeout(), Some(at(7)));
        trim.handle_pass(11 * MIB);
        assert!(!trim.handle_idle(at(7), 10 * MIB), "there is traffic");
        trim.handle_pass(10 * MIB);
        assert!(trim.handle_idle(at(12), 10 * MIB), "a pass that holds nothing more is none");
        trim.handle_pass(10 * MIB);
        assert!(!trim.handle_idle(at(13), 10 * MIB) && trim.poll_timeout().is_none());
    }
}
