//! For tests: the instant at which virtual time begins.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
pub fn origin() -> Instant {
    Instant::now()
}
