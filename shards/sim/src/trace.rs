//! What happened, as one number, and in words where they are wanted. Ciphertext never goes in, only lengths.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::schedule::Time;

/// Who did something, or to whom it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    World,
    Shard(u16),
    Device(u32),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::World => f.write_str("world"),
            Who::Shard(index) => write!(f, "shard {index}"),
            Who::Device(index) => write!(f, "device {index}"),
        }
    }
}

#[derive(Debug)]
pub struct Trace {
    hasher: SipHasher13,
    events: u64,
    print: bool,
}

impl Trace {
    /// An empty trace, which goes to the standard output as well if `print` says so.
    pub fn new(print: bool) -> Self {
        Trace { hasher: SipHasher13::new_with_keys(0x746f_6c6c_6761_7465, 1), events: 0, print }
    }

    /// Something of a certain length happened.
    pub fn note(&mut self, at: Time, who: Who, what: &str, length: u64) {
        self.events += 1;
        self.hasher.write_u64(at.ns);
        self.hasher.write_u64(match who {
            Who::World => 0,
            Who::Shard(index) => 1 << 32 | u64::from(index),
            Who::Device(index) => 2 << 32 | u64::from(index),
        });
        self.hasher.write(what.as_bytes());
        self.hasher.write_u64(length);
        if self.print {
            println!("{at} {who}: {what} {length}");
        }
    }

    /// An inner packet passed, of which every byte counts.
    pub fn packet(&mut self, at: Time, who: Who, what: &str, parts: &[&[u8]]) {
        self.note(at, who, what, parts.iter().map(|part| part.len() as u64).sum());
        parts.iter().for_each(|part| self.hasher.write(part));
    }

    /// Something happened that takes words.
    pub fn tell(&mut self, at: Time, who: Who, what: fmt::Arguments<'_>) {
        self.note(at, who, &what.to_string(), 0);
    }

    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub fn events(&self) -> u64 {
        self.events
    }
}
