//! Steering of inner packets to the TUN queue of the shard that owns their destination.
//!
//! A BPF array, which all shards write and the kernel reads, maps the low 16 bits of an address to a shard; IPv4 and IPv6 have a half
//! of it each. Two addresses of one family that agree in those bits share an entry: the last one set wins, and the packets of the
//! other arrive at a wrong queue, from where its shard passes them on. So steering is exact up to a /16 or /112, and a hint beyond.
//!
//! The map names shards of either generation, and the program knows where each generation's queues stand in the kernel: while two processes share
//! a device, queues come and go, and one ioctl exchanges the program. The map stays as it is.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use tollgate_shards::{Generation, ShardIndex};

use super::bpf::{self, BpfMap, Instruction};
use super::members::{Group, Members};

/// The bit of a shard that tells its generation, as in the map's values.
const GENERATION: i32 = 0x80;
/// Entries for each family: one for each value of the low 16 bits.
const FAMILY_ENTRIES: u32 = 1 << 16;
const ENTRIES: u32 = 2 * FAMILY_ENTRIES;

/// Why inner packets cannot be steered by their destination. The device works without: its driver remembers for each flow the queue
/// that the flow's other direction was written to.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The kernel does not let this process load eBPF.
    #[error(
        "eBPF steering of the TUN device is not permitted (it needs CAP_BPF and CAP_NET_ADMIN outside of user namespaces): the TUN \
         driver's own flow table steers in its place"
    )]
    NotPermitted,
    /// The kernel cannot do it, or something is in the way.
    #[error(
        "eBPF steering of the TUN device: {what} failed ({source}): the TUN driver's own flow table steers in its place"
    )]
    System {
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The steering map of a TUN device. Any thread may change it; the program in the kernel goes with the device.
#[derive(Debug)]
pub struct TunSteering<M = BpfMap>(M);

/// Where the entries are.
pub trait SteeringMap {
    /// Sets an entry of two times 65,536.
    ///
    /// # Errors
    ///
    /// Those of the map.
    fn update(&self, entry: u32, value: u32) -> io::Result<()>;
}

impl TunSteering {
    /// Over a map that [`TunSteering::create_map`] has made, in this process or another.
    pub fn with(map: OwnedFd) -> TunSteering {
        TunSteering::over(BpfMap::of(map, ENTRIES))
    }

    /// A map that knows no address, and steers nothing yet.
    pub fn create_map() -> Result<OwnedFd, SteeringError> {
        bpf::create_array(ENTRIES).map_err(|error| refusal("creating the map", error))
    }

    /// Loads a program that steers by `map` to the queues of `group`.
    ///
    /// Addresses that nobody has set are spread over the newest process's queues by their low bits, so that a scan of unused addresses is no
    /// shard's burden alone.
    pub fn load(map: BorrowedFd<'_>, group: Group) -> Result<OwnedFd, SteeringError> {
        let program = program(map.as_raw_fd(), group);
        bpf::load_socket_filter(&program).map_err(|error| refusal("loading the program", error))
    }

    /// Has `program` steer the device of `queue`. From then on the driver's own flow table is out of use.
    pub fn attach(program: BorrowedFd<'_>, queue: BorrowedFd<'_>) -> Result<(), SteeringError> {
        let number: libc::c_int = program.as_raw_fd();
        // SAFETY: TUNSETSTEERINGEBPF reads one int, which lives through the call.
        let done = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const number) };
        if done < 0 {
            return Err(refusal("TUNSETSTEERINGEBPF", io::Error::last_os_error()));
        }
        Ok(())
    }

    /// The map.
    pub fn map(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<M: SteeringMap> TunSteering<M> {
    /// Over a map that nothing has been written to.
    pub fn over(map: M) -> Self {
        TunSteering(map)
    }

    /// Sends packets to `address` to the queue of `shard` from now on, or, for `None`, nowhere in particular.
    ///
    /// # Errors
    ///
    /// Those of the map.
    pub fn set(&self, address: IpAddr, shard: Option<ShardIndex>) -> io::Result<()> {
        // 0 is unknown.
        self.0.update(entry(address), shard.map_or(0, |shard| u32::from(shard.0) + 1))
    }
}

/// The map's entry for `address`: as the program computes it.
fn entry(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(ip) => ip.to_bits() & (FAMILY_ENTRIES - 1),
        IpAddr::V6(ip) => (ip.to_bits() as u32 & (FAMILY_ENTRIES - 1)) | FAMILY_ENTRIES,
    }
}

fn refusal(what: &'static str, source: io::Error) -> SteeringError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => SteeringError::NotPermitted,
        _ => SteeringError::System { what, source },
    }
}

const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_FUNC_MAP_LOOKUP_ELEM: i32 = 1;

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R6: u8 = 6;
const R7: u8 = 7;
const STACK: u8 = 10;

