//! What became of handshakes whose clients had proved their addresses, by what they log in with.

use serde::{Deserialize, Serialize};
use tollgate_noise::Kind;

use crate::durations::Durations;
use crate::ids::CredentialKind;

/// What becomes of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeOutcome {
    /// A client that is known has logged in.
    LoggedIn,
    /// The client has shown a certificate or a key that no user has.
    UnknownCredential,
    /// What the client has sent cannot be used, or is too much.
    Refused,
    /// The client has given up.
    ClosedByClient,
    /// It took too long.
    TimedOut,
    /// Another one needed its place.
    GaveWay,
    /// The gateway stops or drains.
    ClosedByGateway,
}

impl HandshakeOutcome {
    pub const ALL: [HandshakeOutcome; 7] = [
        HandshakeOutcome::LoggedIn,
        HandshakeOutcome::UnknownCredential,
        HandshakeOutcome::Refused,
        HandshakeOutcome::ClosedByClient,
        HandshakeOutcome::TimedOut,
        HandshakeOutcome::GaveWay,
        HandshakeOutcome::ClosedByGateway,
    ];

    /// Its name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            HandshakeOutcome::LoggedIn => "logged_in",
            HandshakeOutcome::UnknownCredential => "unknown_credential",
            HandshakeOutcome::Refused => "refused",
            HandshakeOutcome::ClosedByClient => "closed_by_client",
            HandshakeOutcome::TimedOut => "timed_out",
            HandshakeOutcome::GaveWay => "gave_way",
            HandshakeOutcome::ClosedByGateway => "closed_by_gateway",
        }
    }
}

/// The handshakes of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KindCounts {
    logged_in: u64,
    unknown_credential: u64,
    refused: u64,
    closed_by_client: u64,
    timed_out: u64,
    gave_way: u64,
    closed_by_gateway: u64,
    /// From the first Initial that was taken to the login.
    pub times: Durations,
}

impl KindCounts {
    fn count_of(&mut self, outcome: HandshakeOutcome) -> &mut u64 {
        match outcome {
            HandshakeOutcome::LoggedIn => &mut self.logged_in,
            HandshakeOutcome::UnknownCredential => &mut self.unknown_credential,
            HandshakeOutcome::Refused => &mut self.refused,
            HandshakeOutcome::ClosedByClient => &mut self.closed_by_client,
            HandshakeOutcome::TimedOut => &mut self.timed_out,
            HandshakeOutcome::GaveWay => &mut self.gave_way,
            HandshakeOutcome::ClosedByGateway => &mut self.closed_by_gateway,
        }
    }

    pub fn of(mut self, outcome: HandshakeOutcome) -> u64 {
        *self.count_of(outcome)
    }

    fn beside(mut self, earlier: &KindCounts) -> Self {
        HandshakeOutcome::ALL.into_iter().for_each(|outcome| *self.count_of(outcome) += earlier.of(outcome));
        self.times = self.times.beside(&earlier.times);
        self
    }
}

/// All handshakes that are over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandshakeCounts {
    tls: KindCounts,
    noise_standard: KindCounts,
    noise_post_quantum: KindCounts,
    noise_hybrid: KindCounts,
}

impl HandshakeCounts {
    pub fn count(&mut self, kind: CredentialKind, outcome: HandshakeOutcome) {
        *self.of(kind).count_of(outcome) += 1;
    }

    pub fn of(&mut self, kind: CredentialKind) -> &mut KindCounts {
        match kind {
            CredentialKind::Certificate => &mut self.tls,
            CredentialKind::NoiseKey(Kind::Standard) => &mut self.noise_standard,
            CredentialKind::NoiseKey(Kind::PostQuantum) => &mut self.noise_post_quantum,
            CredentialKind::NoiseKey(Kind::Hybrid) => &mut self.noise_hybrid,
        }
    }

    /// Each kind by its name in metrics.
    pub fn kinds(&self) -> [(&'static str, KindCounts); 4] {
        [
            ("tls", self.tls),
            ("noise_standard", self.noise_standard),
            ("noise_post_quantum", self.noise_post_quantum),
            ("noise_hybrid", self.noise_hybrid),
        ]
    }

    /// These, and those counted `earlier`.
    #[must_use]
    pub fn beside(self, earlier: &HandshakeCounts) -> Self {
        HandshakeCounts {
            tls: self.tls.beside(&earlier.tls),
            noise_standard: self.noise_standard.beside(&earlier.noise_standard),
            noise_post_quantum: self.noise_post_quantum.beside(&earlier.noise_post_quantum),
            noise_hybrid: self.noise_hybrid.beside(&earlier.noise_hybrid),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_kind_and_outcome_has_a_count_of_its_own_to_which_an_earlier_one_is_added() {
        let all = [
            CredentialKind::Certificate,
            CredentialKind::NoiseKey(Kind::Standard),
            CredentialKind::NoiseKey(Kind::PostQuantum),
            CredentialKind::NoiseKey(Kind::Hybrid),
        ];
        let mut counts = HandshakeCounts::default();
        for (kind, times) in all.into_iter().zip(1..) {
            for (outcome, more) in HandshakeOutcome::ALL.into_iter().zip(0..) {
                (0..10 * times + more).for_each(|_| counts.count(kind, outcome));
            }
            counts.of(kind).times.add(Duration::from_secs(times));
        }
        for ((_, kind), times) in counts.beside(&counts).kinds().into_iter().zip(1..) {
            let each = HandshakeOutcome::ALL.map(|outcome| kind.of(outcome));
            assert_eq!(each.to_vec(), (0..7).map(|more| 2 * (10 * times + more)).collect::<Vec<_>>());
            assert_eq!(kind.times.sum(), Duration::from_secs(2 * times));
        }
    }
}
