//! The TUN device: how it is made, with which offloads, and its address and state.
//!
//! Frames go through its [`TunQueue`]s. Name, MTU, IPv4 address and state are managed by the crate `tun`, which adopts the first
//! queue's descriptor; it knows neither several queues nor IPv6, which are asked of the kernel here.

use std::ffi::CStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use ipnet::IpNet;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tollgate_config::INTERFACE_NAME;
use tollgate_shards::packet::vnet;
use tun::AbstractDevice;

use super::tun_adopted::{Adopted, adoption_flags};
use super::tun_facts::{Offloads, TunFacts, TunOptions};
use super::tun_queue::TunQueue;
use crate::netlink::Netlink;

/// The most queues of a device: the kernel's limit.
pub const QUEUES_MAX: usize = 256;

/// `SIOCGIFTXQLEN` of `linux/sockios.h`.
const SIOCGIFTXQLEN: libc::Ioctl = 0x8942;
/// `SIOCSIFTXQLEN` of `linux/sockios.h`.
const SIOCSIFTXQLEN: libc::Ioctl = 0x8943;

const CLONE_DEVICE: &CStr = c"/dev/net/tun";
/// The same for every queue: a queue opened with others would change the framing of all. With them `IFF_MULTI_QUEUE`, unless a device that was
/// made beforehand has one queue only.
pub(super) const QUEUE_FLAGS: libc::c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a TUN device could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel or the container has no TUN driver.
    #[error("/dev/net/tun cannot be opened ({source}): load the module `tun`, or give the container this device")]
    NoDriver {
        /// What the kernel said.
        source: io::Error,
    },
    /// The process may not make network devices.
    #[error("TUN device {name}: {what} is not permitted: it needs CAP_NET_ADMIN (run as root, or grant it)")]
    NotPermitted {
        /// The name of the device.
        name: String,
        /// The step that failed.
        what: &'static str,
    },
    /// There is a network device of that name.
    #[error(
        "the network device {name} exists already: remove it (`ip link delete {name}`), stop who uses it, or choose another name"
    )]
    Taken {
        /// The name of the device.
        name: String,
    },
    /// The name cannot be a network device's.
    #[error("\"{name}\" cannot name a network device, {reason}: {INTERFACE_NAME}")]
    Name {
        /// The requested name.
        name: String,
        /// What is wrong, as the end of a sentence.
        reason: String,
    },
    /// The device was made beforehand, with too few queues.
    #[error(
        "the TUN device {name} was made beforehand with a single queue, and {queues} shards need one each: make it with `ip tuntap add dev \
         {name} mode tun multi_queue`, or set [shards] count = 1"
    )]
    SingleQueue {
        /// The name of the device.
        name: String,
        /// The number of queues needed.
        queues: usize,
    },
    /// A number that the kernel does not take.
    #[error("a TUN device of {queues} queues: the number must be from 1 to 256")]
    Queues {
        /// The requested number.
        queues: usize,
    },
    /// Another system call failed.
    #[error("TUN device {name}: {what} failed: {source}")]
    System {
        /// The name of the device.
        name: String,
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A multi-queue TUN device of this process. It is gone with its last queue, unless it was made beforehand.
pub struct TunDevice {
    device: tun::Device,
    name: String,
    index: u32,
    offloads: Offloads,
    queue_frames_max: u32,
    /// A queue's descriptor, of a device that was made beforehand and stays.
    adopted: Option<Adopted>,
}

impl TunDevice {
    /// Makes the device `name` (where there is none: `tollgate` and a number) with `queues` queues of index 0 and up, and sets its
    /// MTU in bytes. It has no address yet and is down. A device of that name that was made to stay and that nobody uses is adopted.
    ///
    /// Closing a queue moves the last one into its place in the kernel's order, so all are to live as long as one.
    pub fn create(
        name: Option<&str>,
        queues: usize,
        mtu: u16,
        options: &TunOptions,
    ) -> Result<(TunDevice, Vec<TunQueue>), TunError> {
        if !(1..=QUEUES_MAX).contains(&queues) {
            return Err(TunError::Queues { queues });
        }
        let wanted = name.unwrap_or("tollgate%d");
        tollgate_config::interface_name(wanted).map_err(|reason| TunError::Name { name: wanted.to_owned(), reason })?;
        let mut request = interface_request(wanted);
        let mut flags = QUEUE_FLAGS | libc::IFF_MULTI_QUEUE;
        // IFF_TUN_EXCL: otherwise an existing device would take the queues in among those of another process.
        let (first, is_adopted) = match attach_queue(&mut request, flags | libc::IFF_TUN_EXCL) {
            Err(TunError::Taken { name }) => {
                flags = adoption_flags(&name, queues)?;
                (attach_queue(&mut request, flags)?, true)
            }
            first => (first?, false),
        };
        let name = interface_name(&request);
        let mut fds = vec![first];
        for _ in 1..queues {
            fds.push(attach_queue(&mut interface_request(&name), flags)?);
        }
        TunDevice::of(name, fds, mtu, options, is_adopted)
    }

    /// Opens `queues` queues more of the device `name`, which another process has and leaves to this one. They stand behind its own in the kernel's
    /// order. MTU and offloads are `mtu` and what `options` ask for from now on; `is_adopted` says whether the device was made beforehand.
    pub fn join(
        name: &str,
        queues: usize,
        mtu: u16,
        options: &TunOptions,
        is_adopted: bool,
    ) -> Result<(TunDevice, Vec<TunQueue>), TunError> {
        let flags = QUEUE_FLAGS | libc::IFF_MULTI_QUEUE;
        let opened = (0..queues).map(|_| attach_queue(&mut interface_request(name), flags));
        TunDevice::of(name.to_owned(), opened.collect::<Result<_, _>>()?, mtu, options, is_adopted)
    }

    fn of(
        name: String,
        fds: Vec<OwnedFd>,
        mtu: u16,
        options: &TunOptions,
        is_adopted: bool,
    ) -> Result<(TunDevice, Vec<TunQueue>), TunError> {
        let offloads = enable_offloads(&fds[0], &name, options)?;
        let queue_frames_max = set_queue_length(&name, options.queue_frames_max)
            .map_err(|error| refusal(&name, "SIOCGIFTXQLEN", error))?;
        let index = interface_index(&name).map_err(|error| refusal(&name, "SIOCGIFINDEX", error))?;
        let facts = TunFacts { name, index, offloads, queue_frames_max, is_adopted };
        let (mut device, queues) = TunDevice::lent(facts, fds)?;
        let done = device.device.set_mtu(mtu);
        device.explain("setting the MTU", done)?;
        Ok((device, queues))
    }

    /// A device that another process has made for this one, with all its queues in their order, 1 at least.
    ///
    /// # Panics
    ///
    /// Without a queue.
    pub fn lent(facts: TunFacts, fds: Vec<OwnedFd>) -> Result<(TunDevice, Vec<TunQueue>), TunError> {
        let TunFacts { name, index, offloads, queue_frames_max, is_adopted } = facts;
        let adopted = if is_adopted { Some(Adopted::of(&fds[0], &name)?) } else { None };
        let mut configuration = tun::Configuration::default();
        configuration.raw_fd(fds[0].as_raw_fd()).close_fd_on_drop(false).tun_name(&name);
        let device = tun::Device::new(&configuration).map_err(|error| refusal(&name, "adoption", error.into()))?;
        let device = TunDevice { device, name, index, offloads, queue_frames_max, adopted };
        Ok((device, fds.into_iter().map(TunQueue::new).collect()))
    }

    /// Whether it was made beforehand, and stays.
    pub fn is_adopted(&self) -> bool {
        self.adopted.is_some()
    }

    /// Leaves it as it is to another process, which has joined it.
    pub fn leave(mut self) {
        if let Some(adopted) = self.adopted.take() {
            adopted.leave();
        }
    }

    /// What another process has to know of it.
    pub fn facts(&self) -> TunFacts {
        TunFacts {
            name: self.name.clone(),
            index: self.index,
            offloads: self.offloads,
            queue_frames_max: self.queue_frames_max,
            is_adopted: self.is_adopted(),
        }
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The device's MTU, in bytes, as the kernel has it.
    pub fn mtu(&self) -> Result<u16, TunError> {
        let mtu = self.device.mtu();
        self.explain("reading the MTU", mtu)
    }

    /// What the kernel hands over unfinished: what the options asked for, as far as the kernel can.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Frames that each queue holds before it drops: what the options asked for, or the kernel's 500 in a user namespace, which may
    /// not change it.
    pub fn queue_frames_max(&self) -> u32 {
        self.queue_frames_max
    }

    /// Gives the device an address and the network behind it. An IPv4 address replaces the one before; IPv6 addresses add up.
    pub fn configure(&mut self, address: IpNet) -> Result<(), TunError> {
        match address {
            IpNet::V4(net) => {
                let done = self.device.set_address(IpAddr::V4(net.addr()));
                self.explain("setting the IPv4 address", done)?;
                let done = self.device.set_netmask(IpAddr::V4(net.netmask()));
                self.explain("setting the IPv4 netmask", done)
            }
            IpNet::V6(_) => add_ipv6_address(self.index, address)
                .map_err(|error| refusal(&self.name, "adding the IPv6 address", error)),
        }
    }

    /// Sets the device up: from now on packets flow.
    pub fn up(&mut self) -> Result<(), TunError> {
        let done = self.device.enabled(true);
        self.explain("setting it up", done)
    }

    fn explain<T>(&self, what: &'static str, done: tun::Result<T>) -> Result<T, TunError> {
        done.map_err(|error| refusal(&self.name, what, error.into()))
    }
}

impl std::fmt::Debug for TunDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TunDevice { name, index, offloads, .. } = self;
        formatter
            .debug_struct("TunDevice")
            .field("name", name)
            .field("index", index)
            .field("offloads", offloads)
            .finish()
    }
}