/// The program: offset 0 is the inner IP header, and what it returns is the queue, modulo their number. A load beyond the packet ends
/// it with 0.
fn program(map: libc::c_int, group: Group) -> Vec<Instruction> {
    let known = choice(group);
    let to_unknown = known.len() as i16;
    let look = [
        // The loads from the packet want the context in R6.
        op(0xbf, R6, R1, 0, 0),                    // r6 = r1
        op(0x30, R0, 0, 0, 0),                     // r0 = the first byte
        op(0x77, R0, 0, 0, 4),                     // r0 >>= 4
        op(0x15, R0, 0, 3, 6),                     // if r0 == 6: IPv6, skip 3
        op(0x28, R0, 0, 0, 18),                    // r0 = the low 16 bits of the IPv4 destination
        op(0xbf, R7, R0, 0, 0),                    // r7 = r0
        op(0x05, 0, 0, 3, 0),                      // skip 3
        op(0x28, R0, 0, 0, 38),                    // r0 = the low 16 bits of the IPv6 destination
        op(0xbf, R7, R0, 0, 0),                    // r7 = r0
        op(0x47, R7, 0, 0, FAMILY_ENTRIES as i32), // r7 |= 65536
        op(0x63, STACK, R7, -4, 0),                // key = r7
        op(0xbf, R2, STACK, 0, 0),                 // r2 = stack
        op(0x07, R2, 0, 0, -4),                    // r2 += -4
        op(0x18, R1, BPF_PSEUDO_MAP_FD, 0, map),   // r1 = map, two instructions long
        op(0, 0, 0, 0, 0),
        op(0x85, 0, 0, 0, BPF_FUNC_MAP_LOOKUP_ELEM), // r0 = entry
        op(0x15, R0, 0, 3 + to_unknown, 0),          // if there is none: unknown
        op(0x61, R0, R0, 0, 0),                      // r0 = its value
        op(0x15, R0, 0, 1 + to_unknown, 0),          // if 0: unknown
        op(0x07, R0, 0, 0, -1),                      // r0 -= 1: the shard
    ];
    let newest = group.newest();
    let unknown = [
        op(0xbf, R0, R7, 0, 0),                    // r0 = r7
        op(0x97, R0, 0, 0, newest.count() as i32), // r0 %= the queues
        op(0x07, R0, 0, 0, newest.first() as i32), // r0 += those in front
        op(0x95, 0, 0, 0, 0),                      // return r0
    ];
    [look.as_slice(), &known, &unknown].concat()
}

/// Returns the queue of the shard in R0.
fn choice(group: Group) -> Vec<Instruction> {
    let [even, odd] = [Generation::Even, Generation::Odd].map(|generation| place(group.of(generation)));
    if group.is_of_one() {
        return even;
    }
    // If the bit is set, skip.
    [[op(0x45, R0, 0, even.len() as i16, GENERATION)].as_slice(), &even, &odd].concat()
}

/// Returns the queue of the shard in R0, which is one of `members`'.
fn place(members: Members) -> Vec<Instruction> {
    vec![
        op(0x57, R0, 0, 0, GENERATION - 1),          // r0 &= 0x7f
        op(0x07, R0, 0, 0, members.turned() as i32), // r0 += where the first stands
        op(0x97, R0, 0, 0, members.count() as i32),  // r0 %= the queues
        op(0x07, R0, 0, 0, members.first() as i32),  // r0 += those in front
        op(0x95, 0, 0, 0, 0),                        // return r0
    ]
}

fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    Instruction { code, registers, offset, immediate }
}

#[cfg(test)]
mod tests {
    use std::borrow::Borrow;
    use std::net::UdpSocket as StdSocket;
    use std::time::Duration;

    use super::super::testnet::{in_network_namespace, is_udp, tun};
    use super::super::{FRAME_BYTES_MAX, TunDevice, TunOptions, TunQueue};
    use super::*;

    const QUEUES: usize = 4;

    fn steer(steering: &TunSteering, queue: &TunQueue, group: Group) {
        let program = TunSteering::load(steering.map(), group).unwrap();
        TunSteering::attach(program.as_fd(), queue.as_fd()).unwrap();
    }

    fn attach(queues: &[TunQueue]) -> TunSteering {
        let steering = TunSteering::with(TunSteering::create_map().unwrap());
        steer(&steering, &queues[0], Group::alone(queues.len()));
        steering
    }

