//! What went wrong in a netlink request: the operation with its object, and the kernel's reason in words.

use std::io;

/// A failed netlink operation.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused the operation.
    #[error("cannot {operation}: {}{}", meaning(*.errno), .words.as_ref().map(|w| format!(" ({w})")).unwrap_or_default())]
    Refused {
        /// The operation and its object, as in "add address 198.18.0.1/24 to interface #3".
        operation: String,
        /// The positive error number, one of `libc::E*`.
        errno: i32,
        /// The kernel's own sentence, where it sent one.
        words: Option<String>,
    },
    /// The socket itself failed.
    #[error("cannot {operation}: {source}")]
    Socket {
        /// The operation and its object.
        operation: String,
        /// The system call's error.
        source: io::Error,
    },
    /// The kernel's answer could not be understood, or was empty where one was due.
    #[error("cannot {operation}: the kernel's answer is unreadable: {reason}")]
    Unreadable {
        /// The operation and its object.
        operation: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl NetlinkError {
    pub(super) fn refused(operation: impl Into<String>, errno: i32, words: Option<String>) -> Self {
        Self::Refused { operation: operation.into(), errno, words }
    }

    pub(super) fn socket(operation: impl Into<String>, source: io::Error) -> Self {
        Self::Socket { operation: operation.into(), source }
    }

    pub(super) fn missing_answer(operation: impl Into<String>) -> Self {
        Self::Unreadable { operation: operation.into(), reason: "it holds no such object".into() }
    }

    /// The error number (`libc::E*`) behind the failure, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { source, .. } => source.raw_os_error(),
            Self::Unreadable { .. } => None,
        }
    }

    /// True when the object to be added is there already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// True when the object, or the interface it belongs to, does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL | libc::ENXIO))
    }
}

/// What an error number means in answer to a routing request.
fn meaning(errno: i32) -> String {
    let words = match errno {
        libc::EPERM | libc::EACCES => "not permitted: CAP_NET_ADMIN is needed in this network namespace",
        libc::EEXIST => "it exists already",
        libc::ENODEV => "there is no such interface",
        libc::ESRCH => "there is no such route",
        libc::EADDRNOTAVAIL => "the interface has no such address",
        libc::ENETUNREACH => "no route leads there",
        libc::EHOSTUNREACH => "the destination or gateway is unreachable",
        libc::ENETDOWN => "the interface is down",
        libc::EOPNOTSUPP => "this kernel does not support it",
        _ => return io::Error::from_raw_os_error(errno).to_string(),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_operation_meaning_and_the_kernels_words() {
        let error = NetlinkError::refused("add route 198.18.0.0/16", libc::EEXIST, Some("RTNETLINK says so".into()));
        assert_eq!(error.to_string(), "cannot add route 198.18.0.0/16: it exists already (RTNETLINK says so)");
        assert!(error.is_exists() && !error.is_not_found());
    }
}
