//! The table `[usage]`: what users have carried, kept over restarts.

use crate::environment::STATE_FOLDER;
use crate::kind::{FilePlace, path, switch};
use crate::schema::{RESTART, table};

/// Name of the file of users' usage, where none is configured, in the folder of what outlives the process.
pub(crate) const USAGE_FILE_NAME: &str = "usage.redb";

table! {
    /// What users have carried, kept over restarts and upgrades.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Usage of Tollgate {
        /// Whether it is counted and kept, for `tollgate usage`.
        "enabled" => enabled: bool = false, switch(), RESTART;
        /// The file, of this gateway alone. Made where it is not there, readable by its owner only. Where systemd sets STATE_DIRECTORY, its default is
        /// there. While it cannot be used, the gateway counts in memory, says so in the log, and tries it again.
        "file" => file: FilePlace = FilePlace::unconfigured(STATE_FOLDER, USAGE_FILE_NAME),
            FilePlace::kind(path("write the path of a file")), RESTART;
    }
}
