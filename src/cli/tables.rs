//! Tables of users and connections: rows in, text out.

use std::cmp::Reverse;
use std::time::{Duration, UNIX_EPOCH};

use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use tollgate_shards::Usage;

use crate::control::protocol::{ConnectionRow, UserRow};
use crate::output::scaled;

/// In which order rows are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// By the user's name, then by the address.
    Name,
    /// Those who have carried most come first.
    Traffic,
}

impl Sort {
    /// Sorts `rows`, which come by name.
    pub(super) fn users(self, rows: &mut [UserRow]) {
        if self == Sort::Traffic {
            rows.sort_by_key(|row| Reverse(row.usage.bytes()));
        }
    }

    /// Likewise.
    pub(super) fn connections(self, rows: &mut [ConnectionRow]) {
        if self == Sort::Traffic {
            rows.sort_by_key(|row| Reverse(row.usage.bytes()));
        }
    }
}

/// A table of users; `None` where nobody is online.
pub(super) fn users(rows: Option<&[UserRow]>) -> Option<String> {
    let rows = rows.filter(|rows| !rows.is_empty())?;
    let heads = ["user", "connections", "from client", "packets", "to client", "packets", "limit", "since (UTC)"];
    let row = |row: &UserRow| {
        let [from_bytes, from_packets, to_bytes, to_packets] = carried(row.usage);
        let limit = row.limit_bits_per_s.map_or_else(|| "none".to_owned(), |rate| format!("{}b/s", scaled(rate)));
        let limit = if row.is_ordered { format!("{limit}, by order") } else { limit };
        let limit = if row.is_over_quota { format!("{limit}, over quota") } else { limit };
        let since = row.since_unix_s.map(since).unwrap_or_default();
        vec![
            row.user.clone(),
            row.connections.to_string(),
            from_bytes,
            from_packets,
            to_bytes,
            to_packets,
            limit,
            since,
        ]
    };
    Some(text(&heads, &[0, 7], rows.iter().map(row)))
}

/// A table of connections; `None` where there are none.
pub(super) fn connections(rows: Option<&[ConnectionRow]>) -> Option<String> {
    let rows = rows.filter(|rows| !rows.is_empty())?;
    let shows_outer = rows.iter().any(|row| row.outer.is_some());
    let mut heads = vec![
        "user",
        "address",
        "shard",
        "mode",
        "from client",
        "packets",
        "to client",
        "packets",
        "RTT",
        "heard",
        "since (UTC)",
    ];
    heads.extend(shows_outer.then_some("outer address"));
    let row = |row: &ConnectionRow| {
        let [from_bytes, from_packets, to_bytes, to_packets] = carried(row.usage);
        let rtt = format!("{:.1} ms", row.rtt_us as f64 / 1e3);
        let heard = format!("{:.1} s ago", row.heard_ms as f64 / 1e3);
        let (user, address, shard, mode) =
            (row.user.clone(), row.address.to_string(), row.shard.to_string(), row.mode.clone());
        let mut cells = vec![user, address, shard, mode, from_bytes, from_packets, to_bytes, to_packets, rtt, heard];
        cells.push(since(row.since_unix_s));
        cells.extend(shows_outer.then(|| row.outer.map(|outer| outer.to_string()).unwrap_or_default()));
        cells
    };
    Some(text(&heads, &[0, 1, 3, 10, 11], rows.iter().map(row)))
}

/// Columns of figures are aligned at the right, those named `left` at the left.
pub(super) fn text(heads: &[&str], left: &[usize], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(heads).add_rows(rows);
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if !left.contains(&place) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Bytes and packets from the client, then to it.
pub(super) fn carried(usage: Usage) -> [String; 4] {
    let bytes = |bytes: u64| format!("{}B", scaled(bytes));
    [
        bytes(usage.received_bytes),
        usage.received_datagrams.to_string(),
        bytes(usage.sent_bytes),
        usage.sent_datagrams.to_string(),
    ]
}

/// As in "2026-11-28 01:15:33".
pub(super) fn since(unix_s: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(unix_s));
    let text = at.map(|at| humantime::format_rfc3339_seconds(at).to_string()).unwrap_or_default();
    text.replace('T', " ").trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, sent_bytes: u64) -> UserRow {
        let usage = Usage { sent_bytes, sent_datagrams: 3, received_bytes: 950, received_datagrams: 1 };
        let (limit_bits_per_s, since_unix_s) = (Some(10_000_000), Some(1_795_828_533));
        let (user, is_ordered, is_over_quota) = (name.to_owned(), false, false);
        UserRow { user, connections: 1, usage, limit_bits_per_s, is_ordered, is_over_quota, since_unix_s }
    }

    #[test]
    fn a_table_is_aligned_and_no_wider_than_it_needs() {
        let unlimited = UserRow { limit_bits_per_s: None, ..user("bob", 5_000) };
        let table = users(Some(&[user("alice", 12_345_678_901), unlimited])).unwrap();
        let expected = "\
user   connections  from client  packets  to client  packets      limit  since (UTC)
alice            1        950 B        1    12.3 GB        3  10.0 Mb/s  2026-11-28 01:15:33
bob              1        950 B        1    5.00 kB        3       none  2026-11-28 01:15:33";
        assert_eq!(table, expected);
        assert_eq!(users(Some(&[])), None);
    }

    #[test]
    fn an_outer_address_has_a_column_only_where_it_was_told() {
        let row = ConnectionRow {
            user: "alice".to_owned(),
            address: [198, 19, 0, 2].into(),
            shard: 1,
            mode: "TLS".to_owned(),
            since_unix_s: 1_795_828_533,
            heard_ms: 120,
            rtt_us: 1_234,
            rtt_min_us: 1,
            window_bytes: 1,
            mtu_bytes: 1,
            sent_packets: 1,
            lost_packets: 1,
            congestion_events: 1,
            queued_bytes: 1,
            usage: Usage::default(),
            outer: None,
        };
        let told = ConnectionRow { outer: Some(([198, 18, 0, 7], 4433).into()), ..row.clone() };
        let (without, with) = (connections(Some(&[row])).unwrap(), connections(Some(&[told])).unwrap());
        assert!(!without.contains("outer") && with.contains("outer address") && with.contains("198.18.0.7:4433"));
        for cell in ["alice", "198.19.0.2", "1.2 ms", "0.1 s ago", "TLS"] {
            assert!(without.contains(cell), "{without}");
        }
    }

    #[test]
    fn rows_are_sorted_by_name_as_they_come_or_by_what_they_have_carried() {
        let mut rows = [user("a", 1), user("b", 3), user("c", 2)];
        let names = |rows: &[UserRow]| rows.iter().map(|row| row.user.clone()).collect::<Vec<_>>().concat();
        Sort::Name.users(&mut rows);
        assert_eq!(names(&rows), "abc");
        Sort::Traffic.users(&mut rows);
        assert_eq!(names(&rows), "bca");
    }
}
