//! Traffic whose arrival is checked: echoes and bulk transfers.

pub mod bulk;
pub mod ping;
