//! How often a program takes locks, counted by a preloaded library.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::compile;

/// The locks of a program that runs.
#[derive(Debug)]
pub struct Locks {
    folder: TempDir,
}

/// How often locks were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockCounts {
    /// Mutexes of the C library.
    pub mutexes: u64,
    /// Its read-write locks.
    pub rwlocks: u64,
    /// System calls of Rust's locks, each of which waits or wakes somebody.
    pub futexes: u64,
}

impl Locks {
    /// Compiles the library.
    pub fn build() -> Locks {
        let folder = tempfile::tempdir().unwrap();
        compile("locks.c", &folder.path().join("locks.so"));
        let locks = Locks { folder };
        fs::write(locks.counts_path(), [0; 24]).unwrap();
        locks
    }

    /// Has what `command` starts counted.
    pub fn prepare(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.folder.path().join("locks.so")).env("LOCKS_COUNTS", self.counts_path());
    }

    pub fn counts(&self) -> LockCounts {
        let counts = fs::read(self.counts_path()).unwrap();
        let number = |index: usize| u64::from_ne_bytes(counts[index * 8..][..8].try_into().unwrap());
        LockCounts { mutexes: number(0), rwlocks: number(1), futexes: number(2) }
    }

    fn counts_path(&self) -> PathBuf {
        self.folder.path().join("counts")
    }
}

impl LockCounts {
    pub fn since(self, earlier: LockCounts) -> LockCounts {
        LockCounts {
            mutexes: self.mutexes - earlier.mutexes,
            rwlocks: self.rwlocks - earlier.rwlocks,
            futexes: self.futexes - earlier.futexes,
        }
    }

    pub fn sum(self) -> u64 {
        self.mutexes + self.rwlocks + self.futexes
    }
}
