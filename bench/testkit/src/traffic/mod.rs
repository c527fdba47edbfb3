//! Traffic whose arrival is checked: echoes, bulk transfers, numbered datagrams.

pub mod bulk;
pub mod datagrams;
pub mod ping;
