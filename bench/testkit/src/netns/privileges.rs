//! What the lab needs from the machine: the right to make network namespaces, and a TUN driver.

use std::{fs, io};

use rustix::thread::{CapabilitySet, UnshareFlags, capabilities};

use crate::LabError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// The process had it from the start.
    Root,
    /// The process moved into a user namespace of its own, in which it is root.
    UserNamespace,
}

/// Makes sure that this process can make network namespaces: as it is, or by way of a user namespace.
///
/// To be called before the process has started a thread. The error has the remedy, in one line, as that of the others here.
pub fn prepare() -> Result<Privilege, LabError> {
    if privileges().is_ok() {
        return Ok(Privilege::Root);
    }
    enter_user_namespace()?;
    Ok(Privilege::UserNamespace)
}

/// Whether this process can make network namespaces as it is.
pub fn privileges() -> Result<(), LabError> {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    if capabilities(None).is_ok_and(|held| held.effective.contains(needed)) {
        return Ok(());
    }
    Err(LabError::new("CAP_SYS_ADMIN and CAP_NET_ADMIN are missing; run as root"))
}

/// Moves the process into a user namespace and a network namespace of its own, in which it is root.
///
/// To be called before the process has started a thread: the kernel moves only processes of a single one.
fn enter_user_namespace() -> Result<(), LabError> {
    if fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
        return Err(LabError::new("a process with several threads cannot enter a user namespace; run as root"));
    }
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    // SAFETY: no other thread exists that could observe the change, and neither flag affects memory or descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }
        .map_err(|errno| missing_user_namespaces(errno.into()))?;
    fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {user} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {group} 1")))
        .map_err(missing_user_namespaces)?;
    privileges()
}

/// Whether the TUN driver can be opened.
pub fn require_tun() -> Result<(), LabError> {
    let opened = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let Err(error) = opened else { return Ok(()) };
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "allow its use (chmod 0666 /dev/net/tun) or run as root",
        _ => "load the driver (modprobe tun), or give it to the container (--device /dev/net/tun)",
    };
    Err(LabError::new(format!("/dev/net/tun cannot be opened ({error}); {remedy}")))
}

fn missing_user_namespaces(error: io::Error) -> LabError {
    let restricted = fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
        .is_ok_and(|value| value.trim() == "1");
    let remedy = if restricted {
        "run as root, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        "run as root, or allow them (sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone)"
    };
    LabError::new(format!("user namespaces are not available ({error}); {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_told_to_run_as_root() {
        // The test runner has threads of its own, but under `--test-threads=1` it may not.
        let (release, held) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || held.recv());
        let error = enter_user_namespace().unwrap_err();
        assert!(error.to_string().ends_with("; run as root"), "{error}");
        drop(release);
        assert!(other.join().unwrap().is_err());
    }
}
