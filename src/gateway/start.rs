//! What a gateway starts with: what is settled before any descriptor is opened, and the cores.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, unbounded};
use tollgate_config::{Open, ServerConfig};
use tollgate_shards::{Generation, Params, ShardIndex, ShardKeys, Shards, Snapshot, Steering, Told};
use tracing::info;
use zeroize::Zeroizing;

use super::board::Board;
use super::client_mtus::ClientMtus;
use super::commands::CoreHandle;
use super::core::{Core, Generations};
use super::keys::Keys;
use super::memory::Trim;
use super::mesh::{MESSAGES_MAX, Mesh};
use super::notices::{self, Notice};
use super::pending::Pending;
use super::placement::{self, list};
use super::seat::{Birth, Panics, Seat, Standing};
use super::sibling::SiblingLink;
use super::threads::{self, CoreThread, Pool};
use super::waker::Waker;
use super::{GatewayError, OrderedLimits, capacity, events, params};
use crate::handshakes::Served;
use crate::host::{ForwardingPlan, Host, HostError, SocketPlan, TunPlan};
use crate::io::{Offloads, ShardSockets, TunDevice, TunOptions, TunQueue, TunSteering, UdpOptions, Wake};
use crate::packet_io::PacketIo;
use crate::records::Recorder;

/// Kernel buffer for what comes before a handshake, of each shard, in bytes: what a core answers in a tenth of a second beside live traffic.
const HANDSHAKE_BUFFER_BYTES: usize = 512 << 10;

/// What is settled before any descriptor is opened.
pub(super) struct Prepared {
    pub(super) shards: Shards,
    /// The CPU of each.
    pub(super) cpus: Vec<usize>,
    pub(super) threads: Pool,
    pub(super) core_threads: Vec<CoreThread>,
    pub(super) master: Zeroizing<[u8; 32]>,
    pub(super) keys: ShardKeys,
    pub(super) served: Served,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) limits: OrderedLimits,
    pub(super) over_quota: BTreeSet<String>,
    pub(super) sockets: SocketPlan,
    pub(super) tun: TunPlan,
}

/// What holds of users beside what the files say.
#[derive(Default)]
pub(super) struct ByOrder {
    pub(super) limits: OrderedLimits,
    /// Who is over a quota, as far as is known.
    pub(super) over_quota: BTreeSet<String>,
}

impl Prepared {
    pub(super) fn of(
        config: &ServerConfig,
        keys: Keys,
        by_order: ByOrder,
        (generation, version): (Generation, u64),
        open: &Open<'_>,
    ) -> Result<Self, GatewayError> {
        let cpus = placement::place(config.shards.count, config.shards.cpus.as_ref())?;
        let count = cpus.len();
        capacity::allow_descriptors(count)?;
        let (threads, core_threads) = threads::start(&cpus)?;
        let id_layout = config.connection_ids.layout(keys.connection_id)?;
        let shards_max = id_layout.steering().shards_max();
        if count > usize::from(shards_max) {
            return Err(GatewayError::Shards { shards: count, shards_max });
        }
        let served = Served::load(&config.protocol, open)?;
        let ByOrder { mut limits, over_quota } = by_order;
        limits.retain(&config.users);
        let users = limits.apply(&config.users, config);
        let users = Arc::new(users.with_quotas(|name| over_quota.contains(name)));
        let (isolate_clients, session_limits) = (config.isolate_clients, config.sessions.limits());
        let handshakes = served.handshakes.listing(users.clone());
        let snapshot = Arc::new(Snapshot { version, users, isolate_clients, session_limits, handshakes });
        let sockets = SocketPlan {
            address: config.bind(),
            shards: count,
            options: udp_options(config, id_layout.steering()),
            handshake_buffer_bytes: HANDSHAKE_BUFFER_BYTES,
        };
        let Keys { master, reset, token, .. } = keys;
        let keys = ShardKeys { id_layout, reset, token };
        let (shards, tun) = (Shards { generation, count: count as u16 }, tun_plan(config, count));
        Ok(Prepared {
            shards,
            cpus,
            threads,
            core_threads,
            master,
            keys,
            served,
            snapshot,
            limits,
            over_quota,
            sockets,
            tun,
        })
    }
}

