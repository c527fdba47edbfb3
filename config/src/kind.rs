//! Kinds of values: how each is read, and how a file has it.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tollgate_shards::Rate;

use crate::document::Report;
use crate::error::Place;
use crate::setting::Setting;
use crate::value;

type Read<T> = Box<dyn Fn(Setting<'_>, &mut Report<'_>) -> Option<T>>;
type Show<T> = Box<dyn Fn(&T) -> Option<String>>;

/// How a value is read, and how a file has it.
pub(crate) struct Kind<T> {
    /// What may be written, as the remedy of an error.
    pub expected: String,
    /// What holds while it is not set.
    pub absent: &'static str,
    /// Makes a value of a setting; `None` after a problem.
    pub read: Read<T>,
    /// The value as a file has it; `None` if it is not set.
    pub show: Show<T>,
}

impl<T: 'static> Kind<T> {
    pub(crate) fn new(
        expected: impl Into<String>,
        read: impl Fn(Setting<'_>, &mut Report<'_>) -> Option<T> + 'static,
        show: impl Fn(&T) -> String + 'static,
    ) -> Self {
        let show = Box::new(move |value: &T| Some(show(value)));
        Kind { expected: expected.into(), absent: "", read: Box::new(read), show }
    }

    /// The same, as another type, which may hold something else or nothing.
    pub(crate) fn map<U: 'static>(self, from: fn(T) -> U, to: fn(&U) -> Option<T>) -> Kind<U> {
        let Kind { expected, absent, read, show } = self;
        let read = Box::new(move |setting: Setting<'_>, report: &mut Report<'_>| read(setting, report).map(from));
        Kind { expected, absent, read, show: Box::new(move |value| show(&to(value)?)) }
    }

    /// The same, where it may be left out. `absent` says what holds then.
    pub(crate) fn optional(self, absent: &'static str) -> Kind<Option<T>>
    where
        T: Clone,
    {
        Kind { absent, ..self.map(Some, Clone::clone) }
    }

    /// A list of such, each with its place.
    pub(crate) fn placed(self) -> Kind<Vec<(Place, T)>> {
        let (expected, show) = (of_each(&self.expected), self.show);
        let read = elements(expected.clone(), self.read);
        Kind::new(expected, read, move |list: &Vec<(Place, T)>| {
            listed(list.iter().filter_map(|(_, value)| show(value)))
        })
    }

    /// A list of at most so many such.
    pub(crate) fn list(self, elements_max: usize) -> Kind<Vec<T>> {
        let (expected, show) = (of_each(&self.expected), self.show);
        let elements = elements(expected.clone(), self.read);
        let read = move |setting: Setting<'_>, report: &mut Report<'_>| {
            let path = setting.path.clone();
            let list = elements(setting, report)?;
            if let Some((place, _)) = list.get(elements_max) {
                let what = format!("has {} elements", list.len());
                report.wrong(place.clone(), &path, what, format!("list at most {elements_max}"));
            }
            Some(list.into_iter().map(|(_, value)| value).collect())
        };
        Kind::new(expected, read, move |list: &Vec<T>| listed(list.iter().filter_map(&show)))
    }

    /// A list of at least one such, of which one alone needs no brackets.
    pub(crate) fn one_or_list(self, elements_max: usize) -> Kind<Vec<T>> {
        let Kind { expected: one, absent, read, show } = self;
        let (read, show) = (Rc::new(read), Rc::new(show));
        let (read_each, show_each) = (read.clone(), show.clone());
        let each = Kind {
            expected: one.clone(),
            absent,
            read: Box::new(move |setting, report| read_each(setting, report)),
            show: Box::new(move |value| show_each(value)),
        };
        let (expected, list) = (format!("{one}, or a list of such in brackets"), each.list(elements_max));
        let read_list = move |setting: Setting<'_>, report: &mut Report<'_>| match setting.list_len() {
            None => read(setting, report).map(|value| vec![value]),
            Some(0) => {
                report.wrong(setting.place, &setting.path, "is an empty list", &one);
                None
            }
            Some(_) => (list.read)(setting, report),
        };
        let show_list = move |values: &Vec<T>| match &values[..] {
            [value] => show(value),
            values => Some(listed(values.iter().filter_map(|value| show(value)))),
        };
        Kind { expected, absent, read: Box::new(read_list), show: Box::new(show_list) }
    }
}

/// Reads a list, of which `read` reads each element.
fn elements<T: 'static>(expected: String, read: Read<T>) -> Read<Vec<(Place, T)>> {
    Box::new(move |setting, report| {
        let elements = setting.elements(report, &expected)?.into_iter();
        Some(elements.filter_map(|element| Some((element.place.clone(), read(element, report)?))).collect())
    })
}