/// Opens a further queue of the device that `request` names; without such a device, makes it and stores its name in `request`.
fn attach_queue(request: &mut libc::ifreq, flags: libc::c_int) -> Result<OwnedFd, TunError> {
    let opened = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(CLONE_DEVICE, opened, Mode::empty())
        .map_err(|error| TunError::NoDriver { source: error.into() })?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives through the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut *request) };
    if done < 0 {
        return Err(refusal(&interface_name(request), "TUNSETIFF", io::Error::last_os_error()));
    }
    let header_bytes = vnet::HEADER_BYTES as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes) };
    if done < 0 {
        return Err(refusal(&interface_name(request), "TUNSETVNETHDRSZ", io::Error::last_os_error()));
    }
    Ok(fd)
}

/// Switches on what `options` ask for, as far as the kernel knows it.
///
/// TSO with ECN (`TUN_F_TSO_ECN`) is left out: the kernel then cuts the rare super-packet that carries CWR by itself.
fn enable_offloads(fd: &OwnedFd, name: &str, options: &TunOptions) -> Result<Offloads, TunError> {
    let all = Offloads { checksum: true, tso: options.tso, uso: options.uso };
    let none = Offloads { checksum: false, tso: false, uso: false };
    let wanted = [all, Offloads { uso: false, ..all }, Offloads { checksum: true, ..none }, none];
    let mut refused = None;
    for offloads in wanted {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads.flags())) };
        if done == 0 {
            return Ok(offloads);
        }
        refused = Some(io::Error::last_os_error());
    }
    let source = refused.unwrap_or_else(|| io::Error::from(io::ErrorKind::Unsupported));
    Err(refusal(name, "TUNSETOFFLOAD", source))
}

