//! What a Retry's token proves: that its client is at one address, and only with the ID of the same Retry. Whoever shows it elsewhere is told so now and
//! then; with another ID, never. Of the handshakes of one address that are refused, so many are heard.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rustc_hash::{FxHashMap, FxHashSet};
use tollgate_shards::ShardIndex;

use super::Violation;
use super::budget::Budget;
use crate::plan::{Feature, Plan};
use crate::schedule::Time;

/// Tokens that do not hold, and are answered: of a shard in a second, and at once, by docs/limits.md.
const STALE_PER_S: u64 = 100;
const STALE_BURST: u64 = 20;
/// Refusals of a source: a millisecond each, of a tenth of a core's time and 128 ms of it at once. Beyond that who goes on for a second is heard, 20
/// times a second and 8 at once; and the one that went beyond.
const REFUSED_PER_S: u64 = 100 + 20;
const REFUSED_BURST: u64 = 128 + 8 + 1;

/// Of 65,536 IDs of nobody's one passes for the gateway's.
const GUESSED_MAX: u32 = 3;

/// What somebody shows at an address where nobody else shows anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// A token that was issued to another address.
    Stale,
    /// One with the ID of none.
    Misled,
    /// A good one, in front of a handshake that is refused.
    Refused,
}

#[derive(Debug)]
pub struct Proofs {
    shown: FxHashMap<SocketAddr, Shown>,
    /// Where a token was shown that holds.
    proven: FxHashSet<SocketAddr>,
    stale: BTreeMap<ShardIndex, Budget>,
    refused: BTreeMap<ShardIndex, Budget>,
    /// How many IDs of nobody's were taken for the gateway's.
    guessed: u32,
    /// Whether what a shard sends is on its way at once.
    is_prompt: bool,
    /// Whether shards may drain. Then who is answered may not have been heard: that the gateway takes nobody is said without a handshake.
    may_drain: bool,
}

impl Proofs {
    pub(super) fn new(plan: &Plan) -> Self {
        Proofs {
            shown: FxHashMap::default(),
            proven: FxHashSet::default(),
            stale: BTreeMap::new(),
            refused: BTreeMap::new(),
            guessed: 0,
            is_prompt: !plan.features.has(Feature::Shell),
            may_drain: plan.features.has(Feature::Drain),
        }
    }

    pub(super) fn died(&mut self, shard: ShardIndex) {
        self.stale.remove(&shard);
        self.refused.remove(&shard);
    }

    /// A stranger shows a token.
    pub(crate) fn shows(&mut self, address: SocketAddr, shown: Shown) {
        self.shown.insert(address, shown);
    }

    /// A stranger shows one that holds, in front of a handshake that is not refused.
    pub(crate) fn proves(&mut self, address: SocketAddr) {
        self.proven.insert(address);
    }

    /// A shard sends something to some address.
    pub(super) fn sent(&mut self, now: Time, shard: ShardIndex, to: SocketAddr, run: &[u8]) -> Result<(), Violation> {
        // An Initial (RFC 9000, section 17.2), as opposed to a Version Negotiation: whoever shows no token gets a Retry.
        let is_initial = run.first().is_some_and(|first| first & 0xf0 == 0xc0) && run.get(1..5) != Some(&[0; 4]);
        if !is_initial || self.proven.contains(&to) {
            return Ok(());
        }
        let (budgets, (per_s, burst), what) = match self.shown.remove(&to) {
            None => return Ok(()),
            Some(Shown::Misled) => {
                self.guessed += 1;
                if self.guessed <= GUESSED_MAX {
                    return Ok(());
                }
                let what = format!("{to} shows a token with an ID of its own, and {shard:?} answers");
                return Err(Violation::new("proofs", what));
            }
            Some(Shown::Refused) if self.may_drain => return Ok(()),
            Some(Shown::Stale) => (&mut self.stale, (STALE_PER_S, STALE_BURST), "tokens of others"),
            Some(Shown::Refused) => (&mut self.refused, (REFUSED_PER_S, REFUSED_BURST), "handshakes that are refused"),
        };
        let budget = budgets.entry(shard).or_insert_with(|| Budget::full(per_s, burst, now));
        if budget.take(now, 1) || !self.is_prompt {
            return Ok(());
        }
        Err(Violation::new("proofs", format!("{shard:?} hears more {what} than it may, of {to}")))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::Features;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, 1], port))
    }

    fn answers(proofs: &mut Proofs, ms: u64, port: u16) -> bool {
        let now = Time::default() + Duration::from_millis(ms);
        proofs.sent(now, ShardIndex(0), address(port), &[0xc1, 0, 0, 0, 1]).is_ok()
    }

    fn proofs() -> Proofs {
        Proofs::new(&Plan::new(0, Features::of(&[]), Duration::ZERO))
    }

    #[test]
    fn who_shows_a_token_with_an_id_of_its_own_gets_nothing() {
        let mut proofs = proofs();
        (0..9).for_each(|port| proofs.shows(address(port), Shown::Misled));
        proofs.proves(address(8));
        assert!((0..3).all(|port| answers(&mut proofs, 0, port)), "by chance");
        assert!(!answers(&mut proofs, 0, 3) && answers(&mut proofs, 0, 8) && answers(&mut proofs, 0, 9));
    }

    #[test]
    fn tokens_of_others_are_answered_now_and_then() {
        let mut proofs = proofs();
        (0..100).for_each(|port| proofs.shows(address(port), Shown::Stale));
        assert!((0..20).all(|port| answers(&mut proofs, 0, port)) && !answers(&mut proofs, 0, 20));
        assert!(answers(&mut proofs, 10, 21) && !answers(&mut proofs, 10, 22) && answers(&mut proofs, 10, 21));
    }

    #[test]
    fn refused_handshakes_are_heard_while_they_cost_a_tenth_of_a_core() {
        let mut proofs = proofs();
        (0..200).for_each(|port| proofs.shows(address(port), Shown::Refused));
        assert!((0..137).all(|port| answers(&mut proofs, 0, port)) && !answers(&mut proofs, 0, 137));
    }
}
