//! A gateway that is replaced by another process while it runs: the real program, in a network namespace, with real clients.

mod clients;
mod crowd;
mod deaths;
mod forwarding;
mod metrics;
mod moves;
mod orders;
mod refusals;
mod site;
mod stays;
mod usage;
