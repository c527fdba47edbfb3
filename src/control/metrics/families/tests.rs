use serde_json::{Value as Json, json};

use super::super::CONNECTIONS_TOLD_MAX;
use super::*;

fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(name, value)| (name, value.parse().unwrap())).collect()
}

fn client(user: &str, connection: &str, has_path: bool) -> Client {
    let usage = Usage { sent_bytes: 5, ..Usage::default() };
    let path = has_path.then_some((Duration::from_millis(20), Duration::from_secs(3)));
    Client { user: user.to_owned(), connection: connection.to_owned(), usage, path }
}

fn totals(shards: Vec<Report>) -> Totals {
    Totals { shards: shards.into_iter().map(Some).collect(), ..Totals::default() }
}

#[test]
fn a_scrape_has_every_name_with_its_type_unit_and_help_and_ends_as_it_should() {
    let report = Report { busy_ms: 1500, ..Report::default() };
    let clients = vec![client("alice \"a\"", "198.19.128.2", true), client(OTHER, OTHER, false)];
    let text = totals(vec![report, report]).into_text(&Clients(clients).into_text());
    for line in [
        "# HELP tollgate_busy_seconds Time in which the shard had work.",
        "# TYPE tollgate_busy_seconds counter",
        "# UNIT tollgate_busy_seconds seconds",
        "tollgate_busy_seconds_total{shard=\"1\"} 1.5",
        "tollgate_memory_bytes{shard=\"0\",account=\"queued\"} 0",
        "tollgate_dropped_packets_total{reason=\"isolated\"} 0",
        "tollgate_shards 2",
        "quincy_bytes_tx_total{user=\"alice \\\"a\\\"\",connection=\"198.19.128.2\"} 5",
        "quincy_bytes_tx_total{user=\"other\",connection=\"other\"} 5",
        "quincy_connection_rtt_seconds{user=\"alice \\\"a\\\"\",connection=\"198.19.128.2\"} 0.02",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
    }
    assert!(text.ends_with("\n# EOF\n") && !text.contains("rtt_seconds{user=\"other\""), "{text}");
    for name in names() {
        assert!(text.lines().any(|line| line.starts_with(&name)), "{name} is not in {text}");
    }
}

#[test]
fn a_shard_without_a_label_of_its_own_is_in_a_sum_and_the_series_are_bounded() {
    let mut shards: Vec<Report> = (0..128).map(|_| Report::default()).collect();
    (shards[3].counters.up_packets, shards[90].counters.up_packets, shards[127].counters.up_packets) = (7, 1, 2);
    let clients = (0..=CONNECTIONS_TOLD_MAX).map(|number| client("alice", &number.to_string(), true)).collect();
    let text = totals(shards).into_text(&Clients(clients).into_text());
    let samples = samples(&text);
    assert!(samples.len() < SERIES_MAX, "{} series", samples.len());
    let up = |shard: &str| samples[&format!("tollgate_up_packets_total{{shard=\"{shard}\"}}")[..]];
    assert_eq!((up("3"), up(OTHER)), (7.0, 3.0));
}

#[test]
fn a_shard_that_has_not_begun_has_zeros() {
    let text = Totals { shards: vec![None], ..Totals::default() }.into_text("");
    assert_eq!(samples(&text)["tollgate_up_packets_total{shard=\"0\"}"], 0.0);
}

/// The path of each number within `json`.
fn numbers(json: &Json, path: &str, found: &mut Vec<String>) {
    match json {
        Json::Object(parts) => parts.iter().for_each(|(key, part)| numbers(part, &format!("{path}/{key}"), found)),
        Json::Array(parts) => {
            (0..).zip(parts).for_each(|(place, part)| numbers(part, &format!("{path}/{place}"), found));
        }
        Json::Number(_) => found.push(path.to_owned()),
        _ => {}
    }
}

#[test]
fn everything_that_a_shard_counts_is_a_metric() {
    let none =
        serde_json::to_value(Report { addresses_held: Some(0), address_pool: Some((0, 0)), ..Report::default() })
            .unwrap();
    let mut paths = Vec::new();
    numbers(&none, "", &mut paths);
    assert!(paths.len() > 150, "{paths:?}");
    let text = |json: &Json| totals(vec![serde_json::from_value(json.clone()).unwrap()]).into_text("");
    let before = text(&none);
    // Which shard it is and where it runs is no figure.
    let is_figure = |path: &&String| !["/shard", "/cpu"].contains(&&path[..]);
    for path in paths.iter().filter(is_figure) {
        let mut json = none.clone();
        *json.pointer_mut(path).unwrap() = json!(1000);
        assert_ne!(text(&json), before, "no metric has {path}");
    }
}
