//! The control plane's end of the link, and the threads that read and write.

use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, TrySendError, bounded};
use tollgate_shards::sibling::MESSAGE_BYTES_MAX;

use super::{CONTROL_PLANE, HEAD_BYTES, Line, SiblingEnd, push_frame};
use crate::gateway::waker::Waker;
use crate::io::Wake;

/// Batches of frames between a core and the writer, and between the reader and a core.
pub const BATCHES_MAX: usize = 4;
/// Words of a control plane that wait, each way.
pub const WORDS_MAX: usize = 64;
/// Of the reader's buffer.
const READ_BYTES: usize = 256 << 10;
/// How long what was said last may take to leave, when the link is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a link has ended, if nothing else is known.
const GONE: &str = "the other process has ended";

/// What the other process's control plane says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// In one piece, as they were given to its [`SiblingLink::send`].
    Words(Vec<u8>),
    /// Nothing any more, for this reason, and nor do its cores: all that they have said waits at the own cores.
    Gone(String),
}

/// The control planes' side of the link. It ends when this value is dropped.
#[derive(Debug)]
pub struct SiblingLink {
    line: Arc<Line>,
    words: Sender<Vec<u8>>,
    said: Receiver<Said>,
    /// Disconnected when the writer has ended.
    writer: Receiver<Infallible>,
}

impl SiblingLink {
    /// Starts the link's two threads on `stream`, which is past its first words, and makes an end for each of the cores behind `wakers`, in order. `wake`
    /// is notified of what the other control plane says. The threads end by themselves when the link does.
    ///
    /// # Errors
    ///
    /// If the system has no room for the threads.
    pub fn start(stream: UnixStream, wakers: &[Waker], wake: Arc<Wake>) -> io::Result<(SiblingLink, Vec<SiblingEnd>)> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        let line = Arc::new(Line { stream, ended: OnceLock::new() });
        let (words, words_outbox) = bounded(WORDS_MAX);
        let (said_sender, said) = bounded(WORDS_MAX);
        let (reading, reader) = bounded(0);
        let (writing, writer) = bounded(0);
        let mut outboxes = Vec::with_capacity(wakers.len());
        let mut cores = Vec::with_capacity(wakers.len());
        let mut ends = Vec::with_capacity(wakers.len());
        for waker in wakers {
            let (outbox, frames) = bounded(BATCHES_MAX);
            let (inbox, messages) = bounded(BATCHES_MAX);
            outboxes.push(frames);
            cores.push(CoreInbox { inbox, waker: waker.clone(), batch: Vec::new() });
            ends.push(SiblingEnd::new(line.clone(), outbox, messages));
        }
        let writer_of_it = Writer { line: line.clone(), outboxes, words: words_outbox, reader, _writing: writing };
        let reader_of_it = Reader { line: line.clone(), cores, said: said_sender, wake, _reading: reading };
        thread::Builder::new().name("tollgate-link-w".to_owned()).spawn(|| writer_of_it.run())?;
        thread::Builder::new().name("tollgate-link-r".to_owned()).spawn(|| reader_of_it.run())?;
        Ok((SiblingLink { line, words, said, writer }, ends))
    }

    /// Says `words` to the other control plane. Never blocks: where the other one does not take them, the link ends.
    pub fn send(&self, words: Vec<u8>) {
        if words.len() > MESSAGE_BYTES_MAX {
            return self.line.end(format!("{} bytes of words are more than a frame may have", words.len()));
        }
        let mut frame = Vec::with_capacity(HEAD_BYTES + words.len());
        push_frame(&mut frame, CONTROL_PLANE, &words);
        if let Err(TrySendError::Full(_)) = self.words.try_send(frame) {
            self.line.end("the other process does not take what it is told");
        }
    }

    /// The next of what was said. [`Said::Gone`] comes once, and last.
    pub fn poll(&self) -> Option<Said> {
        self.said.try_recv().ok()
    }

    /// Ends the link. What was said before goes first, if the other process takes it: that blocks for a tenth of a second at most.
    pub fn close(mut self) {
        drop(std::mem::replace(&mut self.words, bounded(0).0));
        let _ = self.writer.recv_timeout(CLOSE_TIMEOUT);
    }
}

