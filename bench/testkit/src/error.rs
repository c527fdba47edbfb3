//! What can go wrong in the lab, each naming the namespace, process or traffic concerned.

use std::io;
use std::path::{Path, PathBuf};

use tollgate_netlink::NetlinkError;

/// A failure of the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The machine does not offer what the lab needs.
    #[error("{what}; {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What the operator can do about it.
        remedy: &'static str,
    },
    /// A system call about a namespace failed.
    #[error("namespace {namespace}: cannot {operation}: {source}")]
    Namespace {
        /// The namespace's name, for messages only.
        namespace: String,
        /// What was tried.
        operation: String,
        /// The system call's error.
        source: io::Error,
    },
    /// The kernel refused a link, address or route.
    #[error("namespace {namespace}: {source}")]
    Netlink {
        /// The namespace's name, for messages only.
        namespace: String,
        /// The refusal.
        source: NetlinkError,
    },
    /// A system call about a child process failed.
    #[error("process {process}: cannot {operation}: {source}")]
    Process {
        /// The process's name and, once started, its ID.
        process: String,
        /// What was tried.
        operation: &'static str,
        /// The system call's error.
        source: io::Error,
    },
    /// A child process did not do in time what was awaited.
    #[error("process {process}: {awaited} did not come: {reason}; its last lines:\n{last_lines}")]
    Awaited {
        /// The process's name and ID.
        process: String,
        /// What was waited for.
        awaited: String,
        /// Why the wait ended.
        reason: String,
        /// The end of what the process printed.
        last_lines: String,
    },
    /// Test traffic could not be sent or received.
    #[error("{traffic}: cannot {operation}: {source}")]
    Traffic {
        /// The kind of traffic and its peer.
        traffic: String,
        /// What was tried.
        operation: &'static str,
        /// The system call's error, or a timeout.
        source: io::Error,
    },
    /// A file could not be made.
    #[error("cannot {operation} {}: {source}", path.display())]
    Files {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
    /// A plan asks for what the lab does not do.
    #[error("{plan}: {field} is {value}, but must be {bounds}")]
    Plan {
        /// The kind of plan.
        plan: &'static str,
        /// The field in question.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        bounds: String,
    },
}

impl LabError {
    pub(crate) fn files(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Files { operation, path: path.to_owned(), source }
    }

    pub(crate) fn traffic(traffic: impl Into<String>, operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Traffic { traffic: traffic.into(), operation, source: source.into() }
    }

    pub(crate) fn timed_out(traffic: impl Into<String>, operation: &'static str, state: String) -> Self {
        Self::Traffic {
            traffic: traffic.into(),
            operation,
            source: io::Error::new(io::ErrorKind::TimedOut, format!("out of time, {state}")),
        }
    }
}
