//! Tests of the configuration through its public interface.

mod common;
mod files;
mod live;
mod refusals;
