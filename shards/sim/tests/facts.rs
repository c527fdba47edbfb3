//! The engine does what it did: for 200 seeds, or with debug assertions for every fourth of them, the packets delivered, the drops by reason and the
//! sessions are those of `facts.txt`, whatever has been rebuilt inside. A change of behaviour on purpose records them anew and says why:
//! `cargo run --release --bin tollgate-sim -- --seeds 0..200 --simulated-seconds 10 --facts | grep sessions > shards/sim/tests/facts.txt`

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tollgate_sim::{Features, Options, Plan, run};

const SAFETY: Duration = Duration::from_secs(10);
/// One in so many has its turn: all of them in the release profile.
const EVERY: usize = if cfg!(debug_assertions) { 4 } else { 1 };

/// What has become of a seed, in the words of `facts.txt`.
fn line(seed: u64) -> String {
    match run(Plan::new(seed, Features::RECORDED, SAFETY), Options::default()) {
        Ok(facts) => facts.line(seed),
        Err(violation) => format!("{seed}: {violation}"),
    }
}

#[test]
fn recorded_seeds_come_to_what_they_came_to_before() {
    let recorded: Vec<_> = include_str!("facts.txt").lines().step_by(EVERY).collect();
    assert_eq!(recorded.len(), 200 / EVERY);
    let next = AtomicUsize::new(0);
    let take = || {
        let mut different = Vec::new();
        while let Some(line_before) = recorded.get(next.fetch_add(1, Ordering::Relaxed)) {
            let seed = line_before.split(':').next().and_then(|seed| seed.parse().ok()).expect("a seed comes first");
            let line_now = line(seed);
            if line_now != *line_before {
                different.push(format!("before {line_before}\nnow    {line_now}"));
            }
        }
        different
    };
    let different = std::thread::scope(|scope| {
        let other = scope.spawn(take);
        let mut different = take();
        different.extend(other.join().expect("a violation is no panic"));
        different
    });
    assert!(different.is_empty(), "{} of {} seeds differ:\n{}", different.len(), recorded.len(), different.join("\n"));
}
