//! One configuration file while it is being read: its tables with their positions, the environment's overrides, the problems so far.
//!
//! Reading takes each setting out of its table. What is left at the end was not known to anybody, and is a problem. Reading goes on
//! after a problem, so that one run reports all of them. This module never shows the value of a setting that was read as a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use crate::error::{ConfigError, PROBLEMS_MAX, Place, Problem};
use crate::setting::{Setting, Value, shown};

/// From which likeness on a word is suggested for another.
const LIKENESS_MIN: f64 = 0.6;

/// Prefix of the variables that Quincy reads too. It ignores those that name no setting, and so they are no problem here.
const QUINCY_PREFIX: &str = "QUINCY_";

/// Prefixes of environment variables that override settings. A later one wins over an earlier one.
const PREFIXES: [&str; 2] = [QUINCY_PREFIX, "TOLLGATE_"];

/// What the environment has that is no setting.
#[derive(Debug, Default)]
pub struct Ignored {
    /// Names of variables that begin like ours, and that container platforms set for services of such names.
    pub variables: Vec<String>,
    /// Variables that look like a setting with a slip, or like one of another program, each in a line.
    pub warnings: Vec<String>,
}

/// Has `read` make a value of the file at `path`, overridden by `env`. Returns with it what in `env` was ignored.
///
/// # Errors
///
/// If the file cannot be read, or anything in it or in the variables is wrong.
pub fn load<T>(
    path: &Path,
    bytes_max: u64,
    env: impl Iterator<Item = (String, String)>,
    read_root: impl FnOnce(Table<'_>, &mut Report<'_>) -> Option<T>,
) -> Result<(T, Ignored), ConfigError> {
    let text = read(path, bytes_max)?;
    let (mut report, root) = Report::open(path, &text, env)?;
    let value = read_root(root, &mut report);
    report.finish(value)
}

/// The text of the file at `path`, which must be UTF-8 and no longer than `bytes_max`.
///
/// # Errors
///
/// If it cannot be read, is too long, or is not UTF-8.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, ConfigError> {
    let refuse = |what: String, remedy: &str| {
        ConfigError::one(Problem { place: Place::File(path.into()), key: String::new(), what, remedy: remedy.into() })
    };
    let unreadable = |error: std::io::Error| {
        refuse(format!("cannot be read: {error}"), "name a file that exists and that this user may read")
    };
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    if length > bytes_max {
        return Err(refuse(format!("is {length} bytes long"), &format!("it may have at most {bytes_max} bytes")));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(length as usize + 1));
    // The file may have grown since, or be a pipe that tells no length.
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > bytes_max {
        return Err(refuse("is too long".into(), &format!("it may have at most {bytes_max} bytes")));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(error) => {
            Err(refuse(format!("is not UTF-8 from byte {} on", error.valid_up_to()), "save it as UTF-8 text"))
        }
    }
}

/// What is known of a file while it is being read.
pub struct Report<'i> {
    file: &'i Path,
    text: &'i str,
    line_starts: Vec<usize>,
    overrides: BTreeMap<String, Override>,
    ignored: Ignored,
    folders: Folders,
    /// Paths of all keys that were asked for, with `*` in place of user names.
    known: BTreeSet<String>,
    unknown: Vec<Unknown>,
    problems: Vec<Problem>,
    omitted: usize,
}

struct Override {
    variable: String,
    value: Zeroizing<String>,
}

struct Unknown {
    path: String,
    schema: String,
    place: Place,
}

impl<'i> Report<'i> {
    /// Starts to read `text`, the contents of `file`, under the overrides that `env` holds.
    ///
    /// # Errors
    ///
    /// If the text is not TOML.
    pub(crate) fn open(
        file: &'i Path,
        text: &'i str,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Table<'i>), ConfigError> {
        let line_starts =
            std::iter::once(0).chain(text.match_indices('\n').map(|(offset, _)| offset + 1)).collect::<Vec<_>>();
        let Environment { overrides, ignored, folders } = Environment::read(env);
        let mut report = Report {
            file,
            text,
            line_starts,
            overrides,
            ignored,
            folders,
            known: BTreeSet::new(),
            unknown: Vec::new(),
            problems: Vec::new(),
            omitted: 0,
        };
        match DeTable::parse(text) {
            Ok(root) => {
                let root =
                    Table::new(String::new(), String::new(), Place::File(file.into()), root.into_inner(), &report);
                Ok((report, root))
            }
            Err(error) => {
                // Only the message: the parser's own rendering quotes the line, which may hold a key.
                let place = error.span().map_or(Place::File(file.into()), |span| report.place(span.start));
                let what = format!("is not valid TOML: {}", error.message().replace('\n', ", "));
                report.wrong(place, "", what, "write `key = value` lines under `[table]` headers; strings need quotes");
                Err(report.into_error())
            }
        }
    }

