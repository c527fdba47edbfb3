//! What a load found, as tables for people. Nothing is judged here: what failed, the result says.

use std::fmt;

use super::result::{LimitedBy, LoadResult, Usage};
use crate::measure::record::table;
use crate::measure::units::{bits_per_second, bytes, count, nanoseconds, percent, signed};

/// A load's result, displayed.
pub struct LoadTable<'a>(pub &'a LoadResult);

impl fmt::Display for LoadTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadTable(result) = self;
        let LoadResult { scenario, gateway, users, ramp, churn, seconds, .. } = result;
        writeln!(
            f,
            "{scenario} against {gateway}: {} of {} connections of {} users came up in {:.1} s, {} of the gateway's CPU time each; {seconds:.1} s of traffic",
            count(ramp.connected.into()),
            count(ramp.wanted.into()),
            count((*users).into()),
            ramp.seconds,
            nanoseconds((ramp.gateway_cpu_seconds * 1e9 / f64::from(ramp.connected.max(1))) as u64),
        )?;
        if churn.closed + churn.rebound + churn.failed + churn.lost > 0 {
            // The first handshake of each is the ramp's.
            let again = churn.connected.saturating_sub(ramp.connected.into());
            let [again, closed, rebound, failed, lost] =
                [again, churn.closed, churn.rebound, churn.failed, churn.lost].map(count);
            writeln!(
                f,
                "{closed} left, {again} came again, {rebound} changed their address; {failed} handshakes failed, {lost} connections were lost"
            )?;
        }
        writeln!(f, "\n{}\n\n{}\n", groups(result), accounts(result))?;
        for (group, trips) in result.groups.iter().filter_map(|group| Some((group, group.round_trip.as_ref()?))) {
            let [p50, p99, p999, max] = [trips.p50_ns, trips.p99_ns, trips.p999_ns, trips.max_ns].map(nanoseconds);
            let number = count(trips.count);
            writeln!(
                f,
                "round trips of {}: p50 {p50}, p99 {p99}, p99.9 {p999}, longest {max} ({number} of them)",
                group.name
            )?;
        }
        usage(f, result)?;
        writeln!(f, "limit: {}", limit(result.limited_by))?;
        if result.failures.is_empty() {
            return write!(f, "success: both ends agree on every packet, and everything demanded holds");
        }
        write!(f, "FAILURE")?;
        result.failures.iter().try_for_each(|failure| write!(f, "\n- {failure}"))
    }
}

fn groups(result: &LoadResult) -> comfy_table::Table {
    let rows = result.groups.iter().flat_map(|group| {
        group.ways().map(|(way, flow)| {
            let peak = flow.user_peak_bits_per_second;
            let counts = flow.counts;
            [
                group.name.clone(),
                way.to_owned(),
                count(group.connections.into()),
                count(counts.sent_packets),
                count(counts.received_packets),
                count(flow.lost_packets),
                count(counts.reordered_packets),
                count(counts.duplicated_packets),
                count(counts.corrupted_packets),
                bits_per_second(flow.bits_per_second),
                if peak > 0.0 { bits_per_second(peak) } else { String::new() },
            ]
        })
    });
    let heading = [
        "traffic",
        "",
        "connections",
        "sent",
        "received",
        "lost",
        "reordered",
        "twice",
        "corrupt",
        "rate",
        "most for a user",
    ];
    table(2, &heading, rows)
}

/// Both accounts side by side, line by line.
fn accounts(result: &LoadResult) -> comfy_table::Table {
    let (up, down) = (&result.up, &result.down);
    let mut reasons: Vec<&String> = up.drops.keys().chain(down.drops.keys()).collect();
    reasons.sort();
    reasons.dedup();
    let dropped = reasons.into_iter().map(|reason| {
        let [up, down] =
            [up, down].map(|account| account.drops.get(reason).map_or_else(String::new, |packets| count(*packets)));
        [format!("dropped, {reason}"), up, down]
    });
    let ends = [("sent", up.sent, down.sent), ("received", up.received, down.received)];
    let rows = ends.into_iter().map(|(what, up, down)| [what.to_owned(), count(up), count(down)]).chain(dropped);
    let unaccounted = ["unaccounted for".to_owned(), signed(up.unaccounted), signed(down.unaccounted)];
    table(1, &["every inner packet, the harness's own too", "up", "down"], rows.chain([unaccounted]))
}

/// What gateway and harness used, and how cheap the one is beside the other.
fn usage(f: &mut fmt::Formatter<'_>, result: &LoadResult) -> fmt::Result {
    let line = |name: &str, usage: Usage| {
        let cost = result.cpu_seconds_per_gigabyte(usage).map(|cost| format!(", {cost:.2} s/GB")).unwrap_or_default();
        let (share, memory) = (percent(usage.cpu_share), bytes(usage.memory_bytes as f64));
        format!(
            "{name}: {:.2} s of CPU time, {share} of its CPUs{cost}; {memory}, {} descriptors",
            usage.cpu_seconds,
            count(usage.descriptors)
        )
    };
    let (gateway, harness) = (result.gateway_usage, result.harness_usage);
    writeln!(
        f,
        "{}; its CPUs were busy for {} of the time",
        line("gateway", gateway),
        percent(result.gateway_cpus_busy)
    )?;
    writeln!(f, "{}", line("harness", harness))?;
    if gateway.cpu_seconds > 0.0 {
        let responder = result.responder_cpu_seconds / gateway.cpu_seconds;
        let clients = (harness.cpu_seconds / gateway.cpu_seconds - responder).max(0.0);
        writeln!(
            f,
            "a packet costs the clients {clients:.2} and the responder {responder:.2} times what it costs the gateway"
        )?;
    }
    if let Some(batch) = result.batch {
        writeln!(f, "{batch:.2} inner packets for each outer datagram")?;
    }
    if let Some(shards) = result.shards {
        let share = shards.crossed as f64 / shards.arrived.max(1) as f64;
        writeln!(f, "{} shards; {} of what arrived crossed to another", shards.shards, percent(share))?;
    }
    Ok(())
}

/// What kept the traffic from being more, in words.
fn limit(limited_by: LimitedBy) -> &'static str {
    match limited_by {
        LimitedBy::Scenario => "the scenario, all that was to be sent was sent in time",
        LimitedBy::Gateway => "the gateway, it had no CPU time left",
        LimitedBy::Harness => {
            "THIS HARNESS, it had no CPU time left or fell behind its schedule; the figures say nothing of the gateway's limit"
        }
        LimitedBy::Window => "neither gateway nor harness was busy: the flows' windows, a rate limit, or the path",
    }
}
