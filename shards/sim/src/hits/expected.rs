//! What runs must have come to between them, and what none can.

use std::collections::BTreeMap;
use std::fmt;

use super::{Hits, Name, all};

/// What no run comes to, and why.
const UNREACHABLE: &[(Name, &str)] = &[
    (("close", "assignment"), "only another gateway assigns what a client cannot use"),
    (("close", "gateway_other"), "the gateway has no other code"),
    (("counter", "forgotten_events"), "every pass takes all events"),
    (("close", "gateway_quota"), "the shell counts what users carry; tests of sessions bar users"),
    (("message", "close_over_quota"), "the shell counts what users carry; tests of sessions bar users"),
    (("event", "over_quota"), "the shell counts what users carry; tests of sessions bar users"),
    (("drop", "udp_truncated"), "no datagram is longer than what a core receives into"),
    (("event", "forgotten"), "every pass takes all events"),
];

/// What one seed in twenty comes to, or fewer: it takes thousands to be sure of it.
const RARE: &[Name] = &[
    ("allocator", "behind"),
    ("close", "handshake"),
    ("close", "version"),
    ("close", "gateway_misuse"),
    ("counter", "too_narrow_paths"),
    ("drop", "memory_limit"),
    ("drop", "receive_queue_full"),
    ("drop", "reply_limit"),
    ("drop", "response_queue_full"),
    ("drop", "shard_panicked"),
    ("event", "path_too_narrow"),
    ("member", "unasked"),
    ("queues", "full"),
    ("source", "doubted"),
    ("source", "ignored"),
];
const SEEDS_FOR_MANY: u64 = 10_000;

/// The hits of many runs: how often, and in how many of them.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub runs: u64,
    hits: BTreeMap<Name, (u64, u64)>,
}

impl Tally {
    pub fn add(&mut self, hits: &Hits) {
        self.runs += 1;
        for (&name, &times) in &hits.seen {
            let (sum, runs) = self.hits.entry(name).or_default();
            (*sum, *runs) = (*sum + times, *runs + 1);
        }
    }

    /// What `by_name` gave.
    pub fn of_names(runs: u64, names: &BTreeMap<String, (u64, u64)>) -> Self {
        let hits = all().filter_map(|name| Some((name, *names.get(&text(name))?))).collect();
        Tally { runs, hits }
    }

    pub fn by_name(&self) -> BTreeMap<String, (u64, u64)> {
        self.hits.iter().map(|(&name, &hits)| (text(name), hits)).collect()
    }

    fn of(&self, name: Name) -> (u64, u64) {
        self.hits.get(&name).copied().unwrap_or_default()
    }

    /// What should have been seen and was not, or the other way round; each in words.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        // Of fewer runs, chance has a say.
        let are_many = self.runs >= SEEDS_FOR_MANY;
        for name in all() {
            let (kind, what) = name;
            let is_seen = self.of(name).0 > 0;
            let is_rare = RARE.contains(&name);
            match UNREACHABLE.iter().find(|(other, _)| *other == name) {
                Some((_, why)) if is_seen && are_many => {
                    complaints.push(format!("{kind} {what} was seen, and should not be: {why}"))
                }
                None if !is_seen && (are_many || !is_rare) => {
                    complaints.push(format!("{kind} {what} was never seen in {} runs", self.runs))
                }
                _ => {}
            }
        }
        let listed: Vec<_> = all().collect();
        let strangers = self.hits.keys().chain(UNREACHABLE.iter().map(|(name, _)| name)).chain(RARE);
        complaints.extend(
            strangers.filter(|name| !listed.contains(name)).map(|(kind, what)| format!("{kind} {what} is in no list")),
        );
        complaints
    }
}

fn text((kind, what): Name) -> String {
    format!("{kind} {what}")
}

/// A table: what, how often, in how many runs.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<_> = all().collect();
        names.sort_unstable();
        writeln!(f, "{:46} {:>14} {:>8} of {} runs", "seen", "times", "in", self.runs)?;
        for name in names {
            let (times, runs) = self.of(name);
            let why = UNREACHABLE.iter().find(|(other, _)| *other == name).map(|(_, why)| *why);
            let remark = match (times, why) {
                (0, Some(why)) => format!("  unreachable: {why}"),
                (0, None) => "  NEVER".to_owned(),
                (_, Some(_)) => "  SEEN, though it is said to be unreachable".to_owned(),
                (_, None) => String::new(),
            };
            writeln!(f, "{:46} {times:>14} {runs:>8}{remark}", format!("{} {}", name.0, name.1))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_seen_and_what_should_not_have_been_is_complained_of() {
        let (unreachable, _) = UNREACHABLE[0];
        let reachable = || all().filter(|name| UNREACHABLE.iter().all(|(other, _)| other != name));
        let mut hits = Hits::default();
        reachable().for_each(|name| hits.add(name, 1));
        let mut tally = Tally::default();
        tally.add(&hits);
        assert_eq!(tally.complaints(), Vec::<String>::new());

        let missing = reachable().find(|name| !RARE.contains(name)).unwrap();
        let mut other = tally.clone();
        other.hits.remove(&missing);
        assert_eq!(other.complaints().len(), 1);
        assert!(other.to_string().contains("NEVER"));

        tally.runs = SEEDS_FOR_MANY;
        hits.add(unreachable, 1);
        hits.add(("state", "of nobody"), 1);
        tally.add(&hits);
        assert_eq!(tally.complaints().len(), 2, "{:?}", tally.complaints());
    }

    #[test]
    fn a_tally_survives_its_names() {
        let mut hits = Hits::default();
        all().step_by(3).zip(1..).for_each(|(name, times)| hits.add(name, times));
        let mut tally = Tally::default();
        tally.add(&hits);
        tally.add(&Hits::default());
        let again = Tally::of_names(tally.runs, &tally.by_name());
        assert_eq!((again.to_string(), again.by_name()), (tally.to_string(), tally.by_name()));
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = all().collect();
        assert_eq!(names.len(), all().count());
    }
}
