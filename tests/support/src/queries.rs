//! What Prometheus is asked: the queries of the dashboard, of the alerts and of the documents.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::pages::{page, root};

/// The folder of dashboard and alerts.
pub fn folder() -> PathBuf {
    root().join("config/metrics")
}

/// The queries of the dashboard.
pub fn of_dashboard() -> Vec<String> {
    let text = fs::read_to_string(folder().join("dashboard.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("the dashboard is JSON");
    let of = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let panels = of(&dashboard, "panels");
    let targets = panels.iter().flat_map(|panel| of(panel, "targets"));
    targets.map(|target| target["expr"].as_str().expect("a query").to_owned()).collect()
}

/// The queries that docs/metrics.md names.
pub fn of_documents() -> Vec<String> {
    let page = page(&root(), "docs/metrics.md");
    let (_, table) = page.text.split_once("| question | query |\n").expect("a table of queries");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('`').nth(1).expect("a query").to_owned()).collect()
}

/// The names of metrics in `text`, without the ends of a histogram's parts.
pub fn names(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names = words.filter(|word| word.starts_with("tollgate_") || word.starts_with("quincy_"));
    names
        .map(|name| ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name))
        .collect()
}
