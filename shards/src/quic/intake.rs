//! Whether handshakes begin at all.

use quinn_proto::{Endpoint, Incoming};

use super::responses::Responses;
use super::tunnel_connection::outgoing;
use crate::counters::Counters;
use crate::drops::DropReason;

/// What happens to new handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    /// They begin.
    Open,
    /// They begin. New clients are led to the process beside this one, so whoever comes holds a Retry of this one from before.
    Ending,
    /// The client is told that it is not taken, and can go elsewhere at once: the gateway drains.
    Refusing,
    /// The gateway ends, and says nothing.
    Closed,
}

impl Intake {
    /// Whether handshakes begin.
    pub fn is_open(self) -> bool {
        matches!(self, Intake::Open | Intake::Ending)
    }

    /// Lets no handshake begin.
    pub fn turn_away(
        self,
        endpoint: &mut Endpoint,
        incoming: Incoming,
        responses: &mut Responses,
        counters: &mut Counters,
    ) {
        counters.drops.count(DropReason::NotTaken);
        if self == Intake::Closed {
            return endpoint.ignore(incoming);
        }
        let mut answer = Vec::new();
        let transmit = endpoint.refuse(incoming, &mut answer);
        responses.respond(outgoing(&transmit), &answer, counters);
    }
}
