//! The shell's cores: nobody sleeps on what waits, and the kernel's map leads to the owners of addresses.

use super::Violation;
use crate::gateway::Core;
use crate::world::World;

/// No core sleeps on a message or a command that nobody will wake it for.
pub(super) fn nobody_oversleeps(world: &World) -> Result<(), Violation> {
    let machines = || world.gateway.cores.iter().filter_map(Core::machine);
    match machines().find(|machine| machine.oversleeps()) {
        Some(machine) => {
            let what = format!("{:?} sleeps, and something waits for it", machine.core.life.shard.index());
            Err(Violation::new("wake-up", what))
        }
        None => Ok(()),
    }
}

/// The tunnel has no two addresses that share an entry: each leads to its owner's queue, once nothing is under way.
pub(super) fn is_steered(world: &World) -> Result<(), Violation> {
    let Some(shell) = world.shell.as_ref().filter(|_| world.messages_under_way() == 0) else { return Ok(()) };
    for (connection, _, address) in world.gateway.cores.iter().flat_map(|core| core.shard().inspect().owned()) {
        let Some(address) = address else { continue };
        let queue = shell.map.queue_of(address, world.plan.shards);
        if queue != connection.owner.0 {
            let what = format!("packets to {address} of {connection:?} are steered to queue {queue}");
            return Err(Violation::new("steering", what));
        }
    }
    Ok(())
}
