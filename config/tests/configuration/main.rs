//! Tests of the configuration through its public interface.

mod common;
mod documents;
mod files;
mod live;
mod noise;
mod refusals;
