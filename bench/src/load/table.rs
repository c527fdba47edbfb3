//! What a load found, as a table for people. This module judges nothing: what failed, the result says.

use std::fmt::{self, Write};

use crate::results::{FlowFigures, GroupResult, Ledger, LimitedBy, LoadResult, Usage};
use crate::units::{bits_per_second, bytes, count, nanoseconds, percent, signed};

/// Width of a heading at the left.
const LABEL: usize = 9;

/// A load's result, displayed as a table.
#[derive(Debug, Clone, Copy)]
pub struct LoadTable<'a>(pub &'a LoadResult);

impl fmt::Display for LoadTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadTable(result) = self;
        writeln!(
            f,
            "{} against {}: {} connections of {} users, {:.1} s of traffic\n",
            result.scenario,
            result.gateway,
            count(result.ramp.wanted.into()),
            count(result.users.into()),
            result.seconds
        )?;
        connections(f, result)?;
        if !result.groups.is_empty() {
            groups(f, &result.groups)?;
        }
        ledgers(f, &result.up, &result.down)?;
        usage(f, result)?;
        labelled(f, "limit", limit(result.limited_by))?;
        if result.failures.is_empty() {
            return labelled(f, "result", "success: both ends agree on every packet, and everything demanded holds");
        }
        labelled(f, "result", "FAILURE")?;
        result.failures.iter().try_for_each(|failure| writeln!(f, "{:LABEL$}- {failure}", ""))
    }
}

/// How the connections came, and went.
fn connections(f: &mut fmt::Formatter<'_>, result: &LoadResult) -> fmt::Result {
    let ramp = result.ramp;
    let mut text = format!(
        "{} of {} connected in {:.1} s: {:.0} a second",
        count(ramp.connected.into()),
        count(ramp.wanted.into()),
        ramp.seconds,
        f64::from(ramp.connected) / ramp.seconds.max(1e-9)
    );
    if let Some(cpu_seconds) = ramp.gateway_cpu_seconds {
        let each_ns = cpu_seconds * 1e9 / f64::from(ramp.connected.max(1));
        let _ = write!(text, ", {} of the gateway's CPU time each", nanoseconds(each_ns as u64));
    }
    labelled(f, "ramp", &text)?;
    let churn = result.churn;
    if churn.closed + churn.rebound + churn.failed + churn.lost > 0 {
        // The first handshake of each is the ramp's.
        let again = churn.connected.saturating_sub(ramp.connected.into());
        let [again, closed, rebound, failed, lost] =
            [again, churn.closed, churn.rebound, churn.failed, churn.lost].map(count);
        let text = format!(
            "{closed} left, {again} came again, {rebound} changed their address; {failed} handshakes failed, {lost} connections were lost"
        );
        labelled(f, "churn", &text)?;
    }
    Ok(())
}

fn groups(f: &mut fmt::Formatter<'_>, groups: &[GroupResult]) -> fmt::Result {
    writeln!(
        f,
        "\n{:<14}{:<5}{:>14}{:>14}{:>9}{:>10}{:>8}{:>9}  {:>10}",
        "traffic", "", "sent", "received", "lost", "reordered", "twice", "corrupt", "rate"
    )?;
    for group in groups {
        for (at, (way, figures)) in [("up", group.up), ("down", group.down)].into_iter().enumerate() {
            let name = if at == 0 { group.name.as_str() } else { "" };
            flow_line(f, name, way, figures)?;
        }
        writeln!(f, "{:LABEL$}{} connections", "", count(group.connections.into()))?;
        if let Some(trips) = &group.round_trip {
            let quantiles = [trips.p50_ns, trips.p99_ns, trips.p999_ns, trips.max_ns].map(nanoseconds);
            let [p50, p99, p999, max] = quantiles;
            let number = count(trips.count);
            writeln!(
                f,
                "{:LABEL$}round trip p50 {p50}, p99 {p99}, p99.9 {p999}, longest {max} ({number} of them)",
                ""
            )?;
        }
    }
    Ok(())
}

fn flow_line(f: &mut fmt::Formatter<'_>, name: &str, way: &str, figures: FlowFigures) -> fmt::Result {
    // A name may be longer than its column.
    let name = format!("{name:<13.13} {way:<5}");
    write!(
        f,
        "{name}{:>14}{:>14}{:>9}{:>10}{:>8}{:>9}  {:>10}",
        count(figures.sent_packets),
        count(figures.received_packets),
        count(figures.lost_packets),
        count(figures.reordered_packets),
        count(figures.duplicated_packets),
        count(figures.corrupted_packets),
        bits_per_second(figures.bits_per_second)
    )?;
    if figures.user_peak_bits_per_second > 0.0 {
        write!(f, ", most for a user {}", bits_per_second(figures.user_peak_bits_per_second))?;
    }
    writeln!(f)
}