pub(crate) fn of_each(expected: &str) -> String {
    format!("write a list in brackets; for each element: {expected}")
}

pub(crate) fn switch() -> Kind<bool> {
    let expected = "write true or false";
    Kind::new(expected, |setting, report| setting.boolean(report, expected), bool::to_string)
}

/// A whole number of what `unit` names.
pub(crate) fn whole(range: RangeInclusive<u64>, unit: &'static str) -> Kind<u64> {
    let expected = format!("write a whole number of {unit} from {} to {}", range.start(), range.end());
    let remedy = expected.clone();
    Kind::new(expected, move |setting, report| setting.integer(report, &range, &remedy), u64::to_string)
}

pub(crate) fn seconds(range: RangeInclusive<u64>) -> Kind<Duration> {
    whole(range, "seconds").map(Duration::from_secs, |time| Some(time.as_secs()))
}

pub(crate) fn microseconds(range: RangeInclusive<u64>) -> Kind<Duration> {
    whole(range, "microseconds").map(Duration::from_micros, |time| Some(time.as_micros() as u64))
}

pub(crate) fn count(range: RangeInclusive<u64>, unit: &'static str) -> Kind<usize> {
    whole(range, unit).map(|count| count as usize, |count| Some(*count as u64))
}

pub(crate) fn port() -> Kind<u16> {
    whole(1..=u16::MAX.into(), "a port").map(|port| port as u16, |port| Some((*port).into()))
}

/// A string that `parse` understands. On failure it says what is wrong, as the end of a sentence.
pub(crate) fn text<T: 'static>(
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
    show: fn(&T) -> String,
) -> Kind<T> {
    let read = move |setting: Setting<'_>, report: &mut Report<'_>| setting.parsed(report, expected, parse);
    Kind::new(expected, read, move |value| quoted(show(value)))
}

pub(crate) fn interface() -> Kind<Option<String>> {
    text(value::INTERFACE, value::interface, String::clone).optional("chosen by the kernel")
}

pub(crate) fn rate() -> Kind<Rate> {
    text(value::RATE, value::rate, |rate| value::rate_text(*rate))
}

/// An amount, in bytes.
pub(crate) fn amount() -> Kind<u64> {
    text(value::AMOUNT, value::amount, |bytes| value::amount_text(*bytes))
}

/// The path of a file, of which `expected` says more.
pub(crate) fn path(expected: &'static str) -> Kind<PathBuf> {
    text(expected, value::path, |path| path.display().to_string())
}

/// An address to listen on.
pub(crate) fn listen() -> Kind<IpAddr> {
    let parse = |text: &str| match text.trim().parse::<IpAddr>() {
        Ok(address) if address.is_multicast() => Err("which is a multicast address".into()),
        Ok(address) => Ok(address),
        Err(_) => Err("which is not an IP address".into()),
    };
    text("write an IP address of this machine, \"0.0.0.0\" or \"::\" for all", parse, IpAddr::to_string)
}

/// One of several words. A later word of the same value is another spelling.
pub(crate) fn choice<T: Copy + PartialEq>(words: &'static [(&'static str, T)]) -> Kind<T> {
    let word = |value: &T| words.iter().find(|(_, of)| of == value).map_or("", |(word, _)| *word);
    let own = words.iter().filter(|(spelling, value)| word(value) == *spelling).map(|(word, _)| quoted(word));
    let own: Vec<String> = own.collect();
    let (last, first) = own.split_last().expect("a choice has words");
    let expected = format!("write {} or {last}", first.join(", "));
    let remedy = expected.clone();
    let read = move |setting: Setting<'_>, report: &mut Report<'_>| {
        setting.parsed(report, &remedy, |text| value::one_of(words, text))
    };
    Kind::new(expected, read, move |value| quoted(word(value)))
}

/// A file that has a place without being configured. A gateway can do without such a one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlace {
    /// The path of the file.
    pub path: PathBuf,
    /// Whether the configuration names it.
    pub is_configured: bool,
}

impl FilePlace {
    /// The file `name` in `folder`, where none is configured.
    pub(crate) fn unconfigured(folder: impl AsRef<Path>, name: &str) -> Self {
        FilePlace { path: folder.as_ref().join(name), is_configured: false }
    }

    /// The path of such a file.
    pub(crate) fn kind(path: Kind<PathBuf>) -> Kind<FilePlace> {
        path.map(|path| FilePlace { path, is_configured: true }, |place| Some(place.path.clone()))
    }
}

/// A string as TOML has it.
pub(crate) fn quoted(text: impl Display) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn listed(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<_>>().join(", "))
}
