//! A single setting: a value from the file or from the environment, made into what its reader asks for.
//!
//! Every refusal is noted in the [`Report`]; the value of a secret never is.

use std::ops::RangeInclusive;

use toml::de::DeValue;
use zeroize::Zeroizing;

use crate::document::Report;
use crate::error::Place;

/// Characters of a wrong value that an error shows.
const SHOWN_CHARS_MAX: usize = 60;

/// A setting that was taken out of its table.
pub(crate) struct Setting<'i> {
    /// The full path of its key.
    pub path: String,
    /// Where its value is.
    pub place: Place,
    /// The value as it was read.
    pub(crate) value: Value<'i>,
}

/// A value as it was found.
pub(crate) enum Value<'i> {
    /// A value of the TOML file.
    Toml(DeValue<'i>),
    /// From the environment: what the text stands for depends on who asks.
    Text(Zeroizing<String>),
}

impl<'i> Setting<'i> {
    /// An integer within `range`.
    pub(crate) fn integer(self, report: &mut Report<'_>, range: &RangeInclusive<u64>, expected: &str) -> Option<u64> {
        let value = match &self.value {
            Value::Toml(DeValue::Integer(value)) => i128::from_str_radix(value.as_str(), value.radix()).ok(),
            Value::Text(text) => text.trim().parse().ok(),
            Value::Toml(_) => None,
        };
        let Some(value) = value else { return self.refuse_type(report, expected) };
        match u64::try_from(value) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => {
                let what = if value < i128::from(*range.start()) { "too small" } else { "too large" };
                report.wrong(self.place, &self.path, format!("is {value}, which is {what}"), expected);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(crate) fn boolean(self, report: &mut Report<'_>, expected: &str) -> Option<bool> {
        let value = match &self.value {
            Value::Toml(DeValue::Boolean(value)) => Some(*value),
            Value::Text(text) => text.trim().to_ascii_lowercase().parse().ok(),
            Value::Toml(_) => None,
        };
        value.or_else(|| self.refuse_type(report, expected))
    }

    /// Whether the value is a string: only then `parsed` and `secret` can succeed.
    pub(crate) fn is_string(&self) -> bool {
        matches!(self.value, Value::Text(_) | Value::Toml(DeValue::String(_)))
    }

    /// Whether the value is a string that begins with a letter. A variable may hold a list, which does not.
    pub(crate) fn is_word(&self) -> bool {
        let text: &str = match &self.value {
            Value::Toml(DeValue::String(text)) => text,
            Value::Text(text) => unquoted(text),
            Value::Toml(_) => return false,
        };
        text.trim_start().starts_with(|first: char| first.is_ascii_alphabetic())
    }

    /// How many elements the value has, if it is a list: in a variable, what is in brackets or has commas in it.
    pub(crate) fn list_len(&self) -> Option<usize> {
        match &self.value {
            Value::Toml(DeValue::Array(array)) => Some(array.len()),
            Value::Text(text) if text.trim().starts_with('[') && text.trim().ends_with(']') || text.contains(',') => {
                Some(words(text).count())
            }
            _ => None,
        }
    }

    /// A string that `parse` understands; what `parse` says on failure follows "is "value", ".
    pub(crate) fn parsed<T>(
        self,
        report: &mut Report<'_>,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text: &str = match &self.value {
            Value::Toml(DeValue::String(text)) => text,
            Value::Text(text) => unquoted(text),
            Value::Toml(_) => return self.refuse_type(report, expected),
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(what) => {
                let what = format!("is {}, {what}", shown_text(text));
                report.wrong(self.place, &self.path, what, expected);
                None
            }
        }
    }

    /// The elements of an array.
    pub(crate) fn elements(self, report: &mut Report<'_>, expected: &str) -> Option<Vec<Setting<'i>>> {
        let Setting { path, place, value } = self;
        match value {
            Value::Toml(DeValue::Array(array)) => Some(
                array
                    .into_iter()
                    .enumerate()
                    .map(|(index, element)| Setting {
                        path: format!("{path}[{index}]"),
                        place: report.place(element.span().start),
                        value: Value::Toml(element.into_inner()),
                    })
                    .collect(),
            ),
            Value::Text(text) => {
                let element = |(index, word): (usize, &str)| Setting {
                    path: format!("{path}[{index}]"),
                    place: place.clone(),
                    value: Value::Text(Zeroizing::new(word.to_owned())),
                };
                Some(words(&text).enumerate().map(element).collect())
            }
            Value::Toml(value) => {
                let what = format!("is {}, not a list", shown(&value));
                report.wrong(place, &path, what, expected);
                None
            }
        }
    }

    /// A string whose value no error shows.
    pub(crate) fn secret(self, report: &mut Report<'_>, expected: &str) -> Option<(Place, Zeroizing<String>)> {
        match self.value {
            Value::Toml(DeValue::String(text)) => Some((self.place, Zeroizing::new(text.into_owned()))),
            Value::Text(text) => Some((self.place, text)),
            Value::Toml(_) => {
                report.wrong(self.place, &self.path, "is not a string", expected);
                None
            }
        }
    }

    /// Notes that the value is not of the expected type.
    pub(crate) fn refuse_type<T>(self, report: &mut Report<'_>, expected: &str) -> Option<T> {
        let found = match &self.value {
            Value::Toml(value) => shown(value),
            Value::Text(text) => shown_text(text),
        };
        report.wrong(self.place, &self.path, format!("is {found}"), expected);
        None
    }
}

/// A value as an error shows it.
pub(crate) fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string {}", shown_text(text)),
        DeValue::Integer(value) => format!("the number {value}"),
        DeValue::Float(value) => format!("the fraction {value}"),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

fn shown_text(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The elements of a list in a variable: with brackets or without.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let inner = text.trim();
    let inner = inner.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(inner);
    inner.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    ['"', '\'']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)))
        .unwrap_or(text)
}
