//! `tollgate-bench far-end`: the other end of every flow, behind a gateway that runs already.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::RecvTimeoutError;
use tollgate::io::{UdpGroup, UdpOptions};
use tollgate::signals::{Signal, signals};

use crate::load::far_end::{FarEnd, FarTotals};
use crate::progress::Progress;
use crate::record::print;
use crate::units::{bytes, count};

/// How often it is asked how things stand.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where the far end listens, and for how long.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// An address of this machine, or 0.0.0.0 for all, and a port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// End after so many seconds [default: on SIGINT or SIGTERM].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
}

/// Answers whoever runs `load` through a gateway, until a signal comes or the time is over.
///
/// # Errors
///
/// When the address cannot be had, or the service ended by itself.
pub fn run(options: &Options) -> Result<()> {
    let signals = signals().context("cannot watch signals")?;
    let far_end = FarEnd::start(UdpGroup::bind(options.listen, 1, &UdpOptions::default())?, &[])?;
    for address in far_end.addresses() {
        print(&format!("listening on {address}\n"))?;
    }
    let started = Instant::now();
    let mut progress = Progress::new();
    loop {
        let left = options.seconds.map(|seconds| Duration::from_secs(seconds).saturating_sub(started.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            break;
        }
        match signals.recv_timeout(left.unwrap_or(INTERVAL).min(INTERVAL)) {
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            Ok(Signal::Report) => print(&format!("{}\n", summary(&far_end.totals())))?,
            Err(RecvTimeoutError::Timeout) => progress.update(|| summary(&far_end.totals())),
        }
    }
    progress.clear();
    print(&format!("{}\n", summary(&far_end.stop()?)))
}

/// What the far end did, in a line.
fn summary(totals: &FarTotals) -> String {
    let mut text = format!(
        "received {} messages ({}), sent {}, {} flows",
        count(totals.received_messages),
        bytes(totals.received_bytes as f64),
        count(totals.sent_messages),
        count(totals.flows_opened)
    );
    let rest = [
        (totals.send_dropped, "the kernel refused"),
        (totals.replies_dropped, "answers were dropped"),
        (totals.foreign, "datagrams were none of ours"),
        (totals.unclaimed, "messages were of no open flow"),
    ];
    for (number, what) in rest.into_iter().filter(|(number, _)| *number > 0) {
        text += &format!("; {} {what}", count(number));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_far_end_drops_is_said() {
        let totals = FarTotals { received_messages: 1_000, foreign: 2, ..FarTotals::default() };
        let expected = "received 1,000 messages (0 B), sent 0, 0 flows; 2 datagrams were none of ours";
        assert_eq!(summary(&totals), expected);
    }
}
