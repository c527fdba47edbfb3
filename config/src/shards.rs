//! The table `[shards]`.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use tollgate_shards::SHARDS_MAX;

use crate::document::Report;
use crate::environment::STATE_FOLDER;
use crate::kind::{FilePlace, Kind, path, whole};
use crate::schema::{RESTART, table};
use crate::setting::Setting;

/// Most CPU numbers in a list, and one more than the highest: the kernel's CPU_SETSIZE.
const CPUS_MAX: u64 = 1024;

const CPU: &str = "the number of a CPU, for example [0, 2]";

const MEMORY_MIB_MIN: u64 = 32;
/// 1 TiB.
const MEMORY_MIB_MAX: u64 = 1_048_576;

/// Name of the file of the shared keys, where none is configured, in the folder of what outlives the process.
pub(crate) const KEY_FILE_NAME: &str = "keys";

table! {
    /// How many cores the gateway uses, which, and what they share.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Shards of Tollgate {
        /// How many cores work: "auto" for one shard a core, or a number, which may be more than there are cores.
        "count" => count: ShardCount = ShardCount::Auto, shard_count(), RESTART;
        /// Which cores: "cores" for one hardware thread of each core before the others, one NUMA node after the other, "spread" for the same with
        /// NUMA nodes in turn, "pack" for the threads of a core together, or a list of numbers, each named once; the shards go round it. With
        /// "cores", a count of "auto" is one shard a physical core.
        "cpus" => cpus: Option<Cpus> = None, cpus().optional("all that the process may use, by number"), RESTART.example("\"cores\"");
        /// The file with the keys that let clients notice a restarted gateway at once. Made on the first start. Keep it secret. Where systemd sets
        /// STATE_DIRECTORY, its default is there. The gateway does without the default where it cannot be made, and without what is set here never.
        "key_file" => key_file: FilePlace = FilePlace::unconfigured(STATE_FOLDER, KEY_FILE_NAME),
            FilePlace::kind(path("write the path of a file")), RESTART;
        /// How much memory the gateway takes at most, in MiB: 32 and up, and 12 for each further shard. When it is full, the longest queue of
        /// packets gets shorter. Users beyond a few thousand come on top.
        "memory_mib" => memory_bytes: Option<u64> = None,
            memory().optional("half of what the machine has, or the control group allows"), RESTART.example("512");
    }
}

/// How many shards to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShardCount {
    /// One for each core that the process may use.
    #[default]
    Auto,
    /// So many, at most [`SHARDS_MAX`]; may be more than there are cores.
    Fixed(NonZeroU16),
}

impl FromStr for ShardCount {
    type Err = String;

    /// What is wrong is said as the end of a sentence.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text.trim(), text.trim().parse::<u16>()) {
            ("auto", _) => Ok(ShardCount::Auto),
            (_, Ok(count)) => NonZeroU16::new(count)
                .filter(|count| count.get() <= SHARDS_MAX)
                .map(ShardCount::Fixed)
                .ok_or_else(|| "which is out of range".into()),
            _ => Err("which is not a choice".into()),
        }
    }
}

impl fmt::Display for ShardCount {
    /// As a configuration file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShardCount::Auto => f.write_str("\"auto\""),
            ShardCount::Fixed(count) => count.fmt(f),
        }
    }
}

/// The CPUs that shards are pinned to, in this order and then from the start again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cpus {
    /// One hardware thread of each core before the others, one NUMA node after the other.
    Cores,
    /// One hardware thread of each core before the others, NUMA nodes in turn.
    Spread,
    /// The hardware threads of a core together, one NUMA node after the other.
    Pack,
    /// By number. Each below `CPUS_MAX` and named once, but not checked against the machine.
    List(Vec<u16>),
}

impl FromStr for Cpus {
    type Err = String;

    /// What is wrong is said as the end of a sentence.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "cores" => Ok(Cpus::Cores),
            "spread" => Ok(Cpus::Spread),
            "pack" => Ok(Cpus::Pack),
            _ => Err("which is not a choice".into()),
        }
    }
}

impl fmt::Display for Cpus {
    /// As a configuration file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cpus::Cores => f.write_str("\"cores\""),
            Cpus::Spread => f.write_str("\"spread\""),
            Cpus::Pack => f.write_str("\"pack\""),
            Cpus::List(cpus) => write!(f, "{cpus:?}"),
        }
    }
}

fn memory() -> Kind<u64> {
    whole(MEMORY_MIB_MIN..=MEMORY_MIB_MAX, "MiB").map(|mib| mib << 20, |bytes| Some(bytes >> 20))
}

fn shard_count() -> Kind<ShardCount> {
    let expected = format!("write \"auto\" for one a core, or a whole number from 1 to {SHARDS_MAX}");
    let remedy = expected.clone();
    let read = move |setting: Setting<'_>, report: &mut Report<'_>| {
        // A variable is a string whatever it holds.
        if setting.is_string() {
            return setting.parsed(report, &remedy, str::parse);
        }
        let count = (whole(1..=SHARDS_MAX.into(), "shards, or \"auto\",").read)(setting, report)?;
        NonZeroU16::new(count as u16).map(ShardCount::Fixed)
    };
    Kind::new(expected, read, ShardCount::to_string)
}

fn cpus() -> Kind<Cpus> {
    let read = |setting: Setting<'_>, report: &mut Report<'_>| {
        if setting.is_word() {
            return setting.parsed(report, &expected_cpus(), str::parse);
        }
        read_cpus(setting, report).map(Cpus::List)
    };
    Kind::new(expected_cpus(), read, Cpus::to_string)
}

fn expected_cpus() -> String {
    format!("write \"cores\", \"spread\", \"pack\", or a list in brackets; for each element: {CPU}")
}

fn read_cpus(setting: Setting<'_>, report: &mut Report<'_>) -> Option<Vec<u16>> {
    let (place, path) = (setting.place.clone(), setting.path.clone());
    let elements = setting.elements(report, &expected_cpus())?;
    if elements.is_empty() || elements.len() as u64 > CPUS_MAX {
        let what = format!("names {} CPUs", elements.len());
        report.wrong(place, &path, what, "name at least one, or leave the key out to use all");
        return None;
    }
    let mut cpus: Vec<u16> = Vec::with_capacity(elements.len());
    for element in elements {
        let (place, path) = (element.place.clone(), element.path.clone());
        let Some(cpu) = (whole(0..=CPUS_MAX - 1, "a CPU").read)(element, report) else { continue };
        if cpus.contains(&(cpu as u16)) {
            let remedy = "name each CPU once; shards go round the list";
            report.wrong(place, &path, format!("names CPU {cpu} again"), remedy);
        }
        cpus.push(cpu as u16);
    }
    Some(cpus)
}
