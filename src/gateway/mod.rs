//! The gateway: sets everything up, starts a core for each shard, and gives orders to all of them.

mod awaited;
mod capacity;
mod client_mtus;
mod coalescing;
mod core;
mod keys;
mod memory;
mod mesh;
mod reload;
mod status;
mod threads;
mod upkeep;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustls::pki_types::CertificateDer;
use tollgate_config::{CongestionController, ServerConfig, ServerTls, ShardCount};
use tollgate_shards::packet::MergeLimits;
use tollgate_shards::{
    CommandId, Congestion, ConnectionIdKey, Limits, Params, SHARDS_MAX, Shard, ShardIndex, ShardKeys, Snapshot,
    TransportParams,
};
use tracing::{info, warn};

pub use self::core::Report;
pub use keys::{KeyError, Keys, ephemeral_reset_key, random};
pub use reload::{KickError, Kicked, ReloadError, Reloaded, Unanswered};
pub use status::Status;
pub use upkeep::HostReport;

use self::awaited::Awaited;
use self::capacity::DescriptorError;
use self::core::{Core, Generations, Order};
use self::mesh::{Bell, Mesh};
use self::threads::{CoreThread, RunningThread, ThreadError};
use self::upkeep::{Kept, Tasks, Upkeep};
use crate::host::{self, HostError, Interface, SocketPlan, TunPlan};
use crate::io::{
    BindError, Offloads, ShardSockets, TunDevice, TunError, TunOptions, TunQueue, TunSteering, UdpOptions,
};
use crate::pump::Pump;
use crate::tls::{self, TlsError};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Kernel buffer for what comes before a handshake, of each shard, in bytes: what a core answers in a tenth of a second beside live traffic.
const HANDSHAKE_BUFFER_BYTES: usize = 512 << 10;
/// How long all cores together may take to say how they stand.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long all cores together may take to say goodbye to their clients and end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key file cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The UDP socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Something else of the host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A CPU that is not there.
    #[error("[shards] cpus names CPU {cpu}, which this process may not use: it may use {allowed}")]
    Cpu {
        /// The CPU.
        cpu: usize,
        /// The CPUs that the process may use.
        allowed: String,
    },
    /// A thread cannot be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// The limit of descriptors is too low.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// A descriptor failed while the gateway ran.
    #[error("shard {shard} failed: {source}")]
    Core {
        /// The index of the shard.
        shard: u16,
        /// The system's reason.
        source: io::Error,
    },
    /// A core does not react. What it holds goes with the process.
    #[error("shard {shard} did not end within {STOP_TIMEOUT:?}: its clients may not have been told")]
    Stuck {
        /// The index of the shard.
        shard: u16,
    },
    /// A core did not end as it should.
    #[error("shard {shard} ended unexpectedly: {reason}")]
    Lost {
        /// The index of the shard.
        shard: u16,
        /// How its thread ended.
        reason: String,
    },
    /// The system is out of something.
    #[error("the gateway cannot start: {0}")]
    System(#[from] io::Error),
}

/// A running gateway.
pub struct Gateway {
    cores: Vec<Running>,
    ended: Receiver<u16>,
    /// The configuration in force.
    config: ServerConfig,
    /// What of it the shards know.
    epoch: Arc<Snapshot>,
    /// The gateway's own certificate and those that vouch for it, as clients see them.
    certificates: Vec<CertificateDer<'static>>,
    /// The last order's.
    ticket: CommandId,
    /// Keeps the interface and the sockets as they should be.
    upkeep: Upkeep,
}

struct Running {
    thread: RunningThread,
    orders: Sender<Order>,
    bell: Bell,
}

