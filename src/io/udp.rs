//! UDP sockets: how they are opened, and who shares a port.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::net::{AddressFamily, sockopt};
use serde::{Deserialize, Serialize};
use tollgate_shards::{SHARDS_MAX, Steering};

use super::cmsg::UDP_GRO;
use super::members::Group;
use super::reuseport;
use super::sockaddr::{Family, RAW_ADDRESS_BYTES, RawAddress};

/// Settings of a UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpOptions {
    /// Size of the kernel's send buffer, in bytes. Beyond `net.core.wmem_max` it needs CAP_NET_ADMIN.
    pub send_buffer_bytes: usize,
    /// Size of the kernel's receive buffer, in bytes. Beyond `net.core.rmem_max` it needs CAP_NET_ADMIN.
    pub receive_buffer_bytes: usize,
    /// Whether to receive aggregates (`UDP_GRO`), where the kernel can.
    pub gro: bool,
    /// Whether to send runs in one piece (`UDP_SEGMENT`), where the kernel can.
    pub gso: bool,
    /// By which byte of a connection ID the kernel steers, where sockets share a port.
    pub steering: Steering,
}

impl Default for UdpOptions {
    fn default() -> UdpOptions {
        UdpOptions {
            send_buffer_bytes: 4 << 20,
            receive_buffer_bytes: 4 << 20,
            gro: true,
            gso: true,
            steering: Steering::default(),
        }
    }
}

