//! The states that the parts of a shard are in, by name: what a simulator counts to know where it has been. Each part names its own.

use super::inspect::Inspect;
use crate::quic::intake::Intake;

/// What is in a state, and the state.
pub type State = (&'static str, &'static str);

/// Every state there is. One that a part names and that is missing here is found by whoever counts.
pub const STATES: &[State] = &[
    ("connection", "hello_incomplete"),
    ("connection", "handshaking"),
    ("connection", "logged_in"),
    ("connection", "attached"),
    ("connection", "attached_limited"),
    ("connection", "closed"),
    ("path", "proven"),
    ("path", "probing"),
    ("path", "left_owing"),
    ("source", "heard"),
    ("source", "doubted"),
    ("source", "ignored"),
    ("member", "unasked"),
    ("member", "asked"),
    ("member", "waiting"),
    ("member", "holds"),
    ("member", "closing"),
    ("issuer", "content"),
    ("issuer", "scarce"),
    ("issuer", "recalling"),
    ("lease", "empty"),
    ("lease", "held"),
    ("lease", "asked_ahead"),
    ("lease", "lacking"),
    ("shaper", "empty"),
    ("shaper", "waiting"),
    ("home", "complete"),
    ("home", "recovering"),
    ("allocator", "up_to_date"),
    ("allocator", "behind"),
    ("allocator", "recovering"),
    ("routes", "known"),
    ("routes", "doubtful"),
    ("queues", "have_room"),
    ("queues", "full"),
    ("shard", "runs"),
    ("shard", "draining"),
    ("shard", "stopping"),
];

impl Inspect<'_> {
    /// The states that the shard's parts are in, each as often as it is.
    pub fn states(&self) -> Vec<State> {
        let super::Shard { data, control, .. } = self.0;
        let mut states = Vec::new();
        for client in data.quic.connections.iter() {
            let remote = client.tunnel.connection.remote_address();
            states.push(("connection", client.state()));
            states.push(("path", client.moves.state()));
            states.push(("source", data.quic.failures.standing(control.context.now, remote.ip()).name()));
        }
        for (_, session) in control.sessions.sessions() {
            states.extend(session.members().iter().map(|member| ("member", member.state())));
            states.extend(session.issuer().map(|issuer| ("issuer", issuer.state())));
        }
        for queue in data.users().into_iter().filter_map(|user| data.limits.get(user)) {
            states.push(("lease", queue.lease.state()));
            states.push(("shaper", if queue.shaper.is_empty() { "empty" } else { "waiting" }));
        }
        states.push(("home", if control.sessions.is_recovering() { "recovering" } else { "complete" }));
        states.extend(control.addresses.iter().map(|allocator| ("allocator", allocator.state())));
        states.push(("routes", data.forward.routes.state()));
        states.push(("queues", if data.accounts.memory.has_room(1500) { "have_room" } else { "full" }));
        states.push((
            "shard",
            match data.quic.intake {
                Intake::Open => "runs",
                Intake::Ending | Intake::Refusing => "draining",
                Intake::Closed => "stopping",
            },
        ));
        states
    }
}
