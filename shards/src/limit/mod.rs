//! Limited users: rates, the bucket and who it lends tokens to, and the queues in which packets wait for them.

pub mod bucket;
pub mod issuer;
pub mod lease;
pub mod rate;
pub mod shaper;
pub mod user_queues;
