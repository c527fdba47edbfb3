//! The table `[shards]`: how many cores the gateway uses, which, and the keys that they share.

use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::document::{Report, Table};
use crate::value;

/// Most shards of one gateway: the shard's index must fit in half a connection-ID byte's values.
pub const SHARDS_MAX: u64 = 128;

/// Most CPU numbers in a list, and one more than the highest: the kernel's CPU_SETSIZE.
pub const CPUS_MAX: u64 = 1024;

/// What `memory_mib` may say: up to 1 TiB.
pub const MEMORY_MIB: RangeInclusive<u64> = 32..=1_048_576;

/// Name of the file of the shared keys, where none is configured, in the folder of what outlives the process.
const KEY_FILE_NAME: &str = "keys";

/// How many shards to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShardCount {
    /// One for each core that the process may use.
    #[default]
    Auto,
    /// So many, at most [`SHARDS_MAX`]; may be more than there are cores.
    Fixed(NonZeroU16),
}

/// The table `[shards]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shards {
    /// How many shards to run.
    pub count: ShardCount,
    /// The CPUs to pin shards to, by number, in this order and then from the start again. Each below [`CPUS_MAX`] and named once, but
    /// not checked against the machine. `None` for all CPUs that the process may use.
    pub cpus: Option<Vec<u16>>,
    /// The file with the keys that all shards share and that outlive a restart: stateless reset and address validation tokens.
    pub key_file: PathBuf,
    /// Whether the configuration names it. Otherwise the gateway can do without.
    pub is_key_file_configured: bool,
    /// What the gateway may take for packets and connections, in bytes; each shard has its part. `None` for half of what the system allows.
    pub memory_bytes: Option<u64>,
}

/// Reads the table.
pub(crate) fn read(mut table: Table<'_>, report: &mut Report<'_>) -> Shards {
    let count = read_count(&mut table, report).unwrap_or_default();
    let cpus = read_cpus(&mut table, report);
    let key_file = table.parsed(report, "key_file", "write the path of a file", value::path);
    let memory_bytes = table.integer(report, "memory_mib", MEMORY_MIB, "MiB").map(|mib| mib << 20);
    table.finish(report);
    let is_key_file_configured = key_file.is_some();
    let key_file = key_file.unwrap_or_else(|| report.state_folder().join(KEY_FILE_NAME));
    Shards { count, cpus, key_file, is_key_file_configured, memory_bytes }
}

fn read_count(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<ShardCount> {
    let expected = "write \"auto\" for one a core, or a whole number from 1 to 128";
    let setting = table.take(report, "count")?;
    if !setting.is_string() {
        let count = setting.integer(report, 1..=SHARDS_MAX, "shards, or \"auto\",")?;
        return NonZeroU16::new(count as u16).map(ShardCount::Fixed);
    }
    // Also of a variable, which is a string whatever it holds.
    setting.parsed(report, expected, |text| match (text.trim(), text.trim().parse::<u16>()) {
        ("auto", _) => Ok(ShardCount::Auto),
        (_, Ok(count)) => NonZeroU16::new(count)
            .filter(|count| u64::from(count.get()) <= SHARDS_MAX)
            .map(ShardCount::Fixed)
            .ok_or_else(|| "which is out of range".into()),
        _ => Err("which is not a choice".into()),
    })
}

fn read_cpus(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<Vec<u16>> {
    let setting = table.take(report, "cpus")?;
    let (place, path) = (setting.place.clone(), setting.path.clone());
    let elements = setting.elements(report, "the number of a CPU, for example [0, 2]")?;
    if elements.is_empty() || elements.len() as u64 > CPUS_MAX {
        let what = format!("names {} CPUs", elements.len());
        report.wrong(place, &path, what, "name at least one, or leave the key out to use all");
        return None;
    }
    let mut cpus: Vec<u16> = Vec::with_capacity(elements.len());
    for element in elements {
        let (place, path) = (element.place.clone(), element.path.clone());
        let Some(cpu) = element.integer(report, 0..=CPUS_MAX - 1, "a CPU") else { continue };
        if cpus.contains(&(cpu as u16)) {
            report.wrong(
                place,
                &path,
                format!("names CPU {cpu} again"),
                "name each CPU once; shards go round the list",
            );
        }
        cpus.push(cpu as u16);
    }
    Some(cpus)
}
