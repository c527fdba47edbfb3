//! What an operator and a running gateway say to each other: one JSON object a line each way, an [`Answer`] to each [`Request`], in order.
//!
//! Each says its [`VERSION`]; what says none is of before there was one, and means the same. Keys that a side does not know are ignored, and keys may be
//! left out where a default is named, so that either side may be the newer one.
//!
//! This module knows no deadline.

mod lines;
mod rows;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::gateway::{HostReport, LimitOrder, Report, State, Status};
use crate::usage::{Day, PAGE_ROWS_MAX, Period};

pub use lines::{LineError, Lines, Next};
pub use rows::{ConnectionRow, Place, UsageRow, UserRow};

/// The version of requests and answers. Keys and orders may be added to it.
pub const VERSION: u32 = 1;

/// Longest request, in bytes, the end of the line not counted.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// Longest answer, in bytes, the end of the line not counted. All problems of a configuration that is broken everywhere fit in, the reports of all
/// shards, and [`ROWS_MAX`] rows.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Rows in an answer.
pub const ROWS_MAX: usize = PAGE_ROWS_MAX;

/// How the answer begins to what is no order, or one that only newer gateways know.
pub const NO_ORDER: &str = "this is no order in JSON";

/// Of a version that is not known, what an error shows.
const VERSION_CHARS_MAX: usize = 20;

/// What an operator wants. On the line, for example: `{"version":1,"order":"kick","user":"alice"}`; docs/operation.md has them all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Request {
    /// Read the configuration again and put it in force.
    Reload {
        /// Whether also if few of the users in force would remain.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Close a user's connections.
    Kick {
        /// The user's name.
        user: String,
    },
    /// Take no new clients, and send those that are there away at an even pace.
    Drain {
        /// After so many milliseconds whoever is left goes at once.
        within_ms: u64,
        /// Clients in a second; without it the last one goes at the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate_per_s: Option<u32>,
    },
    /// Take clients again.
    Resume,
    /// Give a user another limit.
    Limit {
        /// The user's name.
        user: String,
        /// The limit.
        to: LimitOrder,
    },
    /// Log something else.
    LogLevel {
        /// As in `[log] level`; without one, what the file says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        filter: Option<String>,
    },
    /// Have another process take over, and send the clients of this one away.
    Upgrade {
        /// The program, an absolute path; without one what this process was started with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<PathBuf>,
        /// After so many milliseconds whoever is left goes at once.
        within_ms: u64,
        /// Clients in a second; without it the last one goes at the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate_per_s: Option<u32>,
    },
    /// Say how the gateway stands.
    Status {
        /// Also each shard's counters.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        shards: bool,
    },
    /// Say who is online and how much, in the order of names.
    Users {
        /// Those behind this one; without one, from the first on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Place>,
    },
    /// Say which connections there are, in the order of their users' names and their addresses.
    Connections {
        /// This user's only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Those behind this one; without one, from the first on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Place>,
    },
    /// Say what users have carried in all, in the order of names and days.
    Usage {
        /// This user's only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// How it is summed.
        #[serde(default)]
        period: Period,
        /// Of this day (UTC) and later ones only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Day>,
        /// Rows behind this one; without one, from the first on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Place>,
    },
    /// Forget what a user has carried so far.
    ForgetUsage {
        /// The user's name.
        user: String,
    },
}

impl Request {
    /// Whether more than an answer comes of it.
    pub fn changes_something(&self) -> bool {
        match self {
            Request::Status { .. } | Request::Users { .. } | Request::Connections { .. } | Request::Usage { .. } => {
                false
            }
            Request::Reload { .. } | Request::Kick { .. } | Request::Drain { .. } | Request::Resume => true,
            Request::Limit { .. } | Request::LogLevel { .. } | Request::Upgrade { .. } => true,
            Request::ForgetUsage { .. } => true,
        }
    }
}

/// What came of it. On the line, for example: `{"version":1,"done":true,"lines":["..."],"epoch":3}`, or `{"version":1,"done":false,"lines":["..."]}`
/// with every reason why not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the order was carried out, on every shard.
    pub done: bool,
    /// For people: what was done, or each reason why not.
    #[serde(default)]
    pub lines: Vec<String>,
    /// The number of the epoch in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Connections that were closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_connections: Option<u64>,
    /// What the gateway is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// Clients that have logged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
    /// How many milliseconds it takes until all have been sent away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drains_for_ms: Option<u64>,
    /// The process that serves from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// From the order to its acknowledgement by the last shard, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<f64>,
    /// Users who are online.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<UserRow>>,
    /// Connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Vec<ConnectionRow>>,
    /// What users have carried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Vec<UsageRow>>,
    /// The last row, where there are more behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Place>,
    /// What is logged, where that is by order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// The report of each shard that has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<Vec<Report>>,
    /// What was put back on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReport>,
    /// Shards that have not answered in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<Vec<u16>>,
}

