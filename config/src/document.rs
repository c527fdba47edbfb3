//! One configuration file while it is being read: its tables with their positions, the environment's overrides, the problems so far.
//!
//! Reading takes each setting out of its table. What is left at the end was not known to anybody, and is a problem. Reading goes on
//! after a problem, so that one run reports all of them. This module never shows the value of a setting that was read as a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use toml::de::DeTable;
use zeroize::Zeroizing;

use crate::environment::{Environment, Folders, Ignored, Override, QUINCY_PREFIX, has_prefix};
use crate::error::{ConfigError, PROBLEMS_MAX, Place, Problem};
use crate::likeness::nearest;
use crate::open::Open;
use crate::table::Table;

/// Longest server or client file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Has `read_root` make a value of the file at `path`, which `open` opens, overridden by `env`. Returns with it what in `env` was ignored.
///
/// # Errors
///
/// If the file cannot be read, or anything in it or in the variables is wrong.
pub(crate) fn load<T>(
    path: &Path,
    bytes_max: u64,
    env: impl Iterator<Item = (String, String)>,
    open: &Open<'_>,
    read_root: impl FnOnce(Table<'_>, &mut Report<'_>) -> T,
) -> Result<(T, Ignored), ConfigError> {
    let text = read(path, bytes_max, open)?;
    load_text(path, &text, env, read_root)
}

/// The same of `text`, which stands in the file at `path`.
///
/// # Errors
///
/// If anything in it or in the variables is wrong.
pub(crate) fn load_text<T>(
    path: &Path,
    text: &str,
    env: impl Iterator<Item = (String, String)>,
    read_root: impl FnOnce(Table<'_>, &mut Report<'_>) -> T,
) -> Result<(T, Ignored), ConfigError> {
    let (mut report, root) = Report::open(path, text, env)?;
    let value = read_root(root, &mut report);
    report.finish(value)
}

/// The text of the file at `path`, which must be UTF-8 and no longer than `bytes_max`.
///
/// # Errors
///
/// If it cannot be read, is too long, or is not UTF-8.
pub(crate) fn read(path: &Path, bytes_max: u64, open: &Open<'_>) -> Result<Zeroizing<String>, ConfigError> {
    let refuse = |what: String, remedy: &str| {
        ConfigError::one(Problem { place: Place::File(path.into()), key: String::new(), what, remedy: remedy.into() })
    };
    let unreadable = |error: std::io::Error| {
        refuse(format!("cannot be read: {error}"), "name a file that exists and that this user may read")
    };
    let file = open(path).map_err(unreadable)?;
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
pub(crate) struct Report<'i> {
    pub(crate) file: &'i Path,
    text: &'i str,
    line_starts: Vec<usize>,
    pub(crate) overrides: BTreeMap<String, Override>,
    ignored: Ignored,
    folders: Folders,
    /// Paths of all keys that were asked for, with `*` in place of user names.
    pub(crate) known: BTreeSet<String>,
    pub(crate) unknown: Vec<Unknown>,
    problems: Vec<Problem>,
    omitted: usize,
    omitted_warnings: usize,
}

/// A key that nobody asked for.
pub(crate) struct Unknown {
    pub path: String,
    pub schema: String,
    pub place: Place,
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
            omitted_warnings: 0,
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
    pub(crate) fn wrong(&mut self, place: Place, path: &str, what: impl Into<String>, remedy: impl Into<String>) {
        if self.problems.len() == PROBLEMS_MAX {
            self.omitted += 1;
            return;
        }
        self.problems.push(Problem { place, key: path.into(), what: what.into(), remedy: remedy.into() });
    }

    /// Notes that the key at `path` is valid, but does not do what it was hardly meant to.
    pub(crate) fn warn(&mut self, place: Place, path: &str, what: impl Into<String>, remedy: impl Into<String>) {
        if self.ignored.warnings.len() == PROBLEMS_MAX {
            self.omitted_warnings += 1;
            return;
        }
        let problem = Problem { place, key: path.into(), what: what.into(), remedy: remedy.into() };
        self.ignored.warnings.push(problem.to_string());
    }

    /// Where the process keeps what need not outlive it.
    pub(crate) fn runtime_folder(&self) -> &Path {
        &self.folders.runtime
    }

    /// Where the process keeps what is to outlive it.
    pub(crate) fn state_folder(&self) -> &Path {
        &self.folders.state
    }

    /// Whether a problem was noted with a key whose path begins so.
    pub(crate) fn is_wrong(&self, path: &str) -> bool {
        self.problems.iter().any(|problem| problem.key.starts_with(path))
    }

    /// Takes over the problems of another file.
    pub(crate) fn absorb(&mut self, error: ConfigError) {
        self.omitted += error.omitted();
        for problem in error.problems() {
            self.wrong(problem.place.clone(), &problem.key, problem.what.clone(), problem.remedy.clone());
        }
    }

    /// Ends the reading, which gave `value`. Gives with it what was ignored.
    ///
    /// # Errors
    ///
    /// If there was any problem, now including every key that nobody asked for.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<(T, Ignored), ConfigError> {
        for unknown in std::mem::take(&mut self.unknown) {
            let remedy = self.suggestion(&unknown.schema);
            self.wrong(unknown.place, &unknown.path, "is not a known key", remedy);
        }
        for (path, Override { variable, .. }) in std::mem::take(&mut self.overrides) {
            // A variable such as TOLLGATE_HOME was hardly meant as a setting.
            let resembles = path.contains('.') || nearest(&path, self.known.iter().map(String::as_str)).is_some();
            if has_prefix(&variable, QUINCY_PREFIX) {
                let what = "names no setting of this program and is ignored".to_owned();
                let remedy = match nearest(&path, self.known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "leave it if it is another program's".to_owned(),
                };
                self.warn(Place::Variable(variable), &path, what, remedy);
            } else if resembles {
                let remedy = self.suggestion(&path);
                self.wrong(Place::Variable(variable), &path, "is not a known key", remedy);
            } else {
                self.ignored.variables.push(variable);
            }
        }
        if self.omitted_warnings > 0 {
            self.ignored.warnings.push(format!("and {} more such", self.omitted_warnings));
        }
        if self.problems.is_empty() { Ok((value, self.ignored)) } else { Err(self.into_error()) }
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

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}
