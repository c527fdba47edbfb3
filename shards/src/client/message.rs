//! What the gateway writes on a stream: one message each, whole and finished.

use quinn_proto::{Connection, Dir, StreamId};

use crate::assignment::STREAM_MESSAGE_BYTES_MAX;

/// The stream that is being read, one at a time.
#[derive(Debug, Default)]
pub struct Messages {
    stream: Option<StreamId>,
    bytes: Vec<u8>,
}

/// A message was longer than [`STREAM_MESSAGE_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl Messages {
    /// The next message that has arrived whole. One that the gateway gives up is none.
    pub fn poll(&mut self, connection: &mut Connection) -> Result<Option<Vec<u8>>, TooLong> {
        loop {
            let Some(id) = self.stream.or_else(|| connection.streams().accept(Dir::Uni)) else { return Ok(None) };
            self.stream = Some(id);
            match self.read(connection, id)? {
                Read::Waits => return Ok(None),
                Read::Whole => {
                    self.stream = None;
                    return Ok(Some(std::mem::take(&mut self.bytes)));
                }
                Read::GivenUp => *self = Messages::default(),
            }
        }
    }

    fn read(&mut self, connection: &mut Connection, id: StreamId) -> Result<Read, TooLong> {
        let mut stream = connection.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return Ok(Read::GivenUp) };
        let outcome = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) if self.bytes.len() + chunk.bytes.len() > STREAM_MESSAGE_BYTES_MAX => {
                    break Err(TooLong);
                }
                Ok(Some(chunk)) => self.bytes.extend_from_slice(&chunk.bytes),
                Ok(None) => break Ok(Read::Whole),
                Err(quinn_proto::ReadError::Blocked) => break Ok(Read::Waits),
                Err(quinn_proto::ReadError::Reset(_)) => break Ok(Read::GivenUp),
            }
        };
        let _ = chunks.finalize();
        outcome
    }
}

enum Read {
    /// More is to come.
    Waits,
    Whole,
    GivenUp,
}
