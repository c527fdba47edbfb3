//! Orders to a running gateway: `tollgate reload`, `tollgate kick`, SIGHUP, a watched users file. The real program, in a network namespace.

mod orders;
mod reload;
mod site;
