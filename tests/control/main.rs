//! Orders to a running gateway: `tollgate reload`, `tollgate kick`, `tollgate drain`, SIGHUP, a watched users file; its metrics, and its records. The real program, in a network namespace.

mod disk;
mod drain;
mod limits;
mod metrics;
mod online;
mod orders;
mod records;
mod reload;
mod site;
mod top;
mod trace;
mod usage;
