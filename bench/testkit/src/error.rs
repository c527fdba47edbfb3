//! What can go wrong in the lab, in one line that names the namespace, process or traffic concerned.

use std::fmt::Display;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LabError(String);

impl LabError {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        LabError(what.into())
    }

    /// Of a namespace, process, file or traffic.
    pub(crate) fn cannot(who: impl Display, operation: &str, source: impl Display) -> Self {
        LabError(format!("{who}: cannot {operation}: {source}"))
    }
}
