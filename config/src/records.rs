//! The tables `[audit]` and `[events]`: records of who did what, which name clients.

use std::path::PathBuf;
use std::time::Duration;

use crate::environment::STATE_FOLDER;
use crate::kind::{FilePlace, choice, path, seconds, switch};
use crate::schema::{RESTART, table};

/// Names of the files where none are configured, in the folder of what outlives the process.
pub(crate) const AUDIT_FILE_NAME: &str = "audit.jsonl";
pub(crate) const EVENTS_FILE_NAME: &str = "events.jsonl";

/// How soon a line is on the disk, and not only with the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sync {
    /// When the kernel writes it: a crash of the machine may cost half a minute.
    Never,
    /// Within a second.
    #[default]
    Second,
    /// Before the next lines are written.
    Event,
}

const SYNCS: [(&str, Sync); 3] = [("never", Sync::Never), ("second", Sync::Second), ("event", Sync::Event)];

/// RFC 2869, section 2.1: the period of interim updates must not be shorter than a minute.
const INTERIM_S_MIN: u64 = 60;
const INTERIM_S_MAX: u64 = 86_400;

table! {
    /// Who has connected, left, been refused and given orders.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Audit of Tollgate {
        /// Whether an audit log is written: objects of JSON, one a line. It names clients by their addresses, inside and outside.
        "enabled" => enabled: bool = false, switch(), RESTART;
        /// The file. Made where it is not there, readable by its owner only. A reload, and a file that was moved away, have it opened anew.
        "file" => file: FilePlace = FilePlace::unconfigured(STATE_FOLDER, AUDIT_FILE_NAME),
            FilePlace::kind(path("write the path of a file")), RESTART;
        /// When lines are on the disk for certain: "never" leaves that to the kernel, "second" sees to it within a second, "event" before further
        /// lines are written.
        "fsync" => sync: Sync = Sync::Second, choice(&SYNCS), RESTART;
    }
}

table! {
    /// When sessions have begun and ended and what they have carried, as RADIUS accounting (RFC 2866) has it.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Events of Tollgate {
        /// Whether events of sessions are written: objects of JSON, one a line. They name clients by their addresses, inside and outside.
        "enabled" => enabled: bool = false, switch(), RESTART;
        /// The file, as that of the audit log.
        "file" => file: FilePlace = FilePlace::unconfigured(STATE_FOLDER, EVENTS_FILE_NAME),
            FilePlace::kind(path("write the path of a file")), RESTART;
        /// A Unix socket, of datagrams or a stream, where a program listens. Then no file is written.
        "socket" => socket: Option<PathBuf> = None, path("write the path of a Unix socket").optional("the file is written"),
            RESTART.example("\"/run/accounting/events\"");
        /// When lines are on the disk for certain, as those of the audit log.
        "fsync" => sync: Sync = Sync::Second, choice(&SYNCS), RESTART;
        /// How often it is written what a session has carried so far, in seconds.
        "interim_interval_s" => interim_interval: Duration = Duration::from_secs(300), seconds(INTERIM_S_MIN..=INTERIM_S_MAX), RESTART;
    }
}
