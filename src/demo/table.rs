//! The table that the demo prints: numbers in, text out.

use std::fmt;

use tollgate_shards::Drops;

use super::tally::Tally;
use crate::gateway::{Report, Status};

const LABEL_WIDTH: usize = 34;
const COLUMN_WIDTH: usize = 27;

/// The demo's results.
#[derive(Debug, Clone)]
pub(super) struct Findings {
    /// The number of clients.
    pub(super) clients: usize,
    /// TCP connections of each.
    pub(super) streams: usize,
    /// What the gateway said of the kernel's part in the work.
    pub(super) kernel: Vec<String>,
    /// How the gateway stood once all clients were connected.
    pub(super) placement: Status,
    /// Round trips without load.
    pub(super) idle: Echoes,
    /// Bulk data from the clients to the network.
    pub(super) up: Load,
    /// Bulk data from the network to the clients.
    pub(super) down: Load,
}

/// The result of moving data in one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Bytes of TCP payload that arrived, all intact, over all clients.
    pub(super) bytes: u64,
    /// From the start to the last byte.
    pub(super) seconds: f64,
    /// CPU time of the gateway meanwhile.
    pub(super) cpu_seconds: f64,
    /// The gateway's counters over that time.
    pub(super) tally: Tally,
    /// Round trips beside the bulk data.
    pub(super) echoes: Echoes,
}

/// Round trips from clients to the server behind the gateway.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Echoes {
    pub(super) sent: u32,
    pub(super) received: u32,
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards = &self.placement.shards;
        writeln!(
            f,
            "{} through one gateway with {}; {} each\n",
            counted(self.clients as u64, "client"),
            counted(shards.len() as u64, "shard"),
            counted(self.streams as u64, "TCP connection"),
        )?;
        let mut row = |label: &str, up: String, down: String| {
            let line = format!("{label:<LABEL_WIDTH$}{up:>COLUMN_WIDTH$}{down:>COLUMN_WIDTH$}");
            writeln!(f, "{}", line.trim_end())
        };
        row("", "clients to network".into(), "network to clients".into())?;
        let both = |show: fn(&Load) -> String| (show(&self.up), show(&self.down));
        let (up, down) = both(|load| format!("{:.2} Gb/s", load.bytes as f64 * 8e-9 / load.seconds));
        row("throughput", up, down)?;
        let (up, down) = both(|load| format!("{:.2} GB", load.bytes as f64 / 1e9));
        row("transferred, every byte verified", up, down)?;
        let (up, down) = both(|load| format!("{:.2} s/GB", load.cpu_seconds / (load.bytes as f64 / 1e9)));
        row("gateway CPU", up, down)?;
        row("packets per UDP receive", mean(self.up.tally.received.mean()), String::new())?;
        row("packets per UDP send of data", String::new(), mean(self.down.tally.sent.mean()))?;
        let (up, down) = (self.up.tally.written.mean(), self.down.tally.read.mean());
        row("bytes per TUN frame of data", format!("{up:.0}"), format!("{down:.0}"))?;
        let (up, down) = both(|load| load.echoes.percentiles());
        row("round trip under load, p50 / p99", up, down)?;
        let (up, down) = both(|load| load.echoes.answers());
        row("pings answered under load", up, down)?;
        let (up, down) = both(|load| drops(&load.tally.drops));
        let lines = up.lines().count().max(down.lines().count());
        for line in 0..lines {
            let part = |text: &str| text.lines().nth(line).unwrap_or_default().to_owned();
            row(if line == 0 { "packets dropped by the gateway" } else { "" }, part(&up), part(&down))?;
        }
        row("round trip idle, p50 / p99", self.idle.percentiles(), String::new())?;
        row("pings answered idle", self.idle.answers(), String::new())?;
        writeln!(f)?;
        list(f, "placement", shards.iter().filter(|report| is_occupied(report)).map(placement))?;
        list(f, "kernel", self.kernel.iter().cloned())
    }
}

/// Lines that are too long for the columns, the first one with a label.
fn list(f: &mut fmt::Formatter<'_>, label: &str, lines: impl Iterator<Item = String>) -> fmt::Result {
    for (number, line) in lines.enumerate() {
        writeln!(f, "{:<14}{line}", if number == 0 { label } else { "" })?;
    }
    Ok(())
}

