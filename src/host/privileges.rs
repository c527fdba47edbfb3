//! What each of the two processes may do (capabilities(7)).

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// What changes of the host need: devices, addresses and routes; steering by eBPF; ports below 1024. And what files need that are another user's.
const HELPERS: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::DAC_READ_SEARCH);
/// Capabilities that a kernel may know.
const NUMBERS: u32 = 64;

/// Leaves the calling process, which has one thread, what the helper needs, as far as it has that.
///
/// # Errors
///
/// Those of the kernel.
pub fn keep_helpers() -> io::Result<()> {
    let has = capabilities(None)?;
    let kept = has.permitted & HELPERS;
    leave_in_bounding_set(HELPERS);
    set_no_new_privs(true)?;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: has.inheritable & HELPERS },
    )?;
    Ok(())
}

/// Leaves the calling process, which has one thread, nothing, and no way to get anything.
///
/// # Errors
///
/// Those of the kernel.
pub fn keep_none() -> io::Result<()> {
    let none = CapabilitySet::empty();
    leave_in_bounding_set(none);
    set_no_new_privs(true)?;
    // A kernel before 4.3 has no ambient set.
    let _ = clear_ambient_capability_set();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}

/// Only who has CAP_SETPCAP may, which root has. For everybody else the bounding set is of no use: no program that is executed gets more than who executes
/// it.
fn leave_in_bounding_set(kept: CapabilitySet) {
    let all = (0..NUMBERS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for capability in all.filter(|capability| !kept.contains(*capability)) {
        let _ = remove_capability_from_bounding_set(capability);
    }
}