/// Has the packets of clients behind `interface` forwarded as `config` says.
pub(super) fn forward(config: &ServerConfig, interface: &str, host: &mut Host) -> Result<(), HostError> {
    let Some(plan) = ForwardingPlan::of(&config.host, config.tunnel_network, interface) else { return Ok(()) };
    if host.set_forwarding(plan)? {
        info!("the kernel forwarded no packets: it does from now on, and will when this gateway has ended");
    }
    Ok(())
}

/// The cores, and what the control plane has of them.
pub(super) struct Started {
    pub(super) cores: Vec<CoreHandle>,
    pub(super) notices: Receiver<Notice>,
    pub(super) wake: Arc<Wake>,
    pub(super) panics: Panics,
    pub(super) client_mtus: ClientMtus,
    /// What is said to and heard from the process before this one, if there is one.
    pub(super) link: Option<SiblingLink>,
}

/// The process before this one, as the cores of this one begin.
pub(super) struct Before {
    pub(super) shards: Shards,
    pub(super) incarnation: u32,
    pub(super) stream: UnixStream,
}

impl Started {
    pub(super) fn of(
        config: &ServerConfig,
        prepared: &mut Prepared,
        sockets: Vec<ShardSockets>,
        queues: Vec<Option<TunQueue>>,
        map: Option<&Arc<TunSteering>>,
        before: Option<Before>,
        recorder: Option<&Recorder>,
    ) -> Result<Self, GatewayError> {
        let Prepared { shards, cpus, core_threads, keys, snapshot, .. } = prepared;
        let (sender, notices) = notices::channel(Wake::new()?);
        let wake = sender.wake().clone();
        let (client_mtus, panics) = (ClientMtus::default(), Panics::default());
        let wakers = cpus.iter().map(|_| Wake::new().map(Waker::new)).collect::<io::Result<Vec<_>>>()?;
        let (predecessor, incarnation) =
            before.as_ref().map_or((None, 0), |before| (Some(before.shards), before.incarnation));
        let linked = before.map(|before| SiblingLink::start(before.stream, &wakers, wake.clone())).transpose()?;
        let (link, ends) = linked.map_or((None, Vec::new()), |(link, ends)| (Some(link), ends));
        let siblings = ends.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let meshes = Mesh::between(&wakers, MESSAGES_MAX);
        let now = Instant::now();
        let mut cores = Vec::with_capacity(cpus.len());
        let threads = std::mem::take(core_threads);
        let descriptors = sockets.into_iter().zip(queues).zip(siblings);
        let parts = descriptors.zip(meshes).zip(wakers).zip(threads).zip(cpus.iter()).enumerate();
        for (place, ((((((sockets, queue), sibling), mesh), waker), thread), &cpu)) in parts {
            let mut packet_io = PacketIo::new(sockets.live, queue, waker.descriptor())?;
            packet_io.set_handshakes(sockets.handshakes, waker.descriptor())?;
            let (commands, command_receiver) = unbounded();
            let board = Board::default();
            let params = params::params(config, *shards, predecessor, place as u16);
            let seat = Seat {
                cpu,
                params: Params { incarnation, ..params },
                keys: keys.clone(),
                snapshot: snapshot.clone(),
                packet_io,
                mesh,
                sibling,
                waker: waker.clone(),
                commands: command_receiver,
                coalesce: config.data_path.coalesce,
                busy_poll: config.data_path.busy_poll,
                pending: Pending::default(),
                trim: Trim::default(),
                steering: map.cloned(),
                notices: sender.clone(),
                generations: Generations::default(),
                client_mtus: client_mtus.sender(wake.clone()),
                tell: teller(recorder.cloned()),
                standing: Standing::default(),
                panics: panics.clone(),
                publisher: Some(Box::new(board.publisher())),
            };
            Core::new(seat, Birth::draw(), now).start(thread);
            cores.push(CoreHandle { commands, waker, board });
        }
        Ok(Started { cores, notices, wake, panics, client_mtus, link })
    }
}

/// Takes what a shard tells: to the log, and to the records where some are kept.
fn teller(recorder: Option<Recorder>) -> impl FnMut(ShardIndex, Told, &Snapshot) + Send + 'static {
    move |shard, told, snapshot| {
        recorder.iter().for_each(|recorder| recorder.tell(&told, &snapshot.users));
        events::log(shard, told.event, snapshot);
    }
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

/// Says how the gateway runs, in one line.
pub(super) fn announce(config: &ServerConfig, cpus: &[usize], tun: &TunDevice, steered: bool) {
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
