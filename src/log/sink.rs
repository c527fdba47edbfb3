//! Where lines of the log go. They may block: only the log's own thread writes to them.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::output::write_all;

/// How long a descriptor may take nothing before that is looked at again; there is nobody to tell.
const STALL: Duration = Duration::from_secs(3600);
/// Where systemd's journal takes entries.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

pub trait Sink: Send + 'static {
    /// For people.
    const NAME: &'static str;

    /// Writes one line, or fails and leaves it out.
    fn write(&mut self, line: &[u8]) -> io::Result<()>;
}

/// Standard error, or what stands for it.
pub struct Stream<D> {
    descriptor: D,
    /// Whether the last line was written in part.
    is_broken_off: bool,
}

impl<D> Stream<D> {
    pub fn new(descriptor: D) -> Self {
        Stream { descriptor, is_broken_off: false }
    }
}

impl<D: AsFd + Send + 'static> Sink for Stream<D> {
    const NAME: &'static str = "standard error";

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_broken_off {
            write_all(self.descriptor.as_fd(), b"\n", STALL, || true)?;
        }
        let written = write_all(self.descriptor.as_fd(), line, STALL, || true);
        self.is_broken_off = written.is_err();
        written
    }
}

/// systemd's journal, which may be started anew.
pub struct Journal(UnixDatagram);

impl Journal {
    /// # Errors
    ///
    /// If there is none.
    pub fn open() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        let has_none = |error: io::Error| {
            let remedy = "[log] format is \"journald\": write \"human\" or \"json\" where there is none";
            io::Error::new(
                error.kind(),
                format!("no journal of systemd takes entries at {JOURNAL} ({error}), and {remedy}"),
            )
        };
        // It takes an empty entry for none.
        socket.send_to(b"", JOURNAL).map_err(has_none)?;
        Ok(Journal(socket))
    }
}

impl Sink for Journal {
    const NAME: &'static str = "the journal";

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.0.send_to(line, JOURNAL).map(|_| ())
    }
}