impl Drop for SiblingLink {
    fn drop(&mut self) {
        self.line.end("closed");
    }
}

/// The thread that writes.
struct Writer {
    line: Arc<Line>,
    outboxes: Vec<Receiver<Vec<u8>>>,
    words: Receiver<Vec<u8>>,
    /// Disconnected when the reader has ended.
    reader: Receiver<Infallible>,
    _writing: Sender<Infallible>,
}

impl Writer {
    fn run(self) {
        let ended = self.write();
        self.line.end(ended.map_or_else(reason_of, |()| GONE.to_owned()));
    }

    /// Writes until the link is closed or the reader ends.
    fn write(&self) -> io::Result<()> {
        let mut stream = &self.line.stream;
        let mut select = Select::new();
        let outboxes: Vec<_> = self.outboxes.iter().chain([&self.words]).collect();
        let words = outboxes.len() - 1;
        outboxes.iter().for_each(|outbox| _ = select.recv(outbox));
        select.recv(&self.reader);
        loop {
            let ready = select.ready();
            // The reader says nothing before it ends.
            let Some(outbox) = outboxes.get(ready) else { return Ok(()) };
            match outbox.try_recv() {
                Ok(frames) => stream.write_all(&frames)?,
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) if ready == words => break,
                Err(TryRecvError::Disconnected) => select.remove(ready),
            }
        }
        for outbox in outboxes {
            outbox.try_iter().try_for_each(|frames| stream.write_all(&frames))?;
        }
        Ok(())
    }
}

/// What the reader has for a core.
struct CoreInbox {
    inbox: Sender<Vec<Bytes>>,
    waker: Waker,
    batch: Vec<Bytes>,
}

/// The thread that reads. It waits for cores and control plane, and loses nothing.
struct Reader {
    line: Arc<Line>,
    cores: Vec<CoreInbox>,
    said: Sender<Said>,
    wake: Arc<Wake>,
    _reading: Sender<Infallible>,
}

impl Reader {
    fn run(mut self) {
        let reason = self.read();
        self.line.end(reason);
        self.tell(Said::Gone(self.line.ended.get().cloned().unwrap_or_default()));
    }

    /// Reads to the end, and says why it is one.
    fn read(&mut self) -> String {
        let (mut buffer, mut received) = (vec![0; READ_BYTES], BytesMut::new());
        loop {
            match (&self.line.stream).read(&mut buffer) {
                Ok(0) => return GONE.to_owned(),
                Ok(read) => received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return reason_of(error),
            }
            let taken = self.take_frames(&mut received);
            self.deliver();
            if let Err(reason) = taken {
                return reason;
            }
        }
    }

    fn take_frames(&mut self, received: &mut BytesMut) -> Result<(), String> {
        while let Some(&[a, b, c, d, e, f]) = received.first_chunk::<HEAD_BYTES>() {
            let (length, place) = (u32::from_be_bytes([a, b, c, d]) as usize, u16::from_be_bytes([e, f]));
            if length > MESSAGE_BYTES_MAX {
                return Err(format!("a frame of it has {length} bytes, {MESSAGE_BYTES_MAX} at most are taken"));
            }
            if received.len() < HEAD_BYTES + length {
                break;
            }
            received.advance(HEAD_BYTES);
            let bytes = received.split_to(length).freeze();
            if place == CONTROL_PLANE {
                self.tell(Said::Words(bytes.into()));
            } else if let Some(core) = self.cores.get_mut(usize::from(place)) {
                core.batch.push(bytes);
            } else {
                return Err(format!("a frame of it is for shard {place}, which is not there"));
            }
        }
        Ok(())
    }

    fn deliver(&mut self) {
        for core in self.cores.iter_mut().filter(|core| !core.batch.is_empty()) {
            // A core that has ended takes nothing any more.
            let _ = core.inbox.send(std::mem::take(&mut core.batch));
            core.waker.wake();
        }
    }

    fn tell(&self, said: Said) {
        let _ = self.said.send(said);
        self.wake.notify();
    }
}

fn reason_of(error: io::Error) -> String {
    match error.kind() {
        // Also where it had not read all before.
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => GONE.to_owned(),
        _ => format!("the link to the other process: {error}"),
    }
}