/// Both ledgers side by side, line by line.
fn ledgers(f: &mut fmt::Formatter<'_>, up: &Ledger, down: &Ledger) -> fmt::Result {
    writeln!(f, "\n{:<52}{:>14}{:>14}", "every inner packet, the harness's own messages too", "up", "down")?;
    let mut line = |label: &str, up: String, down: String| {
        let line = format!("  {label:<50}{up:>14}{down:>14}");
        writeln!(f, "{}", line.trim_end())
    };
    line("sent", count(up.sent), count(down.sent))?;
    line("received", count(up.received), count(down.received))?;
    let mut reasons: Vec<&String> = up.drops.keys().chain(down.drops.keys()).collect();
    reasons.sort();
    reasons.dedup();
    for reason in reasons {
        let of = |ledger: &Ledger| ledger.drops.get(reason).map_or_else(String::new, |packets| count(*packets));
        line(&format!("dropped, {reason}"), of(up), of(down))?;
    }
    line("unaccounted for", signed(up.unaccounted), signed(down.unaccounted))
}

/// What gateway and harness used, and how cheap the one is beside the other.
fn usage(f: &mut fmt::Formatter<'_>, result: &LoadResult) -> fmt::Result {
    writeln!(f)?;
    let mut line = |name: &str, usage: Usage, cost: Option<f64>| {
        let mut text = format!("{:.2} s of CPU time, {} of its CPUs", usage.cpu_seconds, percent(usage.cpu_share));
        if let Some(cost) = cost {
            let _ = write!(text, ", {cost:.2} s/GB");
        }
        let _ = write!(text, "; {}, {} descriptors", bytes(usage.memory_bytes as f64), count(usage.descriptors));
        labelled(f, name, &text)
    };
    if let Some(gateway) = result.gateway_usage {
        line("gateway", gateway, result.gateway_cpu_seconds_per_gigabyte())?;
    }
    line("harness", result.harness_usage, result.harness_cpu_seconds_per_gigabyte())?;
    if let Some(gateway) = result.gateway_usage.filter(|gateway| gateway.cpu_seconds > 0.0) {
        let far_end = result.far_end_cpu_seconds / gateway.cpu_seconds;
        let clients = (result.harness_usage.cpu_seconds / gateway.cpu_seconds - far_end).max(0.0);
        writeln!(
            f,
            "{:LABEL$}a packet costs the clients {clients:.2} and the far end {far_end:.2} times what it costs the gateway",
            ""
        )?;
    }
    if let Some(shards) = result.shards {
        let share = if shards.arrived == 0 { 0.0 } else { shards.crossed as f64 / shards.arrived as f64 };
        let text = format!("{}; {} of what arrived crossed to another", shards.shards, percent(share));
        labelled(f, "shards", &text)?;
    }
    Ok(())
}

/// What kept the traffic from being more, in words.
fn limit(limited_by: LimitedBy) -> &'static str {
    match limited_by {
        LimitedBy::Scenario => "the scenario: all that was to be sent was sent in time",
        LimitedBy::Gateway => "the gateway: it had no CPU time left",
        LimitedBy::Harness => {
            "THIS HARNESS: it had no CPU time left or fell behind its schedule; the figures say nothing of the gateway's limit"
        }
        LimitedBy::Window => "neither gateway nor harness was busy: the flows' windows, a rate limit, or the path",
    }
}

