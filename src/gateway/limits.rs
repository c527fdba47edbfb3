//! Limits of users by order, which hold in place of those of the files until an order takes them back, or the gateway is restarted.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tollgate_config::{ServerConfig, rate, rate_text};
use tollgate_shards::{Limit, Rate, Users};

/// Users with limits by order. They fit into the first words of an upgrade.
pub const ORDERED_MAX: usize = 1024;

/// Names in a line.
const NAMES_MAX: usize = 10;

/// What is to hold for a user. As text: "10 mbps", "none" or "file".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LimitOrder {
    /// This rate.
    Rate(Rate),
    /// No limit.
    Unlimited,
    /// What the files say.
    File,
}

impl FromStr for LimitOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "none" => Ok(LimitOrder::Unlimited),
            "file" => Ok(LimitOrder::File),
            text => rate(text).map(LimitOrder::Rate).map_err(|wrong| {
                format!("a limit {wrong}: write a number and bps, kbps, mbps or gbps as in \"10 mbps\", or none")
            }),
        }
    }
}

impl TryFrom<String> for LimitOrder {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for LimitOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitOrder::Rate(rate) => f.write_str(&rate_text(*rate)),
            LimitOrder::Unlimited => f.write_str("none"),
            LimitOrder::File => f.write_str("file"),
        }
    }
}

impl From<LimitOrder> for String {
    fn from(order: LimitOrder) -> String {
        order.to_string()
    }
}

/// The users with limits by order: each a rate, or no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrderedLimits(BTreeMap<String, Option<Rate>>);

/// As another process has told them.
impl FromIterator<(String, Option<Rate>)> for OrderedLimits {
    fn from_iter<I: IntoIterator<Item = (String, Option<Rate>)>>(told: I) -> Self {
        OrderedLimits(told.into_iter().take(ORDERED_MAX).collect())
    }
}

impl OrderedLimits {
    /// Whether the limit of the user `name` is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The users, by name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// What another process is told.
    pub fn told(&self) -> Vec<(String, Option<Rate>)> {
        self.0.iter().map(|(name, rate)| (name.clone(), *rate)).collect()
    }

    /// `users` as `config` has them, with these limits.
    pub fn apply(&self, users: &Arc<Users>, config: &ServerConfig) -> Arc<Users> {
        if self.0.is_empty() {
            return users.clone();
        }
        let limit = |(name, rate): (&String, &Option<Rate>)| rate.map(|rate| config.limit(name, rate));
        Arc::new(users.with_limits(self.0.iter().map(|entry| (&entry.0[..], limit(entry)))))
    }

    /// Those of `users`: who is gone has none any more.
    pub fn retain(&mut self, users: &Users) {
        self.0.retain(|name, _| users.find_name(name).is_some());
    }

    /// Carries out an order. Returns false where there would be too many: nothing has changed then.
    pub fn set(&mut self, name: &str, order: LimitOrder) -> bool {
        let rate = match order {
            LimitOrder::Rate(rate) => Some(rate),
            LimitOrder::Unlimited => None,
            LimitOrder::File => {
                self.0.remove(name);
                return true;
            }
        };
        let has_room = self.0.len() < ORDERED_MAX || self.contains(name);
        if has_room {
            self.0.insert(name.to_owned(), rate);
        }
        has_room
    }

    /// A line about them, where there are any.
    pub fn line(&self) -> Option<String> {
        let shown = |(name, rate): (&String, &Option<Rate>)| format!("{name:?} {}", limit_text(*rate));
        let mut all: Vec<String> = self.0.iter().take(NAMES_MAX).map(shown).collect();
        let more = self.0.len().saturating_sub(NAMES_MAX);
        all.extend((more > 0).then(|| format!("and {more} more")));
        (!all.is_empty()).then(|| format!("limits by order, in place of the files': {}", all.join(", ")))
    }
}

fn limit_text(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "none".to_owned(), rate_text)
}

/// A user has another limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    /// The user's name.
    pub user: String,
    /// What holds.
    pub limit: Option<Limit>,
    /// Whether it is as the files say.
    pub is_of_file: bool,
    /// The number of the snapshot.
    pub epoch: u64,
    /// Time from the command to the last shard's answer.
    pub took: Duration,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limited { user, limit, is_of_file, took, .. } = self;
        let limit = limit_text(limit.map(|limit| limit.rate));
        let by = if *is_of_file { "as the files say" } else { "by order" };
        write!(f, "limit of user '{user}': {limit}, {by}; in force on every shard after {took:.1?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_written_as_it_is_read() {
        for (text, again) in [("10 mbps", "10 mbps"), ("1.5MBPS", "1500 kbps"), (" none ", "none"), ("file", "file")] {
            let order: LimitOrder = text.parse().unwrap();
            assert_eq!(order.to_string(), again);
            let json = serde_json::to_string(&order).unwrap();
            assert_eq!(serde_json::from_str::<LimitOrder>(&json).unwrap(), order);
        }
        for text in ["", "10", "fast", "0 bps", "-1 mbps", "1e30 gbps"] {
            let error = text.parse::<LimitOrder>().unwrap_err();
            assert!(error.contains("10 mbps") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn users_with_limits_by_order_are_bounded_and_one_of_them_may_have_another() {
        let mut limits = OrderedLimits::default();
        assert_eq!(limits.line(), None);
        assert!((0..ORDERED_MAX).all(|number| limits.set(&format!("user{number}"), LimitOrder::Unlimited)));
        assert!(!limits.set("one more", LimitOrder::Unlimited));
        assert!(limits.set("user7", "1 mbps".parse().unwrap()) && limits.set("one more", LimitOrder::File));
        assert!(limits.set("user0", LimitOrder::File) && limits.set("one more", LimitOrder::Unlimited));
        assert_eq!(limits.names().count(), ORDERED_MAX);
        assert!(limits.line().unwrap().ends_with(&format!("and {} more", ORDERED_MAX - NAMES_MAX)));
    }
}