    /// Notes a problem with the key at `path`.
    pub fn wrong(&mut self, place: Place, path: &str, what: impl Into<String>, remedy: impl Into<String>) {
        if self.problems.len() == PROBLEMS_MAX {
            self.omitted += 1;
            return;
        }
        self.problems.push(Problem { place, key: path.into(), what: what.into(), remedy: remedy.into() });
    }

    /// Where the process keeps what need not outlive it.
    pub fn runtime_folder(&self) -> &Path {
        &self.folders.runtime
    }

    /// Where the process keeps what is to outlive it.
    pub fn state_folder(&self) -> &Path {
        &self.folders.state
    }

    /// How many problems were noted so far.
    pub(crate) fn problems(&self) -> usize {
        self.problems.len() + self.omitted
    }

    /// Takes over the problems of another file.
    pub(crate) fn absorb(&mut self, error: ConfigError) {
        self.omitted += error.omitted();
        for problem in error.problems() {
            self.wrong(problem.place.clone(), &problem.key, problem.what.clone(), problem.remedy.clone());
        }
    }

    /// Ends the reading, which gave `value`, or `None` after a problem. Gives with it what in the environment was ignored.
    ///
    /// # Errors
    ///
    /// If there was any problem, now including every key that nobody asked for.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<(T, Ignored), ConfigError> {
        for unknown in std::mem::take(&mut self.unknown) {
            let remedy = self.suggestion(&unknown.schema);
            self.wrong(unknown.place, &unknown.path, "is not a known key", remedy);
        }
        let mut ignored = std::mem::take(&mut self.ignored);
        for (path, Override { variable, .. }) in std::mem::take(&mut self.overrides) {
            // A variable such as TOLLGATE_HOME was hardly meant as a setting.
            let resembles = path.contains('.') || nearest(&path, self.known.iter().map(String::as_str)).is_some();
            if has_prefix(&variable, QUINCY_PREFIX) {
                let what = "names no setting of this program and is ignored".to_owned();
                let remedy = match nearest(&path, self.known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "leave it if it is another program's".to_owned(),
                };
                let problem = Problem { place: Place::Variable(variable), key: path, what, remedy };
                ignored.warnings.push(problem.to_string());
            } else if resembles {
                let remedy = self.suggestion(&path);
                self.wrong(Place::Variable(variable), &path, "is not a known key", remedy);
            } else {
                ignored.variables.push(variable);
            }
        }
        debug_assert!(value.is_some() || !self.problems.is_empty(), "nothing was read, but nothing is wrong");
        match value {
            Some(value) if self.problems.is_empty() => Ok((value, ignored)),
            _ => Err(self.into_error()),
        }
    }

    fn into_error(mut self) -> ConfigError {
        self.problems.sort_by(|a, b| a.place.cmp(&b.place));
        ConfigError::new(self.problems, self.omitted)
    }

    /// The place of a byte of the text.
    pub(crate) fn place(&self, offset: usize) -> Place {
        let line = self.line_starts.partition_point(|start| *start <= offset).max(1);
        let start = self.line_starts[line - 1];
        let column = self.text.get(start..offset).map_or(1, |before| before.chars().count() + 1);
        Place::Position { file: self.file.into(), line, column }
    }

    /// What the author of the unknown key at `path` may have meant.
    fn suggestion(&self, path: &str) -> String {
        let (table, leaf) = split(path);
        let siblings: Vec<&str> =
            self.known.iter().map(|known| split(known)).filter(|(of, _)| *of == table).map(|(_, leaf)| leaf).collect();
        if let Some(near) = nearest(leaf, siblings.iter().copied()) {
            return format!("did you mean `{near}`?");
        }
        if let Some(elsewhere) = self.known.iter().find(|known| split(known).1 == leaf) {
            return match split(elsewhere).0 {
                "" => format!("`{leaf}` belongs at the top of the file, before the first [table]"),
                table => format!("`{leaf}` belongs in [{table}]"),
            };
        }
        match (table, siblings.is_empty()) {
            (_, true) => "remove it".into(),
            ("", false) => format!("remove it; the keys at the top of the file are {}", siblings.join(", ")),
            (_, false) => format!("remove it; the keys of [{table}] are {}", siblings.join(", ")),
        }
    }
}

/// What matters of the environment.
struct Environment {
    /// Variables with a prefix of ours, by the path of the key that they override.
    overrides: BTreeMap<String, Override>,
    ignored: Ignored,
    folders: Folders,
}

/// Where files go that are not configured.
struct Folders {
    runtime: PathBuf,
    state: PathBuf,
}

