//! Whose turn it is: tests that load or time the machine run alone, the others beside each other.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::new(());

/// Waits until no other test runs, and keeps them waiting until the value is dropped.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    // A test that failed has left nothing half done.
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until no test runs that wants to be alone.
pub fn together() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}
