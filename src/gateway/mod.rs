//! The gateway: sets everything up, starts a core for each shard, and gives commands to all of them.
//!
//! The control plane drives it: it hands over what the gateway's descriptors and timers bring, and takes what commands come to. This module
//! blocks while the gateway starts only, and sees no packet.

pub mod busy;
mod capacity;
pub mod client_mtus;
mod commands;
pub mod core;
mod drain;
mod events;
pub mod interrupt_moderation;
mod keys;
pub mod memory;
pub mod mesh;
#[cfg(test)]
mod mesh_tests;
pub mod notices;
mod params;
pub mod pending;
mod placement;
mod recurrence;
pub mod reload;
pub mod seat;
pub mod sibling;
mod status;
mod sync;
mod threads;
mod upkeep;
pub mod waker;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use tollgate_config::ServerConfig;
use tollgate_netlink::NetlinkWatch;
use tollgate_shards::{IdLayoutError, ShardKeys, Shards, Snapshot, Steering};
use tracing::{info, warn};

pub use self::core::Report;
pub use drain::{DrainPlan, State};
pub use keys::{KeyError, Keys, ephemeral_reset_key, random};
pub use params::congestion;
pub use reload::{Completed, Kicked, Refused, ReloadUnanswered, Reloaded, Unanswered, UnknownUser};
pub use status::Status;
pub use upkeep::HostReport;

use self::capacity::DescriptorError;
use self::client_mtus::ClientMtus;
use self::commands::{Commands, CoreHandle};
use self::core::{Core, CoreCommand, Generations};
use self::mesh::{MESSAGES_MAX, Mesh};
use self::notices::{Notice, NoticeSender};
use self::pending::Pending;
use self::placement::list;
use self::seat::{Birth, GivenUp, PANICS_MAX, PANICS_WINDOW, Panics, Seat, Standing};
use self::threads::{CoreThread, Pool, ThreadError};
use self::upkeep::Upkeep;
use self::waker::Waker;
use crate::handshakes::{HandshakeError, Served};
use crate::host::{self, HostError, Interface, SocketPlan, TunPlan};
use crate::io::{
    BindError, Group, Offloads, ShardSockets, TunDevice, TunError, TunOptions, TunQueue, TunSteering, UdpOptions, Wake,
};
use crate::packet_io::PacketIo;

/// Kernel buffer for what comes before a handshake, of each shard, in bytes: what a core answers in a tenth of a second beside live traffic.
const HANDSHAKE_BUFFER_BYTES: usize = 512 << 10;
/// How long all cores together may take to say goodbye to their clients and end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
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
    /// Certificates or keys.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A CPU that is not there.
    #[error("[shards] cpus names CPU {cpu}, which this process may not use: it may use {allowed}")]
    Cpu {
        /// The CPU.
        cpu: usize,
        /// The CPUs that the process may use.
        allowed: String,
    },
    /// Connection IDs cannot be so.
    #[error("[connection_ids]: {0}")]
    Ids(#[from] IdLayoutError),
    /// There are more cores than connection IDs can tell apart.
    #[error(
        "{shards} shards are more than the {shards_max} that connection IDs with this server ID can tell apart: set count in [shards] to as \
         many, or a key in [connection_ids]"
    )]
    Shards {
        /// How many there would be.
        shards: usize,
        /// How many there may be.
        shards_max: u16,
    },
    /// A thread cannot be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// The limit of descriptors is too low.
    #[error(transparent)]
    Descriptors(#[from] DescriptorError),
    /// A core does not react. What it holds goes with the process.
    #[error("shard {shard} did not end within {STOP_TIMEOUT:?}: its clients may not have been told")]
    Stuck {
        /// The index of the shard.
        shard: u16,
    },
    /// Shards have panicked too often.
    #[error(
        "shards have panicked {PANICS_MAX} times within {PANICS_WINDOW:?}, shard {shard} the last time: the gateway ends, to be started anew as a \
         whole; the log has the message and the place of each panic"
    )]
    Panics {
        /// The index of the last one.
        shard: u16,
    },
    /// A shard has panicked while there are two processes.
    #[error(
        "shard {shard} has panicked during an upgrade, in which none is started anew: this process ends, and the other one goes on; the log has \
         the message and the place of the panic"
    )]
    PanicBesideAnother {
        /// The shard's place.
        shard: u16,
    },
    /// A core's thread did not end as it should.
    #[error("a shard ended unexpectedly: {0}")]
    Lost(String),
    /// The system is out of something.
    #[error("the gateway cannot start: {0}")]
    System(#[from] io::Error),
}

/// A running gateway.
pub struct Gateway {
    cores: Vec<CoreHandle>,
    threads: Pool,
    notices: Receiver<Notice>,
    /// Wakes the control plane for notices.
    wake: Arc<Wake>,
    /// Cores that have ended.
    ended: BTreeSet<u16>,
    /// The shard that has panicked and does not come back, and why.
    given_up: Option<(u16, GivenUp)>,
    /// The configuration in force.
    config: ServerConfig,
    /// What of it the shards know.
    snapshot: Arc<Snapshot>,
    served: Served,
    commands: Commands,
    upkeep: Upkeep,
    /// When all clients have been sent away, where no new ones are taken.
    drained_by: Option<Instant>,
    /// When the cores must have ended.
    stop_by: Option<Instant>,
}

