//! The socket of a generator: a client is an address that packets come to and go from.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tollgate::io::{Poller, ReceiveBatch, TransmitBatch, UdpOptions, UdpSocket, Wake};
use tollgate_shards::{Received, Transmit};
use tollgate_testkit::chance::Chance;

use super::report::GeneratorCounts;

/// Messages of a `recvmmsg`, each an aggregate in 64 KiB of its own: more of them would not stay in a core's cache.
const RECEIVES_MAX: usize = 8;
/// Runs of a `sendmmsg`, and the bytes after which no more wait: the kernel is to find them in the core's cache.
const SENDS_MAX: usize = 32;
const SEND_BYTES_MAX: usize = 256 << 10;
/// The socket's buffers, each way.
const BUFFER_BYTES: usize = 16 << 20;
/// How long one wait for a full socket takes at most, and how many of them make it unusable.
const BLOCKED_WAIT: Duration = Duration::from_millis(100);
const BLOCKED_WAITS_MAX: u32 = 100;

/// The socket, what waits to be sent on it, and whose address is whose.
pub struct Sockets {
    socket: UdpSocket,
    poller: Poller,
    /// Of each client.
    sources: Vec<IpAddr>,
    by_source: FxHashMap<IpAddr, u32>,
    spare_sources: VecDeque<IpAddr>,
    /// Whether something may be there that was not received yet.
    pub is_readable: bool,
    /// What is lost on purpose.
    pub loss: Option<Loss>,
    receives: ReceiveBatch,
    sends: TransmitBatch,
    sends_bytes: usize,
}

impl Sockets {
    /// Opens the socket in this thread's network namespace. An address that a client has left for one of `spare_sources` still leads to it,
    /// and goes to another one only after all others of these have.
    pub fn open(sources: Vec<IpAddr>, spare_sources: Vec<IpAddr>, remote: SocketAddr, wake: &Wake) -> Result<Sockets> {
        let options =
            UdpOptions { send_buffer_bytes: BUFFER_BYTES, receive_buffer_bytes: BUFFER_BYTES, ..UdpOptions::default() };
        let socket = UdpSocket::for_remote(remote, &options)?;
        let poller = Poller::new(Some(&socket), None, wake).context("cannot watch a socket")?;
        Ok(Sockets {
            socket,
            poller,
            by_source: sources.iter().copied().zip(0..).collect(),
            sources,
            spare_sources: spare_sources.into(),
            is_readable: false,
            loss: None,
            receives: ReceiveBatch::new(RECEIVES_MAX),
            sends: TransmitBatch::new(SENDS_MAX),
            sends_bytes: 0,
        })
    }

    /// Gives `client` another address. Returns whether there was one to spare.
    pub fn rebind(&mut self, client: u32) -> bool {
        let Some(next) = self.spare_sources.pop_front() else { return false };
        let left = std::mem::replace(&mut self.sources[client as usize], next);
        self.spare_sources.push_back(left);
        self.by_source.insert(next, client);
        true
    }

