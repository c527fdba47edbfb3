//! The table `[metrics]`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::kind::{Kind, listen, port, seconds, switch, whole};
use crate::schema::{LIVE, table};

const GONE_AT_ONCE: &str = "the figures of a connection that is gone are at once in the sum of the others";
const INTERVAL_S_MAX: u64 = 86_400;

fn idle_timeout() -> Kind<Option<Duration>> {
    whole(0..=INTERVAL_S_MAX, "seconds (0 for ever)").map(
        |seconds| (seconds > 0).then_some(Duration::from_secs(seconds)),
        |timeout| Some(timeout.map_or(0, |timeout| timeout.as_secs())),
    )
}

table! {
    /// Where metrics are served, in OpenMetrics under /metrics.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Metrics of Quincy {
        /// Whether metrics are served. Whoever reaches the address can read them.
        "enabled" => enabled: bool = false, switch(), LIVE;
        /// Where it listens.
        "address" => address: IpAddr = Ipv4Addr::LOCALHOST.into(), listen(), LIVE;
        /// The port where it listens.
        "port" => port: u16 = 9090, port(), LIVE;
        /// How often the figures of connections are renewed, in seconds.
        "reporting_interval_s" => reporting_interval: Duration = Duration::from_secs(5), seconds(1..=INTERVAL_S_MAX), LIVE;
        /// How long the figures of a connection that is gone are kept, in seconds; 0 for ever.
        "idle_timeout_s" => idle_timeout: Option<Duration> = Some(Duration::from_secs(300)), idle_timeout(),
            LIVE.without_effect(GONE_AT_ONCE);
    }
}
