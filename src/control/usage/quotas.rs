//! How much users have carried today and this month (UTC), and who is over a quota.
//!
//! What was before this process is told by the keeper. Until then, and while the store cannot be read, what this process has counted counts alone:
//! nobody is refused for what is not known.

use std::collections::{BTreeMap, BTreeSet};

use tollgate_config::ServerConfig;

use crate::usage::{Book, Day};

/// What users have carried, in bytes of both ways.
#[derive(Debug, Default)]
pub struct Quotas {
    today: Option<Day>,
    used: Used,
    /// What has come since the keeper was asked for the rest.
    since: Option<Used>,
    over: BTreeSet<String>,
}

/// By user: of today, and of this month.
type Used = BTreeMap<String, [u64; 2]>;

impl Quotas {
    /// Adds what has come.
    pub fn add(&mut self, book: &Book, today: Day, config: &ServerConfig) {
        self.turn(today, config);
        for (user, day, entry) in book.rows() {
            let bytes = entry.amount.usage.bytes();
            let more = [if day == today { bytes } else { 0 }, if day.month() == today.month() { bytes } else { 0 }];
            for used in std::iter::once(&mut self.used).chain(&mut self.since) {
                add(used, user, more);
            }
            self.judge(user, config);
        }
    }

    /// Another day may have begun, and another month.
    fn turn(&mut self, today: Day, config: &ServerConfig) {
        let before = self.today.replace(today);
        if before.is_none_or(|before| before == today) {
            return;
        }
        let is_month = before.is_some_and(|before| before.month() == today.month());
        for used in std::iter::once(&mut self.used).chain(&mut self.since) {
            match is_month {
                true => used.values_mut().for_each(|[day, _]| *day = 0),
                false => used.clear(),
            }
        }
        self.judge_all(config);
    }

    fn judge(&mut self, user: &str, config: &ServerConfig) {
        let [day, month] = self.used.get(user).copied().unwrap_or_default();
        match config.quotas(user).are_used_up(day, month) {
            true if !self.over.contains(user) => _ = self.over.insert(user.to_owned()),
            true => {}
            false => _ = self.over.remove(user),
        }
    }

    fn judge_all(&mut self, config: &ServerConfig) {
        self.over = self.over_of(config);
    }

    /// The keeper is asked for all that was before.
    pub fn ask(&mut self) {
        self.since = Some(Used::new());
    }

    /// The keeper's answer.
    pub fn load(&mut self, told: Vec<(String, [u64; 2])>, config: &ServerConfig) {
        let Some(since) = self.since.take() else { return };
        self.used = told.into_iter().collect();
        since.iter().for_each(|(user, more)| add(&mut self.used, user, *more));
        self.judge_all(config);
    }

    /// Who is over a quota of the configuration in force.
    pub fn over(&self) -> &BTreeSet<String> {
        &self.over
    }

    /// Who would be over a quota of `config`.
    pub fn over_of(&self, config: &ServerConfig) -> BTreeSet<String> {
        let is_over = |(user, [day, month]): &(&String, &[u64; 2])| config.quotas(user).are_used_up(*day, *month);
        self.used.iter().filter(is_over).map(|(user, _)| user.clone()).collect()
    }

    /// That configuration is in force from now on.
    pub fn apply(&mut self, config: &ServerConfig) {
        self.judge_all(config);
    }
}

fn add(used: &mut Used, user: &str, [day, month]: [u64; 2]) {
    match used.get_mut(user) {
        Some(sum) => *sum = [sum[0] + day, sum[1] + month],
        None => _ = used.insert(user.to_owned(), [day, month]),
    }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::Usage;

    use super::*;
    use crate::usage::{Amount, Entry};

    const SERVER: &str = "name = \"t\"\ntunnel_network = \"198.18.0.1/24\"\nusers_file = \"users\"\n[protocol]\nmode = \"tls\"\ncertificate_file = \"a\"\ncertificate_key_file = \"b\"\n[usage]\nenabled = true\nquota_per_month = \"100 B\"\n";

    fn config(per_day: &str) -> ServerConfig {
        let users = format!("[users.alice]\nquota_per_day = \"{per_day}\"\n[users.bob]\n");
        ServerConfig::from_texts(SERVER, &users).unwrap()
    }

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn book(user: &str, day: Day, bytes: u64) -> Book {
        let usage = Usage { sent_bytes: bytes / 2, received_bytes: bytes - bytes / 2, ..Usage::default() };
        let mut book = Book::default();
        book.add(user, Entry::at(day.begin_unix_s(), Amount { usage, ..Amount::default() }));
        book
    }

    fn over(quotas: &Quotas) -> Vec<&str> {
        quotas.over().iter().map(|name| &name[..]).collect()
    }

    #[test]
    fn who_has_used_a_day_up_is_over_until_the_day_ends_and_who_has_a_month_until_that_does() {
        let (mut quotas, config) = (Quotas::default(), config("50 B"));
        let mut add = |user, on: &str, bytes| {
            quotas.add(&book(user, day(on), bytes), day(on), &config);
            over(&quotas).join(" ")
        };
        assert_eq!([add("alice", "2026-11-28", 49), add("bob", "2026-11-28", 99)], ["", ""]);
        assert_eq!([add("alice", "2026-11-28", 1), add("bob", "2026-11-28", 1)], ["alice", "alice bob"]);
        assert_eq!(add("alice", "2026-11-29", 1), "bob");
        assert_eq!(add("alice", "2026-11-30", 49), "alice bob", "hundred in the month");
        assert_eq!(add("alice", "2026-12-01", 49), "");
    }

    #[test]
    fn what_was_before_counts_when_it_is_told_and_nothing_is_counted_twice() {
        let (mut quotas, config, today) = (Quotas::default(), config("50 B"), day("2026-11-28"));
        quotas.add(&book("alice", today, 10), today, &config);
        quotas.ask();
        quotas.add(&book("alice", today, 10), today, &config);
        // The ten from before it was asked are among what is told.
        quotas.load(vec![("alice".to_owned(), [39, 39])], &config);
        assert_eq!(over(&quotas), Vec::<&str>::new());
        quotas.add(&book("alice", today, 1), today, &config);
        assert_eq!(over(&quotas), ["alice"]);
        let more = super::tests::config("60 B");
        assert!(quotas.over_of(&more).is_empty());
        quotas.apply(&more);
        assert_eq!(over(&quotas), Vec::<&str>::new());
    }
}