impl Gateway {
    /// Opens everything, then starts the cores. Nothing is left behind when it fails.
    ///
    /// # Errors
    ///
    /// Each with one line that says what to do.
    pub fn start(config: &ServerConfig) -> Result<Self, GatewayError> {
        let cpus = placement(config)?;
        let shards = cpus.len();
        capacity::allow_descriptors(shards)?;
        let threads = threads::start(&cpus)?;
        let keys = Keys::of(&config.shards)?;
        let certificates = chain(&config.tls)?;
        let epoch = Arc::new(Snapshot {
            number: 0,
            directory: config.users.directory.clone(),
            isolate_clients: config.isolate_clients,
            tls: tls::server(&config.tls)?,
        });
        let mut sockets = SocketPlan {
            address: config.bind(),
            shards,
            options: udp_options(config),
            handshake_buffer_bytes: HANDSHAKE_BUFFER_BYTES,
        };
        let bound = host::bind_sockets(&sockets)?;
        sockets.address = bound.first().map_or(config.bind(), |bound| bound.live.local_address());
        let plan = tun_plan(config, shards);
        let (mut tun, queues) = host::make_tun(&plan)?;
        let steering = steer_tun(&queues);
        tun.up()?;
        let (ended_sender, ended) = unbounded();
        let (tasks, task_source) = Tasks::new()?;
        let shared = Shared {
            keys: ShardKeys { reset: keys.reset, token: keys.token },
            connection_id: keys.connection_id,
            epoch: epoch.clone(),
            steering,
            upkeep: tasks.clone(),
            ended: ended_sender,
        };
        let cores = start_cores(config, &cpus, threads, bound, queues, &shared)?;
        announce(config, &cpus, &tun, shared.steering.is_some());
        let kept = Kept {
            interface: Interface::new(plan, &tun),
            device: tun,
            steering: shared.steering,
            sockets,
            cores: cores.iter().map(|core| (core.orders.clone(), core.bell.clone())).collect(),
        };
        let upkeep = Upkeep::start(kept, tasks, task_source)?;
        let config = config.clone();
        Ok(Gateway { cores, ended, config, epoch, certificates, ticket: CommandId::default(), upkeep })
    }

    /// Asks every core how things stand. Names those that do not say so within `REPORT_TIMEOUT`.
    pub fn status(&self) -> Status {
        let deadline = Instant::now() + REPORT_TIMEOUT;
        let waiting: Vec<_> = self
            .cores
            .iter()
            .map(|core| {
                let (sender, receiver) = bounded(1);
                let _ = core.orders.send(Order::Report(sender));
                core.bell.ring();
                receiver
            })
            .collect();
        let mut status = Status { host: self.upkeep.report(), ..Status::default() };
        for (shard, receiver) in waiting.iter().enumerate() {
            match receiver.recv_deadline(deadline) {
                Ok(report) => status.shards.push(report),
                Err(_) => status.unanswered.push(shard as u16),
            }
        }
        status
    }

    /// Hears from every core that ends, which none should before [`Gateway::stop`].
    pub fn ended(&self) -> &Receiver<u16> {
        &self.ended
    }

