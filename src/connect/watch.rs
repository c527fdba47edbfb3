//! Tells the client when this machine's network has changed (links, addresses, routes), or its clock.
//!
//! It does not say what has changed: changes come in bursts, and the client compares the network with what it wants.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::warn;

use super::clock::ClockWatch;
use crate::io::Wake;
use crate::netlink::NetlinkWatch;

/// How long there must be no further change until a burst is over.
const QUIET: Duration = Duration::from_millis(15);
/// After this long a burst is told even if changes go on.
const DELAY_MAX: Duration = Duration::from_millis(60);

/// The end of a watch: dropped, it ends [`watch`].
pub struct WatchEnd<'a>(pub &'a Wake);

impl Drop for WatchEnd<'_> {
    fn drop(&mut self) {
        self.0.notify();
    }
}

/// The sources that the watching thread listens to.
pub struct Watched {
    /// Links, addresses and routes.
    pub network: NetlinkWatch,
    /// Jumps of the wall clock.
    pub clock: ClockWatch,
}

/// Whom to tell. What nobody has taken yet stands for what comes after it too.
#[derive(Debug, Clone)]
pub struct Told {
    /// Of a burst of changes of the network.
    pub network: Sender<()>,
    /// Of a jump of the clock.
    pub clock: Sender<()>,
}

/// Tells `told`, and notifies `wake`, at the first and after the last of each burst of changes, until `ended` is notified.
pub fn watch(watched: &Watched, ended: &Wake, told: &Told, wake: &Wake) {
    let result = (|| loop {
        match wait(watched, ended, None)? {
            Woken::Ended => return Ok(()),
            Woken::Late => continue,
            Woken::Clock => {
                watched.clock.drain();
                let _ = told.clock.try_send(());
            }
            Woken::Network => {
                // At once, for packets may be about to leave in clear; and again when the burst is complete.
                watched.network.drain();
                let _ = told.network.try_send(());
                wake.notify();
                match settle(watched, ended)? {
                    Settled::Ended => return Ok(()),
                    Settled::Alone => continue,
                    Settled::More => drop(told.network.try_send(())),
                }
            }
        }
        wake.notify();
    })();
    if let Err(error) = result {
        let error: Errno = error;
        warn!(%error, "changes of this machine's network are not noticed any more");
    }
}

/// How a burst of changes ended.
enum Settled {
    /// There was no other than the first.
    Alone,
    /// Others followed.
    More,
    /// The watch is to end.
    Ended,
}

/// Waits until a burst of changes is over, or long enough.
fn settle(watched: &Watched, ended: &Wake) -> Result<Settled, Errno> {
    let (first, mut settled) = (Instant::now(), Settled::Alone);
    while first.elapsed() < DELAY_MAX {
        match wait(watched, ended, Some(QUIET))? {
            Woken::Network => {
                watched.network.drain();
                settled = Settled::More;
            }
            Woken::Ended => return Ok(Settled::Ended),
            Woken::Late | Woken::Clock => break,
        }
    }
    Ok(settled)
}

#[derive(Clone, Copy, PartialEq)]
enum Woken {
    Ended,
    Network,
    Clock,
    Late,
}

fn wait(watched: &Watched, ended: &Wake, timeout: Option<Duration>) -> Result<Woken, Errno> {
    let timeout = timeout.map(|timeout| Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() });
    loop {
        let mut descriptors = [
            PollFd::new(ended, PollFlags::IN),
            PollFd::new(&watched.network, PollFlags::IN),
            PollFd::new(&watched.clock, PollFlags::IN),
        ];
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(0) => return Ok(Woken::Late),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        }
        let is_ready = |index: usize| !descriptors[index].revents().is_empty();
        return Ok(if is_ready(0) {
            Woken::Ended
        } else if is_ready(1) {
            Woken::Network
        } else {
            Woken::Clock
        });
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::bounded;
    use ipnet::IpNet;

    use super::*;
    use tollgate_testkit::Namespace;

    #[test]
    #[ignore = "needs root: cargo xtask test --full"]
    fn a_burst_of_changes_is_told_at_once_and_then_there_is_peace() {
        let namespace = Namespace::new("changing").unwrap();
        let network = namespace.run(NetlinkWatch::open).unwrap();
        let watched = Watched { network, clock: ClockWatch::open().unwrap() };
        let mut netlink = namespace.netlink().unwrap();
        let loopback = netlink.link("lo").unwrap().index;
        let (ended, wake) = (Wake::new().unwrap(), Wake::new().unwrap());
        let ((to, told), (clock, jumps)) = (bounded(1), bounded(1));
        let to = Told { network: to, clock };
        thread::scope(|scope| {
            let _end = WatchEnd(&ended);
            scope.spawn(|| watch(&watched, &ended, &to, &wake));
            for address in ["198.18.0.1/24", "198.18.0.2/24", "fd00:18::1/64"] {
                netlink.add_address(loopback, address.parse::<IpNet>().unwrap()).unwrap();
            }
            told.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(wake.drain());
            // The burst's end, and what the kernel does about it in the background.
            while told.recv_timeout(Duration::from_millis(300)).is_ok() {}
            assert!(jumps.is_empty());
        });
    }
}
