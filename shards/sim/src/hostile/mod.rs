//! Actors who mean harm, each with a budget of its own. What they do draws from streams of their own, so that the rest of a run stays as it is
//! without them.

pub mod cheat;
mod cheats;
pub mod failures;
pub mod floods;
pub mod initial;
pub mod negotiation;