    /// Says goodbye to every client and ends.
    ///
    /// # Errors
    ///
    /// If a core had failed, or does not end within `STOP_TIMEOUT`.
    pub fn stop(self) -> Result<(), GatewayError> {
        // What goes from now on goes for good.
        drop(self.upkeep);
        let mut running = BTreeSet::new();
        for (shard, core) in self.cores.iter().enumerate() {
            // A core that has ended takes no orders.
            if core.orders.send(Order::Stop).is_ok() {
                running.insert(shard as u16);
            }
            core.bell.ring();
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !running.is_empty()
            && let Ok(shard) = self.ended.recv_deadline(deadline)
        {
            running.remove(&shard);
        }
        let mut result = Ok(());
        for (shard, core) in self.cores.into_iter().enumerate() {
            let shard = shard as u16;
            if running.contains(&shard) {
                result = result.and(Err(GatewayError::Stuck { shard }));
                continue;
            }
            let ended = match core.thread.join() {
                Ok(ended) => ended.map_err(|source| GatewayError::Core { shard, source }),
                Err(reason) => Err(GatewayError::Lost { shard, reason }),
            };
            result = result.and(ended);
        }
        result
    }
}

/// What all cores start with.
struct Shared {
    keys: ShardKeys,
    connection_id: ConnectionIdKey,
    epoch: Arc<Snapshot>,
    steering: Option<Arc<TunSteering>>,
    upkeep: Tasks,
    ended: Sender<u16>,
}

fn start_cores(
    config: &ServerConfig,
    cpus: &[usize],
    threads: Vec<CoreThread>,
    sockets: Vec<ShardSockets>,
    queues: Vec<TunQueue>,
    shared: &Shared,
) -> Result<Vec<Running>, GatewayError> {
    let bells = cpus.iter().map(|_| Bell::new()).collect::<io::Result<Vec<_>>>()?;
    let ends = Mesh::between(&bells);
    let now = Instant::now();
    let mut cores = Vec::with_capacity(cpus.len());
    let parts = sockets.into_iter().zip(queues).zip(ends).zip(bells).zip(threads).zip(cpus).enumerate();
    for (index, (((((sockets, queue), mesh), bell), thread), &cpu)) in parts {
        let mut pump = Pump::new(sockets.live, Some(queue), bell.wake())?;
        pump.set_handshakes(sockets.handshakes, bell.wake())?;
        let params = params(config, shared, cpus.len() as u16, index as u16);
        let (orders, order_receiver) = unbounded();
        let core = Core {
            cpu,
            shard: Shard::new(params, &shared.keys, shared.epoch.clone(), now),
            epoch: shared.epoch.clone(),
            pump,
            mesh,
            bell: bell.clone(),
            orders: order_receiver,
            coalesce: config.data_path.coalesce,
            busy_poll: config.data_path.busy_poll,
            awaited: Awaited::default(),
            trim: memory::Trim::default(),
            steering: shared.steering.clone(),
            upkeep: shared.upkeep.clone(),
            generations: Generations::default(),
            client_mtus: shared.upkeep.client_mtus(),
            ended: shared.ended.clone(),
        };
        cores.push(Running { thread: core.start(thread), orders, bell });
    }
    Ok(cores)
}

fn params(config: &ServerConfig, shared: &Shared, shards: u16, index: u16) -> Params {
    let connection = &config.connection;
    // Initials of honest clients spread evenly, so each shard gets its part of the whole; one source may have its full number on each, since
    // its few handshakes do not.
    let handshakes_max = connection.pending_handshakes_max.div_ceil(usize::from(shards));
    Params {
        shards,
        index: ShardIndex(index),
        tunnel: config.tunnel_network,
        outer_addresses: outer_addresses(config),
        handshake_timeout: HANDSHAKE_TIMEOUT,
        transport: TransportParams {
            mtu_bytes: connection.mtu_bytes,
            idle_timeout: connection.connection_timeout,
            keep_alive: None,
            initial_rtt: None,
            datagram_send_buffer_bytes_max: connection.datagram_send_buffer_bytes,
            datagram_receive_buffer_bytes_max: connection.datagram_receive_buffer_bytes,
            congestion: congestion(connection.congestion_controller),
        },
        limits: Limits {
            handshakes_max,
            handshakes_per_source_max: connection.pending_handshakes_per_source_max,
            memory_bytes_max: memory::shard_bytes_max(config.shards.memory_bytes, usize::from(shards)),
            merge: MergeLimits {
                tso: config.data_path.tso,
                uso: config.data_path.uso,
                thins_acks: config.data_path.thin_acks,
                ..MergeLimits::default()
            },
            ..Limits::default()
        },
        connection_id_key: shared.connection_id.clone(),
        incarnation: 0,
        wall_clock: SystemTime::now(),
        seed: *random(),
    }
}

/// The engine's name for a configured congestion controller.
pub fn congestion(controller: CongestionController) -> Congestion {
    match controller {
        CongestionController::Cubic => Congestion::Cubic,
        CongestionController::Bbr => Congestion::Bbr,
        CongestionController::NewReno => Congestion::NewReno,
        CongestionController::None => Congestion::Uncontrolled,
    }
}

/// The gateway's certificate and those that vouch for it.
fn chain(tls: &ServerTls) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chains = tls.certificates.iter().map(|source| tls::certificates("certificate", source));
    Ok(chains.collect::<Result<Vec<_>, _>>()?.concat())
}

