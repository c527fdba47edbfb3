//! What several test programs share and the testkit must not have, for it knows the gateway: clients that misbehave, in packets of their own
//! making; and the documents, whose commands are held against the programs.

pub mod initials;
pub mod pages;
pub mod tunnels;
