//! One run's surroundings: fresh network namespaces, a gateway pinned to a CPU, a client, and a server behind the gateway.
//!
//! Nothing is kept from run to run but configuration files: not even what the kernel remembers of TCP peers.

use std::net::{SocketAddr, TcpListener};
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tollgate::lab::bulk::{BulkPlan, BulkReport, BulkServer, Direction, Progress, transfer};
use tollgate::lab::ping::{PingPlan, ping};
use tollgate::lab::{SERVER_V4, Topology, TopologyPlan};

use super::contender::{Contender, Kind, Placement};
use super::quincy::{self, Deployment};
use super::tunnel::{START_TIMEOUT, Tunnel};
use super::wireguard;
use crate::cpus;
use crate::results::{Transfer, Work};

/// How long a transfer may take beyond its duration: a tunnel may be slow to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// A gateway with a client connected to it.
#[derive(Debug)]
pub(super) struct Site {
    // The processes end before their namespaces go.
    tunnel: Tunnel,
    server: BulkServer,
    topology: Topology,
    load_cpus: Vec<usize>,
}

impl Site {
    /// Builds the namespaces, starts `contender` and its client where `placement` says, and waits until the tunnel carries packets.
    ///
    /// # Errors
    ///
    /// Whatever did not start, with its last lines.
    pub(super) fn start(deployment: &Deployment, contender: &Contender, placement: &Placement) -> Result<Self> {
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() })?;
        let tunnel = match contender.kind {
            Kind::Tollgate | Kind::Quincy => quincy::connect(&topology, deployment, contender, placement)?,
            Kind::Wireguard(program) => wireguard::connect(&topology, program, contender, placement)?,
        };
        let load_cpus = placement.load_cpus.clone();
        let serve = || -> Result<BulkServer> {
            cpus::pin(&load_cpus)?;
            let listener = TcpListener::bind(SocketAddr::new(SERVER_V4.into(), 0));
            Ok(BulkServer::start(listener.context("cannot listen behind the gateway")?)?)
        };
        let server = topology.network.run(serve)?;
        let site = Site { tunnel, server, topology, load_cpus };
        site.wait_for_tunnel()?;
        Ok(site)
    }

    /// Does `work` for `duration`, calling `progress` now and then.
    ///
    /// # Errors
    ///
    /// When a transfer broke off or ended too early. Corrupt bytes are no error: see [`Transfer::corrupt_at_byte`].
    pub(super) fn transfer(
        &self,
        work: Work,
        duration: Duration,
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<Transfer> {
        let before = self.tunnel.gateway.cpu_seconds()?;
        let reports = match work {
            Work::Up => vec![self.bulk(Direction::Upload, duration, progress)],
            Work::Down => vec![self.bulk(Direction::Download, duration, progress)],
            Work::Both => {
                let up_bytes = AtomicU64::new(0);
                thread::scope(|scope| {
                    let tell = |state: Progress| up_bytes.store(state.bytes, Ordering::Relaxed);
                    let up = scope.spawn(move || self.bulk(Direction::Upload, duration, tell));
                    let down = self.bulk(Direction::Download, duration, |state| {
                        progress(Progress { bytes: state.bytes + up_bytes.load(Ordering::Relaxed), ..state });
                    });
                    vec![up.join().unwrap_or_else(|payload| panic::resume_unwind(payload)), down]
                })
            }
        };
        let gateway_cpu_seconds = self.tunnel.gateway.cpu_seconds()? - before;
        let reports = reports.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(Transfer {
            work,
            bytes: reports.iter().map(|report| report.bytes).sum(),
            seconds: reports.iter().map(|report| report.seconds).fold(0.0, f64::max),
            gateway_cpu_seconds,
            corrupt_at_byte: reports.iter().find_map(|report| report.corrupt_at).map(|(_, offset)| offset),
        })
    }

    /// Stops the client, then the gateway.
    ///
    /// # Errors
    ///
    /// When one of them does not stop; it is killed then.
    pub(super) fn stop(self) -> Result<()> {
        self.tunnel.stop()
    }

    fn bulk(
        &self,
        direction: Direction,
        duration: Duration,
        progress: impl FnMut(Progress) + Send,
    ) -> Result<BulkReport> {
        let plan = BulkPlan {
            duration: Some(duration),
            deadline: duration + DRAIN_TIMEOUT,
            ..BulkPlan::new(self.server.address(), direction, u64::MAX)
        };
        let moved = self.topology.clients[0].namespace.run(|| -> Result<BulkReport> {
            cpus::pin(&self.load_cpus)?;
            Ok(transfer(&plan, progress)?)
        });
        let report = moved.with_context(|| self.tunnel.last_lines())?;
        if report.bytes == 0 || report.seconds < duration.as_secs_f64() {
            bail!(
                "a transfer of {} s ended after {:.1} s and {} bytes\n{}",
                duration.as_secs(),
                report.seconds,
                report.bytes,
                self.tunnel.last_lines()
            );
        }
        Ok(report)
    }

    fn wait_for_tunnel(&self) -> Result<()> {
        let plan = PingPlan { count: 1, timeout: Duration::from_millis(200), ..PingPlan::new(SERVER_V4.into()) };
        let deadline = Instant::now() + START_TIMEOUT;
        while self.topology.clients[0].namespace.run(|| ping(&plan))?.received == 0 {
            if Instant::now() >= deadline {
                bail!(
                    "no ping was answered through the tunnel in {} s\n{}",
                    START_TIMEOUT.as_secs(),
                    self.tunnel.last_lines()
                );
            }
        }
        Ok(())
    }
}
