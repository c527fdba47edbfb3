//! Orders to a running gateway: `tollgate reload`, `tollgate kick`, `tollgate drain`, SIGHUP, a watched users file; and its metrics. The real program, in a network namespace.

mod drain;
mod limits;
mod metrics;
mod online;
mod orders;
mod reload;
mod site;
mod top;
mod trace;
mod usage;