impl Environment {
    fn read(env: impl Iterator<Item = (String, String)>) -> Self {
        let mut folders = Folders { runtime: "/run/tollgate".into(), state: "/var/lib/tollgate".into() };
        let mut ignored = Ignored::default();
        let mut found: Vec<(usize, String, Override)> = Vec::new();
        for (variable, value) in env {
            match &variable[..] {
                "RUNTIME_DIRECTORY" => folders.runtime = first_folder(&value).unwrap_or(folders.runtime),
                "STATE_DIRECTORY" => folders.state = first_folder(&value).unwrap_or(folders.state),
                _ => {}
            }
            let value = Zeroizing::new(value);
            let mut prefixes = PREFIXES.iter().enumerate();
            let Some((rank, prefix)) = prefixes.rfind(|(_, prefix)| has_prefix(&variable, prefix)) else { continue };
            let rest = &variable[prefix.len()..];
            if is_of_a_service(rest, &value) {
                ignored.variables.push(variable);
            } else if !rest.is_empty() {
                let path = rest.to_ascii_lowercase().replace("__", ".");
                found.push((rank, path, Override { variable, value }));
            }
        }
        found.sort_by_key(|(rank, ..)| *rank);
        let overrides = found.into_iter().map(|(_, path, value)| (path, value)).collect();
        Environment { overrides, ignored, folders }
    }
}