    /// Sleeps until something is received, the owner calls or `timeout` is over. Returns whether the owner has called.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        self.poller.want_udp(true, false)?;
        let ready = self.poller.wait(Some(timeout)).context("cannot wait for a socket")?;
        self.is_readable |= ready.udp;
        Ok(ready.wake)
    }

    /// Receives what is there, up to a bound, and hands it to the clients that it is for. `sink` returns whether there is a connection for it.
    pub fn receive(&mut self, counts: &mut GeneratorCounts, sink: &mut impl FnMut(u32, Received) -> bool) {
        let Sockets { socket, receives, by_source, loss, .. } = self;
        let mut hand_out = |mut received: Received| {
            let mut left = received.data.len().div_ceil(received.segment_bytes) as u64;
            if let Some(loss) = loss {
                let (bytes, lost) = loss.thin(&mut received.data, received.segment_bytes);
                received.data.truncate(bytes);
                counts.injected_lost_down += lost;
                left -= lost;
            }
            let client = received.local_ip.and_then(|ip| by_source.get(&ip));
            if left > 0 && !client.is_some_and(|client| sink(*client, received)) {
                counts.outer_stray_datagrams += left;
            }
        };
        // One call a pass: what it brought is done with, and its buffers are free, before the next.
        match socket.receive(receives, &mut hand_out) {
            Ok(outcome) => self.is_readable = outcome.messages == RECEIVES_MAX,
            // An error that the network reported. It is gone now.
            Err(_) => counts.receive_errors += 1,
        }
    }

    /// Queues all that `poll` has to send for `client`, and sends what there is no more room for.
    pub fn transmit(
        &mut self,
        client: u32,
        counts: &mut GeneratorCounts,
        poll: &mut impl FnMut(&mut Vec<u8>) -> Option<Transmit>,
    ) -> Result<()> {
        let local_ip = Some(self.sources[client as usize]);
        loop {
            if self.sends.is_full() || self.sends_bytes >= SEND_BYTES_MAX {
                self.flush(counts)?;
            }
            let (sends_bytes, loss) = (&mut self.sends_bytes, &mut self.loss);
            let is_filled = self.sends.fill(|buf| {
                while let Some(mut transmit) = poll(buf) {
                    transmit.local_ip = local_ip;
                    if let Some(loss) = loss {
                        let (left, lost) = loss.thin(&mut buf[..transmit.bytes], transmit.segment_bytes);
                        counts.injected_lost_up += lost;
                        buf.truncate(left);
                        transmit.bytes = left;
                    }
                    if transmit.bytes > 0 {
                        *sends_bytes += transmit.bytes;
                        return Some(transmit);
                    }
                }
                None
            });
            if !is_filled {
                return Ok(());
            }
        }
    }

    /// Sends what is queued, waiting while the socket is full.
    pub fn flush(&mut self, counts: &mut GeneratorCounts) -> Result<()> {
        let mut waits = 0;
        self.sends_bytes = 0;
        while !self.sends.is_empty() {
            let outcome = self.socket.send(&mut self.sends);
            counts.outer_refused_datagrams += outcome.dropped as u64;
            if !outcome.blocked {
                continue;
            }
            waits += 1;
            if waits > BLOCKED_WAITS_MAX {
                bail!("a UDP socket took no datagram for {} s", (BLOCKED_WAIT * BLOCKED_WAITS_MAX).as_secs());
            }
            let timeout = Timespec::try_from(BLOCKED_WAIT).context("a wait is too long")?;
            match poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for a socket"),
            }
        }
        Ok(())
    }
}

/// Loses datagrams with a given probability, out of runs as well.
#[derive(Debug)]
pub struct Loss {
    chance: Chance,
    /// A datagram is lost when a number is below this.
    threshold: u64,
}

impl Loss {
    /// Loses a `share` of all, from 0 to 1; nothing of 0.
    pub fn new(chance: Chance, share: f64) -> Option<Loss> {
        (share > 0.0).then_some(Loss { chance, threshold: (share * u64::MAX as f64) as u64 })
    }

    /// Takes lost datagrams out of a run of datagrams of `segment_bytes` each, but for a shorter last one. Returns how many bytes are
    /// left, at the front of `run`, and how many datagrams were lost.
    fn thin(&mut self, run: &mut [u8], segment_bytes: usize) -> (usize, u64) {
        let (mut from, mut to, mut lost) = (0, 0, 0);
        while from < run.len() {
            let end = run.len().min(from + segment_bytes.max(1));
            if self.chance.number() < self.threshold {
                lost += 1;
            } else {
                run.copy_within(from..end, to);
                to += end - from;
            }
            from = end;
        }
        (to, lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_datagrams_are_cut_out_of_a_run_whole() {
        let mut loss = Loss::new(Chance::new(3), 0.3).unwrap();
        let mut lost_in_all = 0;
        for _ in 0..500 {
            // Each datagram says which one it is; the last is shorter.
            let mut run: Vec<u8> =
                (0..10).flat_map(|number: u8| vec![number; if number == 9 { 3 } else { 10 }]).collect();
            let (left, lost) = loss.thin(&mut run, 10);
            let kept: Vec<&[u8]> = run[..left].chunks(10).collect();
            assert_eq!(kept.len() as u64 + lost, 10);
            assert!(kept.is_sorted_by(|one, next| one[0] < next[0]), "in order");
            assert!(kept.iter().all(|datagram| datagram.iter().all(|byte| *byte == datagram[0])), "whole");
            lost_in_all += lost;
        }
        assert!((1250..1750).contains(&lost_in_all), "{lost_in_all} of 5000");
    }
}