/// Why a UDP socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket has the port.
    #[error(
        "UDP address {address} is in use by another process: stop it (`ss -ulpn` names it) or listen on another port"
    )]
    InUse {
        /// The address and port.
        address: SocketAddr,
    },
    /// No interface has the address.
    #[error("no interface of this machine has the address {}: listen on one that `ip address` shows, or on all with [::]", address.ip())]
    NotOurs {
        /// The address and port.
        address: SocketAddr,
    },
    /// The port is privileged.
    #[error("binding UDP port {} needs CAP_NET_BIND_SERVICE: grant it, or listen on a port from 1024 on", address.port())]
    NotPermitted {
        /// The address and port.
        address: SocketAddr,
    },
    /// The kernel has no such address family.
    #[error("this kernel has no IPv{}, which {address} needs: listen on an address of the other family", if address.is_ipv4() { 4 } else { 6 })]
    NoFamily {
        /// The address and port.
        address: SocketAddr,
    },
    /// More shards than a connection ID can name.
    #[error("{shards} shards cannot share a UDP port: the number must be from 1 to {SHARDS_MAX}")]
    Shards {
        /// The requested number.
        shards: usize,
    },
    /// Another system call failed.
    #[error("UDP address {address}: {what} failed: {source}")]
    System {
        /// The address and port.
        address: SocketAddr,
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A `SO_REUSEPORT` group: one port, two sockets for each shard, steered by connection ID.
///
/// What strangers send before a handshake has a socket and a buffer of its own, and takes no room from live traffic. The sockets of a process are
/// bound in a fixed order, which is the order of their indices: those of live traffic of all shards, then those of handshakes of all shards.
/// Closing one moves the last one into its place in the kernel's order: see [`Members`](super::Members).
#[derive(Debug)]
pub struct UdpGroup;

impl UdpGroup {
    /// Opens a group on `address` with the sockets of `shards` shards, in their order, and makes sure that no other socket has or gets a part of
    /// it: neither another program, nor a second gateway, which the kernel would let in silently.
    ///
    /// Port 0 stands for a free port, `[::]` for all addresses of both families. `handshake_buffer_bytes` is the receive buffer of each socket for
    /// handshakes.
    pub fn bind(
        address: SocketAddr,
        shards: usize,
        options: &UdpOptions,
        handshake_buffer_bytes: usize,
    ) -> Result<Vec<ShardSockets>, BindError> {
        let all = socket_options(shards, options, handshake_buffer_bytes)?;
        // Bound for itself alone; only then others of this user may join.
        let first = UdpSocket::bind(address, options)?;
        let address = first.local_address();
        share(&first.fd, address)?;
        let mut bound = vec![first];
        for options in &all[1..] {
            bound.push(UdpSocket::sharing(address, options)?);
            if bound.len() == 2 {
                // The group exists from the second socket on. What came before is read by the first shard, which passes it on.
                UdpGroup::steer(address, bound[0].as_fd(), Group::alone(all.len()), options.steering)?;
            }
        }
        Ok(by_shard(bound))
    }

    /// Opens sockets of `shards` shards behind those that another process of this user has in the group on `address`. They get nothing but what
    /// the group's program names them for ([`UdpGroup::steer`]).
    pub fn join(
        address: SocketAddr,
        shards: usize,
        options: &UdpOptions,
        handshake_buffer_bytes: usize,
    ) -> Result<Vec<ShardSockets>, BindError> {
        let all = socket_options(shards, options, handshake_buffer_bytes)?;
        let bound = all.iter().map(|options| UdpSocket::sharing(address, options)).collect::<Result<Vec<_>, _>>()?;
        Ok(by_shard(bound))
    }

    /// Sockets that another process has opened for this one, in the order of binding: those of [`UdpGroup::bind`] or [`UdpGroup::join`].
    pub fn lent(sockets: Vec<OwnedFd>, options: &UdpOptions) -> io::Result<Vec<ShardSockets>> {
        let lent = sockets.into_iter().map(|fd| UdpSocket::lent(fd, options.gso)).collect::<io::Result<_>>();
        lent.map(by_shard)
    }

    /// Has the kernel steer all that comes for the group on `address`, which `socket` is in, over the sockets of `group`.
    pub fn steer(
        address: SocketAddr,
        socket: BorrowedFd<'_>,
        group: Group,
        steering: Steering,
    ) -> Result<(), BindError> {
        reuseport::attach(socket, group, steering)
            .map_err(|source| system(address, "steering by connection ID (SO_ATTACH_REUSEPORT_CBPF)", source))
    }
}

/// The options of all sockets, in the order of binding.
fn socket_options(
    shards: usize,
    options: &UdpOptions,
    handshake_buffer_bytes: usize,
) -> Result<Vec<UdpOptions>, BindError> {
    if !(1..=usize::from(SHARDS_MAX)).contains(&shards) {
        return Err(BindError::Shards { shards });
    }
    // Each datagram is to count as one message, since messages are what is rationed.
    let handshakes = UdpOptions { receive_buffer_bytes: handshake_buffer_bytes, gro: false, ..*options };
    Ok([vec![*options; shards], vec![handshakes; shards]].concat())
}

/// The sockets of each shard, of those in the order of binding.
fn by_shard(mut live: Vec<UdpSocket>) -> Vec<ShardSockets> {
    let handshakes = live.split_off(live.len() / 2);
    live.into_iter().zip(handshakes).map(|(live, handshakes)| ShardSockets { live, handshakes }).collect()
}

/// The descriptors of `sockets`, in the order of their indices in the group.
pub fn descriptors(sockets: &[ShardSockets]) -> Vec<Weak<OwnedFd>> {
    let live = sockets.iter().map(|sockets| sockets.live.descriptor());
    live.chain(sockets.iter().map(|sockets| sockets.handshakes.descriptor())).collect()
}

/// The two sockets of a shard. Both have the same address; what is sent goes out through `live`.
#[derive(Debug)]
pub struct ShardSockets<U = UdpSocket> {
    /// Receives short headers: packets of connections that stand (RFC 9000, section 17.3).
    pub live: U,
    /// Receives long headers, and what has no connection ID.
    pub handshakes: U,
}

/// A non-blocking UDP socket, owned by one shard.
///
/// It sets the don't-fragment bit and ignores what the kernel believes of the path's MTU, as QUIC wants (RFC 9000, 14). All addresses
/// that come out of it or go into it are in their own family, also on a dual-stack socket.
#[derive(Debug)]
pub struct UdpSocket {
    fd: Arc<OwnedFd>,
    family: Family,
    local: SocketAddr,
    /// Whether runs are sent in one piece.
    pub(super) gso: Cell<bool>,
    /// Runs in a row whose segmentation was refused and that were taken without.
    pub(super) gso_refusals: Cell<u32>,
}

impl UdpSocket {
    /// Opens a socket on `address` that nobody shares, which fails when anybody has the port, shared or not. Of two programs that start at the same
    /// time one is refused.
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, BindError> {
        UdpSocket::configure(open(address, Family::of(address))?, address, options)
    }

    /// Opens a socket on `address` that others of this user share.
    fn sharing(address: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, BindError> {
        let fd = open(address, Family::of(address))?;
        share(&fd, address)?;
        UdpSocket::configure(fd, address, options)
    }

    /// A socket that is bound, as another process has lent it to this one; `gso` says whether to send runs in one piece.
    pub fn lent(fd: OwnedFd, gso: bool) -> io::Result<UdpSocket> {
        let local = local_address(&fd)?;
        // A dual-stack socket may have an IPv4 address.
        let is_v4 = sockopt::socket_domain(&fd)? == AddressFamily::INET;
        let family = if is_v4 { Family::V4 } else { Family::V6 };
        Ok(UdpSocket { fd: Arc::new(fd), family, local, gso: Cell::new(gso), gso_refusals: Cell::new(0) })
    }

    /// Opens a socket to speak with `remote` from any address and a free port. It is not connected: an error of one path does not end
    /// it, and it may speak with others.
    pub fn for_remote(remote: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, BindError> {
        let any = match remote.ip().to_canonical() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        UdpSocket::bind(SocketAddr::new(any, 0), options)
    }

    /// Its descriptor, which is not kept open by this.
    pub fn descriptor(&self) -> Weak<OwnedFd> {
        Arc::downgrade(&self.fd)
    }

    /// The address that the socket is bound to.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Whether runs are sent in one piece: what the options said, until the kernel proved that it cannot.
    pub fn segments(&self) -> bool {
        self.gso.get()
    }

    /// The sizes of the send and the receive buffer that the kernel granted, in bytes, as it counts them for itself: twice what was
    /// asked for, where it granted all.
    pub fn buffers_bytes(&self) -> io::Result<(usize, usize)> {
        Ok((
            rustix::net::sockopt::socket_send_buffer_size(&self.fd)?,
            rustix::net::sockopt::socket_recv_buffer_size(&self.fd)?,
        ))
    }

    /// The family that addresses have to be written in.
    pub(super) fn family(&self) -> Family {
        self.family
    }

    fn configure(fd: OwnedFd, address: SocketAddr, options: &UdpOptions) -> Result<UdpSocket, BindError> {
        let family = Family::of(address);
        for (what, level, name, value) in receive_options(family) {
            option(&fd, level, name, value).map_err(|source| system(address, what, source))?;
        }
        buffer(&fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, options.send_buffer_bytes)
            .map_err(|source| system(address, "SO_SNDBUF", source))?;
        buffer(&fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, options.receive_buffer_bytes)
            .map_err(|source| system(address, "SO_RCVBUF", source))?;
        if options.gro {
            // A kernel without it (before 5.0) delivers single datagrams, which is what is handled anyway.
            let _ = option(&fd, libc::SOL_UDP, UDP_GRO, 1);
        }
        bind(&fd, address)?;
        UdpSocket::lent(fd, options.gso).map_err(|source| system(address, "getsockname", source))
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What every socket of `family` is told. A dual-stack socket receives and sends IPv4 too, and takes IPv4's own options for that; its
/// `IPV6_PKTINFO` names mapped addresses as well.
fn receive_options(family: Family) -> Vec<(&'static str, libc::c_int, libc::c_int, libc::c_int)> {
    let mut options = vec![
        ("IP_RECVTOS", libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
        ("IP_MTU_DISCOVER", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
    ];
    match family {
        Family::V4 => options.push(("IP_PKTINFO", libc::IPPROTO_IP, libc::IP_PKTINFO, 1)),
        Family::V6 => options.extend([
            ("IPV6_RECVPKTINFO", libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
            ("IPV6_RECVTCLASS", libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
            ("IPV6_MTU_DISCOVER", libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        ]),
    }
    options
}

/// A fresh socket, dual-stack where `family` is IPv6.
fn open(address: SocketAddr, family: Family) -> Result<OwnedFd, BindError> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family.number(), libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(refusal(address, "socket", io::Error::last_os_error()));
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if family == Family::V6 {
        option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)
            .map_err(|source| system(address, "IPV6_V6ONLY", source))?;
    }
    Ok(fd)
}

/// Lets others of this user bind the port too.
fn share(fd: &OwnedFd, address: SocketAddr) -> Result<(), BindError> {
    option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).map_err(|source| system(address, "SO_REUSEPORT", source))
}

fn bind(fd: &OwnedFd, address: SocketAddr) -> Result<(), BindError> {
    rustix::net::bind(fd, &address).map_err(|error| refusal(address, "bind", error.into()))
}

fn local_address(fd: &OwnedFd) -> io::Result<SocketAddr> {
    let mut raw = RawAddress::EMPTY;
    let mut bytes = RAW_ADDRESS_BYTES as libc::socklen_t;
    // SAFETY: `raw` has room for `bytes` bytes, and both live through the call.
    let done = unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut raw).cast(), &raw mut bytes) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    raw.load(bytes as usize).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// Asks for a buffer of `bytes`, without the system's limit where that is permitted.
fn buffer(fd: &OwnedFd, forced: libc::c_int, limited: libc::c_int, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    option(fd, libc::SOL_SOCKET, forced, bytes).or_else(|_| option(fd, libc::SOL_SOCKET, limited, bytes))
}

fn option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value is an int that lives through the call, and its size is given.
    let done = unsafe {
        let bytes = size_of_val(&value) as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), bytes)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn refusal(address: SocketAddr, what: &'static str, source: io::Error) -> BindError {
    match source.raw_os_error() {
        Some(libc::EADDRINUSE) => BindError::InUse { address },
        Some(libc::EADDRNOTAVAIL) => BindError::NotOurs { address },
        Some(libc::EACCES) => BindError::NotPermitted { address },
        Some(libc::EAFNOSUPPORT) => BindError::NoFamily { address },
        _ => system(address, what, source),
    }
}

fn system(address: SocketAddr, what: &'static str, source: io::Error) -> BindError {
    BindError::System { address, what, source }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::UdpSocket as StdSocket;

    use super::*;

    /// Sets an option that the product does not.
    pub(in super::super) fn set_option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
        option(&socket.fd, level, name, value).unwrap();
    }

    fn bind_group(address: SocketAddr, shards: usize) -> Result<Vec<ShardSockets>, BindError> {
        UdpGroup::bind(address, shards, &UdpOptions::default(), 1 << 20)
    }

    #[test]
    fn a_port_that_another_program_has_is_refused_with_the_remedy() {
        let other = StdSocket::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        for listen in [address, SocketAddr::new("::".parse().unwrap(), address.port())] {
            let error = bind_group(listen, 2).unwrap_err();
            assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains(&listen.to_string()) && text.contains("another port"), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
    }

    #[test]
    fn a_second_gateway_does_not_join_the_group() {
        let first = bind_group("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let address = first[0].live.local_address();
        assert!(matches!(bind_group(address, 2), Err(BindError::InUse { .. })));
        drop(first);
        assert_eq!(bind_group(address, 2).unwrap().len(), 2, "free again");
    }

    #[test]
    fn of_gateways_that_start_at_the_same_time_one_gets_the_port() {
        let free = StdSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for round in 0..20 {
            let barrier = std::sync::Barrier::new(8);
            let results: Vec<_> = std::thread::scope(|scope| {
                let start = || {
                    barrier.wait();
                    bind_group(free, 2)
                };
                let starting: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
                starting.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            // All are held until all have tried.
            let refused = results.iter().filter(|result| matches!(result, Err(BindError::InUse { .. }))).count();
            assert_eq!(refused, 7, "round {round}: {results:?}");
        }
    }

    #[test]
    fn a_group_shares_one_port_up_to_128_shards() {
        let sockets = bind_group("127.0.0.1:0".parse().unwrap(), 5).unwrap();
        assert_eq!(sockets.len(), 5);
        let all = sockets.iter().flat_map(|ShardSockets { live, handshakes }| [live, handshakes]);
        assert!(all.map(UdpSocket::local_address).all(|address| address == sockets[0].live.local_address()));
        for shards in [0, 129] {
            assert!(matches!(bind_group("127.0.0.1:0".parse().unwrap(), shards), Err(BindError::Shards { .. })));
        }
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let error = bind_group("198.18.77.77:0".parse().unwrap(), 1).unwrap_err();
        assert!(matches!(error, BindError::NotOurs { .. }), "{error:?}");
        assert!(error.to_string().contains("198.18.77.77"), "{error}");
    }

    #[test]
    fn errors_are_told_apart_by_what_the_kernel_said() {
        let address: SocketAddr = "[::]:443".parse().unwrap();
        let text = |errno| refusal(address, "bind", io::Error::from_raw_os_error(errno)).to_string();
        assert!(text(libc::EACCES).contains("CAP_NET_BIND_SERVICE"), "{}", text(libc::EACCES));
        assert!(text(libc::EAFNOSUPPORT).contains("no IPv6"), "{}", text(libc::EAFNOSUPPORT));
        assert!(text(libc::ENOMEM).contains("bind failed"), "{}", text(libc::ENOMEM));
    }

    #[test]
    fn buffers_beyond_the_systems_limit_are_granted_or_cut_but_never_an_error() {
        let options =
            UdpOptions { send_buffer_bytes: 64 << 20, receive_buffer_bytes: 64 << 20, ..UdpOptions::default() };
        let socket = UdpSocket::for_remote("127.0.0.1:9".parse().unwrap(), &options).unwrap();
        let (send, receive) = socket.buffers_bytes().unwrap();
        assert!(send > 100_000 && receive > 100_000, "{send} {receive}");
    }

    #[test]
    fn strangers_have_a_receive_buffer_of_their_own_size() {
        let options = UdpOptions { receive_buffer_bytes: 100 << 10, ..UdpOptions::default() };
        let shards = UdpGroup::bind("127.0.0.1:0".parse().unwrap(), 2, &options, 20 << 10).unwrap();
        for ShardSockets { live, handshakes } in &shards {
            let receive = |socket: &UdpSocket| socket.buffers_bytes().unwrap().1;
            // The kernel counts what it needs for itself too.
            assert_eq!((receive(live), receive(handshakes)), (200 << 10, 40 << 10));
        }
    }

    #[test]
    fn a_clients_socket_takes_the_family_of_its_remote() {
        let socket = |remote: &str| UdpSocket::for_remote(remote.parse().unwrap(), &UdpOptions::default()).unwrap();
        assert!(socket("198.18.0.1:4433").local_address().is_ipv4());
        assert!(socket("[::ffff:198.18.0.1]:4433").local_address().is_ipv4());
        let v6 = socket("[fd00::1]:4433").local_address();
        assert!(v6.is_ipv6() && v6.port() != 0);
    }
}