fn tun_plan(config: &ServerConfig, shards: usize) -> TunPlan {
    TunPlan {
        name: config.interface_name.clone(),
        queues: shards,
        mtu_bytes: config.connection.mtu_bytes,
        options: TunOptions { tso: config.data_path.tso, uso: config.data_path.uso, ..TunOptions::default() },
        address: config.tunnel_network,
    }
}

fn udp_options(config: &ServerConfig) -> UdpOptions {
    UdpOptions {
        send_buffer_bytes: config.connection.send_buffer_bytes,
        receive_buffer_bytes: config.connection.recv_buffer_bytes,
        gro: config.data_path.gro,
        gso: config.data_path.gso,
    }
}

/// What is known before the first packet; where the gateway listens on all addresses, each connection adds its own.
fn outer_addresses(config: &ServerConfig) -> Vec<IpAddr> {
    Some(config.bind_address).filter(|ip| !ip.is_unspecified()).into_iter().collect()
}

fn steer_tun(queues: &[TunQueue]) -> Option<Arc<TunSteering>> {
    if queues.len() < 2 {
        return None;
    }
    match TunSteering::attach(&queues[0], queues.len()) {
        Ok(steering) => Some(Arc::new(steering)),
        Err(error) => {
            warn!("{error}");
            None
        }
    }
}

/// The CPU of each shard.
fn placement(config: &ServerConfig) -> Result<Vec<usize>, GatewayError> {
    let affinity = rustix::thread::sched_getaffinity(None).map_err(io::Error::from)?;
    let allowed: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| affinity.is_set(cpu)).collect();
    let cpus: Vec<usize> = match &config.shards.cpus {
        Some(cpus) => cpus.iter().map(|&cpu| usize::from(cpu)).collect(),
        None => allowed.clone(),
    };
    if let Some(&cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(GatewayError::Cpu { cpu, allowed: list(&allowed) });
    }
    let count = match config.shards.count {
        ShardCount::Auto => cpus.len().min(usize::from(SHARDS_MAX)),
        ShardCount::Fixed(count) => usize::from(count.get()),
    };
    Ok(cpus.into_iter().cycle().take(count).collect())
}

/// Says how the gateway runs, in one line.
fn announce(config: &ServerConfig, cpus: &[usize], tun: &TunDevice, steered: bool) {
    let shards = cpus.len();
    info!(
        "listening on {} with {shards} shard{} on CPU {}; tunnel {} ({}) on {}; UDP steered by connection ID (classic BPF); \
         TUN steered by {}; TUN offloads: {}",
        config.bind(),
        if shards == 1 { "" } else { "s" },
        list(cpus),
        config.tunnel_network,
        if config.isolate_clients { "clients isolated" } else { "clients reach each other" },
        tun.name(),
        match (shards, steered) {
            (1, _) => "nothing (one shard)",
            (_, true) => "inner destination (eBPF)",
            (_, false) => "the driver's flow table and mesh (eBPF is not available)",
        },
        offloads(tun.offloads()),
    );
}

fn offloads(offloads: Offloads) -> String {
    let active: Vec<_> = [(offloads.checksum, "checksum"), (offloads.tso, "TSO"), (offloads.uso, "USO")]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect();
    if active.is_empty() { "none".to_owned() } else { active.join(", ") }
}

fn list(cpus: &[usize]) -> String {
    cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
