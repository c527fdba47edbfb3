//! Values of options: text in, checked values out.

use std::time::Duration;

use crate::control::DRAIN_MAX;
use crate::gateway::LimitOrder;

/// Between two looks at a gateway: shorter than figures are published, nothing would have moved.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// The length of a drain, as in "90s", "10m" or "1h".
pub(super) fn drain_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time <= DRAIN_MAX {
        true => Ok(time),
        false => Err(format!("it is longer than {}", humantime::format_duration(DRAIN_MAX))),
    }
}

/// A user's limit, as in "10 mbps", or "none".
pub(super) fn limit(text: &str) -> Result<LimitOrder, String> {
    match text.parse()? {
        LimitOrder::File => Err("write --file".to_owned()),
        order => Ok(order),
    }
}

/// A pause between two looks at a gateway, as in "500ms" or "2s".
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time >= INTERVAL_MIN && time <= INTERVAL_MAX {
        true => Ok(time),
        false => Err("write a time from 200ms to 1h".to_owned()),
    }
}

/// A rate as in "200/s" or "200".
pub(super) fn clients_per_s(text: &str) -> Result<u32, String> {
    let rate = text.trim().strip_suffix("/s").unwrap_or(text).trim().parse().ok().filter(|rate| *rate > 0);
    rate.ok_or_else(|| "write a number of clients in a second, for example 200/s".to_owned())
}
