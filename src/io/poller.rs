//! How a shard sleeps: one epoll descriptor over everything it owns.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{TunQueue, UdpSocket, Wake};

const UDP: u64 = 0;
const TUN: u64 = 1;
const WAKE: u64 = 2;
const HANDSHAKES: u64 = 3;
/// What is always asked of a UDP socket. A shutdown is told apart from input, for it would look like input for ever.
const UDP_INPUT: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);
/// One event for each descriptor.
const EVENTS_MAX: usize = 4;

/// What a shard may do without being refused. Errors count as readiness: the next call brings them to light.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// The UDP socket has datagrams.
    pub udp: bool,
    /// The UDP socket takes datagrams. Reported only while asked for.
    pub udp_writable: bool,
    /// The TUN queue has frames. Reported only while asked for, which it is at first.
    pub tun: bool,
    /// Somebody notified the [`Wake`], which is to be drained.
    pub wake: bool,
    /// The socket for handshakes has datagrams. Reported once after each [`Poller::want_handshakes`].
    pub handshakes: bool,
    /// A UDP socket was shut down, and brings nothing any more.
    pub udp_gone: bool,
}

/// A level-triggered epoll descriptor over a UDP socket, a TUN queue and a [`Wake`].
///
/// It borrows none of them; a descriptor that is closed leaves the poller by itself. It can itself be polled as a descriptor.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    udp: Option<i32>,
    tun: Option<i32>,
    udp_wanted: Cell<bool>,
    udp_writable_wanted: Cell<bool>,
    tun_wanted: Cell<bool>,
    lacks_pwait2: Cell<bool>,
}

