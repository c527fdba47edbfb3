//! The configuration as it is in force: written like a file, with defaults, and compared with another.

use std::fmt;
use std::fmt::Write;

use crate::client::ClientConfig;
use crate::schema::{Declared, Entry, Section};
use crate::server::ServerConfig;

impl ServerConfig {
    /// The configuration in force, like a `server.toml`. Users are only counted, and secrets masked.
    pub fn effective(&self) -> String {
        text(&self.in_force())
    }

    /// The keys in which `next` differs and which cannot change while the gateway runs.
    pub fn restart_needed(&self, next: &ServerConfig) -> Vec<Changed> {
        self.changes(next, false)
    }

    /// The keys in which `next` differs and which may. Whether a file that is named has other contents is not looked at.
    pub fn live_changes(&self, next: &ServerConfig) -> Vec<Changed> {
        self.changes(next, true)
    }

    /// The keys that two processes of one gateway must have alike, with their values: where they listen, what the tunnel is, and what connection IDs
    /// are made of. Of a secret the value is a part of its hash.
    pub fn alike(&self) -> Vec<(String, String)> {
        let mut alike = Vec::new();
        for section in self.in_force() {
            for entry in section.entries.iter().filter(|entry| needs_restart(&section.path(entry))) {
                alike.push((section.path(entry), entry.value.clone().unwrap_or_else(|| "not set".to_owned())));
            }
        }
        let secret = self.connection_ids.key_hash().into_iter();
        alike.extend(secret.map(|hash| ("connection_ids.key".to_owned(), format!("sha256:{hash}..."))));
        alike
    }

    /// In which users `next` differs.
    pub fn user_changes(&self, next: &ServerConfig) -> UserChanges {
        let (old, new) = (&self.users, &next.users);
        let mut changes = UserChanges::default();
        for (_, user) in new.users() {
            match old.find_name(&user.name).and_then(|index| old.user(index)) {
                None => changes.added += 1,
                Some(before) => {
                    let quotas = [self, next].map(|config| config.quotas.get(&user.name));
                    changes.changed += usize::from(before != user || quotas[0] != quotas[1]);
                }
            }
        }
        changes.removed = old.users().filter(|(_, user)| new.find_name(&user.name).is_none()).count();
        changes
    }

    fn changes(&self, next: &ServerConfig, live: bool) -> Vec<Changed> {
        let mut changes = Vec::new();
        for (old, new) in self.in_force().iter().zip(&next.in_force()) {
            for (from, to) in old.entries.iter().zip(&new.entries) {
                if from.value != to.value && from.traits.is_live == live {
                    changes.push(Changed { key: old.path(from), from: from.value.clone(), to: to.value.clone() });
                }
            }
        }
        changes
    }

    /// What is set and has no effect, in a line each.
    pub(crate) fn without_effect(&self) -> Vec<String> {
        let (set, defaults) = (self.sections(), ServerConfig::initial().sections());
        let mut warnings = Vec::new();
        for (set, defaults) in set.iter().zip(&defaults) {
            for (entry, default) in set.entries.iter().zip(&defaults.entries) {
                let (Some(reason), Some(value)) = (entry.traits.without_effect, &entry.value) else { continue };
                if entry.value != default.value {
                    let table = if set.name.is_empty() { String::new() } else { format!("[{}] ", set.name) };
                    warnings.push(format!("{table}{} = {value} has no effect: {reason}", entry.name));
                }
            }
        }
        warnings
    }

    /// Every key with its value, but not what depends on others that are not set.
    fn in_force(&self) -> Vec<Section> {
        let mut sections = self.sections();
        for section in &mut sections {
            match section.name {
                "" => {
                    let users = &self.users;
                    let certificates: usize = self.credentials.iter().map(|user| user.certificates).sum();
                    let keys: usize = self.credentials.iter().flat_map(|user| user.noise_keys).sum();
                    let remark =
                        format!("{} users with {certificates} certificates and {keys} Noise keys", users.len());
                    section.entry("users_file").remark = Some(remark);
                }
                name if name.starts_with("protocol") => self.protocol.hide_unused(section),
                "sessions" if self.sessions.user.connections_max.is_none() => {
                    section.entry("when_reached").value = None
                }
                _ => {}
            }
        }
        sections
    }
}

impl ClientConfig {
    /// The configuration in force, like a `client.toml`, with secrets masked.
    pub fn effective(&self) -> String {
        let mut sections = self.sections();
        let protocol = sections.iter_mut().filter(|section| section.name == "protocol");
        protocol.for_each(|section| self.protocol.hide_unused(section));
        text(&sections)
    }
}

fn text(sections: &[Section]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for section in sections {
        let says_something = |entry: &Entry| entry.value.is_some() || !entry.absent.is_empty();
        if !section.entries.iter().any(says_something) {
            continue;
        }
        if !section.name.is_empty() {
            let _ = writeln!(text, "\n[{}]", section.name);
        }
        for entry in &section.entries {
            let _ = match &entry.value {
                Some(value) => writeln!(text, "{} = {value}", entry.name),
                None if entry.absent.is_empty() => Ok(()),
                None => writeln!(text, "# {}: {}", entry.name, entry.absent),
            };
            let _ = entry.remark.iter().try_for_each(|remark| writeln!(text, "# {remark}"));
        }
    }
    text
}
/// Whether not even an upgrade changes the value of `key`, its table in front: both processes must have it alike.
pub fn needs_restart(key: &str) -> bool {
    const TOP: [&str; 4] = ["interface_name", "bind_address", "bind_port", "tunnel_network"];
    TOP.contains(&key) || key.starts_with("connection_ids.")
}

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
    /// Users who are new.
    pub added: usize,
    /// Users who are gone.
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
