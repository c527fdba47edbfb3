//! Configuration keys, each declared once.
//!
//! A [`table!`] names for each key of a TOML table its field, type, kind, default, whether a running gateway takes another value over, and
//! what it means. From that come the struct that the rest of the program sees, the reader with its refusals, the configuration in force,
//! the comparison at a reload, the example files and the reference page: the last two are tests'.
//!
//! Derive crates do not fit: those on serde end at the first mistake, and know neither the place of a value nor that it is a secret.

use crate::document::Report;
use crate::kind::Kind;
use crate::table::Table;

/// Who knows a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Quincy 3, and Tollgate.
    Quincy,
    /// Tollgate alone.
    Tollgate,
}

/// What is declared of a key besides its kind and default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Whether a running gateway takes another value over, at a reload.
    pub is_live: bool,
    /// Whether the file must have it.
    pub is_required: bool,
    /// A value as an example.
    pub example: Option<&'static str>,
    /// Whether the example file sets it.
    pub is_in_example: bool,
    /// Why another value than the default has no effect yet.
    pub without_effect: Option<&'static str>,
}

/// A key that a reload may change.
pub(crate) const LIVE: Traits =
    Traits { is_live: true, is_required: false, example: None, is_in_example: false, without_effect: None };

/// A key that only a restart can change.
pub(crate) const RESTART: Traits = Traits { is_live: false, ..LIVE };

impl Traits {
    pub(crate) const fn required(self, example: &'static str) -> Self {
        Traits { is_required: true, ..self.in_example(example) }
    }

    pub(crate) const fn in_example(self, example: &'static str) -> Self {
        Traits { is_in_example: true, ..self.example(example) }
    }

    pub(crate) const fn example(self, example: &'static str) -> Self {
        Traits { example: Some(example), ..self }
    }

    pub(crate) const fn without_effect(self, reason: &'static str) -> Self {
        Traits { without_effect: Some(reason), ..self }
    }
}

/// A key, and its value in one configuration.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key's name in its table.
    pub name: &'static str,
    /// What it means, in lines that each begin with a space.
    pub text: &'static [&'static str],
    /// What may be written, as the remedy of an error.
    pub expected: String,
    /// The value as a file has it, with secrets masked; `None` if it is not set.
    pub value: Option<String>,
    /// What holds while it is not set; empty if there is nothing to say.
    pub absent: &'static str,
    /// A remark on the value.
    pub remark: Option<String>,
    /// Who knows it.
    pub origin: Origin,
    /// What else is declared of it.
    pub traits: Traits,
}

impl Entry {
    pub(crate) fn new<T>(
        name: &'static str,
        text: &'static [&'static str],
        kind: Kind<T>,
        value: &T,
        origin: Origin,
        traits: Traits,
    ) -> Self {
        let Kind { expected, absent, show, .. } = kind;
        Entry { name, text, expected, value: show(value), absent, remark: None, origin, traits }
    }
}

/// A table of a configuration.
#[derive(Debug, Clone)]
pub struct Section {
    /// Its name; empty for the top of the file.
    pub name: &'static str,
    /// What it is about, in lines that each begin with a space.
    pub text: &'static [&'static str],
    /// Its keys, in the order in which they are shown.
    pub entries: Vec<Entry>,
    /// Whether a file has it in the place of another.
    pub is_alternative: bool,
}

impl Section {
    /// The path of one of its keys.
    pub fn path(&self, entry: &Entry) -> String {
        if self.name.is_empty() { entry.name.to_owned() } else { format!("{}.{}", self.name, entry.name) }
    }

    /// The key `name`, which must be one of its keys.
    pub(crate) fn entry(&mut self, name: &str) -> &mut Entry {
        self.entries.iter_mut().find(|entry| entry.name == name).expect("the key is declared")
    }

    /// Appends the keys of another table that stand in this one.
    pub(crate) fn and(mut self, other: Section) -> Self {
        self.entries.extend(other.entries);
        self
    }
}

