//! The event loop of the control plane: one poller over every descriptor that the control thread waits for.
//!
//! The loop is independent of the threads of the cores: it neither runs on glommio nor needs io_uring.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use polling::{Event, Events, PollMode, Poller};

/// What the control thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Signals of the process.
    Signals,
    /// Changes of the users file.
    UsersFile,
    /// Notices of the cores.
    Cores,
    /// Changes of the host's links, addresses and routes.
    Host,
    /// The keeper of users' usage.
    Usage,
    /// Clients of the control socket that want to connect.
    Acceptor,
    /// Clients of the metrics endpoint that want to connect.
    Metrics,
    /// The client of the control socket at this place.
    Client(usize),
    /// The client of the metrics endpoint at this place.
    Scraper(usize),
}

/// All but the clients, by key. The keys of both kinds of clients take turns.
const SOURCES: [Source; 7] =
    [Source::Signals, Source::UsersFile, Source::Cores, Source::Host, Source::Usage, Source::Acceptor, Source::Metrics];

impl Source {
    fn key(self) -> usize {
        match self {
            Source::Client(place) => SOURCES.len() + 2 * place,
            Source::Scraper(place) => SOURCES.len() + 2 * place + 1,
            source => SOURCES.iter().position(|other| *other == source).expect("all are listed"),
        }
    }

    fn of_key(key: usize) -> Self {
        let place = key.wrapping_sub(SOURCES.len());
        SOURCES.get(key).copied().unwrap_or(match place % 2 {
            0 => Source::Client(place / 2),
            _ => Source::Scraper(place / 2),
        })
    }
}

/// Waits for sources.
#[derive(Debug)]
pub struct EventLoop {
    poller: Arc<Poller>,
    events: Events,
}

impl EventLoop {
    /// A loop without sources.
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub fn new() -> io::Result<Self> {
        Ok(EventLoop { poller: Arc::new(Poller::new()?), events: Events::new() })
    }

    /// Reports `source` whenever `descriptor` has input.
    ///
    /// # Errors
    ///
    /// When the kernel has no memory for it.
    pub fn watch<T: AsFd>(&self, source: Source, descriptor: T) -> io::Result<Watched<T>> {
        self.add(source, descriptor, PollMode::Level)
    }

    /// Reports `source` once when `descriptor` has input, and again only after [`Watched::want`].
    ///
    /// # Errors
    ///
    /// When the kernel has no memory for it.
    pub fn watch_once<T: AsFd>(&self, source: Source, descriptor: T) -> io::Result<Watched<T>> {
        self.add(source, descriptor, PollMode::Oneshot)
    }

    fn add<T: AsFd>(&self, source: Source, descriptor: T, mode: PollMode) -> io::Result<Watched<T>> {
        // SAFETY: `Watched` owns what it borrows the number of, and takes it off the poller before it is closed.
        unsafe {
            self.poller.add_with_mode(descriptor.as_fd().as_raw_fd(), Event::readable(source.key()), mode)?;
        }
        Ok(Watched { descriptor, source, poller: self.poller.clone() })
    }

    /// Waits until a source has something or `timeout` is over; without one, until a source has something.
    ///
    /// # Errors
    ///
    /// When the kernel is out of memory.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<Source>> {
        self.events.clear();
        self.poller.wait(&mut self.events, timeout)?;
        Ok(self.events.iter().map(|event| Source::of_key(event.key)).collect())
    }
}

/// A descriptor that the loop watches until this value is dropped.
#[derive(Debug)]
pub struct Watched<T: AsFd> {
    descriptor: T,
    source: Source,
    poller: Arc<Poller>,
}

impl<T: AsFd> Watched<T> {
    /// Asks for one report of input, or of room for output.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn want(&self, interest: Interest) -> io::Result<()> {
        let (readable, writable) = (interest == Interest::Input, interest == Interest::Output);
        self.poller.modify(&self.descriptor, Event::new(self.source.key(), readable, writable))
    }
}

/// What a descriptor is to be ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Reading.
    Input,
    /// Writing.
    Output,
}

impl<T: AsFd> Deref for Watched<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.descriptor
    }
}

impl<T: AsFd> DerefMut for Watched<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.descriptor
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        // The kernel forgets a descriptor that is closed in any case.
        let _ = self.poller.delete(&self.descriptor);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_source_is_reported_while_it_has_input_or_once_and_no_more_when_it_is_dropped() {
        let (level, mut level_peer) = UnixStream::pair().unwrap();
        let (once, mut once_peer) = UnixStream::pair().unwrap();
        let mut event_loop = EventLoop::new().unwrap();
        let level = event_loop.watch(Source::Signals, level).unwrap();
        let once = event_loop.watch_once(Source::Scraper(7), once).unwrap();
        let mut wait = || event_loop.wait(Some(Duration::ZERO)).unwrap();
        assert_eq!(wait(), []);
        level_peer.write_all(b"x").unwrap();
        once_peer.write_all(b"x").unwrap();
        let first = wait();
        assert!(
            first.len() == 2 && first.contains(&Source::Signals) && first.contains(&Source::Scraper(7)),
            "{first:?}"
        );
        assert_eq!(wait(), [Source::Signals]);
        drop(level);
        once.want(Interest::Output).unwrap();
        assert_eq!(wait(), [Source::Scraper(7)]);
        assert_eq!(wait(), []);
    }
}
