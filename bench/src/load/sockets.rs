//! The sockets of a generator, each with what waits to be sent on it.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tollgate::io::{ReceiveBatch, SendCounters, TransmitBatch, UdpSocket, Wake};
use tollgate_shards::{Received, Transmit};
use tollgate_testkit::chance::Chance;

/// Messages of a `recvmmsg`, each an aggregate in 64 KiB of its own: more of them would not stay in a core's cache.
const RECEIVES_MAX: usize = 8;
/// Runs of a `sendmmsg`, and the bytes after which no more wait: the kernel is to find them in the core's cache.
const SENDS_MAX: usize = 32;
const SEND_BYTES_MAX: usize = 256 << 10;
/// How long one wait for a full socket takes at most, and how many of them make it unusable.
const BLOCKED_WAIT: Duration = Duration::from_millis(100);
const BLOCKED_WAITS_MAX: u32 = 100;

/// A socket, and what waits to be sent on it.
pub struct Port {
    socket: UdpSocket,
    /// Whether something may be there that was not received yet.
    pub is_readable: bool,
    receives: ReceiveBatch,
    sends: TransmitBatch,
    sends_bytes: usize,
}

impl Port {
    pub fn new(socket: UdpSocket) -> Port {
        let (receives, sends) = (ReceiveBatch::new(RECEIVES_MAX), TransmitBatch::new(SENDS_MAX));
        Port { socket, is_readable: false, receives, sends, sends_bytes: 0 }
    }

    /// Receives what is there, up to a bound. Fails with an error that the network reported, which is gone then.
    pub fn receive(&mut self, sink: &mut impl FnMut(Received)) -> io::Result<()> {
        if self.is_readable {
            // One call a pass: what it brought is done with, and its buffers are free, before the next.
            self.is_readable = self.socket.receive(&mut self.receives, sink)?.messages == RECEIVES_MAX;
        }
        Ok(())
    }

    /// Queues all that `poll` has to send, and sends what there is no more room for.
    pub fn transmit(&mut self, poll: &mut impl FnMut(&mut Vec<u8>) -> Option<Transmit>) -> Result<()> {
        loop {
            if self.sends.is_full() || self.sends_bytes >= SEND_BYTES_MAX {
                self.flush()?;
            }
            let sends_bytes = &mut self.sends_bytes;
            let is_filled = self.sends.fill(|buf| {
                let transmit = poll(buf)?;
                *sends_bytes += transmit.bytes;
                Some(transmit)
            });
            if !is_filled {
                return Ok(());
            }
        }
    }

    /// Sends what is queued, waiting while the socket is full.
    pub fn flush(&mut self) -> Result<()> {
        let mut waits = 0;
        self.sends_bytes = 0;
        while !self.sends.is_empty() {
            if !self.socket.send(&mut self.sends).blocked {
                continue;
            }
            waits += 1;
            if waits > BLOCKED_WAITS_MAX {
                bail!("a UDP socket took no datagram for {} s", (BLOCKED_WAIT * BLOCKED_WAITS_MAX).as_secs());
            }
            wait_for(&mut [PollFd::new(&self.socket, PollFlags::OUT)], BLOCKED_WAIT)?;
        }
        Ok(())
    }

    pub fn sent(&self) -> SendCounters {
        self.sends.counters()
    }
}

/// Sleeps until something is received, the owner calls or `timeout` is over.
pub fn wait(ports: [&mut Port; 2], wake: &Wake, timeout: Duration) -> Result<()> {
    let [one, other] = ports;
    if timeout.is_zero() {
        (one.is_readable, other.is_readable) = (true, true);
        return Ok(());
    }
    let mut watched =
        [one.socket.as_fd(), other.socket.as_fd(), wake.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    wait_for(&mut watched, timeout)?;
    let [has_one, has_other, is_called] = watched.map(|watched| !watched.revents().is_empty());
    (one.is_readable, other.is_readable) = (has_one, has_other);
    if is_called {
        wake.drain();
    }
    Ok(())
}

fn wait_for(watched: &mut [PollFd<'_>], timeout: Duration) -> Result<()> {
    let timeout = Timespec::try_from(timeout).context("a wait is too long")?;
    match poll(watched, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait for a socket"),
    }
}

/// Which outer address is whose.
pub struct Sources {
    of: Vec<IpAddr>,
    clients: FxHashMap<IpAddr, u32>,
    spare: VecDeque<IpAddr>,
}

impl Sources {
    /// An address that a client has left for one of `spare` still leads to it, and goes to another one only after all others of these have.
    pub fn new(of: Vec<IpAddr>, spare: Vec<IpAddr>) -> Sources {
        Sources { clients: of.iter().copied().zip(0..).collect(), of, spare: spare.into() }
    }

    #[inline]
    pub fn of(&self, client: u32) -> IpAddr {
        self.of[client as usize]
    }

    #[inline]
    pub fn client(&self, address: IpAddr) -> Option<u32> {
        self.clients.get(&address).copied()
    }

    /// Gives `client` another address. Returns whether there was one to spare.
    pub fn rebind(&mut self, client: u32) -> bool {
        let Some(next) = self.spare.pop_front() else { return false };
        self.spare.push_back(std::mem::replace(&mut self.of[client as usize], next));
        self.clients.insert(next, client);
        true
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
    pub fn thin(&mut self, run: &mut [u8], segment_bytes: usize) -> (usize, u64) {
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
        // Each byte says whose it is; the last datagram is shorter.
        let whole: Vec<u8> = (0..10_000).map(|at| (at / 10 % 256) as u8).take(9_993).collect();
        let mut run = whole.clone();
        let (left, lost) = loss.thin(&mut run, 10);
        let mut sent = whole.chunks(10);
        assert!(run[..left].chunks(10).all(|datagram| sent.any(|sent| sent == datagram)), "in order and whole");
        assert_eq!(left.div_ceil(10) as u64 + lost, 1000);
        assert!((200..400).contains(&lost), "{lost}");
    }
}
