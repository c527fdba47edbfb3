//! Homes and the allocator under every order of messages: logins that race, users and pools that change, shards that die.

mod churn;
mod limits;
mod model;
mod race;
mod reload;
mod restart;
