//! Whose turn it is: tests that load or time the machine run alone, the others beside each other.
//!
//! nextest knows the former by their names, from `.config/nextest.toml`. For `cargo test` there are locks of files, which hold between threads
//! and between processes.

use std::env;
use std::fs::File;
use std::io;

/// The group of tests that run alone in `.config/nextest.toml`.
const ALONE: &str = "alone";

/// A test's turn, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _machine: File,
}

/// Waits until no other test runs, and keeps them waiting until the value is dropped.
///
/// # Panics
///
/// If nextest runs the test and may run others beside it.
pub fn alone() -> Turn {
    let group = env::var("NEXTEST_TEST_GROUP");
    assert!(group.is_err() || group.as_deref() == Ok(ALONE), "name this test in `.config/nextest.toml`: it runs alone");
    take(File::lock)
}

/// Waits until no test runs that wants to be alone.
pub fn together() -> Turn {
    take(File::lock_shared)
}

fn take(lock: fn(&File) -> io::Result<()>) -> Turn {
    // Whoever waits for the machine holds the queue: nobody who comes later gets the machine before.
    let queue = open("queue");
    queue.lock().expect("a lock");
    let machine = open("machine");
    lock(&machine).expect("a lock");
    Turn { _machine: machine }
}

/// A file beside the test program, in the target folder.
fn open(name: &str) -> File {
    let path = env::current_exe().expect("the test's own program").with_file_name(format!("turn.{name}"));
    let opened = File::options().create(true).append(true).open(&path);
    opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
