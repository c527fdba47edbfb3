//! The table `[usage]`: what users have carried, kept over restarts, and how much they may carry, of which each user may have an own amount.

use crate::document::Report;
use crate::environment::STATE_FOLDER;
use crate::kind::{FilePlace, amount, path, switch};
use crate::schema::{Declared, LIVE, RESTART, Section, table};
use crate::table::Table;

/// Name of the file of users' usage, where none is configured, in the folder of what outlives the process.
pub(crate) const USAGE_FILE_NAME: &str = "usage.redb";

table! {
    /// How much a user may carry.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Quotas of Tollgate {
        /// How much each user may carry in a day (UTC): UDP payload, both ways together, in decimal multiples of a byte. Then the user's connections are
        /// closed, and none is taken until the next day. A user may have an own amount.
        "quota_per_day" => per_day_bytes: Option<u64> = None, amount().optional("no quota"), LIVE.example("\"50 GB\"");
        /// The same of a month.
        "quota_per_month" => per_month_bytes: Option<u64> = None, amount().optional("no quota"), LIVE.example("\"1 TB\"");
    }
}

impl Quotas {
    /// Reads the keys that `table` has; the others stay. Without usage there are no quotas.
    pub(crate) fn read_own(&mut self, table: &mut Table<'_>, report: &mut Report<'_>, keeps_usage: bool) {
        self.read_keys(table, report);
        for key in ["quota_per_day", "quota_per_month"] {
            if let Some(taken) = table.taken(key).filter(|_| !keeps_usage) {
                let (place, path) = (taken.key.clone(), table.path_of(key));
                report.warn(place, &path, "has no effect where usage is not kept", "set enabled = true in [usage]");
            }
        }
    }

    /// Whether there is none.
    pub fn are_none(&self) -> bool {
        *self == Quotas::default()
    }

    /// Whether so much of a day and of a month is as much as allowed, or more.
    pub fn are_used_up(&self, day_bytes: u64, month_bytes: u64) -> bool {
        let is_over = |quota: Option<u64>, bytes| quota.is_some_and(|quota| bytes >= quota);
        is_over(self.per_day_bytes, day_bytes) || is_over(self.per_month_bytes, month_bytes)
    }
}

table! {
    /// What users have carried, kept over restarts and upgrades.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Usage of Tollgate {
        /// Whether it is counted and kept, for `tollgate usage` and for quotas.
        "enabled" => enabled: bool = false, switch(), RESTART;
        /// The file, of this gateway alone. Made where it is not there, readable by its owner only. Where systemd sets STATE_DIRECTORY, its default is
        /// there. While it cannot be used, the gateway counts in memory, says so in the log, and tries it again.
        "file" => file: FilePlace = FilePlace::unconfigured(STATE_FOLDER, USAGE_FILE_NAME),
            FilePlace::kind(path("write the path of a file")), RESTART;
    }    and {
        /// What each user may carry who has no own amount.
        quotas: Quotas = Quotas::default();
    }
}

impl Usage {
    /// The table with its values.
    pub(crate) fn table(&self) -> Section {
        self.section("usage").and(self.quotas.section("usage"))
    }

    /// Reads the table.
    pub(crate) fn read_table(mut table: Table<'_>, report: &mut Report<'_>) -> Self {
        let mut usage = Usage::initial();
        usage.read_keys(&mut table, report);
        let keeps_usage = usage.enabled;
        usage.quotas.read_own(&mut table, report, keeps_usage);
        table.finish(report);
        usage
    }
}
