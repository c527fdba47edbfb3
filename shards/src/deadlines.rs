//! When sessions are over: after a time without inner packets, after a time at all, or with the client's certificate.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::counts::{Counts, kinds};

/// How long sessions may last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLimits {
    /// Longest time without an inner packet from or to the client.
    pub idle_max: Option<Duration>,
    /// Longest time since the login.
    pub length_max: Option<Duration>,
    /// Whether a session ends with the certificate that logged in.
    pub ends_with_certificate: bool,
}

kinds! {
    /// Why a session is over.
    pub enum SessionEnd {
        /// There were no inner packets.
        Idle = "idle",
        /// It has lasted as long as it may.
        Length = "length",
        /// The client's certificate is not valid any more.
        Certificate = "certificate",
    }
}

impl SessionEnd {
    /// What the client is told.
    pub const fn words(self) -> &'static str {
        match self {
            SessionEnd::Idle => "The session was idle for too long",
            SessionEnd::Length => "The session has lasted as long as it may",
            SessionEnd::Certificate => "The certificate has expired",
        }
    }
}

/// Sessions that have ended for each reason.
pub type SessionEnds = Counts<SessionEnd, { SessionEnd::ALL.len() }>;

/// What the end of one session depends on.
#[derive(Debug, Clone, Copy)]
pub struct SessionTimes {
    /// When the client logged in.
    pub began: Instant,
    /// When an inner packet came from or for the client last, or it logged in.
    pub active_at: Instant,
    /// When its certificate ends; `None` for never, as with a Noise key.
    pub certificate_until: Option<Instant>,
}

impl SessionTimes {
    pub fn new(now: Instant, certificate_until: Option<Instant>) -> Self {
        SessionTimes { began: now, active_at: now, certificate_until }
    }

    /// When the session is over if no inner packet comes, and why.
    pub fn end(&self, limits: &SessionLimits) -> Option<(Instant, SessionEnd)> {
        let after = |from: Instant, time: Option<Duration>| from.checked_add(time?);
        let idle = after(self.active_at, limits.idle_max).map(|at| (at, SessionEnd::Idle));
        let length = after(self.began, limits.length_max).map(|at| (at, SessionEnd::Length));
        let certificate = self.certificate_until.filter(|_| limits.ends_with_certificate);
        let certificate = certificate.map(|at| (at, SessionEnd::Certificate));
        [certificate, length, idle].into_iter().flatten().min_by_key(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_time::origin;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_session_is_over_with_the_first_of_its_deadlines_and_without_limits_never() {
        let now = origin();
        let deadlines = SessionTimes { active_at: now + 5 * S, ..SessionTimes::new(now, Some(now + 12 * S)) };
        let end = |idle_max: Option<u32>, length_max: Option<u32>, ends_with_certificate| {
            let [idle_max, length_max] = [idle_max, length_max].map(|seconds| seconds.map(|seconds| seconds * S));
            let end = deadlines.end(&SessionLimits { idle_max, length_max, ends_with_certificate });
            end.map(|(at, why)| ((at - now).as_secs(), why))
        };
        assert_eq!(end(None, None, false), None);
        assert_eq!(end(None, None, true), Some((12, SessionEnd::Certificate)));
        assert_eq!(end(Some(6), None, true), Some((11, SessionEnd::Idle)));
        assert_eq!(end(Some(6), Some(10), true), Some((10, SessionEnd::Length)));
        assert_eq!(
            end(Some(8), Some(13), false),
            Some((13, SessionEnd::Length)),
            "of two at once the idle one comes last"
        );
        let forever =
            SessionLimits { idle_max: Some(Duration::MAX), length_max: Some(Duration::MAX), ..Default::default() };
        assert_eq!(deadlines.end(&forever), None);
        assert_eq!(
            SessionTimes::new(now, None).end(&SessionLimits { ends_with_certificate: true, ..Default::default() }),
            None
        );
    }
}
