//! A gateway's counters, as it prints them.

use serde_json::Value;

#[derive(Debug, Clone)]
pub struct Status(Value);

impl Status {
    pub fn parse(line: &str) -> Self {
        let status: Value = serde_json::from_str(line).expect("the gateway prints JSON");
        assert_eq!(status["unanswered"], Value::Array(Vec::new()), "shards that do not answer: {line}");
        Status(status)
    }

    /// The number at `pointer` (RFC 6901) in the report of shard `index`.
    pub fn of_shard(&self, index: usize, pointer: &str) -> u64 {
        self.number(&format!("/shards/{index}{pointer}"))
    }

    /// The number at `pointer` in the whole report.
    pub fn number(&self, pointer: &str) -> u64 {
        let number = self.0.pointer(pointer).and_then(Value::as_u64);
        number.unwrap_or_else(|| panic!("the gateway reports no {pointer}: {}", self.0))
    }

    pub fn sum(&self, pointer: &str) -> u64 {
        (0..self.shards()).map(|index| self.of_shard(index, pointer)).sum()
    }

    pub fn shards(&self) -> usize {
        self.0["shards"].as_array().map_or(0, Vec::len)
    }

    pub fn dropped(&self, reason: &str) -> u64 {
        self.sum(&format!("/counters/drops/{reason}"))
    }

    /// What was counted under `numerator` for each of `denominator` since `earlier`; 0 if nothing was.
    pub fn mean_since(&self, earlier: &Status, numerator: &str, denominator: &str) -> f64 {
        let since = |pointer| (self.sum(pointer) - earlier.sum(pointer)) as f64;
        since(numerator) / since(denominator).max(1.0)
    }

    /// Every drop reason that has counted since `earlier`, for messages.
    pub fn drops_since(&self, earlier: &Status) -> String {
        let reasons = self.0["shards"][0]["counters"]["drops"].as_object().into_iter().flat_map(|drops| drops.keys());
        reasons
            .map(|reason| (reason, self.dropped(reason) - earlier.dropped(reason)))
            .filter(|(_, packets)| *packets > 0)
            .map(|(reason, packets)| format!("{reason}={packets} "))
            .collect()
    }
}
