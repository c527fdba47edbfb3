//! The sockets of a crowd: who receives what, and which way out each client has.
//!
//! With [`Sources::Addresses`] there is one socket for all clients, and a client is an address that packets come to and go from. With
//! [`Sources::Ports`] each client has a socket, and a second one for a while after it has moved.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use rustc_hash::FxHashMap;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use slab::Slab;
use tollgate::io::{BindError, ReceiveBatch, TransmitBatch, UdpOptions, UdpSocket, Wake};
use tollgate_shards::{Received, Transmit};

use super::report::CrowdCounts;
use super::trouble::Loss;
use crate::scenario::Sources;

/// Messages of a `recvmmsg`, each an aggregate in 64 KiB of its own: more of them would not stay in a core's cache.
const RECEIVES_MAX: usize = 8;
/// Runs of a `sendmmsg`, and the bytes after which no more wait: the kernel is to find them in the core's cache.
const SENDS_MAX: usize = 32;
const SEND_BYTES_MAX: usize = 256 << 10;
/// Sockets that one sleep tells of.
const EVENTS_MAX: usize = 256;
/// Buffers of a socket that all clients share, in bytes, each way.
const SHARED_BUFFER_BYTES: usize = 16 << 20;
/// Buffers of a socket that is one client's, in bytes, each way.
const OWN_BUFFER_BYTES: usize = 512 << 10;
/// How long a port that a client has left still leads to it.
const RETIREMENT: Duration = Duration::from_secs(3);
/// How long one wait for a full socket takes at most, and how many of them make it unusable.
const BLOCKED_WAIT: Duration = Duration::from_millis(100);
const BLOCKED_WAITS_MAX: u32 = 100;
/// Descriptors that the rest of the process is left.
const DESCRIPTORS_SPARE: u64 = 128;

const WAKE: u64 = u64::MAX;

/// A socket, and the client that has it to itself.
#[derive(Debug)]
struct Outlet {
    socket: UdpSocket,
    client: Option<u32>,
}

/// A client's way out.
#[derive(Debug, Clone, Copy)]
struct Exit {
    outlet: usize,
    source: Option<IpAddr>,
}

/// All sockets of a crowd, what waits to be sent on them, and who has received something.
pub(super) struct Outlets {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    outlets: Slab<Outlet>,
    exits: Vec<Exit>,
    by_source: FxHashMap<IpAddr, u32>,
    spare_sources: VecDeque<IpAddr>,
    /// Outlets that clients have left, and until when they are kept.
    retired: VecDeque<(Instant, usize)>,
    remote: SocketAddr,
    /// Outlets that have something to be received.
    readable: VecDeque<usize>,
    receives: ReceiveBatch,
    sends: TransmitBatch,
    /// The outlet that `sends` is for, and how much waits in it.
    sends_outlet: usize,
    sends_bytes: usize,
}

