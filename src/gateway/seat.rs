//! What a core keeps when its shard panics, and how the next shard takes the seat.
//!
//! A panic may leave a shard, and what was measured of it, half changed: that is the [`Life`], of which nothing is used again but its counters. The
//! [`Seat`] stays, so that nothing is numbered anew: descriptors, mesh, waker, commands. The engine does the rest: siblings are told by
//! `ControlMessage::Restarted`, clients by a stateless reset when they send next.
//!
//! Beside another process of the gateway no shard is started anew: what that process has told this one is in its shards only. [`Panics`] knows when.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Receiver;
use tollgate_shards::{Command, Counters, DropReason, Machine, Params, Shard, ShardKeys, Snapshot};

use super::board::Publisher;
use super::busy::BusyShare;
use super::client_mtus::ClientMtuSender;
use super::core::{Core, CoreCommand, Generations};
use super::interrupt_moderation::{InterruptModeration, Moderated};
use super::keys::random;
use super::memory::Trim;
use super::mesh::Mesh;
use super::notices::{Notice, NoticeSender};
use super::pending::Pending;
use super::sibling::SiblingEnd;
use super::waker::{Notify, Waker};
use crate::io::TunSteering;
use crate::packet_io::{Descriptors, PacketIo};

#[cfg(not(panic = "unwind"))]
compile_error!(
    "a shard that panics comes back, for which the stack must be unwound: set panic = \"unwind\" in the profile"
);

/// So many panics of shards within [`PANICS_WINDOW`] end the process: what has gone wrong is not one connection's.
pub const PANICS_MAX: usize = 3;
/// See [`PANICS_MAX`].
pub const PANICS_WINDOW: Duration = Duration::from_secs(60);

/// What a core has beside its shard.
///
/// Where a panic interrupts what is done to it: messages, commands and notices are in channels, whole; what was being handled is lost with the
/// shard. [`PacketIo`] forgets what is in its buffers. The other parts are plain values, each changed in one step, or the next shard's orders
/// ([`Standing`], [`Pending`]), which are written down before a shard gets them.
pub struct Seat<D: Descriptors, E> {
    /// The CPU to pin to.
    pub cpu: usize,
    /// What a shard starts with here. The number of its incarnation is that of the one that lives.
    pub params: Params,
    /// The keys that all shards share.
    pub keys: ShardKeys,
    /// The newest snapshot: it knows the users of all earlier ones.
    pub snapshot: Arc<Snapshot>,
    /// The shard's descriptors.
    pub packet_io: PacketIo<D>,
    /// Its end of the mesh.
    pub mesh: Mesh<D::Wake>,
    /// Its end of the link to the process beside this one, where there is one.
    pub sibling: Option<SiblingEnd>,
    /// How others wake it.
    pub waker: Waker<D::Wake>,
    /// Commands of the control plane.
    pub commands: Receiver<CoreCommand<D>>,
    /// How long work may gather while the core is busy.
    pub coalesce: Duration,
    /// How long to go on looking after the last packet before sleeping.
    pub busy_poll: Duration,
    /// The command that is not completed.
    pub pending: Pending,
    /// Gives memory back after a flood.
    pub trim: Trim,
    /// The kernel's steering of inner addresses, where there is one.
    pub steering: Option<Arc<TunSteering<D::SteeringMap>>>,
    /// Reports to the control plane.
    pub notices: NoticeSender<D::Wake>,
    /// Generations of the descriptors.
    pub generations: Generations,
    /// Takes the MTUs of clients' paths.
    pub client_mtus: ClientMtuSender<D::Wake>,
    /// Takes what the shard tells.
    pub tell: E,
    /// What holds for whichever shard is here.
    pub standing: Standing,
    /// The panics of all shards.
    pub panics: Panics,
    /// Where others see what it has counted, if anybody does.
    pub publisher: Option<Box<Publisher>>,
}

/// What was ordered and counted, whichever shard it was.
#[derive(Debug, Default)]
pub struct Standing {
    /// When it ends at the latest, once it is to stop.
    pub stop_by: Option<Instant>,
    /// Whether it takes no new clients.
    pub is_draining: bool,
    /// What the shards before this one have counted.
    pub counted: Counters,
    /// How many there were.
    pub restarts: u32,
    /// The time in which they had work.
    pub busy: Duration,
    /// What they have let gather.
    pub moderated: Moderated,
    /// Whether the control plane waits for its process to take over from the one before it.
    pub is_taking_over: bool,
}

/// A shard, and what was measured of it. A panic ends it.
pub struct Life {
    /// The engine of the core.
    pub shard: Shard,
    pub(super) moderation: InterruptModeration,
    pub(super) busy: BusyShare,
    /// When its descriptors had something last.
    pub(super) moved_at: Option<Instant>,
    /// What the shard before it was told, and this one has not been yet.
    pub(super) again: Vec<Command>,
}

impl Life {
    /// That of a shard which has done nothing.
    pub fn of(shard: Shard, coalesce: Duration, now: Instant) -> Self {
        Life {
            shard,
            moderation: InterruptModeration::new(coalesce, now),
            busy: BusyShare::new(now),
            moved_at: None,
            again: Vec::new(),
        }
    }
}

