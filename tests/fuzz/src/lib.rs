//! What fuzzers give to Tollgate, as plain functions of bytes: each panics where something is wrong, and does nothing else.
//!
//! The programs below `targets/` hand them what libFuzzer makes up; `cargo xtask fuzz` runs those. Ordinary tests hand them the corpora, which
//! are what fuzzers have found to reach something new, and what has failed once.
#![forbid(unsafe_code)]

mod coalescer;
mod frames;
mod input;
mod noise;
mod packets;
mod sibling;
mod split;
mod texts;
mod udp;

use std::path::{Path, PathBuf};

pub use coalescer::coalescer;
pub use frames::frames;
pub use noise::noise;
pub use sibling::sibling;
pub use split::{answers, split};
pub use texts::{assignment, configuration, control, pem};
pub use udp::udp;

/// A whole run of the simulator, whose plan is made of the bytes.
///
/// # Panics
///
/// If its oracles find a violation.
pub fn plan(data: &[u8]) {
    if let Err(violation) = tollgate_sim::run_bytes(data) {
        panic!("{violation}");
    }
}

/// A body of a fuzz target.
pub type Body = fn(&[u8]);

/// All targets: the name of each, which is that of its program and its corpus, and its body.
pub const TARGETS: [(&str, Body); 12] = [
    ("answers", answers),
    ("assignment", assignment),
    ("coalescer", coalescer),
    ("configuration", configuration),
    ("control", control),
    ("frames", frames),
    ("noise", noise),
    ("pem", pem),
    ("plan", plan),
    ("sibling", sibling),
    ("split", split),
    ("udp", udp),
];

/// The folder of the target's inputs that are kept.
pub fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(target)
}