impl Outlets {
    /// Opens the sockets of `sources.len()` clients in this thread's network namespace. `connections` is how many there are in all crowds.
    pub fn open(
        how: Sources,
        sources: &[Option<IpAddr>],
        spare_sources: Vec<IpAddr>,
        remote: SocketAddr,
        connections: u32,
        wake: &Wake,
    ) -> Result<Outlets> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("cannot make an epoll descriptor")?;
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), EventFlags::IN).context("cannot watch an eventfd")?;
        let mut outlets = Outlets {
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            outlets: Slab::new(),
            exits: Vec::with_capacity(sources.len()),
            by_source: FxHashMap::default(),
            spare_sources: spare_sources.into(),
            retired: VecDeque::new(),
            remote,
            readable: VecDeque::new(),
            receives: ReceiveBatch::new(RECEIVES_MAX),
            sends: TransmitBatch::new(SENDS_MAX),
            sends_outlet: 0,
            sends_bytes: 0,
        };
        match how {
            Sources::Addresses => outlets.open_shared(sources)?,
            Sources::Ports => outlets.open_each(sources.len(), connections)?,
        }
        Ok(outlets)
    }

    fn open_shared(&mut self, sources: &[Option<IpAddr>]) -> Result<()> {
        let outlet = self.add(SHARED_BUFFER_BYTES, None)?;
        for (client, source) in (0..).zip(sources) {
            let source = source.context("a client has no address, but each is to have one of its own")?;
            if self.by_source.insert(source, client).is_some() {
                bail!("two clients have the address {source}: give each one of its own");
            }
            self.exits.push(Exit { outlet, source: Some(source) });
        }
        Ok(())
    }

    fn open_each(&mut self, clients: usize, connections: u32) -> Result<()> {
        require_descriptors(clients as u64)?;
        require_ports(connections)?;
        for client in 0..clients as u32 {
            let outlet = self
                .add(OWN_BUFFER_BYTES, Some(client))
                .with_context(|| format!("client {} of {clients} has no socket", client + 1))?;
            self.exits.push(Exit { outlet, source: None });
        }
        Ok(())
    }

    fn add(&mut self, buffer_bytes: usize, client: Option<u32>) -> Result<usize> {
        let options =
            UdpOptions { send_buffer_bytes: buffer_bytes, receive_buffer_bytes: buffer_bytes, ..UdpOptions::default() };
        let socket = UdpSocket::for_remote(self.remote, &options).map_err(explain)?;
        let entry = self.outlets.vacant_entry();
        let outlet = entry.key();
        epoll::add(&self.epoll, &socket, EventData::new_u64(outlet as u64), EventFlags::IN)
            .context("cannot watch a socket")?;
        entry.insert(Outlet { socket, client });
        Ok(outlet)
    }

    /// Gives `client` another address, or another port. Returns whether there was one.
    pub fn rebind(&mut self, now: Instant, client: u32) -> Result<bool> {
        let Exit { outlet, source } = self.exits[client as usize];
        if let Some(left) = source {
            let Some(next) = self.spare_sources.pop_front() else { return Ok(false) };
            self.spare_sources.push_back(left);
            self.by_source.insert(next, client);
            self.exits[client as usize].source = Some(next);
        } else {
            self.exits[client as usize].outlet = self.add(OWN_BUFFER_BYTES, Some(client))?;
            self.retired.push_back((now + RETIREMENT, outlet));
        }
        Ok(true)
    }

    /// Closes the ports that were left long enough ago.
    pub fn retire(&mut self, now: Instant, counts: &mut CrowdCounts) -> Result<()> {
        while let Some((_, outlet)) = self.retired.front().copied().filter(|(until, _)| *until <= now) {
            self.retired.pop_front();
            if self.sends_outlet == outlet {
                self.flush(counts)?;
            }
            self.readable.retain(|readable| *readable != outlet);
            // A closed socket leaves the epoll set by itself.
            self.outlets.remove(outlet);
        }
        Ok(())
    }

    /// Sleeps until something is received, the owner calls or `timeout` is over. Returns whether the owner has called.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        let timeout = Timespec::try_from(timeout).context("a sleep is too long")?;
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for sockets"),
        }
        let mut is_woken = false;
        // What the last pass left is still to be received first.
        let left = self.readable.len();
        for event in &self.events {
            match event.data.u64() {
                WAKE => is_woken = true,
                outlet if self.readable.iter().take(left).all(|readable| *readable != outlet as usize) => {
                    self.readable.push_back(outlet as usize);
                }
                _ => {}
            }
        }
        Ok(is_woken)
    }

    /// Whether something is known to be there that was not received yet.
    pub fn has_more(&self) -> bool {
        !self.readable.is_empty()
    }

    /// Receives what is there, up to a bound, and hands it to the clients that it is for.
    pub fn receive(&mut self, loss: &mut Option<Loss>, counts: &mut CrowdCounts, sink: &mut impl FnMut(u32, Received)) {
        for _ in 0..self.readable.len() {
            let Some(readable) = self.readable.pop_front() else { return };
            let Some(Outlet { socket, client }) = self.outlets.get(readable) else { continue };
            let by_source = &self.by_source;
            let mut hand_out = |mut received: Received| {
                let datagrams = received.data.len().div_ceil(received.segment_bytes) as u64;
                counts.outer_received_datagrams += datagrams;
                let client = client.or_else(|| by_source.get(&received.local_ip?).copied());
                let Some(client) = client else {
                    counts.outer_stray_datagrams += datagrams;
                    return;
                };
                if let Some(loss) = loss {
                    let (left, lost) = loss.thin(&mut received.data, received.segment_bytes);
                    received.data.truncate(left);
                    counts.injected_lost_down += lost;
                }
                if !received.data.is_empty() {
                    sink(client, received);
                }
            };
            // One call a pass: what it brought is done with, and its buffers are free, before the next.
            match socket.receive(&mut self.receives, &mut hand_out) {
                Ok(outcome) if outcome.messages < RECEIVES_MAX => {}
                Ok(_) => self.readable.push_back(readable),
                // An error that the network reported. It is gone now.
                Err(_) => counts.receive_errors += 1,
            }
        }
    }

    /// Queues all that `poll` has to send for `client`, and sends what there is no more room for.
    pub fn transmit(
        &mut self,
        client: u32,
        loss: &mut Option<Loss>,
        counts: &mut CrowdCounts,
        poll: &mut impl FnMut(&mut Vec<u8>) -> Option<Transmit>,
    ) -> Result<()> {
        let Exit { outlet, source } = self.exits[client as usize];
        loop {
            let is_full = self.sends.is_full() || self.sends_bytes >= SEND_BYTES_MAX;
            if is_full || (self.sends_outlet != outlet && !self.sends.is_empty()) {
                self.flush(counts)?;
            }
            self.sends_outlet = outlet;
            let mut is_polled_empty = true;
            let sends_bytes = &mut self.sends_bytes;
            let is_filled = self.sends.fill(|buf| {
                while let Some(mut transmit) = poll(buf) {
                    transmit.local_ip = source;
                    if let Some(loss) = loss {
                        let (left, lost) = loss.thin(&mut buf[..transmit.bytes], transmit.segment_bytes);
                        counts.injected_lost_up += lost;
                        buf.truncate(left);
                        transmit.bytes = left;
                    }
                    if transmit.bytes > 0 {
                        *sends_bytes += transmit.bytes;
                        is_polled_empty = false;
                        return Some(transmit);
                    }
                }
                None
            });
            if is_polled_empty {
                return Ok(());
            }
            debug_assert!(is_filled, "there was room");
        }
    }

    /// Sends what is queued, waiting while the socket is full.
    pub fn flush(&mut self, counts: &mut CrowdCounts) -> Result<()> {
        let Some(Outlet { socket, .. }) = self.outlets.get(self.sends_outlet) else { return Ok(()) };
        let mut waits = 0;
        self.sends_bytes = 0;
        while !self.sends.is_empty() {
            let outcome = socket.send(&mut self.sends);
            counts.outer_sent_datagrams += outcome.datagrams as u64;
            counts.outer_refused_datagrams += outcome.dropped as u64;
            if !outcome.blocked {
                continue;
            }
            waits += 1;
            if waits > BLOCKED_WAITS_MAX {
                bail!("a UDP socket took no datagram for {} s", (BLOCKED_WAIT * BLOCKED_WAITS_MAX).as_secs());
            }
            let before = Instant::now();
            wait_until_writable(socket)?;
            counts.blocked_ns += before.elapsed().as_nanos() as u64;
        }
        Ok(())
    }
}