impl Gateway {
    /// Opens everything, then starts the cores. Nothing is left behind when it fails.
    ///
    /// # Errors
    ///
    /// Each with one line that says what to do.
    pub fn start(config: &ServerConfig) -> Result<Self, GatewayError> {
        let cpus = placement::place(config.shards.count, config.shards.cpus.as_ref())?;
        let shards = cpus.len();
        capacity::allow_descriptors(shards)?;
        let (threads, core_threads) = threads::start(&cpus)?;
        let keys = Keys::of(&config.shards)?;
        let id_layout = config.connection_ids.layout(keys.connection_id)?;
        let shards_max = id_layout.steering().shards_max();
        if shards > usize::from(shards_max) {
            return Err(GatewayError::Shards { shards, shards_max });
        }
        let served = Served::load(&config.protocol)?;
        let snapshot = Arc::new(Snapshot {
            version: 0,
            users: config.users.clone(),
            isolate_clients: config.isolate_clients,
            handshakes: served.handshakes.listing(config.users.clone()),
        });
        let mut sockets = SocketPlan {
            address: config.bind(),
            shards,
            options: udp_options(config, id_layout.steering()),
            handshake_buffer_bytes: HANDSHAKE_BUFFER_BYTES,
        };
        let bound = host::bind_sockets(&sockets)?;
        sockets.address = bound.first().map_or(config.bind(), |bound| bound.live.local_address());
        let plan = tun_plan(config, shards);
        let (mut tun, queues) = host::make_tun(&plan)?;
        let steering = steer_tun(&queues);
        tun.up()?;
        let (notice_sender, notices) = notices::channel(Wake::new()?);
        let wake = notice_sender.wake().clone();
        let client_mtus = ClientMtus::default();
        let shared = Shared {
            keys: ShardKeys { id_layout, reset: keys.reset, token: keys.token },
            snapshot: snapshot.clone(),
            steering,
            notices: notice_sender,
        };
        let cores = start_cores(config, &cpus, core_threads, bound, queues, &client_mtus, &shared)?;
        announce(config, &cpus, &tun, shared.steering.is_some());
        let upkeep = Upkeep::new(Interface::new(plan, &tun), tun, shared.steering, sockets, client_mtus);
        Ok(Gateway {
            cores,
            threads,
            notices,
            wake,
            ended: BTreeSet::new(),
            given_up: None,
            config: config.clone(),
            snapshot,
            served,
            commands: Commands::default(),
            upkeep,
            drained_by: None,
            stop_by: None,
        })
    }

    /// Readable when [`Gateway::handle_notices`] is to be called. To be drained before.
    pub fn cores_wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    /// Readable when [`Gateway::handle_host`] is to be called. `None` where the host cannot be watched.
    pub fn host_watch(&self) -> Option<Arc<NetlinkWatch>> {
        self.upkeep.watch().cloned()
    }

    /// Takes what the cores tell.
    pub fn handle_notices(&mut self, now: Instant) {
        while let Ok(notice) = self.notices.try_recv() {
            match notice {
                Notice::Ended { shard } => {
                    self.ended.insert(shard);
                    self.commands.handle_ended(shard);
                    self.upkeep.handle_released_udp(shard, now);
                }
                Notice::BegunAnew { shard, incarnation } => {
                    self.commands.handle_begun_anew(shard.place() as u16, &self.cores);
                    self.upkeep.handle_begun_anew(shard, incarnation, now);
                }
                Notice::GivenUp { shard, because } => self.given_up = Some((shard, because)),
                // No process before this one lives.
                Notice::TakenOver { .. } => {}
                Notice::Report { command, report } => self.commands.handle_report(command, *report),
                Notice::Done { command, shard, closed_connections } => {
                    self.commands.handle_done(command, shard, closed_connections);
                }
                Notice::LostTun(generation) => self.upkeep.handle_lost_tun(generation, now),
                Notice::LostUdp(generation) => self.upkeep.handle_lost_udp(generation, now),
                Notice::ReleasedUdp { shard } => self.upkeep.handle_released_udp(shard, now),
            }
        }
        // What clients lose from now on is lost for good.
        if self.stop_by.is_none() {
            self.upkeep.handle_client_mtus(now);
        }
        self.commands.advance(&self.cores, now);
    }

    /// Takes changes of the host.
    pub fn handle_host(&mut self, now: Instant) {
        self.upkeep.handle_host(now);
    }

