//! What is wrong with a configuration, where, and what would be right.
//!
//! This module never holds a secret: whoever reports a problem leaves secret values out of it.

use std::fmt::{self, Write};
use std::path::PathBuf;

/// Problems that one [`ConfigError`] lists; more are only counted.
pub const PROBLEMS_MAX: usize = 100;

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file as a whole.
    File(PathBuf),
    /// A position in a file.
    Position {
        /// The file.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(file) => write!(f, "{}", file.display()),
            Place::Position { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Place::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The place of the setting.
    pub place: Place,
    /// The full path of the key, for example `connection.mtu`; empty where no key is concerned.
    pub key: String,
    /// What is wrong, as the rest of a sentence that starts with the key.
    pub what: String,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Line(f);
        match self.key.as_str() {
            "" => write!(line, "{}: {}; {}", self.place, self.what, self.remedy),
            key => write!(line, "{}: `{key}` {}; {}", self.place, self.what, self.remedy),
        }
    }
}

/// Text in one line, whatever is in it: a key or a variable's name may hold what moves a terminal's cursor, or ends a line.
struct Line<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for Line<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|char| match char {
            '"' | '\'' | '\\' => self.0.write_char(char),
            char => write!(self.0, "{}", char.escape_debug()),
        })
    }
}

/// A configuration that cannot be used. Its text has a line for each problem: place, key, what is wrong, what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
    omitted: usize,
}

impl ConfigError {
    /// An error with one problem.
    pub(crate) fn one(problem: Problem) -> Self {
        ConfigError { problems: vec![problem], omitted: 0 }
    }

    /// An error with `problems`, of which there is at least one, and `omitted` more that were only counted.
    pub(crate) fn new(problems: Vec<Problem>, omitted: usize) -> Self {
        ConfigError { problems, omitted }
    }

    /// The problems: at least one, at most [`PROBLEMS_MAX`], by file and position.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many more there are.
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more problems", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
