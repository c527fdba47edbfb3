//! The log on standard error. Its level may change while the program runs, unless `RUST_LOG` sets it.
//!
//! This module never reads a configuration.

use std::io::IsTerminal;

use tollgate_config::LogFilter;
use tracing::debug;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The log of this process. The log goes on when this value is dropped.
#[derive(Debug)]
pub struct Log {
    /// `None` where `RUST_LOG` governs.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

impl Log {
    /// Starts it, once in a process. Begins with the environment variables that were ignored.
    ///
    /// # Panics
    ///
    /// If there is a log already.
    pub fn start(filter: &LogFilter, ignored_variables: &[String]) -> Self {
        let environment = EnvFilter::try_from_default_env().ok();
        let is_governed = environment.is_some();
        let (layer, handle) = reload::Layer::new(environment.unwrap_or_else(|| EnvFilter::new(filter.as_str())));
        let lines =
            fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_target(false);
        tracing_subscriber::registry().with(layer).with(lines).init();
        for variable in ignored_variables {
            // Not a warning: an orchestrator's own variables may begin like ours. One that resembles a setting is an error before this.
            debug!(variable, "this environment variable names no setting and is ignored");
        }
        Log { filter: (!is_governed).then_some(handle) }
    }

    /// Logs what `filter` lets through from now on. Returns false where `RUST_LOG` governs, and nothing has changed.
    pub fn set(&self, filter: &LogFilter) -> bool {
        // The layer is gone only with the log itself.
        self.filter.as_ref().is_some_and(|handle| handle.reload(EnvFilter::new(filter.as_str())).is_ok())
    }
}
