//! A flow: numbered packets whose every byte is checked, from a source at one end to a sink at the other.

pub mod packet;
pub mod pattern;
pub mod sink;
pub mod sizes;
pub mod source;
pub mod wire;
