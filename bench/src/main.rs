//! The load-test harness of Tollgate.
fn main() {}
