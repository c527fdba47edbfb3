//! Tables of a file, out of which its readers take what they know.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::document::{Report, Unknown};
use crate::environment::Override;
use crate::error::Place;
use crate::setting::{Setting, Value, shown};

/// A table with the settings that were not asked for yet.
pub(crate) struct Table<'i> {
    path: String,
    /// The path with `*` in place of user names.
    schema: String,
    place: Place,
    entries: BTreeMap<String, Entry<'i>>,
    taken: BTreeMap<String, Taken>,
}

/// Where a setting is that was taken out of its table.
pub(crate) struct Taken {
    /// The place of the key.
    pub key: Place,
    /// The place of the value.
    pub value: Place,
}

struct Entry<'i> {
    key: Place,
    place: Place,
    value: DeValue<'i>,
}

impl<'i> Table<'i> {
    pub(crate) fn new(path: String, schema: String, place: Place, table: DeTable<'i>, report: &Report<'_>) -> Self {
        let entry = |key: &Spanned<_>, value: Spanned<DeValue<'i>>| Entry {
            key: report.place(key.span().start),
            place: report.place(value.span().start),
            value: value.into_inner(),
        };
        let entries = table
            .into_iter()
            .map(|(key, value)| {
                let entry = entry(&key, value);
                (key.into_inner().into_owned(), entry)
            })
            .collect();
        Table { path, schema, place, entries, taken: BTreeMap::new() }
    }

    /// Takes a setting out, if it is set: by a variable, or else by the file.
    pub(crate) fn take(&mut self, report: &mut Report<'_>, key: &str) -> Option<Setting<'i>> {
        report.known.insert(join(&self.schema, key));
        let path = join(&self.path, key);
        let entry = self.entries.remove(key);
        let (at, place, value) = match (report.overrides.remove(&path), entry) {
            (Some(Override { variable, value }), _) => {
                let place = Place::Variable(variable);
                (place.clone(), place, Value::Text(value))
            }
            (None, Some(entry)) => (entry.key, entry.place, Value::Toml(entry.value)),
            (None, None) => return None,
        };
        self.taken.insert(key.to_owned(), Taken { key: at, value: place.clone() });
        Some(Setting { path, place, value })
    }

    /// Where `key` was set, if it was, and was taken.
    pub(crate) fn taken(&self, key: &str) -> Option<&Taken> {
        self.taken.get(key)
    }

    /// Whether `key` is set, by the file or by a variable. Notes a problem otherwise. To be called before it is taken.
    pub(crate) fn requires(&self, report: &mut Report<'_>, key: &str, remedy: &str) -> bool {
        let is_set = self.place_of(report, key).is_some();
        report.known.insert(join(&self.schema, key));
        if !is_set {
            report.wrong(self.place.clone(), &self.path_of(key), "is missing", remedy);
        }
        is_set
    }

    /// The path of `key`.
    pub(crate) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Where `key`, or a key of the table of that name, is set, by the file or by a variable. To be called before it is taken.
    pub(crate) fn place_of(&self, report: &Report<'_>, key: &str) -> Option<Place> {
        let path = self.path_of(key);
        let below = format!("{path}.");
        let mut from = report.overrides.range(path.clone()..);
        let overriding = from.find(|(found, _)| **found == path || found.starts_with(&below));
        let by_variable = overriding.map(|(_, Override { variable, .. })| Place::Variable(variable.clone()));
        self.entries.get(key).map(|entry| entry.key.clone()).or(by_variable)
    }

    /// Where the table begins.
    pub(crate) fn place(&self) -> Place {
        self.place.clone()
    }

    /// Takes a table out; an empty one if it is absent.
    pub(crate) fn table(&mut self, report: &mut Report<'_>, key: &str) -> Table<'i> {
        let path = join(&self.path, key);
        let schema = join(&self.schema, key);
        report.known.insert(schema.clone());
        let (place, table) = match self.entries.remove(key) {
            Some(Entry { key, value: DeValue::Table(table), .. }) => (key, table),
            Some(entry) => {
                let what = format!("is {}, not a table", shown(&entry.value));
                report.wrong(entry.place, &path, what, format!("write a line [{path}] and the table's keys below it"));
                (entry.key, DeTable::new())
            }
            None => (Place::File(report.file.into()), DeTable::new()),
        };
        Table::new(path, schema, place, table, report)
    }

    /// Takes all entries out as tables with their names, in the order of the file.
    pub(crate) fn tables(&mut self, report: &mut Report<'_>) -> Vec<(String, Table<'i>)> {
        let mut names: Vec<(Place, String)> =
            self.entries.iter().map(|(name, entry)| (entry.key.clone(), name.clone())).collect();
        names.sort();
        let schema = join(&self.schema, "*");
        let mut tables = Vec::with_capacity(names.len());
        for (place, name) in names {
            let path = join(&self.path, &quoted_key(&name));
            match self.entries.remove(&name) {
                Some(Entry { value: DeValue::Table(table), .. }) => {
                    let table = Table::new(path, schema.clone(), place, table, report);
                    tables.push((name, table));
                }
                Some(entry) => {
                    let what = format!("is {}, not a table", shown(&entry.value));
                    report.wrong(entry.place, &path, what, format!("write a line [{path}] and the keys below it"));
                }
                None => {}
            }
        }
        tables
    }

    /// Takes the tables out that are left, each with its path within this one: of `[this.a.b]` that is `a.b`.
    pub(crate) fn take_nested(&mut self) -> Vec<(Place, String)> {
        let (nested, rest): (BTreeMap<_, _>, _) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|(_, entry)| matches!(entry.value, DeValue::Table(_)));
        self.entries = rest;
        nested
            .into_iter()
            .map(|(key, entry)| {
                let (mut path, mut value) = (key, entry.value);
                while let DeValue::Table(table) = value {
                    let mut entries = table.into_iter();
                    let (Some((key, inner)), None) = (entries.next(), entries.next()) else { break };
                    value = inner.into_inner();
                    if matches!(value, DeValue::Table(_)) {
                        path = format!("{path}.{}", key.into_inner());
                    }
                }
                (entry.key, path)
            })
            .collect()
    }

    /// Ends the reading of the table: what is left in it is unknown.
    pub(crate) fn finish(self, report: &mut Report<'_>) {
        for (key, entry) in self.entries {
            report.unknown.push(Unknown {
                path: join(&self.path, &quoted_key(&key)),
                schema: join(&self.schema, &key),
                place: entry.key,
            });
        }
    }

    /// Forgets what is left in the table, and in the environment for it.
    pub(crate) fn abandon(self, report: &mut Report<'_>) {
        let below = join(&self.path, "");
        report.overrides.retain(|path, _| !path.starts_with(&below));
    }
}

fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// `key` as TOML wants it written.
pub(crate) fn quoted_key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if bare { key.to_owned() } else { format!("{key:?}") }
}