fn labelled(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    writeln!(f, "{label:<LABEL$}{text}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::results::{Churn, Latencies, Ramp, ShardFigures};

    fn figures(lost_packets: u64) -> FlowFigures {
        FlowFigures {
            sent_packets: 12_345,
            received_packets: 12_345 - lost_packets,
            received_bytes: 10_000_000,
            lost_packets,
            bits_per_second: 8e8,
            ..FlowFigures::default()
        }
    }

    fn result() -> LoadResult {
        let round_trip = Latencies {
            count: 12_340,
            p50_ns: 200_000,
            p99_ns: 1_500_000,
            p999_ns: 3_000_000,
            max_ns: 12_000_000,
            ..Latencies::default()
        };
        LoadResult {
            scenario: "short".to_owned(),
            gateway: "tollgate 0.1.0".to_owned(),
            users: 1_000,
            ramp: Ramp { wanted: 1_000, connected: 1_000, seconds: 2.0, gateway_cpu_seconds: Some(0.5) },
            churn: Churn { connected: 1_000, ..Churn::default() },
            seconds: 10.0,
            groups: vec![GroupResult {
                name: "web".to_owned(),
                connections: 900,
                up: figures(5),
                down: figures(0),
                round_trip: Some(round_trip),
            }],
            up: Ledger {
                sent: 13_000,
                received: 12_995,
                drops: BTreeMap::from([("gateway: over_limit".to_owned(), 5)]),
                unaccounted: 0,
            },
            down: Ledger { sent: 12_500, received: 12_500, ..Ledger::default() },
            gateway_usage: Some(Usage { cpu_seconds: 4.0, cpu_share: 0.4, memory_bytes: 50_000_000, descriptors: 30 }),
            harness_usage: Usage { cpu_seconds: 2.0, cpu_share: 0.2, memory_bytes: 200_000_000, descriptors: 99 },
            far_end_cpu_seconds: 0.48,
            limited_by: LimitedBy::Scenario,
            shards: Some(ShardFigures { shards: 2, crossed: 50, arrived: 100, ..ShardFigures::default() }),
            samples: Vec::new(),
            failures: Vec::new(),
        }
    }

    #[test]
    fn the_table_shows_traffic_ledgers_and_costs() {
        let expected = "
short against tollgate 0.1.0: 1,000 connections of 1,000 users, 10.0 s of traffic

ramp     1,000 of 1,000 connected in 2.0 s: 500 a second, 500 us of the gateway's CPU time each

traffic                      sent      received     lost reordered   twice  corrupt        rate
web           up           12,345        12,340        5         0       0        0    800 Mb/s
              down         12,345        12,345        0         0       0        0    800 Mb/s
         900 connections
         round trip p50 200 us, p99 1.50 ms, p99.9 3.00 ms, longest 12.0 ms (12,340 of them)

every inner packet, the harness's own messages too              up          down
  sent                                                      13,000        12,500
  received                                                  12,995        12,500
  dropped, gateway: over_limit                                   5
  unaccounted for                                                0             0

gateway  4.00 s of CPU time, 40 % of its CPUs, 2.00 s/GB; 50.0 MB, 30 descriptors
harness  2.00 s of CPU time, 20 % of its CPUs, 1.00 s/GB; 200 MB, 99 descriptors
         a packet costs the clients 0.38 and the far end 0.12 times what it costs the gateway
shards   2; 50 % of what arrived crossed to another
limit    the scenario: all that was to be sent was sent in time
result   success: both ends agree on every packet, and everything demanded holds
";
        assert_eq!(format!("\n{}", LoadTable(&result())), expected);
    }

    #[test]
    fn what_failed_is_said_and_success_is_not() {
        let mut failed = result();
        failed.failures = vec!["up: 3 packets are unaccounted for".to_owned()];
        failed.up.unaccounted = 3;
        let shown = LoadTable(&failed).to_string();
        assert!(shown.contains("result   FAILURE\n         - up: 3 packets are unaccounted for\n"), "{shown}");
        assert!(
            !shown.contains("success")
                && shown.contains("unaccounted for                                                3")
        );
    }

    #[test]
    fn a_harness_at_its_limit_says_so() {
        let mut limited = result();
        limited.limited_by = LimitedBy::Harness;
        assert!(LoadTable(&limited).to_string().contains("limit    THIS HARNESS: it had no CPU time left"));
    }

    #[test]
    fn a_gateway_elsewhere_has_no_costs_and_churn_and_limits_are_shown_where_there_are_any() {
        let mut elsewhere = result();
        (elsewhere.gateway_usage, elsewhere.shards, elsewhere.ramp.gateway_cpu_seconds) = (None, None, None);
        elsewhere.churn = Churn { connected: 1_007, closed: 8, failed: 1, lost: 2, rebound: 1_000 };
        elsewhere.groups[0].down.user_peak_bits_per_second = 4e6;
        let shown = LoadTable(&elsewhere).to_string();
        assert!(!shown.contains("gateway  ") && !shown.contains("shards ") && !shown.contains("of the gateway's CPU"));
        let churn = "8 left, 7 came again, 1,000 changed their address; 1 handshakes failed, 2 connections were lost";
        assert!(shown.contains(churn) && shown.contains("800 Mb/s, most for a user 4.00 Mb/s"), "{shown}");
    }
}
