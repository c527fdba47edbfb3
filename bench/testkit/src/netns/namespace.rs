//! Anonymous network namespaces: held by a descriptor, freed by the kernel when the last one closes.

use std::{
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt,
    panic,
    path::Path,
    process::Command,
    thread,
};

use ipnet::IpNet;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::{Process, privileges};
use crate::LabError;
use tollgate_netlink::{Netlink, NetlinkError, Route};

/// Settings that every lab namespace needs: both directions of a path may differ, and IPv6 addresses are usable at once.
const SYSCTLS: [(&str, &str); 6] = [
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

/// A network namespace of the lab, with its loopback interface up.
///
/// It lives as long as this value, a socket opened in it, or a process inside it. It has no name in the file system.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    descriptor: OwnedFd,
    inode: u64,
}

impl Namespace {
    /// Makes a namespace; `name` appears in messages only.
    pub fn new(name: &str) -> Result<Self, LabError> {
        privileges()?;
        let failed = |operation, error| LabError::cannot(format_args!("namespace {name}"), operation, error);
        let making = || -> io::Result<File> {
            // SAFETY: the flag changes the network namespace of this short-lived thread only, neither memory nor descriptors.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open("/proc/thread-self/ns/net")
        };
        let file = joined(thread::scope(|scope| scope.spawn(making).join())).map_err(|e| failed("be made", e))?;
        let inode = file.metadata().map_err(|e| failed("be identified", e))?.ino();
        let namespace = Self { name: name.to_owned(), descriptor: file.into(), inode };
        for (path, value) in SYSCTLS {
            namespace.sysctl(path, value)?;
        }
        // Whoever makes a namespace may ping from it (icmp(7)).
        let group = rustix::process::getegid();
        namespace.sysctl("net/ipv4/ping_group_range", &format!("{group}\t{group}"))?;
        namespace.configure(|netlink| {
            let loopback = netlink.link("lo")?.index;
            netlink.set_link_up(loopback)
        })?;
        Ok(namespace)
    }

    /// Makes one that forwards packets of both families.
    pub fn forwarding(name: &str) -> Result<Self, LabError> {
        let namespace = Self::new(name)?;
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        Ok(namespace)
    }

    /// Another handle of the same namespace.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { name: self.name.clone(), descriptor: self.descriptor.try_clone()?, inode: self.inode })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inode number that identifies it among all network namespaces of the machine.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `action` on a thread inside the namespace and returns its value.
    ///
    /// Sockets opened in it, and threads started by it, stay in the namespace.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let entered = move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network));
            assert!(entered.is_ok(), "cannot enter network namespace {}: {entered:?}", self.name);
            action()
        };
        joined(thread::scope(|scope| scope.spawn(inside).join()))
    }

    /// Starts a child process inside the namespace. It is killed when the returned value is dropped, and when this process ends.
    pub fn spawn(&self, command: Command) -> Result<Process, LabError> {
        self.spawn_pinned(command, &[])
    }

    /// Starts a child process inside the namespace, on the given CPUs only; none means all.
    pub fn spawn_pinned(&self, command: Command, cpus: &[usize]) -> Result<Process, LabError> {
        Process::start(command, self, cpus)
    }

    pub fn netlink(&self) -> Result<Netlink, LabError> {
        self.run(Netlink::open).map_err(|error| self.refused(&error))
    }

    /// Changes links, addresses and routes of the namespace.
    pub fn configure<T>(&self, change: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError>) -> Result<T, LabError> {
        let mut netlink = self.netlink()?;
        change(&mut netlink).map_err(|error| self.refused(&error))
    }

    /// Adds routes as an administrator does, to each destination over the router of its family.
    pub fn add_routes(&self, destinations: [IpNet; 2], via: [IpAddr; 2]) -> Result<(), LabError> {
        self.configure(|netlink| {
            let mut routes = destinations.into_iter().zip(via);
            routes.try_for_each(|(destination, via)| netlink.add_route(&Route::via(destination, via).foreign()))
        })
    }

    fn refused(&self, error: &NetlinkError) -> LabError {
        LabError::new(format!("namespace {}: {error}", self.name))
    }

    /// Gives `interface` room for `packets` packets; a TUN interface has room for 500, which a busy quincy-client lets overflow.
    pub fn lengthen_queue(&self, interface: &str, packets: u32) -> Result<(), LabError> {
        self.configure(|netlink| {
            let index = netlink.link(interface)?.index;
            netlink.set_link_queue_length(index, packets)
        })
    }

    /// Sets a network parameter of the namespace, as in `sysctl("net/ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<(), LabError> {
        let file = Path::new("/proc/sys").join(path);
        let set = || match fs::read_to_string(&file) {
            Ok(current) if current.trim() == value => Ok(()),
            _ => fs::write(&file, value),
        };
        self.run(set).map_err(|error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => LabError::new(format!(
                "/proc/sys is read-only, {path} cannot be set; start the container with --privileged"
            )),
            _ => LabError::cannot(format_args!("namespace {}", self.name), &format!("set {path} to {value}"), error),
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The value of a finished thread; its panic goes on in this one.
fn joined<T>(finished: thread::Result<T>) -> T {
    finished.unwrap_or_else(|payload| panic::resume_unwind(payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{PATIENCE, eventually};
    use tollgate_netlink::VethPeer;

    fn own_interfaces() -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
    }

    fn descriptors_of(inode: u64) -> usize {
        let wanted = format!("net:[{inode}]");
        let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.as_os_str() == wanted.as_str()).count()
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_namespace_has_only_a_loopback_interface_and_its_own_settings() {
        let namespace = Namespace::new("quiet").unwrap();
        assert_eq!(namespace.run(own_interfaces), ["lo"]);
        namespace.sysctl("net/ipv4/ip_forward", "1").unwrap();
        let other = Namespace::new("other").unwrap();
        let forwarding = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned();
        assert_eq!((namespace.run(forwarding).as_str(), other.run(forwarding).as_str()), ("1", "0"));
        let error = namespace.sysctl("net/ipv4/no_such_thing", "1").unwrap_err().to_string();
        assert!(error.starts_with("namespace quiet: cannot set net/ipv4/no_such_thing to 1"), "{error}");
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn nothing_is_left_behind_when_namespaces_are_dropped() {
        let before = own_interfaces();
        let kept = Namespace::new("kept").unwrap();
        let dropped = Namespace::new("dropped").unwrap();
        let peer = VethPeer { name: "wan0", namespace: dropped.as_fd() };
        kept.configure(|netlink| netlink.add_veth("wan0", peer)).unwrap();
        let inode = dropped.inode();
        assert_eq!(descriptors_of(inode), 1);
        drop(dropped);
        assert_eq!(descriptors_of(inode), 0);
        // The kernel takes a namespace apart in the background; its end of the pair, and so ours, goes with it.
        let is_alone = || kept.run(own_interfaces) == ["lo"];
        assert!(eventually(PATIENCE, is_alone), "the dropped namespace lives on");
        drop(kept);
        assert_eq!(own_interfaces(), before);
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_panic_inside_goes_on_outside() {
        let namespace = Namespace::new("panicking").unwrap();
        let caught = panic::catch_unwind(|| namespace.run(|| panic!("from inside")));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"from inside"));
    }
}
