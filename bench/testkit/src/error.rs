//! What can go wrong in the lab, in one line that names the namespace, process or traffic concerned.

use std::fmt::Display;
use std::io;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LabError(String);

impl LabError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        LabError(what.into())
    }

    pub(crate) fn namespace(name: &str, operation: &str, source: impl Display) -> Self {
        LabError(format!("namespace {name}: cannot {operation}: {source}"))
    }

    pub(crate) fn process(name: &str, operation: &str, source: impl Display) -> Self {
        LabError(format!("process {name}: cannot {operation}: {source}"))
    }

    pub(crate) fn files(operation: &str, path: &Path, source: impl Display) -> Self {
        LabError(format!("cannot {operation} {}: {source}", path.display()))
    }

    pub(crate) fn traffic(traffic: impl Display, operation: &str, source: impl Into<io::Error>) -> Self {
        LabError(format!("{traffic}: cannot {operation}: {}", source.into()))
    }
}
