//! How lines look: for people, as JSON, or as entries of systemd's journal.

use std::fmt::{Debug, Write as _};

use serde_json::json;
use tollgate_config::LogFormat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::Context;

use super::writer::{LINE_BYTES_MAX, Lines};

/// Stands where the rest of a line was cut off.
const CUT: &str = " ...\n";
/// In front of the names of values in the journal, where other names have a meaning.
const PREFIX: &str = "TOLLGATE_";
/// What an entry of the journal needs beside a field's name and value, in bytes: two ends of lines and a length.
const FIELD_BYTES: usize = 10;

/// A line of `words` that belong to no event.
pub fn words(format: LogFormat, level: Level, words: &str) -> Vec<u8> {
    match format {
        LogFormat::Human => format!("{} {level:>5} {words}\n", now()).into_bytes(),
        LogFormat::Json => {
            let said = json!({ "timestamp": now(), "level": level.as_str(), "target": "tollgate", "message": words });
            format!("{said}\n").into_bytes()
        }
        LogFormat::Journald => {
            let mut entry = Entry::begin(level, "tollgate");
            entry.put("MESSAGE", words.as_bytes());
            entry.0
        }
    }
}

/// At most [`LINE_BYTES_MAX`] bytes of `line`, with a mark, in the same form.
pub fn cut(format: LogFormat, line: &[u8]) -> Vec<u8> {
    match format {
        LogFormat::Human => [begin_of(line, LINE_BYTES_MAX - CUT.len()), CUT.as_bytes()].concat(),
        // Half of it may have to be escaped.
        LogFormat::Json => {
            let begin = String::from_utf8_lossy(begin_of(line, LINE_BYTES_MAX / 2 - 256)).into_owned();
            words(format, Level::WARN, &format!("this line was too long: {begin} ..."))
        }
        // Entries are made no longer.
        LogFormat::Journald => line[..LINE_BYTES_MAX].to_vec(),
    }
}

/// At most `bytes` of `text`, and no part of a character of UTF-8.
fn begin_of(text: &[u8], bytes: usize) -> &[u8] {
    let mut end = bytes.min(text.len());
    while end > 0 && text.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
        end -= 1;
    }
    &text[..end]
}

fn now() -> String {
    let mut now = String::new();
    // Without the time a line is of use still.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    now
}

/// An entry in the journal's own protocol (systemd, "Native Journal Protocol"), of [`LINE_BYTES_MAX`] bytes at most: a value that is longer than the
/// rest is cut.
struct Entry(Vec<u8>);

impl Entry {
    fn begin(level: Level, target: &str) -> Self {
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        let mut entry = Entry(Vec::with_capacity(256));
        entry.put("PRIORITY", priority.as_bytes());
        entry.put("SYSLOG_IDENTIFIER", b"tollgate");
        entry.put("TARGET", target.as_bytes());
        entry
    }

    fn put(&mut self, name: &str, value: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.0.len() + name.len() + FIELD_BYTES);
        let value = begin_of(value, room);
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            return self.put("MESSAGE", value.as_bytes());
        }
        self.put(&format!("{PREFIX}{}", field.name().to_ascii_uppercase()), value.as_bytes());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing to a string fails only if the value does.
        let _ = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}

/// Makes entries of the journal.
pub struct ToJournal(pub Lines);

impl<S: Subscriber> Layer<S> for ToJournal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::begin(*event.metadata().level(), event.metadata().target());
        event.record(&mut entry);
        self.0.say(&entry.0);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_cut_between_two_characters() {
        for prefix in ["", "x"] {
            let line = cut(LogFormat::Human, format!("{prefix}{}\n", "é".repeat(LINE_BYTES_MAX)).as_bytes());
            let line = String::from_utf8(line).unwrap();
            assert!(line.len() <= LINE_BYTES_MAX && line.len() > LINE_BYTES_MAX - 4, "{} bytes", line.len());
            assert!(line.starts_with(&format!("{prefix}éé")) && line.ends_with(CUT), "{line}");
        }
    }

    #[test]
    fn an_object_that_is_too_long_is_told_of_in_one_that_is_not() {
        for value in ["é", "\"", "\u{1}"] {
            let long = json!({ "message": value.repeat(LINE_BYTES_MAX) }).to_string();
            let line = cut(LogFormat::Json, long.as_bytes());
            assert!(line.len() <= LINE_BYTES_MAX && line.ends_with(b"\n"), "{} bytes", line.len());
            let said: Value = serde_json::from_slice(&line).unwrap();
            assert!(said["message"].as_str().unwrap().starts_with("this line was too long: {"), "{said}");
        }
    }

    /// The fields of an entry, as the journal reads them.
    fn fields(mut entry: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|byte| *byte == b'\n').unwrap();
            let (length, rest) = entry[end + 1..].split_first_chunk().unwrap();
            let (value, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
            assert_eq!(rest[0], b'\n');
            fields
                .push((String::from_utf8(entry[..end].to_vec()).unwrap(), String::from_utf8(value.to_vec()).unwrap()));
            entry = &rest[1..];
        }
        fields
    }

    #[test]
    fn an_entry_of_the_journal_has_a_field_for_each_value_and_is_no_longer_than_a_line() {
        let read = fields(&words(LogFormat::Journald, Level::WARN, "two\nlines"));
        let expected =
            [("PRIORITY", "4"), ("SYSLOG_IDENTIFIER", "tollgate"), ("TARGET", "tollgate"), ("MESSAGE", "two\nlines")];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let mut entry = Entry::begin(Level::INFO, "tollgate");
        entry.put("MESSAGE", "é".repeat(LINE_BYTES_MAX).as_bytes());
        assert!(entry.0.len() <= LINE_BYTES_MAX && entry.0.len() > LINE_BYTES_MAX - 4, "{} bytes", entry.0.len());
        assert!(fields(&entry.0)[3].1.starts_with("éé"));
    }
}
