//! Whether somebody keeps the machine's clock right.

/// Whether the kernel counts its clock as synchronized: a daemon has set it within some minutes, as timesyncd and chrony do.
pub fn is_synchronized() -> bool {
    // SAFETY: all fields of the structure are integers, for which zero is a value; without modes nothing is set.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads and writes one structure, which lives through the call.
    let verdict = unsafe { libc::adjtimex(&raw mut state) };
    verdict >= 0 && verdict != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0
}