fn wait_until_writable(socket: &UdpSocket) -> Result<()> {
    let timeout = Timespec::try_from(BLOCKED_WAIT).context("a wait is too long")?;
    match poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait for a socket"),
    }
}

/// Makes sure that this process may open `more` descriptors beside those that it has, and raises its limit as far as it may.
///
/// # Errors
///
/// When that is too few, in a line with the remedy.
pub fn require_descriptors(more: u64) -> Result<()> {
    let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    let needed = open + more + DESCRIPTORS_SPARE;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if maximum.is_none_or(|maximum| maximum >= needed) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum.or(Some(needed)), maximum });
        return raised.context("cannot raise the limit of open files (RLIMIT_NOFILE)");
    }
    let limit = maximum.unwrap_or_default();
    bail!(
        "too few descriptors: this process may open {limit} files and needs {needed}, one for each of {more} clients with a port of \
         its own: raise the limit (`ulimit -Hn {needed}`), have fewer clients, or let them have addresses (sources = \"addresses\")"
    )
}

/// Makes sure that the network namespace of this thread has `ports` free ports at best.
fn require_ports(ports: u32) -> Result<()> {
    const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(RANGE).with_context(|| format!("cannot read {RANGE}"))?;
    let mut bounds = text.split_whitespace().map(str::parse::<u32>);
    let (Some(Ok(first)), Some(Ok(last))) = (bounds.next(), bounds.next()) else {
        bail!("{RANGE} holds {text:?} instead of two numbers");
    };
    let available = (last + 1).saturating_sub(first);
    if available >= ports {
        return Ok(());
    }
    bail!(
        "too few ports: net.ipv4.ip_local_port_range leaves {available}, but each of {ports} clients needs one: widen it (`sysctl -w \
         net.ipv4.ip_local_port_range=\"1024 65535\"`), have fewer clients, or let them have addresses (sources = \"addresses\")"
    )
}