impl Answer {
    /// What was done.
    pub fn done(lines: Vec<String>) -> Self {
        Answer { done: true, lines, ..Answer::default() }
    }

    /// A refusal.
    pub fn refused(reasons: Vec<String>) -> Self {
        Answer { lines: reasons, ..Answer::default() }
    }

    /// The same with all that `status` says.
    #[must_use]
    pub fn with_shards(self, status: Status) -> Self {
        let Status { shards, host, unanswered } = status;
        Answer { shards: Some(shards), host: Some(host), unanswered: Some(unanswered), ..self }
    }
}

/// A request or an answer as it is on the line.
#[derive(Serialize)]
struct Versioned<'m, M> {
    version: u32,
    #[serde(flatten)]
    message: &'m M,
}

/// What is looked at before anything else of a line.
#[derive(Deserialize)]
struct Head {
    version: Option<Value>,
}

/// Why a line is not understood.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is no JSON, or none of what is expected.
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
    /// It is of another version.
    #[error("version {0} is not known here, only version {VERSION} is")]
    Version(String),
}

/// `message` as it goes on the line.
///
/// # Panics
///
/// Never: requests and answers can always be written.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let versioned = Versioned { version: VERSION, message };
    let mut line = serde_json::to_vec(&versioned).expect("strings and numbers can always be written");
    line.push(b'\n');
    line
}

/// The request or the answer in `line`.
///
/// # Errors
///
/// If it is none, or of a version that is not known.
pub fn decode<'l, M: Deserialize<'l>>(line: &'l [u8]) -> Result<M, MessageError> {
    match serde_json::from_slice::<Head>(line)?.version {
        Some(version) if version != VERSION => {
            Err(MessageError::Version(version.to_string().chars().take(VERSION_CHARS_MAX).collect()))
        }
        _ => Ok(serde_json::from_slice(line)?),
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::SHARDS_MAX;

    use super::*;

    #[test]
    fn both_sides_ignore_what_they_do_not_know() {
        let request: Request = serde_json::from_str(r#"{"order":"kick","user":"alice","politely":true}"#).unwrap();
        assert_eq!(request, Request::Kick { user: "alice".into() });
        let answer: Answer = serde_json::from_str(r#"{"done":true,"mood":"good"}"#).unwrap();
        assert_eq!(answer, Answer { done: true, ..Answer::default() });
        for (line, force) in
            [(r#"{"version":1,"order":"reload"}"#, false), (r#"{"version":1,"order":"reload","force":true}"#, true)]
        {
            let request: Request = decode(line.as_bytes()).unwrap();
            assert_eq!(request, Request::Reload { force });
            assert_eq!(encode(&request), [line.as_bytes(), b"\n"].concat());
        }
        let unknown = serde_json::from_str::<Request>(r#"{"order":"dance"}"#).unwrap_err().to_string();
        assert!(unknown.contains("dance") && unknown.contains("reload"), "{unknown}");
    }

    #[test]
    fn what_is_written_is_read() {
        let answer = Answer { done: true, lines: vec!["a\nb".into()], epoch: Some(3), ..Answer::default() };
        let line = encode(&answer);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<Answer>(&line).unwrap(), answer);
        let request = Request::Kick { user: "Zoë \"z\"".into() };
        assert_eq!(serde_json::from_slice::<Request>(&encode(&request)).unwrap(), request);
    }

    #[test]
    fn the_reports_of_as_many_shards_as_there_may_be_fit_into_an_answer() {
        let report = serde_json::to_string(&Report::default()).unwrap();
        // Each figure may have twenty digits.
        let longest_bytes = report.len() + 20 * report.matches(':').count();
        assert!(usize::from(SHARDS_MAX) * longest_bytes < ANSWER_BYTES_MAX, "{longest_bytes}");
    }

    #[test]
    fn a_version_is_said_and_one_that_is_not_known_is_refused_by_name() {
        let version = |message: Vec<u8>| serde_json::from_slice::<Value>(&message).unwrap()["version"].clone();
        assert_eq!([version(encode(&Request::Resume)), version(encode(&Answer::default()))], [VERSION, VERSION]);
        for line in [r#"{"order":"resume"}"#, r#"{"version":1,"order":"resume"}"#, r#"{"order":"resume","version":1}"#]
        {
            assert_eq!(decode::<Request>(line.as_bytes()).unwrap(), Request::Resume);
        }
        for (version, shown) in
            [("2", "version 2 "), ("0", "version 0 "), ("\"1\"", "version \"1\" "), ("[[[]]]", "[[[]]]")]
        {
            let line = format!(r#"{{"version":{version},"order":"dance"}}"#);
            let error = decode::<Request>(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(shown) && error.contains("only version 1"), "{error}");
        }
        let long = format!(r#"{{"version":"{}"}}"#, "x".repeat(1000));
        assert!(decode::<Answer>(long.as_bytes()).unwrap_err().to_string().len() < 100);
    }
}