/// Asks for queues of `frames` frames, and returns what they hold.
fn set_queue_length(name: &str, frames: u32) -> io::Result<u32> {
    let control = control_socket()?;
    let mut request = interface_request(name);
    // The kernel's name for this member is `ifr_qlen`, an int.
    request.ifr_ifru.ifru_metric = libc::c_int::try_from(frames).unwrap_or(libc::c_int::MAX);
    // SAFETY: the first request reads one `ifreq`, the second writes one; it lives through both calls, and its int member has a value
    // whatever they do. The first may fail, for one in a user namespace, where only its outside may change the length: the second
    // tells.
    unsafe {
        libc::ioctl(control.as_raw_fd(), SIOCSIFTXQLEN, &raw const request);
        if libc::ioctl(control.as_raw_fd(), SIOCGIFTXQLEN, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(request.ifr_ifru.ifru_metric.unsigned_abs())
    }
}

/// That the device has the address already is what was asked for.
fn add_ipv6_address(index: u32, address: IpNet) -> io::Result<()> {
    match Netlink::open().and_then(|mut netlink| netlink.add_address(index, address)) {
        Err(error) if !error.is_exists() => {
            Err(error.errno().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error))
        }
        _ => Ok(()),
    }
}

fn interface_index(name: &str) -> io::Result<u32> {
    Ok(rustix::net::netdevice::name_to_index(control_socket()?, name)?)
}

/// A socket for requests about interfaces. No packet goes through it.
fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// A request about the interface `name`, of which at most 15 bytes are taken.
pub(super) fn interface_request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is a name and a union of integers, addresses and a pointer, for all of which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    request
}

