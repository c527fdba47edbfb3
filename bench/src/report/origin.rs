//! Where results came from, each origin said once: *setups* (machine, kernel, sources) and *runs* (when, with what, by which command).

use maud::{Markup, html};
use time::OffsetDateTime;

use super::number::{Unit, plural};
use crate::machine::Machine;
use crate::results::{Provenance, Record};

/// A machine with sources of one commit. Only results of one setup are shown in one plot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    machine: Machine,
    commit: Option<String>,
    debug_build: bool,
}

/// The origins of some records.
#[derive(Debug, Clone)]
pub struct Origins<'a> {
    /// The setups, in the order of their first record.
    pub setups: Vec<Setup>,
    /// The runs, likewise, and the setup of each.
    runs: Vec<(usize, &'a Provenance)>,
}

impl<'a> Origins<'a> {
    /// Collects them.
    pub fn of(records: &'a [Record]) -> Self {
        let mut origins = Origins { setups: Vec::new(), runs: Vec::new() };
        for Record { provenance, .. } in records {
            let setup = Setup::of(provenance);
            let index = origins.setups.iter().position(|known| *known == setup).unwrap_or_else(|| {
                origins.setups.push(setup);
                origins.setups.len() - 1
            });
            if !origins.runs.iter().any(|(_, known)| *known == provenance) {
                origins.runs.push((index, provenance));
            }
        }
        origins
    }

    /// The number of the setup and of the run that `record` came from.
    pub fn find(&self, record: &Record) -> (usize, usize) {
        let run = self.runs.iter().position(|(_, known)| **known == record.provenance).unwrap_or_default();
        (self.runs.get(run).map_or(0, |(setup, _)| *setup), run)
    }

    /// All setups, for the page's beginning.
    pub fn render(&self) -> Markup {
        html! {
            dl class="setups" {
                @for (index, setup) in self.setups.iter().enumerate() {
                    dt id=(format!("setup-{}", letter(index))) { "Setup " (letter(index)) }
                    dd { (setup.machine_text()) "; sources " (setup.commit_text()) "; "
                        (plural(self.runs.iter().filter(|(of, _)| *of == index).count(), "run"))
                        @if setup.debug_build { "; " strong { "debug build" } }
                    }
                }
            }
        }
    }

    /// Where the results of `runs` came from, for their section.
    pub fn render_runs(&self, setup: usize, runs: &[usize]) -> Markup {
        let name = letter(setup);
        html! {
            div class="origin" {
                p { a href=(format!("#setup-{name}")) { "Setup " (name) } ": "
                    @if let Some(setup) = self.setups.get(setup) {
                        (setup.machine_text()) "; sources " (setup.commit_text())
                    } }
                ul {
                    @for run in runs {
                        @if let Some((_, provenance)) = self.runs.get(*run) {
                            li { "Run " (run + 1) ", " (date(provenance.started_unix_seconds))
                                @if !provenance.versions.is_empty() { ", " (provenance.versions.join(", ")) }
                                ": " code { (provenance.command_line.join(" ")) } }
                        }
                    }
                }
            }
        }
    }

    /// The same in a line without markup, for a plot that stands alone.
    pub fn source(&self, setup: usize, runs: &[usize]) -> String {
        let mut parts = Vec::new();
        if let Some(setup) = self.setups.get(setup) {
            parts.push(setup.machine_text());
            parts.push(format!("sources {}", setup.commit_text()));
        }
        let mut versions: Vec<&str> = Vec::new();
        for (_, provenance) in runs.iter().filter_map(|run| self.runs.get(*run)) {
            versions.extend(provenance.versions.iter().map(String::as_str));
        }
        let mut seen = std::collections::BTreeSet::new();
        versions.retain(|version| seen.insert(*version));
        parts.extend((!versions.is_empty()).then(|| versions.join(", ")));
        let started =
            runs.iter().filter_map(|run| self.runs.get(*run)).map(|(_, provenance)| provenance.started_unix_seconds);
        parts.extend(started.max().map(date));
        parts.join("; ")
    }
}

impl Setup {
    fn of(provenance: &Provenance) -> Self {
        let Provenance { machine, commit, debug_build, .. } = provenance;
        Setup { machine: machine.clone(), commit: commit.clone(), debug_build: *debug_build }
    }

    /// Whether its figures say nothing.
    pub fn is_debug(&self) -> bool {
        self.debug_build
    }

    fn machine_text(&self) -> String {
        let Machine { cpu, cpus, memory_bytes, kernel } = &self.machine;
        let parts = [
            Some(cpu.clone().unwrap_or_else(|| "unknown processor".to_owned())),
            cpus.map(|cpus| plural(cpus, "CPU")),
            memory_bytes.map(|bytes| format!("{} of memory", Unit::Bytes.text(bytes as f64))),
            Some(kernel.as_ref().map_or("unknown kernel".to_owned(), |kernel| format!("Linux {kernel}"))),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn commit_text(&self) -> &str {
        self.commit.as_deref().unwrap_or("of unknown commit")
    }
}

/// `A` of the first, `B` of the second, beyond `Z` numbers.
pub fn letter(index: usize) -> String {
    let letter = u8::try_from(index).ok().filter(|index| *index < 26).map(|index| char::from(b'A' + index));
    letter.map_or_else(|| (index + 1).to_string(), String::from)
}

/// A date and time of day in UTC.
fn date(unix_seconds: u64) -> String {
    let moment = i64::try_from(unix_seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let Some(moment) = moment else { return "at an unknown time".to_owned() };
    let (year, month, day) = (moment.year(), u8::from(moment.month()), moment.day());
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", moment.hour(), moment.minute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_in_utc() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(1_709_210_096), "2024-02-29 12:34 UTC");
        assert_eq!(date(u64::MAX), "at an unknown time");
    }

    #[test]
    fn setups_have_letters() {
        assert_eq!([letter(0), letter(25), letter(26)], ["A", "Z", "27"]);
    }
}
