//! Orders to a running gateway: `tollgate reload`, `tollgate kick`, `tollgate drain`, SIGHUP, a watched users file. The real program, in a network namespace.

mod drain;
mod orders;
mod reload;
mod site;
