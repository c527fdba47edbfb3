//! Where every packet went, and whether all is as the scenario demands.

mod drops;
mod judge;

pub use drops::{Accounts, Ends};
pub use judge::{Effort, bytes_per_connection, failures, limited_by};