    /// How many UDP packets each queue holds, once `total` are there.
    fn packets(queues: &[impl Borrow<TunQueue>], total: usize) -> Vec<usize> {
        let mut buf = vec![0; FRAME_BYTES_MAX];
        let mut counts = vec![0; queues.len()];
        for _ in 0..2000 {
            for (queue, count) in queues.iter().zip(&mut counts) {
                while let Some(bytes) = queue.borrow().read(&mut buf).unwrap() {
                    *count += usize::from(is_udp(&buf[..bytes]));
                }
            }
            if counts.iter().sum::<usize>() >= total {
                return counts;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{counts:?} of {total} packets came");
    }

    /// Sends packets of many flows to `address` and returns what each queue got.
    fn flows(queues: &[impl Borrow<TunQueue>], address: IpAddr, flows: usize) -> Vec<usize> {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        for _ in 0..flows {
            StdSocket::bind(any).unwrap().send_to(b"packet", (address, 53)).unwrap();
        }
        packets(queues, flows)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn packets_reach_the_queue_that_their_destination_is_mapped_to() {
        in_network_namespace(|| {
            let (_device, queues) = tun(QUEUES);
            let steering = attach(&queues);
            for (index, host) in (2..22).enumerate() {
                for address in [ip(&format!("198.18.0.{host}")), ip(&format!("fd00::{host:x}"))] {
                    // The families do not share entries.
                    let queue = (index + usize::from(address.is_ipv6())) % QUEUES;
                    steering.set(address, Some(ShardIndex(queue as u16))).unwrap();
                }
            }
            for (index, host) in (2..22).enumerate() {
                for address in [ip(&format!("198.18.0.{host}")), ip(&format!("fd00::{host:x}"))] {
                    let queue = (index + usize::from(address.is_ipv6())) % QUEUES;
                    let mut expected = vec![0; QUEUES];
                    expected[queue] = 12;
                    assert_eq!(flows(&queues, address, 12), expected, "{address}");
                }
            }
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_route_that_moves_takes_its_packets_along() {
        in_network_namespace(|| {
            let (_device, queues) = tun(QUEUES);
            let steering = attach(&queues);
            for address in [ip("198.18.0.77"), ip("fd00::77")] {
                for queue in [3, 0, 2, 1] {
                    steering.set(address, Some(ShardIndex(queue as u16))).unwrap();
                    let mut expected = vec![0; QUEUES];
                    expected[queue] = 10;
                    assert_eq!(flows(&queues, address, 10), expected, "{address}");
                }
            }
        });
    }

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn unknown_destinations_spread_and_each_keeps_to_one_queue() {
        in_network_namespace(|| {
            let (_device, queues) = tun(QUEUES);
            let steering = attach(&queues);
            steering.set(ip("198.18.0.101"), Some(ShardIndex(0))).unwrap();
            steering.set(ip("198.18.0.101"), None).unwrap();
            for base in ["198.18.0.", "fd00::"] {
                let mut total = [0; QUEUES];
                for host in 100..108 {
                    let counts = flows(&queues, ip(&format!("{base}{host}")), 5);
                    assert_eq!(counts.iter().filter(|count| **count > 0).count(), 1, "{counts:?}");
                    counts.iter().zip(&mut total).for_each(|(count, total)| *total += count);
                }
                assert_eq!(total, [10; QUEUES]);
            }
        });
    }

    /// Queues of a second process join, have their own addresses and those of nobody, and are alone in the end; the first one's close one by one,
    /// from the last to the first. What the map says is said once.
    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn two_processes_share_a_device_by_generation_whatever_their_shards_and_their_queues_left() {
        for (old, new) in [(1, 1), (2, 2), (4, 4), (1, 4), (4, 2), (2, 3)] {
            in_network_namespace(|| {
                let (device, mut before) = tun(old);
                let steering = attach(&before);
                let options = TunOptions::default();
                let (_device, joined) = TunDevice::join(device.name(), new, 1400, &options, false).unwrap();
                let address = |shard: u16| ip(&format!("198.18.0.{}", 10 + shard));
                let of_odd = |shard: u16| shard | GENERATION as u16;
                let shards: Vec<u16> = (0..old as u16).chain((0..new as u16).map(of_odd)).collect();
                for &shard in &shards {
                    steering.set(address(shard), Some(ShardIndex(shard))).unwrap();
                }
                let mut members = Members::behind(old as u32, new as u32);
                let olds = Members::behind(0, old as u32);
                loop {
                    steer(&steering, &joined[0], Group::of_two(Generation::Odd, members, olds));
                    let queues: Vec<_> = before.iter().chain(&joined).collect();
                    // Those of the old process that have not left, and all of the new one.
                    let present = shards[..before.len()].iter().chain(&shards[old..]);
                    for (place, &shard) in present.enumerate() {
                        let mut expected = vec![0; queues.len()];
                        expected[place] = 6;
                        assert_eq!(flows(&queues, address(shard), 6), expected, "{shard:#x}, {} left", before.len());
                    }
                    let unknown = flows(&queues, ip("198.18.0.9"), 6);
                    assert_eq!(unknown[before.len()..].iter().sum::<usize>(), 6, "{unknown:?}");
                    if before.pop().is_none() {
                        break;
                    }
                    members = members.one_left();
                }
            });
        }
    }

    #[test]
    fn all_threads_may_share_the_map() {
        fn assert_shared<T: Send + Sync>() {}
        assert_shared::<TunSteering>();
    }

    #[test]
    fn the_last_and_first_entries_are_within_the_map() {
        assert_eq!((entry(ip("198.18.0.0")), entry(ip("198.18.255.255"))), (0, 65535));
        assert_eq!((entry(ip("fd00::")), entry(ip("fd00::ffff"))), (65536, 2 * FAMILY_ENTRIES - 1));
    }

    #[test]
    fn what_is_not_permitted_says_so_in_one_line_with_the_fallback() {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let text = refusal("loading the program", io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains("flow table") && text.lines().count() == 1, "{text}");
        }
        let text = refusal("loading the program", io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(text.contains("CAP_BPF"), "{text}");
    }
}
