//! The table `[sessions]`, part of which each user may have of their own.

use std::num::NonZeroU32;
use std::time::Duration;

use tollgate_shards::{BURST_BYTES_MIN, ConnectionLimit, Limit, Rate, SessionLimits, WhenReached};

use crate::document::Report;
use crate::kind::{Kind, choice, seconds, switch, whole};
use crate::schema::{Declared, LIVE, Section, table};
use crate::table::Table;

const CONNECTIONS_MAX: u64 = 65_536;
const BURST_MS_MAX: u64 = 60_000;
const BURST_BYTES_MAX: u64 = 1 << 30;
/// A year.
const DEADLINE_S_MAX: u64 = 366 * 86_400;

const WHEN_REACHED: [(&str, WhenReached); 2] =
    [("refuse_new", WhenReached::RefuseNew), ("close_oldest", WhenReached::CloseOldest)];

fn connections() -> Kind<Option<NonZeroU32>> {
    whole(1..=CONNECTIONS_MAX, "connections")
        .map(|count| NonZeroU32::new(count as u32).unwrap_or(NonZeroU32::MIN), |count| Some(count.get().into()))
        .optional("as many as there are addresses")
}

fn deadline() -> Kind<Option<Duration>> {
    seconds(1..=DEADLINE_S_MAX).optional("no limit")
}

fn burst() -> Kind<Duration> {
    whole(1..=BURST_MS_MAX, "milliseconds").map(Duration::from_millis, |time| Some(time.as_millis() as u64))
}

table! {
    /// What the whole gateway and a single user both may have.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct UserSessions of Tollgate {
        /// How many connections each user may have at once. Without it, as many as there are addresses, but for the last tenth of them while other
        /// users have none. A user may have a number of their own.
        "max_connections" => connections_max: Option<NonZeroU32> = None, connections(), LIVE.example("16");
        /// What happens when a user who has them all logs in once more: "refuse_new" turns the new connection away, "close_oldest" makes room for
        /// it. Goes with max_connections.
        "when_reached" => when_reached: WhenReached = WhenReached::RefuseNew, choice(&WHEN_REACHED), LIVE;
        /// What a limited user may send and receive at once after a silence: so many milliseconds of the limit.
        "burst_ms" => burst: Duration = Duration::from_secs(1), burst(), LIVE;
    }
}

impl UserSessions {
    /// Reads the keys that `table` has; the others stay. The table is `[sessions]`, or a user's.
    pub(crate) fn read_own(&mut self, table: &mut Table<'_>, report: &mut Report<'_>) {
        self.read_keys(table, report);
        if let Some(taken) = table.taken("when_reached").filter(|_| self.connections_max.is_none()) {
            let what = "says what happens at a limit that is not there";
            report.wrong(taken.key.clone(), "when_reached", what, "set max_connections beside it, or leave both out");
        }
    }

    /// The limit to a user's connections.
    pub(crate) fn connection_limit(&self) -> Option<ConnectionLimit> {
        let UserSessions { connections_max, when_reached, .. } = *self;
        connections_max.map(|connections_max| ConnectionLimit { connections_max, when_reached })
    }
}

table! {
    /// How many connections a user may have, how long they last, and how large the bursts of limited users are.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Sessions of Tollgate {
        /// The smallest burst, in bytes: the largest packet must fit.
        "burst_bytes_min" => burst_bytes_min: u64 = BURST_BYTES_MIN, whole(BURST_BYTES_MIN..=BURST_BYTES_MAX, "bytes"), LIVE;
        /// Longest time in which no inner packet comes from or for a client, in seconds. Then its connection is closed. What QUIC says beside packets does not
        /// count.
        "idle_timeout_s" => idle_max: Option<Duration> = None, deadline(), LIVE.example("3600");
        /// Longest time from a client's login on, in seconds. Then its connection is closed, and it has to log in again.
        "max_duration_s" => length_max: Option<Duration> = None, deadline(), LIVE.example("86400");
        /// Whether a client's connection is closed when its certificate expires, and none begins later. A line of the log warns of it from 30 days before on, at
        /// each login and reload. Otherwise only the fingerprint of a certificate counts, as with Quincy.
        "enforce_certificate_expiry" => ends_with_certificate: bool = false, switch(), LIVE;
    }
    and {
        /// What a user may have otherwise.
        user: UserSessions = UserSessions::initial();
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions::initial()
    }
}

impl Sessions {
    /// The limit of a user of `rate`, whose own settings are `user`.
    pub(crate) fn limit(&self, user: &UserSessions, rate: Rate) -> Limit {
        Limit::with_burst(rate, user.burst, self.burst_bytes_min)
    }

    /// How long sessions may last.
    pub fn limits(&self) -> SessionLimits {
        let Sessions { idle_max, length_max, ends_with_certificate, .. } = *self;
        SessionLimits { idle_max, length_max, ends_with_certificate }
    }

    /// The table with its values.
    pub(crate) fn table(&self) -> Section {
        Section { text: Sessions::TEXT, ..self.user.section("sessions") }.and(self.section("sessions"))
    }

    /// Reads the table.
    pub(crate) fn read_table(mut table: Table<'_>, report: &mut Report<'_>) -> Self {
        let mut sessions = Sessions::initial();
        sessions.user.read_own(&mut table, report);
        sessions.read_keys(&mut table, report);
        table.finish(report);
        sessions
    }
}