/// What a refused socket means for who wanted one for each client.
fn explain(error: BindError) -> anyhow::Error {
    match &error {
        BindError::InUse { .. } => anyhow::anyhow!(
            "the range of ports is exhausted: widen net.ipv4.ip_local_port_range, have fewer clients, or let them have addresses \
             (sources = \"addresses\")"
        ),
        BindError::System { source, .. } if is_out_of_descriptors(source) => anyhow::anyhow!(
            "too few descriptors ({source}): raise the limit of open files, or let clients have addresses (sources = \"addresses\")"
        ),
        _ => anyhow::Error::new(error),
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno == Some(Errno::MFILE) || errno == Some(Errno::NFILE)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;

    use tollgate::lab::Namespace;

    use super::super::trouble::Chance;
    use super::*;
    use crate::deployment::require_namespaces_or_skip;

    /// A gateway's socket, and the outlets of clients that know it.
    struct Bench {
        gateway: StdSocket,
        outlets: Outlets,
        counts: CrowdCounts,
        loss: Option<Loss>,
    }

    impl Bench {
        fn new(how: Sources, sources: &[Option<IpAddr>], spare: Vec<IpAddr>) -> Bench {
            let gateway = StdSocket::bind("127.0.0.1:0").unwrap();
            gateway.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let remote = gateway.local_addr().unwrap();
            let wake = Wake::new().unwrap();
            let outlets = Outlets::open(how, sources, spare, remote, sources.len() as u32, &wake).unwrap();
            Bench { gateway, outlets, counts: CrowdCounts::default(), loss: None }
        }

        /// Sends `text` from `client`, in datagrams of four bytes.
        fn send(&mut self, client: u32, text: &str) {
            let remote = self.gateway.local_addr().unwrap();
            let mut text = Some(text);
            let mut poll = |buf: &mut Vec<u8>| {
                let text = text.take()?;
                buf.extend_from_slice(text.as_bytes());
                Some(Transmit { remote, local_ip: None, ecn: None, bytes: text.len(), segment_bytes: 4 })
            };
            self.outlets.transmit(client, &mut self.loss, &mut self.counts, &mut poll).unwrap();
            self.outlets.flush(&mut self.counts).unwrap();
        }

        /// Sends `text` from `client`, and returns where it comes from.
        fn sent_from(&mut self, client: u32, text: &str) -> SocketAddr {
            self.send(client, text);
            let mut bytes = [0; 64];
            let (length, from) = self.gateway.recv_from(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], text.as_bytes());
            from
        }

        /// Answers to `addresses`, and returns which clients that reached, with the answers.
        fn reached(&mut self, addresses: &[SocketAddr], answers: usize) -> Vec<(u32, String)> {
            for (index, address) in addresses.iter().enumerate() {
                self.gateway.send_to(format!("an{index:02}").as_bytes(), address).unwrap();
            }
            let mut reached = Vec::new();
            let deadline = Instant::now() + Duration::from_secs(10);
            while reached.len() < answers || self.counts.outer_received_datagrams < addresses.len() as u64 {
                assert!(Instant::now() < deadline, "{reached:?}");
                self.outlets.wait(Duration::from_millis(10)).unwrap();
                self.outlets.receive(&mut self.loss, &mut self.counts, &mut |client, received| {
                    reached.push((client, String::from_utf8(received.data.to_vec()).unwrap()));
                });
            }
            self.counts.outer_received_datagrams = 0;
            reached.sort_by(|one, other| one.1.cmp(&other.1));
            reached
        }
    }

    fn local(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 1, last])
    }

    #[test]
    fn clients_with_addresses_share_a_socket_and_each_gets_its_own() {
        let mut bench = Bench::new(Sources::Addresses, &[Some(local(1)), Some(local(2))], vec![local(3)]);
        let (one, other) = (bench.sent_from(0, "one"), bench.sent_from(1, "two"));
        assert_eq!((one.ip(), other.ip(), one.port()), (local(1), local(2), other.port()));
        assert_eq!(bench.reached(&[other, one], 2), [(1, "an00".to_owned()), (0, "an01".to_owned())]);
        let nobody = SocketAddr::new(local(77), one.port());
        assert_eq!(bench.reached(&[nobody, one], 1), [(0, "an01".to_owned())]);
        assert_eq!(bench.counts.outer_stray_datagrams, 1);
    }

    #[test]
    fn an_address_that_was_left_leads_to_its_client_until_another_takes_it() {
        let mut bench = Bench::new(Sources::Addresses, &[Some(local(1)), Some(local(2))], vec![local(3)]);
        let (one, now) = (bench.sent_from(0, "one"), Instant::now());
        assert!(bench.outlets.rebind(now, 0).unwrap());
        let moved = bench.sent_from(0, "away");
        assert_eq!(moved.ip(), local(3));
        assert_eq!(bench.reached(&[one, moved], 2), [(0, "an00".to_owned()), (0, "an01".to_owned())]);
        assert!(bench.outlets.rebind(now, 1).unwrap());
        assert_eq!(bench.sent_from(1, "two").ip(), local(1));
        assert_eq!(bench.reached(&[one], 1), [(1, "an00".to_owned())]);
    }

    #[test]
    fn clients_with_ports_keep_one_that_was_left_for_a_while() {
        let mut bench = Bench::new(Sources::Ports, &[None, None], Vec::new());
        let (one, other, now) = (bench.sent_from(0, "one"), bench.sent_from(1, "two"), Instant::now());
        assert_ne!(one.port(), other.port());
        assert!(bench.outlets.rebind(now, 0).unwrap());
        bench.outlets.retire(now, &mut bench.counts).unwrap();
        let moved = bench.sent_from(0, "away");
        assert!(moved.port() != one.port() && moved.port() != other.port());
        let expected = [(0, "an00".to_owned()), (1, "an01".to_owned()), (0, "an02".to_owned())];
        assert_eq!(bench.reached(&[one, other, moved], 3), expected);
        bench.outlets.retire(now + RETIREMENT, &mut bench.counts).unwrap();
        // Nobody has the old port any more: it can be bound.
        StdSocket::bind(("0.0.0.0", one.port())).unwrap();
        assert_eq!(bench.reached(&[moved], 1), [(0, "an00".to_owned())]);
    }

    #[test]
    fn what_is_lost_on_purpose_is_counted_and_not_sent_or_handed_out() {
        let mut bench = Bench::new(Sources::Addresses, &[Some(local(1))], Vec::new());
        let one = bench.sent_from(0, "one");
        bench.loss = Some(Loss::new(Chance::new(1, 0), 1.0));
        bench.send(0, "0000111122");
        assert_eq!((bench.counts.injected_lost_up, bench.counts.outer_sent_datagrams), (3, 1));
        assert_eq!(bench.reached(&[one, one], 0), []);
        assert_eq!(bench.counts.injected_lost_down, 2);
        bench.loss = Some(Loss::new(Chance::new(7, 0), 0.5));
        for _ in 0..20 {
            bench.send(0, "000011112222333344445555");
        }
        let sent = bench.counts.outer_sent_datagrams - 1;
        assert_eq!(sent + bench.counts.injected_lost_up - 3, 120);
        assert!((20..100).contains(&sent), "{sent}");
    }

    #[test]
    fn a_plan_without_an_address_for_each_is_refused() {
        let open = |sources: &[Option<IpAddr>]| {
            let remote = "127.0.0.1:9".parse().unwrap();
            let wake = Wake::new().unwrap();
            Outlets::open(Sources::Addresses, sources, Vec::new(), remote, 2, &wake).err().unwrap().to_string()
        };
        assert!(open(&[Some(local(1)), None]).contains("no address"));
        assert!(open(&[Some(local(1)), Some(local(1))]).contains("two clients have the address 127.0.1.1"));
    }

    #[test]
    fn too_few_ports_are_found_before_the_first_packet_and_the_remedy_is_named() {
        require_namespaces_or_skip!();
        let namespace = Namespace::new("clients").unwrap();
        namespace.sysctl("net/ipv4/ip_local_port_range", "40000\t40003").unwrap();
        let open = |clients: usize| {
            namespace.run(|| {
                let remote = "127.0.0.1:9".parse().unwrap();
                let wake = Wake::new().unwrap();
                let sources = vec![None; clients];
                let opened = Outlets::open(Sources::Ports, &sources, Vec::new(), remote, clients as u32, &wake);
                opened.map(drop).map_err(|error| format!("{error:#}"))
            })
        };
        open(4).unwrap();
        let error = open(5).unwrap_err();
        assert!(error.contains("leaves 4, but each of 5 clients") && error.contains("sysctl -w"), "{error}");
        let _taken = namespace.run(|| StdSocket::bind("0.0.0.0:40001")).unwrap();
        let error = open(4).unwrap_err();
        assert!(error.contains("range of ports is exhausted") && error.contains("client 4 of 4"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn too_few_descriptors_are_found_and_the_remedy_is_named() {
        require_descriptors(10).unwrap();
        let Some(limit) = getrlimit(Resource::Nofile).maximum else { return };
        let error = require_descriptors(limit).unwrap_err().to_string();
        assert!(error.contains("too few descriptors") && error.contains("ulimit -Hn"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
}