fn has_prefix(variable: &str, prefix: &str) -> bool {
    variable.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The first of the folders that systemd names, with colons between where there are several.
fn first_folder(value: &str) -> Option<PathBuf> {
    value.split(':').map(Path::new).find(|folder| folder.is_absolute()).map(Path::to_owned)
}

/// Whether a variable, of which `rest` follows the prefix, is one that Kubernetes sets in every container for a service of such a name: a
/// service `quincy-metrics` sets QUINCY_METRICS_SERVICE_HOST, QUINCY_METRICS_SERVICE_PORT (and that with the name of a port behind),
/// QUINCY_METRICS_PORT, QUINCY_METRICS_PORT_9090_TCP, and the last with _PROTO, _PORT and _ADDR behind.
fn is_of_a_service(rest: &str, value: &str) -> bool {
    // The service's own name may be the whole prefix.
    let rest = format!("_{}", rest.to_ascii_uppercase());
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_of_port = |rest: &str| {
        let mut words = rest.split('_');
        let number = words.next().is_some_and(|word| word.parse::<u16>().is_ok());
        number && words.next().is_some_and(|word| ["TCP", "UDP", "SCTP"].contains(&word))
    };
    rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || (rest.ends_with("_PORT") && is_address)
        || rest.match_indices("_PORT_").any(|(at, port)| is_of_port(&rest[at + port.len()..]))
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

/// The candidate that `word` was most likely meant to be, if any is near enough.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    candidates
        .map(|candidate| (likeness(&word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// How alike two words are, from 0 to 1: by the letters to change, or by a common beginning and end, as `cert_file` has with
/// `certificate_file`.
fn likeness(a: &str, b: &str) -> f64 {
    let backwards = |word: &str| word.chars().rev().collect::<String>();
    let ends = (strsim::jaro_winkler(a, b) + strsim::jaro_winkler(&backwards(a), &backwards(b))) / 2.0;
    strsim::normalized_damerau_levenshtein(a, b).max(ends - 0.2)
}

/// A table with the settings that were not asked for yet.
pub struct Table<'i> {
    path: String,
    /// The path with `*` in place of user names.
    schema: String,
    place: Place,
    entries: BTreeMap<String, Entry<'i>>,
}

struct Entry<'i> {
    key: Place,
    place: Place,
    value: DeValue<'i>,
}

impl<'i> Table<'i> {
    fn new(path: String, schema: String, place: Place, table: DeTable<'i>, report: &Report<'_>) -> Self {
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
        Table { path, schema, place, entries }
    }

    /// Takes a setting out, if it is set: by a variable, or else by the file.
    pub fn take(&mut self, report: &mut Report<'_>, key: &str) -> Option<Setting<'i>> {
        report.known.insert(join(&self.schema, key));
        let path = join(&self.path, key);
        let entry = self.entries.remove(key);
        if let Some(Override { variable, value }) = report.overrides.remove(&path) {
            return Some(Setting { place: Place::Variable(variable), path, value: Value::Text(value) });
        }
        entry.map(|entry| Setting { place: entry.place, path, value: Value::Toml(entry.value) })
    }

    /// Notes a problem if `key` is not set. To be called before it is taken.
    pub fn require(&self, report: &mut Report<'_>, key: &str, remedy: &str) {
        if !self.is_set(report, key) {
            report.wrong(self.place.clone(), &join(&self.path, key), "is missing", remedy);
        }
    }

    /// Takes a setting out that means nothing here, and notes a problem if it is set.
    pub fn refuse(&mut self, report: &mut Report<'_>, key: &str, what: &str, remedy: &str) {
        let place = self.place_of(key);
        if let Some(setting) = self.take(report, key) {
            report.wrong(place, &setting.path, what, remedy);
        }
    }

    /// Whether `key` is set and was not taken yet.
    pub fn is_set(&self, report: &Report<'_>, key: &str) -> bool {
        let (path, below) = (join(&self.path, key), format!("{}.", join(&self.path, key)));
        let overridden = |(found, _): (&String, &Override)| *found == path || found.starts_with(&below);
        self.entries.contains_key(key) || report.overrides.range(path.clone()..).next().is_some_and(overridden)
    }

    /// Where `key` is set in the file, if it is and was not taken yet; otherwise where the table begins.
    pub fn place_of(&self, key: &str) -> Place {
        self.entries.get(key).map_or_else(|| self.place.clone(), |entry| entry.key.clone())
    }

    /// Where the table begins.
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// Takes a table out; an empty one if it is absent.
    pub fn table(&mut self, report: &mut Report<'_>, key: &str) -> Table<'i> {
        let path = join(&self.path, key);
        let schema = join(&self.schema, key);
        report.known.insert(schema.clone());
        match self.entries.remove(key) {
            Some(Entry { key, value: DeValue::Table(table), .. }) => Table::new(path, schema, key, table, report),
            Some(entry) => {
                let what = format!("is {}, not a table", shown(&entry.value));
                report.wrong(entry.place, &path, what, format!("write a line [{path}] and the table's keys below it"));
                Table { path, schema, place: entry.key, entries: BTreeMap::new() }
            }
            None => Table { path, schema, place: Place::File(report.file.into()), entries: BTreeMap::new() },
        }
    }

    /// Takes an array of tables out; none if it is absent.
    pub fn array(&mut self, report: &mut Report<'_>, key: &str) -> Vec<Table<'i>> {
        let schema = join(&self.schema, key);
        report.known.insert(schema.clone());
        let expected = format!("write a line [[{schema}]] for each, and the table's keys below it");
        let elements = self.take(report, key).and_then(|setting| setting.elements(report, &expected));
        let mut tables = Vec::new();
        for element in elements.unwrap_or_default() {
            match element.value {
                Value::Toml(DeValue::Table(table)) => {
                    tables.push(Table::new(element.path, schema.clone(), element.place, table, report));
                }
                _ => {
                    element.refuse_type::<()>(report, &expected);
                }
            }
        }
        tables
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
    pub fn finish(self, report: &mut Report<'_>) {
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

    /// An integer within `range`, if set and right. `unit` names what it counts.
    pub fn integer(
        &mut self,
        report: &mut Report<'_>,
        key: &str,
        range: RangeInclusive<u64>,
        unit: &str,
    ) -> Option<u64> {
        self.take(report, key)?.integer(report, range, unit)
    }

    /// A number, whole or not, within `range`, if set and right. `unit` names what it counts.
    pub fn number(
        &mut self,
        report: &mut Report<'_>,
        key: &str,
        range: RangeInclusive<f64>,
        unit: &str,
    ) -> Option<f64> {
        self.take(report, key)?.number(report, range, unit)
    }

    /// `true` or `false`, if set and right.
    pub fn boolean(&mut self, report: &mut Report<'_>, key: &str) -> Option<bool> {
        let setting = self.take(report, key)?;
        let value = match &setting.value {
            Value::Toml(DeValue::Boolean(value)) => Some(*value),
            Value::Text(text) => text.trim().to_ascii_lowercase().parse().ok(),
            Value::Toml(_) => None,
        };
        value.or_else(|| setting.refuse_type(report, "write true or false"))
    }

    /// A string that `parse` understands, if set and right.
    pub fn parsed<T>(
        &mut self,
        report: &mut Report<'_>,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.take(report, key)?.parsed(report, expected, parse)
    }

    /// A list of strings that `parse` understands, each with its place, if set and right.
    pub(crate) fn list<T>(
        &mut self,
        report: &mut Report<'_>,
        key: &str,
        expected: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<(Place, T)>> {
        let elements = self.take(report, key)?.elements(report, expected)?;
        let mut list = Vec::with_capacity(elements.len());
        for element in elements {
            let place = element.place.clone();
            list.extend(element.parsed(report, expected, &parse).map(|value| (place, value)));
        }
        Some(list)
    }

    /// A string whose value no error shows, if set and right.
    pub(crate) fn secret(
        &mut self,
        report: &mut Report<'_>,
        key: &str,
        expected: &str,
    ) -> Option<(Place, Zeroizing<String>)> {
        self.take(report, key)?.secret(report, expected)
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
