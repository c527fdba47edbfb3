//! Messages in a CRYPTO stream, each behind its length.

use quinn_proto::VarInt;
use quinn_proto::coding::Codec;

/// Longest message, in bytes. The longest that a handshake has is half of it.
pub const MESSAGE_BYTES_MAX: usize = 8192;

const LENGTH_BYTES_MAX: usize = 8;

/// The length before a message says that it is longer than any.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

/// The part of a message that has come. It holds one message at most, since each is taken as soon as it is whole.
#[derive(Debug, Default)]
pub struct Inbox {
    length: [u8; LENGTH_BYTES_MAX],
    /// How much of the length has come.
    length_bytes: usize,
    message: Vec<u8>,
}

impl Inbox {
    /// Takes bytes from the beginning of `stream`, until a message is whole or nothing is left.
    pub fn read(&mut self, stream: &mut &[u8]) -> Result<Option<Vec<u8>>, TooLong> {
        let Some(length) = self.read_length(stream)? else { return Ok(None) };
        let missing = length - self.message.len();
        let part = stream.split_off(..missing.min(stream.len())).expect("no more than there is");
        self.message.extend_from_slice(part);
        if self.message.len() < length {
            return Ok(None);
        }
        self.length_bytes = 0;
        Ok(Some(std::mem::take(&mut self.message)))
    }

    /// The length of the message that comes, once it has come.
    fn read_length(&mut self, stream: &mut &[u8]) -> Result<Option<usize>, TooLong> {
        loop {
            let whole = 1 << (self.length[0] >> 6);
            if self.length_bytes != 0 && self.length_bytes == whole {
                let length = VarInt::decode(&mut &self.length[..whole]).map_err(|_| TooLong)?.into_inner();
                return usize::try_from(length)
                    .ok()
                    .filter(|&length| length <= MESSAGE_BYTES_MAX)
                    .map(Some)
                    .ok_or(TooLong);
            }
            let Some(&byte) = stream.split_off_first() else { return Ok(None) };
            self.length[self.length_bytes] = byte;
            self.length_bytes += 1;
        }
    }

    /// Whether there is part of a message.
    pub fn is_empty(&self) -> bool {
        self.length_bytes == 0
    }
}

/// Appends `message` to `stream`.
pub fn write(stream: &mut Vec<u8>, message: &[u8]) -> Result<(), TooLong> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(TooLong);
    }
    VarInt::from_u32(message.len() as u32).encode(stream);
    stream.extend_from_slice(message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use reishi_quinn::framing::HandshakeMessageFramer;

    use super::*;

    /// All messages of `stream`, given in `parts`.
    fn read_all<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Vec<u8>>, TooLong> {
        let (mut inbox, mut messages) = (Inbox::default(), Vec::new());
        for mut part in parts {
            while let Some(message) = inbox.read(&mut part)? {
                messages.push(message);
            }
            assert!(part.is_empty());
            assert!(inbox.message.capacity() <= 2 * MESSAGE_BYTES_MAX);
        }
        Ok(messages)
    }

    fn parts<'a>(stream: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort();
        cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect()
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_whatever_the_parts(
            messages in vec(vec(any::<u8>(), 0..300), 0..6), cuts: [prop::sample::Index; 8]
        ) {
            let mut stream = Vec::new();
            messages.iter().for_each(|message| write(&mut stream, message).unwrap());
            prop_assert_eq!(read_all(parts(&stream, &cuts)).unwrap(), messages);
        }

        #[test]
        fn garbage_is_the_same_in_any_parts_and_to_the_reference(stream in vec(any::<u8>(), 0..3000), cuts: [prop::sample::Index; 8]) {
            let whole = read_all([&stream[..]]);
            prop_assert_eq!(&read_all(stream.chunks(1)), &whole);
            prop_assert_eq!(&read_all(parts(&stream, &cuts)), &whole);
            let mut reference = HandshakeMessageFramer::default();
            // It keeps eight messages at most, where it is not asked between.
            let mut theirs = Vec::new();
            let result = stream.iter().try_for_each(|byte| {
                let result = reference.ingest_bytes(&[*byte]);
                theirs.extend(reference.pop_message());
                result.map(drop)
            });
            prop_assert_eq!(result.is_err(), whole.is_err());
            if let Ok(messages) = whole {
                prop_assert_eq!(messages, theirs);
            }
        }
    }

    #[test]
    fn the_longest_message_passes_and_a_longer_one_does_not() {
        let mut stream = Vec::new();
        write(&mut stream, &[1; MESSAGE_BYTES_MAX]).unwrap();
        assert_eq!(read_all([&stream[..]]).unwrap(), [[1; MESSAGE_BYTES_MAX]]);
        assert_eq!(write(&mut stream, &[1; MESSAGE_BYTES_MAX + 1]), Err(TooLong));
        let mut stream = Vec::new();
        VarInt::from_u32(MESSAGE_BYTES_MAX as u32 + 1).encode(&mut stream);
        assert_eq!(read_all([&stream[..]]), Err(TooLong), "before any of it has come");
        assert_eq!(read_all([&[0xff; 8][..]]), Err(TooLong));
    }
}
