//! What became of handshakes whose clients had proved their addresses, by what they log in with.

use serde::{Deserialize, Serialize};
use tollgate_noise::Kind;

use crate::counts::{Counts, kinds};
use crate::durations::Durations;
use crate::ids::CredentialKind;

kinds! {
    /// What becomes of a handshake.
    pub enum HandshakeOutcome {
        /// A client that is known has logged in.
        LoggedIn = "logged_in",
        /// The client has shown a certificate or a key that no user has.
        UnknownCredential = "unknown_credential",
        /// What the client has sent cannot be used, or is too much.
        Refused = "refused",
        /// The client has given up.
        ClosedByClient = "closed_by_client",
        /// It took too long.
        TimedOut = "timed_out",
        /// Another one needed its place.
        GaveWay = "gave_way",
        /// The gateway stops or drains.
        ClosedByGateway = "closed_by_gateway",
    }
}

/// The handshakes of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KindCounts {
    #[serde(flatten)]
    pub outcomes: Counts<HandshakeOutcome, { HandshakeOutcome::ALL.len() }>,
    /// From the first Initial that was taken to the login.
    pub times: Durations,
}

impl KindCounts {
    fn beside(self, earlier: &KindCounts) -> Self {
        KindCounts { outcomes: self.outcomes.beside(&earlier.outcomes), times: self.times.beside(&earlier.times) }
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
        self.of(kind).outcomes.count(outcome);
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
            let each = HandshakeOutcome::ALL.map(|outcome| kind.outcomes.of(outcome));
            assert_eq!(each.to_vec(), (0..7).map(|more| 2 * (10 * times + more)).collect::<Vec<_>>());
            assert_eq!(kind.times.sum(), Duration::from_secs(2 * times));
        }
    }
}