/// What each shard has anew.
pub struct Birth {
    /// The time of day.
    pub wall_clock: SystemTime,
    /// All of its entropy.
    pub seed: [u8; 32],
}

impl Birth {
    /// Of a shard that is made now.
    pub fn draw() -> Self {
        Birth { wall_clock: SystemTime::now(), seed: *random() }
    }
}

impl<D, E> Core<D, E>
where
    D: Descriptors<Wake: Notify>,
{
    /// Puts the first shard into `seat`.
    pub fn new(mut seat: Seat<D, E>, birth: Birth, now: Instant) -> Self {
        seat.standing.is_taking_over = seat.params.predecessor.is_some();
        let life = Life::of(seat.shard(birth, now), seat.coalesce, now);
        Core { seat, life }
    }

    /// Puts another shard in the place of one that has panicked, with the newest snapshot and all that is still to be carried out.
    pub fn begin_anew(&mut self, birth: Birth, now: Instant) {
        let Core { seat, life } = self;
        seat.standing.counted = life.shard.counters().beside(&seat.standing.counted);
        seat.standing.busy += life.busy.total(now);
        seat.standing.moderated = seat.standing.moderated + life.moderation.moderated();
        seat.params.incarnation += 1;
        seat.standing.restarts += 1;
        seat.publisher.iter_mut().for_each(|publisher| publisher.handle_begun_anew());
        *life = Life::of(seat.shard(birth, now), seat.coalesce, now);
        life.shard.handle_drop(DropReason::ShardPanicked, seat.packet_io.forget());
        seat.client_mtus.forget();
        // It may have announced a sleep.
        seat.waker.end_sleep(seat.packet_io.take_woken());
        // It has no clients: those whose handshakes had begun are gone too.
        let at_once = Command::Drain { over: Duration::ZERO, within: Duration::ZERO, to_successor: false };
        let drain = seat.standing.is_draining.then_some(at_once);
        let stop = seat.standing.stop_by.map(|_| Command::Stop);
        life.again.extend([seat.pending.again(), drain, stop].into_iter().flatten());
        let (shard, incarnation) = (life.shard.index(), seat.params.incarnation);
        seat.notices.send(Notice::BegunAnew { shard, incarnation });
    }
}

impl<D: Descriptors, E> Seat<D, E> {
    fn shard(&self, Birth { wall_clock, seed }: Birth, now: Instant) -> Shard {
        let params = Params { wall_clock, seed, ..self.params.clone() };
        Shard::new(params, &self.keys, self.snapshot.clone(), now)
    }
}

/// Whether shards that panic come back, whichever they are.
#[derive(Debug, Default, Clone)]
pub struct Panics(Arc<Mutex<Lately>>);

#[derive(Debug, Default)]
struct Lately {
    panics: Vec<Instant>,
    is_forbidden: bool,
}

/// Why no other shard takes the place of one that has panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// There were too many panics.
    TooMany,
    /// There is another process, with which another shard could not agree.
    BesideAnother,
}

impl Panics {
    /// From now on no shard comes back: two processes live.
    pub fn forbid(&self) {
        self.lately().is_forbidden = true;
    }

    /// There is one process again, and every shard knows.
    pub fn allow(&self) {
        self.lately().is_forbidden = false;
    }

    /// A shard has panicked. Says whether it may come back.
    ///
    /// # Errors
    ///
    /// Why it may not.
    pub fn may_go_on(&self, now: Instant) -> Result<(), GivenUp> {
        let mut lately = self.lately();
        lately.panics.retain(|at| now.saturating_duration_since(*at) < PANICS_WINDOW);
        lately.panics.push(now);
        match lately.panics.len() {
            _ if lately.is_forbidden => Err(GivenUp::BesideAnother),
            PANICS_MAX.. => Err(GivenUp::TooMany),
            _ => Ok(()),
        }
    }

    fn lately(&self) -> MutexGuard<'_, Lately> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_panic_within_a_minute_is_one_too_many_whichever_shards_they_are_of() {
        let (panics, start) = (Panics::default(), Instant::now());
        let others = panics.clone();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(panics.may_go_on(at(0)), Ok(()));
        assert_eq!(others.may_go_on(at(59)), Ok(()));
        assert_eq!(panics.may_go_on(at(60)), Ok(()), "the first one is a minute ago");
        assert_eq!(others.may_go_on(at(118)), Err(GivenUp::TooMany));
        assert_eq!(panics.may_go_on(at(119)), Err(GivenUp::TooMany));
        assert_eq!(panics.may_go_on(at(300)), Ok(()));
    }

    #[test]
    fn beside_another_process_not_even_the_first_panic_is_gone_on_from() {
        let (panics, now) = (Panics::default(), Instant::now());
        panics.clone().forbid();
        assert_eq!(panics.may_go_on(now), Err(GivenUp::BesideAnother));
        panics.allow();
        assert_eq!(panics.may_go_on(now), Ok(()));
    }
}