fn interface_name(request: &libc::ifreq) -> String {
    let bytes: Vec<u8> = request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn refusal(name: &str, what: &'static str, source: io::Error) -> TunError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted { name, what },
        Some(libc::EBUSY) => TunError::Taken { name },
        _ => TunError::System { name, what, source },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testnet::in_network_namespace;
    use super::*;

    fn create(name: &str, queues: usize) -> Result<(TunDevice, Vec<TunQueue>), TunError> {
        TunDevice::create(Some(name), queues, 1400, &TunOptions::default())
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_device_has_what_it_was_made_with() {
        in_network_namespace(|| {
            let options = TunOptions { queue_frames_max: 1234, ..TunOptions::default() };
            let (mut device, queues) = TunDevice::create(Some("tg-test"), 4, 1380, &options).unwrap();
            assert_eq!((device.name(), queues.len(), device.mtu().unwrap()), ("tg-test", 4, 1380));
            assert_eq!(device.offloads(), Offloads { checksum: true, tso: true, uso: true });
            device.configure("198.18.0.1/20".parse().unwrap()).unwrap();
            device.configure("fd00::1/112".parse().unwrap()).unwrap();
            device.configure("fd00::1/112".parse().unwrap()).unwrap();
            device.up().unwrap();
            assert_eq!(device.device.address().unwrap(), IpAddr::from([198, 18, 0, 1]));
            assert_eq!(device.device.netmask().unwrap(), IpAddr::from([255, 255, 240, 0]));
            let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
            let ours = format!("fd000000000000000000000000000001 {:02x} 70", device.index());
            assert!(addresses.contains(&ours), "{addresses}");
            assert_eq!(device.queue_frames_max(), 1234);
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn offloads_that_are_not_asked_for_stay_off() {
        in_network_namespace(|| {
            let options = TunOptions { uso: false, ..TunOptions::default() };
            let (device, _queues) = TunDevice::create(None, 1, 1400, &options).unwrap();
            assert_eq!(device.offloads(), Offloads { checksum: true, tso: true, uso: false });
            assert_eq!(device.name(), "tollgate0");
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_name_in_use_is_refused_and_free_again_with_the_last_queue() {
        in_network_namespace(|| {
            let (device, queues) = create("tg-test", 2).unwrap();
            let text = create("tg-test", 2).unwrap_err().to_string();
            assert!(text.contains("tg-test exists already") && text.contains("ip link delete tg-test"), "{text}");
            assert!(matches!(create("lo", 1), Err(TunError::Taken { .. })));
            drop((device, queues));
            // A child process that another test just forks may hold the queues until it executes.
            let free = (0..2000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                create("tg-test", 2).is_ok()
            });
            assert!(free);
        });
    }

    #[test]
    fn names_and_numbers_that_the_kernel_would_not_take_are_named() {
        for name in ["", "sixteen-letters-", "a/b", "a b", "tun%s", ".."] {
            assert!(matches!(create(name, 1), Err(TunError::Name { .. })), "{name:?}");
        }
        for queues in [0, 257] {
            assert!(matches!(create("tg-test", queues), Err(TunError::Queues { .. })));
        }
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn without_the_privilege_the_error_names_it() {
        in_network_namespace(|| {
            // A thread's own user, by the bare system call: the C library's would change all threads.
            // SAFETY: takes no pointers.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(result, 0, "setresuid: {}", io::Error::last_os_error());
            let error = create("tg-test", 1).unwrap_err();
            let text = error.to_string();
            match error {
                TunError::NotPermitted { .. } => assert!(text.contains("CAP_NET_ADMIN"), "{text}"),
                TunError::NoDriver { .. } => assert!(text.contains("/dev/net/tun"), "{text}"),
                _ => panic!("{text}"),
            }
        });
    }

    #[test]
    fn errors_are_one_line_and_told_apart_by_what_the_kernel_said() {
        let text = |errno| {
            let text = refusal("tg0", "TUNSETIFF", io::Error::from_raw_os_error(errno)).to_string();
            assert_eq!(text.lines().count(), 1);
            text
        };
        assert!(text(libc::EPERM).contains("needs CAP_NET_ADMIN"), "{}", text(libc::EPERM));
        assert!(text(libc::EBUSY).contains("choose another name"), "{}", text(libc::EBUSY));
        assert!(text(libc::EINVAL).contains("TUNSETIFF failed"), "{}", text(libc::EINVAL));
    }
}
