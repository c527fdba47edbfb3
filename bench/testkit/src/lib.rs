//! The testkit: private network namespaces with real kernel traffic, for the demo, the end-to-end tests and the benchmarks.
//!
//! A namespace is held by a descriptor and has no name in the file system, children die with the process that started them: whatever
//! happens, nothing is left behind. System calls only, no external tools. The interfaces, addresses and routes of the namespace that the
//! process was started in are never touched, and all addresses lie in 198.18.0.0/15 (RFC 2544) and fd00::/8.
//!
//! It does not know the gateway: it starts programs and looks at them from outside.

pub mod bed;
pub mod chance;
pub mod deploy;
mod error;
pub mod faults;
mod netns;
pub mod packet;
mod path;
pub mod site;
mod traffic;

pub use error::LabError;
pub use netns::*;
pub use path::{long_path, relay};
pub use traffic::{bulk, datagrams, ping};

/// Ends a test early, saying why, where namespaces cannot be made.
#[macro_export]
macro_rules! require_privileges_or_skip {
    () => {
        if let Err(missing) = $crate::privileges() {
            return $crate::skip(&missing.to_string());
        }
    };
}

/// Ends a test early, saying why, where there can be no TUN device in a namespace.
#[macro_export]
macro_rules! require_tun_or_skip {
    () => {
        if let Err(missing) = $crate::privileges().and_then(|()| $crate::require_tun()) {
            return $crate::skip(&missing.to_string());
        }
    };
}

/// Says why a test ends early.
///
/// # Panics
///
/// Where nothing may be skipped: in CI, or with `TOLLGATE_TEST_PRIVILEGED` set.
pub fn skip(missing: &str) {
    let is_required = std::env::var_os("TOLLGATE_TEST_PRIVILEGED").is_some()
        || std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!is_required, "nothing may be skipped here: {missing}");
    eprintln!("skipped: {missing}");
}