impl Echoes {
    fn percentiles(&self) -> String {
        format!("{:.2} / {:.2} ms", self.p50_ns as f64 / 1e6, self.p99_ns as f64 / 1e6)
    }

    fn answers(&self) -> String {
        format!("{} of {}", self.received, self.sent)
    }
}

fn mean(mean: f64) -> String {
    format!("{mean:.1}")
}

/// One line for each reason that something was dropped for.
fn drops(drops: &Drops) -> String {
    let reasons: Vec<_> = drops
        .iter()
        .filter(|&(_, packets)| packets > 0)
        .map(|(reason, packets)| format!("{} {packets}", reason.name()))
        .collect();
    if reasons.is_empty() { "none".to_owned() } else { reasons.join("\n") }
}

fn is_occupied(report: &Report) -> bool {
    report.owned_connections > 0 || report.counters.users > 0
}

fn placement(report: &Report) -> String {
    let Report { shard, cpu, owned_connections, counters, .. } = report;
    let (owned, users) = (counted(*owned_connections as u64, "connection"), counted(counters.users, "user"));
    format!("shard {shard} on CPU {cpu} owns {owned} and is home to {users}")
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use tollgate_shards::{Counters, DropReason};

    use super::*;
    use crate::demo::tally::Carried;

    fn report(shard: u16, owned_connections: usize, users: u64) -> Report {
        let counters = Counters { users, connections: users, ..Counters::default() };
        Report {
            shard,
            cpu: shard.into(),
            owned_connections,
            clients: owned_connections,
            counters,
            ..Report::default()
        }
    }

    fn findings() -> Findings {
        let mut dropped = Drops::default();
        dropped.add(DropReason::DatagramQueueFull, 1234);
        dropped.add(DropReason::TunWrite, 5);
        let echoes = Echoes { sent: 80, received: 79, p50_ns: 1_234_567, p99_ns: 12_345_678 };
        let up = Load {
            bytes: 2_000_000_000,
            seconds: 4.0,
            cpu_seconds: 3.0,
            tally: Tally {
                received: Carried { load: 1500, calls: 100 },
                written: Carried { load: 5_000_000, calls: 100 },
                ..Tally::default()
            },
            echoes,
        };
        let tally = Tally {
            sent: Carried { load: 4270, calls: 100 },
            read: Carried { load: 6_000_000, calls: 100 },
            drops: dropped,
            ..Tally::default()
        };
        Findings {
            clients: 2,
            streams: 1,
            kernel: vec!["UDP steered by a".into(), "TUN steered by b".into()],
            placement: Status { shards: vec![report(0, 1, 0), report(1, 0, 0), report(2, 1, 2)], ..Status::default() },
            idle: Echoes { sent: 400, received: 400, p50_ns: 210_000, p99_ns: 1_000_000 },
            up,
            down: Load { bytes: 500_000_000, cpu_seconds: 1.0, tally, ..up },
        }
    }

    #[test]
    fn the_table_has_a_column_for_each_direction_and_a_line_for_each_drop_reason() {
        let expected = "\
2 clients through one gateway with 3 shards; 1 TCP connection each

                                           clients to network         network to clients
throughput                                          4.00 Gb/s                  1.00 Gb/s
transferred, every byte verified                      2.00 GB                    0.50 GB
gateway CPU                                         1.50 s/GB                  2.00 s/GB
packets per UDP receive                                  15.0
packets per UDP send of data                                                        42.7
bytes per TUN frame of data                             50000                      60000
round trip under load, p50 / p99              1.23 / 12.35 ms            1.23 / 12.35 ms
pings answered under load                            79 of 80                   79 of 80
packets dropped by the gateway                           none   datagram_queue_full 1234
                                                                             tun_write 5
round trip idle, p50 / p99                     0.21 / 1.00 ms
pings answered idle                                400 of 400

placement     shard 0 on CPU 0 owns 1 connection and is home to 0 users
              shard 2 on CPU 2 owns 1 connection and is home to 2 users
kernel        UDP steered by a
              TUN steered by b
";
        assert_eq!(findings().to_string(), expected);
    }

    #[test]
    fn a_direction_without_a_single_call_shows_zeros() {
        let mut findings = findings();
        findings.up.tally = Tally::default();
        let text = findings.to_string();
        let line = text.lines().find(|line| line.starts_with("bytes per TUN frame")).unwrap();
        assert_eq!(line.split_whitespace().rev().take(2).collect::<Vec<_>>(), ["60000", "0"]);
    }
}