    /// When to call [`Gateway::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let upkeep = if self.stop_by.is_none() { self.upkeep.poll_timeout() } else { None };
        [self.stop_by, upkeep, self.commands.poll_timeout()].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.stop_by.is_none() {
            self.upkeep.handle_timeout(now, &self.cores);
        }
        self.commands.advance(&self.cores, now);
    }

    /// Asks every core for its status, and gives up what was pending. [`Gateway::poll_completed`] has it when all have answered, or time is
    /// over.
    pub fn begin_status(&mut self, now: Instant) {
        self.commands.begin_status(&self.cores, now);
    }

    /// What the pending command has come to. The next one may begin then.
    pub fn poll_completed(&mut self) -> Option<Completed> {
        let mut completed = self.commands.take_completed();
        if let Some(Completed::Status(status)) = &mut completed {
            status.host = self.upkeep.report();
        }
        completed
    }

    /// Whether a core has ended, which none should before [`Gateway::begin_stop`].
    pub fn has_lost_a_core(&self) -> bool {
        !self.ended.is_empty()
    }

    /// Has the cores say goodbye to every client and end.
    pub fn begin_stop(&mut self, now: Instant) {
        self.upkeep.remove_client_routes(now);
        for core in &self.cores {
            core.send(CoreCommand::Stop);
        }
        self.stop_by = Some(now + STOP_TIMEOUT);
    }

    /// Whether all cores have ended, or the time for that is over.
    pub fn has_stopped(&self, now: Instant) -> bool {
        self.ended.len() == self.cores.len() || self.stop_by.is_some_and(|stop_by| stop_by <= now)
    }

    /// Ends, once [`Gateway::has_stopped`].
    ///
    /// # Errors
    ///
    /// If shards had panicked too often, or a core has not ended.
    pub fn finish(self) -> Result<(), GatewayError> {
        match self.given_up {
            Some((shard, GivenUp::TooMany)) => return Err(GatewayError::Panics { shard }),
            Some((shard, GivenUp::BesideAnother)) => return Err(GatewayError::PanicBesideAnother { shard }),
            None => {}
        }
        if let Some(shard) = (0..self.cores.len() as u16).find(|shard| !self.ended.contains(shard)) {
            return Err(GatewayError::Stuck { shard });
        }
        drop(self.cores);
        self.threads.join().map_err(GatewayError::Lost)
    }
}

/// What all cores start with.
struct Shared {
    keys: ShardKeys,
    snapshot: Arc<Snapshot>,
    steering: Option<Arc<TunSteering>>,
    notices: NoticeSender,
}

fn start_cores(
    config: &ServerConfig,
    cpus: &[usize],
    threads: Vec<CoreThread>,
    sockets: Vec<ShardSockets>,
    queues: Vec<TunQueue>,
    client_mtus: &ClientMtus,
    shared: &Shared,
) -> Result<Vec<CoreHandle>, GatewayError> {
    let wakers = cpus.iter().map(|_| Wake::new().map(Waker::new)).collect::<io::Result<Vec<_>>>()?;
    let ends = Mesh::between(&wakers, MESSAGES_MAX);
    let now = Instant::now();
    let (shards, panics) = (Shards::alone(cpus.len() as u16), Panics::default());
    let mut cores = Vec::with_capacity(cpus.len());
    let parts = sockets.into_iter().zip(queues).zip(ends).zip(wakers).zip(threads).zip(cpus).enumerate();
    for (index, (((((sockets, queue), mesh), waker), thread), &cpu)) in parts {
        let mut packet_io = PacketIo::new(sockets.live, Some(queue), waker.descriptor())?;
        packet_io.set_handshakes(sockets.handshakes, waker.descriptor())?;
        let (commands, command_receiver) = unbounded();
        let seat = Seat {
            cpu,
            params: params::params(config, shards, None, index as u16),
            keys: shared.keys.clone(),
            snapshot: shared.snapshot.clone(),
            packet_io,
            mesh,
            sibling: None,
            waker: waker.clone(),
            commands: command_receiver,
            coalesce: config.data_path.coalesce,
            busy_poll: config.data_path.busy_poll,
            pending: Pending::default(),
            trim: memory::Trim::default(),
            steering: shared.steering.clone(),
            notices: shared.notices.clone(),
            generations: Generations::default(),
            client_mtus: client_mtus.sender(shared.notices.wake().clone()),
            tell: events::log,
            standing: Standing::default(),
            panics: panics.clone(),
        };
        Core::new(seat, Birth::draw(), now).start(thread);
        cores.push(CoreHandle { commands, waker });
    }
    Ok(cores)
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

fn udp_options(config: &ServerConfig, steering: Steering) -> UdpOptions {
    UdpOptions {
        send_buffer_bytes: config.connection.send_buffer_bytes,
        receive_buffer_bytes: config.connection.recv_buffer_bytes,
        gro: config.data_path.gro,
        gso: config.data_path.gso,
        steering,
    }
}

fn steer_tun(queues: &[TunQueue]) -> Option<Arc<TunSteering>> {
    if queues.len() < 2 {
        return None;
    }
    match TunSteering::attach(&queues[0], Group::alone(queues.len())) {
        Ok(steering) => Some(Arc::new(steering)),
        Err(error) => {
            warn!("{error}");
            None
        }
    }
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
