//! The traffic of the demo, and what it comes to.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::clients::Clients;
use super::interrupt::Interrupt;
use super::site::Site;
use super::table::{Echoes, Load};
use super::tally::Tally;
use super::{DemoError, Options};
use crate::progress::Progress;
use tollgate_testkit::bulk::{BulkPlan, BulkReport, BulkServer, Direction, transfer};
use tollgate_testkit::ping::{PingPlan, PingReport, ping};
use tollgate_testkit::{LabError, SERVER_V4};

/// Echo requests of each client without load, and the time between them.
const IDLE_PLAN: (u32, Duration) = (200, Duration::from_millis(5));
/// Echo requests of one series under load, and the time between them. Series follow one another until the load ends.
const LOADED_PLAN: (u32, Duration) = (25, Duration::from_millis(10));
/// How long a transfer may take beyond its time, to deliver what is on its way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Measures round trips while nothing else is going on.
pub(super) fn idle(site: &mut Site, interrupt: &Interrupt) -> Result<Echoes, DemoError> {
    let clients = Clients::start(site.topology(), |_, _| ping(&plan(IDLE_PLAN)));
    finish_pings(clients, site, interrupt)
}

/// Moves data through all tunnels at once, one way, and measures round trips beside it.
pub(super) fn load(
    site: &mut Site,
    options: &Options,
    direction: Direction,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<Load, DemoError> {
    let name = match direction {
        Direction::Upload => "clients to network",
        Direction::Download => "network to clients",
    };
    progress.step(&format!("TCP, {name}"));
    let server = site.topology().network.run(serve)?;
    let before = (Tally::of(&site.status(interrupt)?), site.gateway_cpu_seconds()?);
    let over = Arc::new(AtomicBool::new(false));
    let pings = {
        let over = Arc::clone(&over);
        Clients::start(site.topology(), move |_, _| ping_until(&over))
    };
    let transfers = move_data(site, options, &server, direction, |bytes, elapsed| {
        progress.update(|| {
            let gigabits_per_second = bytes as f64 * 8e-9 / elapsed.as_secs_f64();
            let total = options.seconds;
            format!("TCP, {name}: {:.1} of {total} s, {gigabits_per_second:.2} Gb/s", elapsed.as_secs_f64())
        });
        interrupt.check()
    });
    over.store(true, Ordering::Relaxed);
    let transfers = transfers?;
    let cpu_seconds = site.gateway_cpu_seconds()? - before.1;
    let tally = Tally::of(&site.status(interrupt)?).since(&before.0);
    let echoes = finish_pings(pings, site, interrupt)?;
    let bytes = intact_bytes(site, &transfers)?;
    let seconds = transfers.iter().map(|report| report.seconds).fold(0.0, f64::max);
    Ok(Load { bytes, seconds, cpu_seconds, tally, echoes })
}

fn serve() -> Result<BulkServer, DemoError> {
    let listener = TcpListener::bind(SocketAddr::new(SERVER_V4.into(), 0))
        .map_err(|source| DemoError::System { operation: "listen in the network behind the gateway", source })?;
    Ok(BulkServer::start(listener)?)
}

/// Transfers between every client and `server`, all at once. `watch` is told the bytes so far, and the time since the start.
fn move_data(
    site: &mut Site,
    options: &Options,
    server: &BulkServer,
    direction: Direction,
    mut watch: impl FnMut(u64, Duration) -> Result<(), DemoError>,
) -> Result<Vec<BulkReport>, DemoError> {
    let duration = Duration::from_secs(options.seconds.into());
    let plan = BulkPlan {
        duration: Some(duration),
        streams: options.streams.into(),
        deadline: duration + DRAIN_TIMEOUT,
        ..BulkPlan::new(server.address(), direction, u64::MAX)
    };
    let moved: Arc<Vec<AtomicU64>> = Arc::new(site.topology().clients.iter().map(|_| AtomicU64::new(0)).collect());
    let shown = Arc::clone(&moved);
    let clients = Clients::start(site.topology(), move |index, _| {
        // Every stream of every client has content of its own.
        let plan = BulkPlan { seed: 1 + ((index as u64) << 32), ..plan };
        transfer(&plan, |progress| shown[index].store(progress.bytes, Ordering::Relaxed))
    });
    let started = Instant::now();
    clients.finish(site, |site| {
        site.check()?;
        watch(moved.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum(), started.elapsed())
    })
}

fn intact_bytes(site: &Site, transfers: &[BulkReport]) -> Result<u64, DemoError> {
    for (client, report) in transfers.iter().enumerate() {
        if let Some((stream, offset)) = report.corrupt_at {
            return Err(DemoError::Corrupt { client, stream, offset });
        }
        if report.bytes == 0 {
            return Err(DemoError::Silence { client, what: "no byte went through", logs: site.logs(client) });
        }
    }
    Ok(transfers.iter().map(|report| report.bytes).sum())
}

fn plan((count, interval): (u32, Duration)) -> PingPlan {
    PingPlan { count, interval, ..PingPlan::new(SERVER_V4.into()) }
}

/// One series of echo requests after the other, as one report.
fn ping_until(over: &AtomicBool) -> Result<PingReport, LabError> {
    let mut sum = ping(&plan(LOADED_PLAN))?;
    while !over.load(Ordering::Relaxed) {
        let report = ping(&plan(LOADED_PLAN))?;
        sum.sent += report.sent;
        sum.received += report.received;
        // Both histograms have the same bounds, so that nothing of one is out of the other's.
        sum.rtt_ns += &report.rtt_ns;
    }
    Ok(sum)
}

fn finish_pings(clients: Clients<PingReport>, site: &mut Site, interrupt: &Interrupt) -> Result<Echoes, DemoError> {
    let reports = clients.finish(site, |site| {
        site.check()?;
        interrupt.check()
    })?;
    let mut echoes: Option<PingReport> = None;
    for (client, report) in reports.into_iter().enumerate() {
        if report.received == 0 {
            return Err(DemoError::Silence { client, what: "no ping was answered", logs: site.logs(client) });
        }
        match &mut echoes {
            None => echoes = Some(report),
            Some(sum) => {
                sum.sent += report.sent;
                sum.received += report.received;
                sum.rtt_ns += &report.rtt_ns;
            }
        }
    }
    Ok(echoes.map_or_else(Echoes::default, |sum| Echoes {
        sent: sum.sent,
        received: sum.received,
        p50_ns: sum.rtt_percentile_ns(50.0),
        p99_ns: sum.rtt_percentile_ns(99.0),
    }))
}