impl Poller {
    /// Watches `udp` and `tun` (where there are such) for input, and `wake`. Fails only when descriptors or memory run out.
    pub fn new(udp: Option<&UdpSocket>, tun: Option<&TunQueue>, wake: &Wake) -> io::Result<Poller> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        if let Some(udp) = udp {
            epoll::add(&epoll, udp, EventData::new_u64(UDP), UDP_INPUT)?;
        }
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        if let Some(tun) = tun {
            epoll::add(&epoll, tun, EventData::new_u64(TUN), EventFlags::IN)?;
        }
        Ok(Poller {
            epoll,
            udp: udp.map(|socket| socket.as_fd().as_raw_fd()),
            tun: tun.map(|queue| queue.as_fd().as_raw_fd()),
            udp_wanted: Cell::new(true),
            udp_writable_wanted: Cell::new(false),
            tun_wanted: Cell::new(true),
            lacks_pwait2: Cell::new(false),
        })
    }

    /// Watches `socket` too, for one report: whoever takes little at a time asks again when it wants more.
    pub fn watch_handshakes(&self, socket: &UdpSocket) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(HANDSHAKES), UDP_INPUT | EventFlags::ONESHOT)?)
    }

    /// Asks for another report of `socket`, which is watched already.
    pub fn want_handshakes(&self, socket: &UdpSocket) -> io::Result<()> {
        self.modify(socket.as_fd().as_raw_fd(), HANDSHAKES, UDP_INPUT | EventFlags::ONESHOT)
    }

    /// Says whether to wake up for datagrams of the UDP socket (not while it is left alone after errors), and whether to do so when it takes
    /// datagrams again: after a send that was refused, until one succeeds. Cheap when nothing changes.
    pub fn want_udp(&self, input: bool, writable: bool) -> io::Result<()> {
        let is_so = self.udp_wanted.get() == input && self.udp_writable_wanted.get() == writable;
        let Some(udp) = self.udp.filter(|_| !is_so) else { return Ok(()) };
        let flags = |wanted, flags| if wanted { flags } else { EventFlags::empty() };
        self.modify(udp, UDP, flags(input, UDP_INPUT) | flags(writable, EventFlags::OUT))?;
        self.udp_wanted.set(input);
        self.udp_writable_wanted.set(writable);
        Ok(())
    }

    /// Says whether to wake up for frames of the TUN queue: not while there is no room for what they become, or a level-triggered
    /// poller would spin. Cheap when nothing changes.
    pub fn want_tun(&self, wanted: bool) -> io::Result<()> {
        let Some(tun) = self.tun.filter(|_| self.tun_wanted.get() != wanted) else { return Ok(()) };
        self.modify(tun, TUN, if wanted { EventFlags::IN } else { EventFlags::empty() })?;
        self.tun_wanted.set(wanted);
        Ok(())
    }

    /// Watches the UDP socket no more.
    pub fn forget_udp(&mut self) {
        self.forget(|poller| poller.udp.take());
    }

    /// Watches the TUN queue no more.
    pub fn forget_tun(&mut self) {
        self.forget(|poller| poller.tun.take());
    }

    /// A descriptor that is out of order is always ready, and would end every sleep.
    fn forget(&mut self, take: impl FnOnce(&mut Poller) -> Option<i32>) {
        let Some(fd) = take(self) else { return };
        // SAFETY: the number is only handed to epoll_ctl, which refuses it when it is closed or stands for something not added.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        // One that is closed has left by itself.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Sleeps until something is ready or `timeout` is over (never, for `None`; at once, for zero), to the nanosecond as far as the
    /// kernel's timers go. A signal ends the sleep with nothing ready.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Readiness> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
        });
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let ready = match self.wait_for_events(&mut events, timeout.as_ref()) {
            Ok(ready) => ready,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let mut readiness = Readiness::default();
        for event in events.iter().take(ready) {
            let (flags, source) = (event.events as i32, event.u64);
            let failed = flags & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
            let readable = flags & libc::EPOLLIN != 0 || failed;
            match source {
                UDP => {
                    readiness.udp |= readable;
                    readiness.udp_gone |= flags & (libc::EPOLLHUP | libc::EPOLLRDHUP) != 0;
                    readiness.udp_writable |= self.udp_writable_wanted.get() && (flags & libc::EPOLLOUT != 0 || failed);
                }
                TUN => readiness.tun |= readable,
                HANDSHAKES => {
                    readiness.handshakes |= readable;
                    readiness.udp_gone |= flags & (libc::EPOLLHUP | libc::EPOLLRDHUP) != 0;
                }
                _ => readiness.wake |= readable,
            }
        }
        Ok(readiness)
    }

    fn wait_for_events(
        &self,
        events: &mut [libc::epoll_event; EVENTS_MAX],
        timeout: Option<&libc::timespec>,
    ) -> io::Result<usize> {
        if self.lacks_pwait2.get() {
            return self.wait_in_two_calls(events, timeout);
        }
        let timeout_pointer: *const libc::timespec = timeout.map_or(std::ptr::null(), |timeout| timeout);
        // SAFETY: `events` has room for `EVENTS_MAX` events, the timeout is null or outlives the call, and there is no signal mask.
        let ready = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                EVENTS_MAX as libc::c_int,
                timeout_pointer,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        if let Ok(ready) = usize::try_from(ready) {
            return Ok(ready);
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                self.lacks_pwait2.set(true);
                self.wait_in_two_calls(events, timeout)
            }
            error => Err(error),
        }
    }

    /// The same where there is no `epoll_pwait2`: in kernels before 5.11, and behind filters that are older than it. `epoll_wait` would know
    /// milliseconds only.
    fn wait_in_two_calls(
        &self,
        events: &mut [libc::epoll_event; EVENTS_MAX],
        timeout: Option<&libc::timespec>,
    ) -> io::Result<usize> {
        if timeout.is_none_or(|timeout| timeout.tv_sec != 0 || timeout.tv_nsec != 0) {
            let timeout = timeout.map(|timeout| Timespec { tv_sec: timeout.tv_sec, tv_nsec: timeout.tv_nsec });
            poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], timeout.as_ref())?;
        }
        // SAFETY: `events` has room for `EVENTS_MAX` events and lives through the call.
        let ready =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as libc::c_int, 0) };
        usize::try_from(ready).map_err(|_| io::Error::last_os_error())
    }

    fn modify(&self, fd: i32, source: u64, flags: EventFlags) -> io::Result<()> {
        // SAFETY: the number is only handed to epoll_ctl, which refuses it when it is closed or stands for something not added.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(source), flags)?)
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::super::UdpOptions;
    use super::*;

    fn poller() -> (Poller, UdpSocket, Arc<Wake>) {
        let socket = UdpSocket::for_remote("127.0.0.1:9".parse().unwrap(), &UdpOptions::default()).unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        (Poller::new(Some(&socket), None, &wake).unwrap(), socket, wake)
    }

    #[test]
    fn a_timeout_below_a_millisecond_is_slept_and_not_rounded_to_zero() {
        for lacks_pwait2 in [false, true] {
            let (poller, _socket, wake) = poller();
            poller.lacks_pwait2.set(lacks_pwait2);
            let start = Instant::now();
            assert_eq!(poller.wait(Some(Duration::from_micros(300))).unwrap(), Readiness::default());
            assert!(start.elapsed() >= Duration::from_micros(300));
            wake.notify();
            assert!(poller.wait(None).unwrap().wake && poller.wait(Some(Duration::ZERO)).unwrap().wake);
        }
    }

    #[test]
    fn a_notification_from_another_thread_ends_the_sleep_until_drained() {
        let (poller, _socket, wake) = poller();
        let other = Arc::clone(&wake);
        let thread = std::thread::spawn(move || other.notify());
        assert_eq!(poller.wait(None).unwrap(), Readiness { wake: true, ..Readiness::default() });
        thread.join().unwrap();
        assert!(poller.wait(None).unwrap().wake, "level triggered");
        wake.drain();
        assert!(!poller.wait(Some(Duration::ZERO)).unwrap().wake);
    }

    #[test]
    fn writability_is_reported_only_while_wanted() {
        let (poller, _socket, _wake) = poller();
        assert!(!poller.wait(Some(Duration::ZERO)).unwrap().udp_writable);
        poller.want_udp(true, true).unwrap();
        assert!(poller.wait(Some(Duration::ZERO)).unwrap().udp_writable);
        poller.want_udp(true, false).unwrap();
        assert!(!poller.wait(Some(Duration::ZERO)).unwrap().udp_writable);
    }

    #[test]
    fn handshakes_are_reported_once_and_again_only_when_asked() {
        let (poller, _socket, _wake) = poller();
        let options = UdpOptions::default();
        let group = super::super::UdpGroup::bind("127.0.0.1:0".parse().unwrap(), 1, &options, 1 << 16).unwrap();
        let handshakes = &group[0].handshakes;
        poller.watch_handshakes(handshakes).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(&[0xc0; 100], handshakes.local_address()).unwrap();
        assert!(poller.wait(Some(Duration::from_secs(5))).unwrap().handshakes);
        assert!(!poller.wait(Some(Duration::ZERO)).unwrap().handshakes, "what is left does not wake again");
        poller.want_handshakes(handshakes).unwrap();
        assert!(poller.wait(Some(Duration::ZERO)).unwrap().handshakes);
    }
}
