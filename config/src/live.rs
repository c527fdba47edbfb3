//! What may change while the gateway runs, and what has.
//!
//! Told by the [effective](ServerConfig::effective) configuration, which has every key: one that is not named here as live needs a restart.

use std::collections::BTreeMap;
use std::fmt;

use crate::server::ServerConfig;

/// Keys that may change while the gateway runs. A table stands for all its keys.
const LIVE: [&str; 9] = [
    "name",
    "users_file",
    "isolate_clients",
    "default_bandwidth_limit",
    "protocol",
    "sessions",
    "log",
    // Not served yet.
    "metrics",
    "control.watch_users_file",
];

/// A key whose value is another one now, as in the files. Secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The key, its table in front.
    pub key: String,
    /// What it was; `None` if it was not set.
    pub from: Option<String>,
    /// What it is; `None` if it is not set.
    pub to: Option<String>,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
        write!(f, "{} ({} -> {})", self.key, shown(&self.from), shown(&self.to))
    }
}

/// How many users are not what they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UserChanges {
    /// New ones.
    pub added: usize,
    /// Those who are gone.
    pub removed: usize,
    /// Those with other certificates, limits or addresses.
    pub changed: usize,
}

impl fmt::Display for UserChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UserChanges { added, removed, changed } = self;
        write!(f, "users: {added} added, {removed} removed, {changed} changed")
    }
}

impl ServerConfig {
    /// The keys in which `next` differs and which cannot change while the gateway runs.
    pub fn restart_needed(&self, next: &ServerConfig) -> Vec<Changed> {
        self.changed_keys(next).into_iter().filter(|changed| !is_live(&changed.key)).collect()
    }

    /// The keys in which `next` differs and which may. Whether a file that is named has other contents is not looked at.
    pub fn live_changes(&self, next: &ServerConfig) -> Vec<Changed> {
        self.changed_keys(next).into_iter().filter(|changed| is_live(&changed.key)).collect()
    }

    /// In which users `next` differs.
    pub fn user_changes(&self, next: &ServerConfig) -> UserChanges {
        let (old, new) = (&self.users.directory, &next.users.directory);
        let mut changes = UserChanges::default();
        for (_, user) in new.users() {
            match old.find_name(&user.name).and_then(|index| old.user(index)) {
                None => changes.added += 1,
                Some(before) => changes.changed += usize::from(before != user),
            }
        }
        changes.removed = old.users().filter(|(_, user)| new.find_name(&user.name).is_none()).count();
        changes
    }

    fn changed_keys(&self, next: &ServerConfig) -> Vec<Changed> {
        let (old, new) = (keys(&self.effective()), keys(&next.effective()));
        let all = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
        all.filter(|key| old.get(*key) != new.get(*key))
            .map(|key| Changed { key: key.clone(), from: old.get(key).cloned(), to: new.get(key).cloned() })
            .collect()
    }
}

fn is_live(key: &str) -> bool {
    LIVE.iter().any(|live| key.strip_prefix(live).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Every key of an effective configuration, its table in front, with its value.
fn keys(effective: &str) -> BTreeMap<String, String> {
    let document: toml::Table = effective.parse().expect("the effective configuration is TOML");
    let mut keys = BTreeMap::new();
    for (key, value) in document {
        match value {
            toml::Value::Table(table) => {
                keys.extend(table.into_iter().map(|(inner, value)| (format!("{key}.{inner}"), value.to_string())));
            }
            value => {
                keys.insert(key, value.to_string());
            }
        }
    }
    keys
}
