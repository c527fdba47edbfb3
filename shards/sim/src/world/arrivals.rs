//! Where clients of a test arrive, and whether they stay there.

use tollgate_shards::{Client, Load, Message, ShardIndex};

use super::World;

impl World {
    /// A client of `user`, whose first Initial comes to shard `at`. Which shard owns it then is for the shards to say.
    pub fn join(&mut self, user: usize, at: u16) -> usize {
        assert!(!self.seen.keeps_arrivals, "a world in which shards place clients");
        self.connect(user, at)
    }

    /// Each shard takes all others for laden, and so keeps the clients that come, where that is wanted.
    pub(super) fn keep_arrivals(&mut self) {
        if !self.seen.keeps_arrivals {
            return;
        }
        let (now, all) = (self.instant(), self.gateway.cores.indices());
        for (&here, from) in all.iter().flat_map(|here| all.iter().map(move |&from| (here, ShardIndex(from)))) {
            if from != ShardIndex(here) && from.generation() == ShardIndex(here).generation() {
                let load = Load { busy_percent: 100, connections: u32::MAX, room: 0 };
                self.shard_mut(here).handle_message(now, Message::Load { from, load });
            }
        }
    }

    /// The shard to which a new client's first Initial comes.
    pub(super) fn owner_of(&self, mut client: Client) -> u16 {
        let mut initial = Vec::new();
        client.tunnel.poll_transmit(self.instant(), &mut initial).expect("a handshake begins with an Initial");
        self.plan.layout.shard_of(&initial[6..], self.plan.shards).expect("a whole Initial")
    }
}
