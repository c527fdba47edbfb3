//! On what machine, and from which sources, a result was made. What cannot be found out is left out, never guessed.

use std::fs;
use std::process::Command;
use std::thread;

use serde::{Deserialize, Serialize};

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name for itself.
    pub cpu: Option<String>,
    /// How many CPUs this process may use.
    pub cpus: Option<usize>,
    /// The memory in bytes.
    pub memory_bytes: Option<u64>,
    /// The kernel's release.
    pub kernel: Option<String>,
}

impl Machine {
    /// The one that this process runs on.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").map(str::to_owned),
            cpus: thread::available_parallelism().ok().map(Into::into),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal").and_then(bytes_of_kib),
            kernel: (!kernel.is_empty()).then_some(kernel),
        }
    }
}

/// The commit of the sources that this program was built from, with `-dirty` when they have been changed since; `None` without git.
pub fn commit() -> Option<String> {
    let described = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"])
        .output()
        .ok()?;
    let text = String::from_utf8(described.stdout).ok()?.trim().to_owned();
    (described.status.success() && !text.is_empty()).then_some(text)
}

/// The value of the first line `NAME : VALUE`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn bytes_of_kib(text: &str) -> Option<u64> {
    text.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_kernels_tables_are_read() {
        let table = "processor\t: 0\nmodel name\t: A : B\nmodel name\t: C\nMemTotal:       16 kB\n";
        assert_eq!(field(table, "model name"), Some("A : B"));
        assert_eq!(field(table, "MemTotal").and_then(bytes_of_kib), Some(16_384));
        assert_eq!(field(table, "model"), None);
        assert_eq!(bytes_of_kib("16 MB"), None);
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let machine = Machine::here();
        assert!(machine.kernel.is_some_and(|kernel| kernel.contains('.')));
        assert!(machine.memory_bytes.is_some_and(|bytes| bytes > 1 << 20));
    }
}
