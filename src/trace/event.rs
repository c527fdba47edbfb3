//! What has happened to connections between two looks at them.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::control::protocol::ConnectionRow;
use crate::output::scaled;

/// One of the things that may have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Begun,
    Changed,
    Ended,
}

/// What has happened to one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'r> {
    pub what: What,
    /// The connection, as it was seen last.
    pub row: &'r ConnectionRow,
    /// As it was before, and how long ago.
    before: Option<(&'r ConnectionRow, Duration)>,
}

#[derive(Serialize)]
struct Json<'e> {
    time_unix_ms: u64,
    event: What,
    #[serde(flatten)]
    row: &'e ConnectionRow,
}

/// What has happened between `before`, which was `since` ago, and `now`: ends, then all others in their order.
pub fn events<'r>(before: &'r [ConnectionRow], now: &'r [ConnectionRow], since: Duration) -> Vec<Event<'r>> {
    let find = |rows: &'r [ConnectionRow], row: &ConnectionRow| rows.iter().find(|other| is_same(other, row));
    let ended = before.iter().filter(|row| find(now, row).is_none());
    let ended = ended.map(|row| Event { what: What::Ended, row, before: None });
    let others = now.iter().filter_map(|row| match find(before, row) {
        None => Some(Event { what: What::Begun, row, before: None }),
        Some(former) if has_changed(former, row) => {
            Some(Event { what: What::Changed, row, before: Some((former, since)) })
        }
        Some(_) => None,
    });
    ended.chain(others).collect()
}

/// An address goes on to another connection when its client moves.
fn is_same(one: &ConnectionRow, other: &ConnectionRow) -> bool {
    (one.address, one.shard, one.since_unix_s) == (other.address, other.shard, other.since_unix_s)
}

/// Whether anything but time has gone on.
fn has_changed(before: &ConnectionRow, now: &ConnectionRow) -> bool {
    ConnectionRow { heard_ms: 0, ..before.clone() } != ConnectionRow { heard_ms: 0, ..now.clone() }
}

impl Event<'_> {
    /// A line for people. It bears the time of day (UTC).
    pub fn text(&self, at: SystemTime) -> String {
        let row = self.row;
        let time = humantime::format_rfc3339_millis(at).to_string();
        let time = time.get(11..23).unwrap_or(&time);
        let mut line = format!("{time} {} on shard {}", row.address, row.shard);
        let _ = match self.what {
            What::Begun => write!(line, " is there ({})", row.mode),
            What::Ended => write!(line, " is gone"),
            What::Changed => Ok(()),
        };
        if self.what != What::Ended {
            let _ = write!(line, ": RTT {:.1} ms (least {:.1})", ms(row.rtt_us), ms(row.rtt_min_us));
            let _ = write!(line, ", window {}B, queue {}B", scaled(row.window_bytes), scaled(row.queued_bytes));
        }
        if let Some((before, since)) = self.before {
            let lost = row.lost_packets.saturating_sub(before.lost_packets);
            let sent = row.sent_packets.saturating_sub(before.sent_packets);
            let carried = row.usage.since(before.usage);
            let rate = |bytes: u64| scaled((bytes as f64 * 8.0 / since.as_secs_f64().max(1e-3)) as u64);
            let _ = write!(line, ", {lost} of {sent} packets lost");
            let _ = write!(line, ", from client {}b/s", rate(carried.received_bytes));
            let _ = write!(line, ", to client {}b/s", rate(carried.sent_bytes));
        }
        line
    }

    /// A line for programs.
    pub fn json(&self, at: SystemTime) -> String {
        let time_unix_ms = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let json = Json { time_unix_ms, event: self.what, row: self.row };
        serde_json::to_string(&json).expect("text and numbers are JSON")
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

#[cfg(test)]
pub(super) mod tests {
    use tollgate_shards::Usage;

    use super::*;

    /// A connection with so many bytes sent to the client.
    pub fn row(address: u8, since_unix_s: u64, bytes: u64) -> ConnectionRow {
        ConnectionRow {
            user: "alice".to_owned(),
            address: [198, 19, 0, address].into(),
            shard: 1,
            mode: "TLS".to_owned(),
            since_unix_s,
            heard_ms: bytes,
            rtt_us: 31_250,
            rtt_min_us: 30_100,
            window_bytes: 128_000,
            mtu_bytes: 1452,
            sent_packets: bytes / 1000,
            lost_packets: bytes / 100_000,
            congestion_events: 0,
            queued_bytes: 3_100,
            usage: Usage { sent_bytes: bytes, ..Usage::default() },
            outer: None,
        }
    }

    #[test]
    fn a_connection_begins_changes_and_ends_and_says_nothing_while_it_is_idle() {
        let (before, now) = ([row(2, 1, 0), row(3, 1, 0), row(4, 1, 0)], [row(3, 1, 500), row(4, 9, 0), row(5, 1, 0)]);
        let told = events(&before, &now, Duration::from_secs(1));
        let told: Vec<_> = told.iter().map(|event| (event.what, event.row.address.to_string())).collect();
        let expected = [
            (What::Ended, "198.19.0.2"),
            // The address has moved to another connection.
            (What::Ended, "198.19.0.4"),
            (What::Changed, "198.19.0.3"),
            (What::Begun, "198.19.0.4"),
            (What::Begun, "198.19.0.5"),
        ];
        assert_eq!(told, expected.map(|(what, address)| (what, address.to_owned())));
        let idle = [ConnectionRow { heard_ms: 700, ..row(2, 1, 0) }];
        assert!(events(&[row(2, 1, 0)], &idle, Duration::from_secs(1)).is_empty());
    }

    #[test]
    fn a_line_tells_rates_and_losses_of_the_time_between_two_looks() {
        let (before, now) = ([row(2, 1, 1_000_000)], [row(2, 1, 1_250_000)]);
        let told = events(&before, &now, Duration::from_millis(100));
        let line = told[0].text(UNIX_EPOCH + Duration::from_millis(1_795_828_533_104));
        assert_eq!(
            line,
            "01:15:33.104 198.19.0.2 on shard 1: RTT 31.2 ms (least 30.1), window 128 kB, queue 3.10 kB, 2 of 250 packets lost, \
             from client 0 b/s, to client 20.0 Mb/s"
        );
        let json: serde_json::Value = serde_json::from_str(&told[0].json(UNIX_EPOCH)).unwrap();
        assert_eq!((&json["event"], &json["sent_bytes"]), (&"changed".into(), &1_250_000.into()));
    }
}
