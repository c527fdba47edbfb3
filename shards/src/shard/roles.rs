//! A shard in the roles that are not about packets: home and keeper.
//!
//! Never decides anything itself.

use std::time::Instant;

use super::Shard;
use crate::ids::ShardIndex;
use crate::session::addresses::AddressAllocator;
use crate::session::context::Context;
use crate::session::home::SessionHome;
use crate::session::message::Message;

/// SessionHome and keeper, and what they work with.
pub(super) struct Roles<'a> {
    pub context: Context<'a>,
    pub home: &'a mut SessionHome,
    pub keeper: Option<&'a mut AddressAllocator>,
}

impl Shard {
    /// SessionHome and keeper, ready for work.
    pub(super) fn roles(&mut self, now: Instant) -> Roles<'_> {
        let context = Context {
            now,
            epoch: self.epoch.number,
            directory: &self.epoch.directory,
            outbox: &mut self.outbox,
            steers: &mut self.steers,
        };
        Roles { context, home: &mut self.home, keeper: self.keeper.as_mut() }
    }

    pub(super) fn receive_as_home(&mut self, now: Instant, message: Message) {
        let Roles { mut context, home, .. } = self.roles(now);
        let context = &mut context;
        match message {
            Message::Attach { login, epoch, address } => home.attach(context, login, epoch, address),
            Message::Detach { user, connection } => home.detach(context, user, connection),
            Message::AddressAllocated { login, address } => home.address_allocated(context, login, address),
            Message::LeaseReport(report) => home.report_lease(context, &report),
            Message::LeaseClose(close) => home.close_lease(context, &close),
            Message::Reattached { owner, owner_incarnation, home_incarnation } => {
                home.reattached(context, owner, owner_incarnation, home_incarnation);
            }
            other => unreachable!("not for a home: {other:?}"),
        }
    }

    pub(super) fn receive_as_keeper(&mut self, now: Instant, message: Message) {
        let Roles { mut context, keeper: Some(keeper), .. } = self.roles(now) else { return };
        let context = &mut context;
        match message {
            Message::AllocateAddress { login, home, epoch } => keeper.allocate(context, login, home, epoch),
            Message::ReleaseAddress { login, address } => {
                // One that was not held is a word from before the keeper lost its memory.
                let _ = keeper.release(context, login, address);
            }
            Message::HoldAddress { login, address, home } => {
                let _ = keeper.hold(context, login, address, home);
            }
            Message::Held { home, keeper_incarnation } => keeper.home_held(context, home, keeper_incarnation),
            other => unreachable!("not for the keeper: {other:?}"),
        }
    }

    /// The shard has entered another epoch.
    pub(super) fn apply_as_home_and_keeper(&mut self, now: Instant) {
        let Roles { mut context, home, keeper } = self.roles(now);
        if let Some(keeper) = keeper {
            keeper.apply(&mut context);
        }
        home.apply(&mut context);
    }

    /// Another shard has lost its memory.
    pub(super) fn restarted_as_home_and_keeper(&mut self, now: Instant, shard: ShardIndex, incarnation: u32) {
        let Roles { mut context, home, keeper } = self.roles(now);
        home.shard_restarted(&mut context, shard, incarnation);
        if let Some(keeper) = keeper {
            keeper.shard_restarted(&mut context, shard);
        }
    }
}