/// What [`table!`] declares.
pub(crate) trait Declared: Sized {
    /// What the table is about.
    const TEXT: &'static [&'static str];

    /// The defaults. What a required key has instead is never used: that it is missing is a problem.
    fn initial() -> Self;

    /// Takes the keys out of `table`. What is not set, or wrong, stays.
    fn read_keys(&mut self, table: &mut Table<'_>, report: &mut Report<'_>);

    /// The keys with their values.
    fn entries(&self) -> Vec<Entry>;

    /// A whole table: the defaults, and over them what it sets.
    fn read(mut table: Table<'_>, report: &mut Report<'_>) -> Self {
        let mut value = Self::initial();
        value.read_keys(&mut table, report);
        table.finish(report);
        value
    }

    /// The table under its name.
    fn section(&self, name: &'static str) -> Section {
        Section { name, text: Self::TEXT, entries: self.entries(), is_alternative: false }
    }
}

/// Takes the key `name` out of `table`; `None` if it is not set or wrong.
pub(crate) fn read_key<T>(
    name: &str,
    kind: impl Fn() -> Kind<T>,
    traits: Traits,
    table: &mut Table<'_>,
    report: &mut Report<'_>,
) -> Option<T> {
    if traits.is_required && !table.requires(report, name, &kind().expected) {
        return None;
    }
    let setting = table.take(report, name)?;
    (kind().read)(setting, report)
}

/// A field that several keys are read into.
pub(crate) trait Shared {
    /// Takes over what a further key says.
    fn add(&mut self, other: Self);
}

/// Declares a TOML table and the struct that it is read into. After `into` come keys that share fields; after `and`, fields without a key of
/// their own.
macro_rules! table {
    (
        $(#[doc = $text:literal])*
        #[derive($($derive:ident),*)]
        $visibility:vis struct $Table:ident of $Origin:ident {
            $(
                $(#[doc = $key_text:literal])*
                $name:literal => $field:ident: $Type:ty = $default:expr, $kind:expr, $traits:expr;
            )*
        }
        $(into {
            $(
                $(#[doc = $shared_text:literal])*
                $shared_name:literal => $shared:ident, $shared_kind:expr, $shared_traits:expr;
            )*
        })?
        $(and {
            $(
                $(#[doc = $rest_text:literal])*
                $rest:ident: $Rest:ty = $rest_default:expr;
            )*
        })?
    ) => {
        $(#[doc = $text])*
        #[derive($($derive),*)]
        $visibility struct $Table {
            $(
                $(#[doc = $key_text])*
                pub $field: $Type,
            )*
            $($(
                $(#[doc = $rest_text])*
                pub $rest: $Rest,
            )*)?
        }

        impl $crate::schema::Declared for $Table {
            const TEXT: &'static [&'static str] = &[$($text),*];

            fn initial() -> Self {
                $Table { $($field: $default,)* $($($rest: $rest_default,)*)? }
            }

            fn read_keys(&mut self, table: &mut $crate::table::Table<'_>, report: &mut $crate::document::Report<'_>) {
                $(
                    if let Some(value) = $crate::schema::read_key($name, || $kind, $traits, table, report) {
                        self.$field = value;
                    }
                )*
                $($(
                    if let Some(value) = $crate::schema::read_key($shared_name, || $shared_kind, $shared_traits, table, report) {
                        $crate::schema::Shared::add(&mut self.$shared, value);
                    }
                )*)?
            }

            fn entries(&self) -> Vec<$crate::schema::Entry> {
                let origin = $crate::schema::Origin::$Origin;
                vec![
                    $($crate::schema::Entry::new($name, &[$($key_text),*], $kind, &self.$field, origin, $traits),)*
                    $($($crate::schema::Entry::new(
                        $shared_name, &[$($shared_text),*], $shared_kind, &self.$shared, origin, $shared_traits,
                    ),)*)?
                ]
            }
        }
    };
}

pub(crate) use table;
