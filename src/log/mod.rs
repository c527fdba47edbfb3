//! The log, on standard error or in systemd's journal. Its level may change while the program runs, unless `RUST_LOG` sets it.
//!
//! A level without a target is that of Tollgate's own crates: libraries are silent unless they are named, as in "info,quinn_proto=warn".
//! Nobody who logs waits for whoever reads, and what others can cause is limited.

mod form;
mod limits;
mod panics;
mod sink;
mod writer;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use tollgate_config::{LogFilter, LogFormat, Logging};
use tracing::level_filters::LevelFilter;
use tracing::{debug, info, warn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

pub use limits::{Kind, LINES_BURST, LINES_PER_S, Limits, Verdict};
pub use writer::{LINE_BYTES_MAX, LINES_MAX};

use self::form::ToJournal;
use self::sink::{Journal, Stream};
use self::writer::{Lines, Summary};
use crate::output::write_all;

/// How long a program that ends waits for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Of the one log that a process has.
static LINES: OnceLock<Lines> = OnceLock::new();
static LIMITS: LazyLock<Limits> = LazyLock::new(Limits::default);

/// Whether a line of this kind, which others can cause, may be logged now. If not, it is counted and told of later.
pub fn admits(kind: Kind) -> bool {
    match LIMITS.judge(kind) {
        Verdict::Admitted => true,
        Verdict::Withheld => false,
        Verdict::FirstWithheld => {
            LINES.get().into_iter().for_each(Lines::note_withheld);
            false
        }
    }
}

/// Lines that nobody took, since the start.
pub fn lost_lines() -> u64 {
    LINES.get().map_or(0, Lines::lost)
}

/// Prints the last words of a program, as a line of its log. To be followed by [`finish`].
pub fn say_last(text: &str) {
    match LINES.get() {
        Some(lines) => lines.say_last(text),
        // There is nobody to tell of an error.
        None => drop(write_all(io::stderr().as_fd(), format!("{text}\n").as_bytes(), LAST_LINES, || false)),
    }
}

/// Waits until the log is written, but not long: whoever reads it may have stopped.
pub fn finish() {
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_LINES);
    }
}

/// The log of this process. The log goes on when this value is dropped.
#[derive(Debug)]
pub struct Log {
    /// `None` where `RUST_LOG` governs.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

impl Log {
    /// Starts it, once in a process. Begins with the environment variables that were ignored.
    ///
    /// # Errors
    ///
    /// If there can be no thread that writes it, or there is no journal where it should go.
    ///
    /// # Panics
    ///
    /// If there is a log already.
    pub fn start(logging: &Logging, ignored_variables: &[String]) -> io::Result<Self> {
        let wanted = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|wanted| !wanted.trim().is_empty());
        let environment = wanted.as_ref().and_then(|wanted| EnvFilter::try_new(ours(wanted)).ok());
        let is_governed = environment.is_some();
        let (layer, handle) =
            reload::Layer::new(environment.unwrap_or_else(|| EnvFilter::new(ours(logging.level.as_str()))));
        let lines = match logging.format {
            LogFormat::Human | LogFormat::Json => Lines::start(logging.format, Stream::new(io::stderr()), Withheld)?,
            LogFormat::Journald => Lines::start(logging.format, Journal::open()?, Withheld)?,
        };
        assert!(LINES.set(lines.clone()).is_ok(), "a process has one log");
        std::panic::set_hook(Box::new(panics::report));
        // What goes wrong in the log itself would be printed past the writer.
        let events = fmt::layer().log_internal_errors(false);
        let lines = match logging.format {
            LogFormat::Human => {
                events.with_writer(lines).with_ansi(io::stderr().is_terminal()).with_target(false).boxed()
            }
            LogFormat::Json => events.with_writer(lines).json().flatten_event(true).boxed(),
            LogFormat::Journald => ToJournal(lines).boxed(),
        };
        tracing_subscriber::registry().with(layer).with(lines).init();
        if wanted.is_some() && !is_governed {
            warn!("RUST_LOG is ignored: it is no level and no list of target=level; [log] level governs");
        }
        for variable in ignored_variables {
            // Not a warning: an orchestrator's own variables may begin like ours. One that resembles a setting is an error before this.
            debug!(variable, "this environment variable names no setting and is ignored");
        }
        Ok(Log { filter: (!is_governed).then_some(handle) })
    }

    /// Logs what `filter` lets through from now on. Returns false where `RUST_LOG` governs, and nothing has changed.
    pub fn set(&self, filter: &LogFilter) -> bool {
        // The layer is gone only with the log itself.
        self.filter.as_ref().is_some_and(|handle| handle.reload(EnvFilter::new(ours(filter.as_str()))).is_ok())
    }
}

/// `directives` as this program understands them: levels without a target are those of its own crates, whose names all begin alike.
fn ours(directives: &str) -> String {
    let directives = directives.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let (levels, others): (Vec<&str>, Vec<&str>) =
        directives.partition(|directive| directive.parse::<LevelFilter>().is_ok());
    // The others are more particular, or of libraries: they win over a level wherever it stands.
    let levels = levels.last().map(|level| format!("tollgate={level}"));
    levels.into_iter().chain(others.into_iter().map(str::to_owned)).collect::<Vec<_>>().join(",")
}

/// Tells of the lines that were withheld.
struct Withheld;

impl Summary for Withheld {
    fn is_due(&self) -> bool {
        LIMITS.has_withheld()
    }

    fn tell(&self) {
        for (kind, count) in LIMITS.take_withheld() {
            let line = kind.withheld(count);
            // As the lines that were withheld.
            match kind {
                Kind::Connected | Kind::Disconnected => info!(target: "tollgate::gateway", "{line}"),
                Kind::Kicked => info!(target: "tollgate::control", "{line}"),
                Kind::UnknownCredential
                | Kind::NoAddress
                | Kind::TooManyConnections
                | Kind::OverQuota
                | Kind::CertificateEnds => {
                    warn!(target: "tollgate::gateway", "{line}");
                }
                Kind::NotKicked | Kind::NotServed => warn!(target: "tollgate::control", "{line}"),
                Kind::HandshakeFailed => debug!(target: "tollgate::gateway", "{line}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_that_of_our_crates_and_targets_are_taken_as_written() {
        for (written, expected) in [
            ("info", "tollgate=info"),
            ("DEBUG", "tollgate=DEBUG"),
            ("off", "tollgate=off"),
            ("info,tollgate_shards=debug", "tollgate=info,tollgate_shards=debug"),
            ("quinn_proto=trace, warn", "tollgate=warn,quinn_proto=trace"),
            ("tollgate=debug,info", "tollgate=info,tollgate=debug"),
            ("warn,info", "tollgate=info"),
            ("quinn_proto=warn", "quinn_proto=warn"),
            ("rustls", "rustls"),
            ("[span{a=1}]=info", "[span{a=1}]=info"),
        ] {
            assert_eq!(ours(written), expected);
            assert!(EnvFilter::try_new(ours(written)).is_ok(), "{written}");
        }
    }
}
