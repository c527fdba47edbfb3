//! The table `[log]`.

use crate::document::Report;
use crate::kind::{choice, text};
use crate::schema::{Declared, LIVE, RESTART, Section, table};
use crate::table::Table;
use crate::value::{self, LogFilter};

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Lines for people, on standard error.
    #[default]
    Human,
    /// Objects of JSON, one a line, on standard error.
    Json,
    /// Entries of systemd's journal, with a field for each value.
    Journald,
}

const FORMATS: [(&str, LogFormat); 3] =
    [("human", LogFormat::Human), ("json", LogFormat::Json), ("journald", LogFormat::Journald)];

table! {
    /// What is logged, and how.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Level of Quincy {
        /// off, error, warn, info, debug or trace; for parts of the program "info,tollgate_shards=debug". A level
        /// alone is that of Tollgate; libraries are silent unless named, as in "info,quinn_proto=warn".
        "level" => level: LogFilter = LogFilter::default(), text(value::LOG, LogFilter::parse, LogFilter::to_string), LIVE;
    }
}

table! {
    /// How it is logged.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) struct Format of Tollgate {
        /// "human" writes lines for people on standard error, "json" objects with timestamp, level, target, message and values, one a line.
        /// "journald" writes entries of systemd's journal, where a value is a field: journalctl TOLLGATE_USER=alice.
        "format" => format: LogFormat = LogFormat::Human, choice(&FORMATS), RESTART;
    }
}

/// The log of a program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Logging {
    /// What is logged.
    pub level: LogFilter,
    /// How it is written.
    pub format: LogFormat,
}

impl Logging {
    pub(crate) fn read(mut table: Table<'_>, report: &mut Report<'_>) -> Self {
        let (mut level, mut format) = (Level::initial(), Format::initial());
        level.read_keys(&mut table, report);
        format.read_keys(&mut table, report);
        table.finish(report);
        Logging { level: level.level, format: format.format }
    }

    pub(crate) fn section(&self) -> Section {
        let format = Format { format: self.format };
        Level { level: self.level.clone() }.section("log").and(format.section("log"))
    }
}
