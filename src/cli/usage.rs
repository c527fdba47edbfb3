//! What users have carried, as a table and as comma-separated values (RFC 4180): rows in, text out.

use std::time::Duration;

use super::tables::{carried, since, text};
use crate::control::protocol::UsageRow;
use crate::usage::{Day, Period};

/// A table; `None` where there is nothing.
pub(super) fn table(rows: Option<&[UsageRow]>, period: Period) -> Option<String> {
    let rows = rows.filter(|rows| !rows.is_empty())?;
    let when = match period {
        Period::Total => "since (UTC)",
        Period::Month => "month",
        Period::Day => "day",
    };
    let heads = ["user", when, "from client", "packets", "to client", "packets", "connections", "connected"];
    let row = |row: &UsageRow| {
        let [from_bytes, from_packets, to_bytes, to_packets] = carried(row.usage);
        let connected = humantime::format_duration(Duration::from_secs(row.connected_s)).to_string();
        let when = begin(row, period).unwrap_or_else(|| since(row.first_unix_s));
        let connections = row.connections.to_string();
        vec![row.user.clone(), when, from_bytes, from_packets, to_bytes, to_packets, connections, connected]
    };
    Some(text(&heads, &[0, 1], rows.iter().map(row)))
}

/// With a head, and without the last end of line.
pub(super) fn csv(rows: &[UsageRow], period: Period) -> String {
    const HEAD: &str = "user,begin,received_bytes,received_datagrams,sent_bytes,sent_datagrams,connections,connected_s,first_unix_s,last_unix_s";
    let row = |row: &UsageRow| {
        let UsageRow { user, usage, connections, connected_s, first_unix_s, last_unix_s, .. } = row;
        format!(
            "{},{},{},{},{},{},{connections},{connected_s},{first_unix_s},{last_unix_s}",
            field(user),
            begin(row, period).unwrap_or_default(),
            usage.received_bytes,
            usage.received_datagrams,
            usage.sent_bytes,
            usage.sent_datagrams,
        )
    };
    let lines: Vec<String> = std::iter::once(HEAD.to_owned()).chain(rows.iter().map(row)).collect();
    lines.join("\n")
}

/// The month, or the day.
fn begin(row: &UsageRow, period: Period) -> Option<String> {
    let begin = row.begin.as_ref().map(Day::to_string)?;
    Some(if period == Period::Month { begin[..7].to_owned() } else { begin })
}

/// A name as a field. It has no control characters.
fn field(name: &str) -> String {
    if name.contains([',', '"']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use tollgate_shards::Usage;

    use super::*;

    fn row(user: &str, begin: Option<&str>) -> UsageRow {
        UsageRow {
            user: user.to_owned(),
            begin: begin.map(|day| day.parse().unwrap()),
            usage: Usage { sent_bytes: 12_345_678_901, received_bytes: 950, sent_datagrams: 3, received_datagrams: 1 },
            connections: 2,
            connected_s: 3_661,
            first_unix_s: 1_795_828_533,
            last_unix_s: 1_795_828_600,
        }
    }

    #[test]
    fn a_table_has_a_row_for_each_period() {
        let total = "\
user   since (UTC)          from client  packets  to client  packets  connections  connected
alice  2026-11-28 01:15:33        950 B        1    12.3 GB        3            2   1h 1m 1s";
        assert_eq!(table(Some(&[row("alice", None)]), Period::Total).unwrap(), total);
        let months = table(Some(&[row("alice", Some("2026-11-01"))]), Period::Month).unwrap();
        assert!(months.contains("month") && months.contains("2026-11 ") && !months.contains("2026-11-01"), "{months}");
        assert_eq!(table(Some(&[]), Period::Day), None);
    }

    #[test]
    fn comma_separated_values_have_exact_figures_and_quoted_names() {
        let text = csv(&[row("a, \"b\"", Some("2026-11-28")), row("bob", None)], Period::Day);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split(',').count(), lines[2].split(',').count());
        assert_eq!(lines[1], "\"a, \"\"b\"\"\",2026-11-28,950,1,12345678901,3,2,3661,1795828533,1795828600");
        assert_eq!(lines[2], "bob,,950,1,12345678901,3,2,3661,1795828533,1795828600");
    }
}
