//! The table `[sessions]`: how many connections a user may have, and how large the bursts of limited users are. A user in the users file may
//! have settings of their own.

use std::num::NonZeroU32;
use std::time::Duration;

use tollgate_shards::{BURST_BYTES_MIN, ConnectionLimit, Limit, Rate, WhenReached};

use crate::document::{Report, Table};
use crate::value;

/// Most connections of one user.
pub const CONNECTIONS_MAX: u64 = 65_536;

/// Longest burst, in milliseconds.
pub const BURST_MS_MAX: u64 = 60_000;

const BURST_BYTES_MAX: u64 = 1 << 30;

const WHEN_REACHED: [(&str, WhenReached); 2] =
    [("refuse_new", WhenReached::RefuseNew), ("close_oldest", WhenReached::CloseOldest)];

/// The table `[sessions]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sessions {
    /// Limit to each user's connections; `None` for as many as there are addresses.
    pub connections_max: Option<NonZeroU32>,
    /// What happens at the limit.
    pub when_reached: WhenReached,
    /// How long a limited user's burst takes to come back; 1 ms to a minute.
    pub burst: Duration,
    /// The smallest burst, in bytes.
    pub burst_bytes_min: u64,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions {
            connections_max: None,
            when_reached: WhenReached::RefuseNew,
            burst: Duration::from_secs(1),
            burst_bytes_min: BURST_BYTES_MIN,
        }
    }
}

impl Sessions {
    /// The limit of a user of `rate`.
    pub(crate) fn limit(&self, rate: Rate) -> Limit {
        Limit::with_burst(rate, self.burst, self.burst_bytes_min)
    }

    /// The limit to a user's connections.
    pub(crate) fn connection_limit(&self) -> Option<ConnectionLimit> {
        let Sessions { connections_max, when_reached, .. } = *self;
        connections_max.map(|connections_max| ConnectionLimit { connections_max, when_reached })
    }

    /// Reads the keys that a table holds of those that the whole gateway and a single user both may have; the others stay.
    pub(crate) fn read_own(&mut self, table: &mut Table<'_>, report: &mut Report<'_>) {
        if let Some(count) = table.integer(report, "max_connections", 1..=CONNECTIONS_MAX, "connections") {
            self.connections_max = NonZeroU32::new(count as u32);
        }
        let place = table.place_of("when_reached");
        let expected = "write \"refuse_new\" or \"close_oldest\"";
        let choice = table.parsed(report, "when_reached", expected, |text| value::one_of(&WHEN_REACHED, text));
        if let Some(choice) = choice {
            self.when_reached = choice;
            if self.connections_max.is_none() {
                let what = "says what happens at a limit that is not there";
                report.wrong(place, "when_reached", what, "set max_connections beside it, or leave both out");
            }
        }
        if let Some(ms) = table.integer(report, "burst_ms", 1..=BURST_MS_MAX, "milliseconds") {
            self.burst = Duration::from_millis(ms);
        }
    }
}

/// The name of a choice in a configuration file.
pub(crate) fn when_reached_name(choice: WhenReached) -> &'static str {
    match choice {
        WhenReached::RefuseNew => "refuse_new",
        WhenReached::CloseOldest => "close_oldest",
    }
}

/// Reads the table.
pub(crate) fn read(mut table: Table<'_>, report: &mut Report<'_>) -> Sessions {
    let mut sessions = Sessions::default();
    sessions.read_own(&mut table, report);
    // The largest packet must fit.
    if let Some(bytes) = table.integer(report, "burst_bytes_min", BURST_BYTES_MIN..=BURST_BYTES_MAX, "bytes") {
        sessions.burst_bytes_min = bytes;
    }
    table.finish(report);
    sessions
}
