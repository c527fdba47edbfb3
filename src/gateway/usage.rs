//! What connections have carried, as the cores publish it: for metrics, for whoever asks, and for what is kept.

use std::time::Duration;

use tollgate_config::ServerConfig;

use super::{CoreUsage, Gateway};

/// How often cores publish the usage of their connections where it is kept.
const USAGE_INTERVAL: Duration = Duration::from_secs(1);
/// The same where users have quotas: as far as they get beyond them.
const QUOTA_INTERVAL: Duration = Duration::from_millis(50);

/// How often cores publish the usage of their connections, where it is kept.
pub fn usage_interval(config: &ServerConfig) -> Duration {
    if config.has_quotas() { QUOTA_INTERVAL } else { USAGE_INTERVAL }
}

impl Gateway {
    /// What the connections of each core have carried: published when somebody [asks](Gateway::begin_survey), and as often as the configuration says
    /// where metrics are served.
    pub fn usage(&self) -> Vec<CoreUsage> {
        self.cores.iter().map(|core| core.board.usage()).collect()
    }

    /// The same, with those who have gone since the last time: they are told of once.
    pub fn take_usage(&self) -> Vec<CoreUsage> {
        self.cores.iter().map(|core| core.board.take_usage()).collect()
    }

    pub(super) fn want_usage(&self) {
        let ServerConfig { metrics, usage, audit, events, .. } = &self.config;
        let told = metrics.enabled.then_some(metrics.reporting_interval);
        let kept = usage.enabled.then(|| usage_interval(&self.config));
        let recorded = (audit.enabled || events.enabled).then_some(USAGE_INTERVAL);
        let interval = [told, kept, recorded].into_iter().flatten().min();
        self.cores.iter().for_each(|core| core.board.want_usage(interval, usage.enabled));
    }
}
