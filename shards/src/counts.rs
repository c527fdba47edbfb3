//! What is counted apart for each of some kinds, and added up where a shard was started anew.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// Declares kinds once: each variant, and its name in logs, tables and metrics.
macro_rules! kinds {
    ($(#[$meta:meta])* pub enum $kinds:ident { $($(#[$doc:meta])* $kind:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $kinds {
            $($(#[$doc])* $kind,)*
        }

        impl $kinds {
            /// All of them, in the order of their counts.
            pub const ALL: [$kinds; [$($name),*].len()] = [$($kinds::$kind),*];

            /// Its name in logs, tables and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $($kinds::$kind => $name,)*
                }
            }
        }

        impl $crate::counts::Kind for $kinds {
            const KINDS: &'static [Self] = &$kinds::ALL;

            fn place(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                $kinds::name(self)
            }
        }
    };
}
pub(crate) use kinds;

/// What [`Counts`] count apart.
pub trait Kind: Copy + 'static {
    /// Each by its place.
    const KINDS: &'static [Self];

    fn place(self) -> usize;

    /// No two are alike.
    fn name(self) -> &'static str;
}

/// A count for each of `N` kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, Said>", into = "BTreeMap<&'static str, u64>", bound = "K: Kind")]
pub struct Counts<K, const N: usize>([u64; N], PhantomData<K>);

/// What stands beside a name. A program of another version may count more, or say something else.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Count(u64),
    Else(IgnoredAny),
}

impl<K, const N: usize> Default for Counts<K, N> {
    fn default() -> Self {
        Counts([0; N], PhantomData)
    }
}

impl<K: Kind, const N: usize> From<BTreeMap<String, Said>> for Counts<K, N> {
    fn from(said: BTreeMap<String, Said>) -> Self {
        let mut counts = Counts::default();
        for &kind in K::KINDS {
            if let Some(&Said::Count(count)) = said.get(kind.name()) {
                counts.add(kind, count);
            }
        }
        counts
    }
}

impl<K: Kind, const N: usize> From<Counts<K, N>> for BTreeMap<&'static str, u64> {
    fn from(counts: Counts<K, N>) -> Self {
        counts.iter().map(|(kind, count)| (kind.name(), count)).collect()
    }
}

impl<K: Kind, const N: usize> Counts<K, N> {
    pub fn count(&mut self, kind: K) {
        self.add(kind, 1);
    }

    pub fn add(&mut self, kind: K, count: u64) {
        self.0[kind.place()] += count;
    }

    /// These, and those counted `earlier`.
    #[must_use]
    pub fn beside(mut self, earlier: &Self) -> Self {
        earlier.iter().for_each(|(kind, count)| self.add(kind, count));
        self
    }

    pub fn of(&self, kind: K) -> u64 {
        self.0[kind.place()]
    }

    pub fn iter(&self) -> impl Iterator<Item = (K, u64)> + '_ {
        K::KINDS.iter().map(|&kind| (kind, self.of(kind)))
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DropReason, Drops, HandshakeOutcome, SessionEnd};

    fn assert_are_apart<K: Kind + PartialEq>() {
        for (place, kind) in K::KINDS.iter().enumerate() {
            assert_eq!(kind.place(), place);
            assert!(!K::KINDS[..place].iter().any(|before| before.name() == kind.name()), "{}", kind.name());
        }
    }

    #[test]
    fn each_kind_has_a_count_and_a_name_of_its_own() {
        assert_are_apart::<DropReason>();
        assert_are_apart::<SessionEnd>();
        assert_are_apart::<HandshakeOutcome>();
        let mut drops = Drops::default();
        (0..).zip(DropReason::ALL).for_each(|(count, reason)| drops.add(reason, count));
        assert!((0..).zip(drops.beside(&drops).iter()).all(|(count, (_, counted))| counted == 2 * count));
    }

    #[test]
    fn what_another_version_counts_beside_is_not_heard() {
        let said = r#"{"isolated": 3, "of another version": 4, "not a count": {"a": 1}}"#;
        let drops: Drops = serde_json::from_str(said).unwrap();
        assert_eq!((drops.of(DropReason::Isolated), drops.total()), (3, 3));
        assert_eq!(serde_json::from_str::<Drops>(&serde_json::to_string(&drops).unwrap()).unwrap(), drops);
    }
}
