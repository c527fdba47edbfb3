//! The first words of the process that serves to the one that is to take over, with copies of its descriptors.
//!
//! In bytes: magic, version and length, then the introduction by `postcard`; then the descriptors, some with each byte that follows. Both sides block, for
//! a bounded time: the one that writes has an empty socket before it, the one that reads has nothing else to do yet.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tollgate_shards::{Rate, sibling};
use zeroize::Zeroizing;

use super::VERSION;
use crate::io::{Members, descriptor_messages};

const MAGIC: [u8; 8] = *b"Tollgate";
const HEAD_BYTES: usize = MAGIC.len() + 2 + 2 + 4;
/// Longest introduction, in bytes.
const INTRODUCTION_BYTES_MAX: u32 = 1 << 20;
/// How long one side waits for the other's next bytes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the process that is to take over has to know.
#[derive(Serialize, Deserialize)]
pub struct Introduction {
    /// The process that introduces itself.
    pub process: u32,
    /// Whether its generation is the odd one.
    pub is_odd: bool,
    /// The number of its shards.
    pub shards: u16,
    /// The incarnation with which the other process's shards begin.
    pub incarnation: u32,
    /// The number of the order by which the homes go over.
    pub order: u64,
    /// The number of the snapshot in force.
    pub version: u64,
    /// The users with limits by order; without a rate, of no limit.
    pub limits: Vec<(String, Option<Rate>)>,
    /// Some of the users who are over their quotas.
    pub over_quota: Vec<String>,
    /// The secret that all keys are derived from.
    #[serde(with = "secret")]
    pub master: Zeroizing<[u8; 32]>,
    /// The UDP address and port of all sockets.
    pub address: SocketAddr,
    /// The name of the TUN device.
    pub interface: String,
    /// Whether that was made beforehand.
    pub is_adopted: bool,
    /// Where the sockets stand in the group that both are to share.
    pub sockets: Members,
    /// Where the queues stand.
    pub queues: Members,
    /// The keys of the configuration that both processes must have alike, each with its value.
    pub alike: Vec<(String, String)>,
    /// The path of the control socket, where there is one.
    pub control: Option<PathBuf>,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// Whether the steering map is among the descriptors.
    pub has_map: bool,
}

/// A secret, which is wiped wherever it was.
mod secret {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use zeroize::Zeroizing;

    pub fn serialize<S: Serializer>(secret: &Zeroizing<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
        (**secret).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zeroizing<[u8; 32]>, D::Error> {
        <[u8; 32]>::deserialize(deserializer).map(Zeroizing::new)
    }
}

/// Copies of a process's descriptors: what they stand for lives as long as any of them.
#[derive(Debug)]
pub struct Handed {
    /// UDP sockets, in the kernel's order.
    pub sockets: Vec<OwnedFd>,
    /// Queues of the TUN device, in the kernel's order.
    pub queues: Vec<OwnedFd>,
    /// The map that steers to the queues.
    pub map: Option<OwnedFd>,
    /// The listening control socket.
    pub control: Option<OwnedFd>,
    /// The listening socket of metrics.
    pub metrics: Option<OwnedFd>,
}

/// The control plane's listening sockets, each with where it listens, as they go from one process to the next.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The control socket.
    pub control: Option<(PathBuf, OwnedFd)>,
    /// Metrics.
    pub metrics: Option<(SocketAddr, OwnedFd)>,
}

/// Why there is no introduction.
#[derive(Debug, thiserror::Error)]
pub enum IntroductionError {
    /// Standard input is something else.
    #[error(
        "--successor is for the process that `tollgate upgrade` starts: standard input is no socket of a gateway ({0})"
    )]
    NoGateway(io::Error),
    /// The other process has another version.
    #[error(
        "the gateway that runs speaks version {theirs} of the words of an upgrade, this program version {VERSION}: restart the gateway instead"
    )]
    Version {
        /// The version that the other process speaks.
        theirs: u16,
    },
    /// The shards of the other process have another version.
    #[error(
        "the shards of the gateway that runs speak version {theirs}, those of this program version {}: restart the gateway instead",
        sibling::VERSION
    )]
    ShardVersion {
        /// The version that they speak.
        theirs: u16,
    },
    /// It is not understood.
    #[error("the gateway that runs does not say what it should ({0}): restart it instead")]
    Malformed(&'static str),
    /// It cannot be written or read.
    #[error("the first words of an upgrade: {0}")]
    Io(#[from] io::Error),
}

impl Introduction {
    /// Says it on `stream`, with copies of the descriptors.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn send(&self, stream: &UnixStream, handed: &Handed) -> Result<(), IntroductionError> {
        stream.set_write_timeout(Some(TIMEOUT))?;
        let body = Zeroizing::new(
            postcard::to_stdvec(self).map_err(|_| IntroductionError::Malformed("it cannot be written"))?,
        );
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        let head = [&MAGIC[..], &VERSION.to_be_bytes(), &sibling::VERSION.to_be_bytes(), &length].concat();
        let mut writer = stream;
        writer.write_all(&head)?;
        writer.write_all(&body)?;
        let Handed { sockets, queues, map, control, metrics } = handed;
        let all: Vec<BorrowedFd<'_>> =
            sockets.iter().chain(queues).chain(map).chain(control).chain(metrics).map(AsFd::as_fd).collect();
        descriptor_messages::send(stream.as_fd(), &all)?;
        stream.set_write_timeout(None)?;
        Ok(())
    }

    /// Hears it from `stream`.
    ///
    /// # Errors
    ///
    /// All but [`IntroductionError::NoGateway`].
    pub fn receive(stream: &UnixStream) -> Result<(Self, Handed), IntroductionError> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut head = [0; HEAD_BYTES];
        let mut reader = stream;
        reader.read_exact(&mut head)?;
        let (magic, rest) = head.split_at(MAGIC.len());
        let number = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
        let (theirs, of_shards) = (number(rest), number(&rest[2..]));
        if *magic != MAGIC {
            return Err(IntroductionError::Malformed("it does not begin as a gateway's words do"));
        }
        if theirs != VERSION {
            return Err(IntroductionError::Version { theirs });
        }
        if of_shards != sibling::VERSION {
            return Err(IntroductionError::ShardVersion { theirs: of_shards });
        }
        let length = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]);
        if length > INTRODUCTION_BYTES_MAX {
            return Err(IntroductionError::Malformed("it is too long"));
        }
        let mut body = Zeroizing::new(vec![0; length as usize]);
        reader.read_exact(&mut body)?;
        let introduction: Introduction =
            postcard::from_bytes(&body).map_err(|_| IntroductionError::Malformed("it cannot be read"))?;
        let handed = introduction.receive_descriptors(stream)?;
        stream.set_read_timeout(None)?;
        Ok((introduction, handed))
    }

    /// The listening sockets among what was `handed` over.
    pub fn listeners(&self, handed: &mut Handed) -> Listeners {
        Listeners {
            control: self.control.clone().zip(handed.control.take()),
            metrics: self.metrics.zip(handed.metrics.take()),
        }
    }

    fn receive_descriptors(&self, stream: &UnixStream) -> Result<Handed, IntroductionError> {
        let (sockets, queues) = (self.sockets.count() as usize, self.queues.count() as usize);
        let single = [self.has_map, self.control.is_some(), self.metrics.is_some()];
        let expected = sockets + queues + single.into_iter().filter(|is_there| *is_there).count();
        // Descriptors that this process may not have are left out by the kernel.
        let missing = IntroductionError::Malformed("descriptors are missing, as where this process may open too few");
        let mut all = descriptor_messages::receive(stream.as_fd(), expected)?.ok_or(missing)?.into_iter();
        let sockets = all.by_ref().take(sockets).collect();
        let queues = all.by_ref().take(queues).collect();
        let [map, control, metrics] = single.map(|is_there| is_there.then(|| all.next()).flatten());
        Ok(Handed { sockets, queues, map, control, metrics })
    }
}

/// The socket that stands in the place of standard input, which is empty afterwards.
///
/// # Errors
///
/// Where there is none.
pub fn take_over_input() -> Result<UnixStream, IntroductionError> {
    let input = rustix::stdio::stdin();
    let is_stream = rustix::net::sockopt::socket_type(input).is_ok_and(|kind| kind == rustix::net::SocketType::STREAM);
    if !is_stream {
        return Err(IntroductionError::NoGateway(io::ErrorKind::NotConnected.into()));
    }
    let stream = input.try_clone_to_owned().map_err(IntroductionError::NoGateway)?;
    let nothing = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    nothing.and_then(rustix::stdio::dup2_stdin).map_err(|error| IntroductionError::NoGateway(error.into()))?;
    Ok(UnixStream::from(stream))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn introduction(sockets: u32, queues: u32) -> Introduction {
        Introduction {
            process: 1,
            is_odd: true,
            shards: 3,
            incarnation: 2,
            order: 5,
            version: 9,
            limits: vec![("alice".to_owned(), None)],
            over_quota: vec!["bob".to_owned()],
            master: Zeroizing::new([7; 32]),
            address: "[::]:55555".parse().unwrap(),
            interface: "tg0".to_owned(),
            is_adopted: false,
            sockets: Members::behind(0, sockets),
            queues: Members::behind(0, queues),
            alike: vec![("port".to_owned(), "55555".to_owned())],
            control: Some("/run/control".into()),
            metrics: Some("127.0.0.1:9090".parse().unwrap()),
            has_map: true,
        }
    }

    /// Descriptors that are told apart by their files.
    fn files(count: u32) -> (Vec<OwnedFd>, Vec<u64>) {
        let file = |_| tempfile::tempfile().unwrap();
        let files: Vec<File> = (0..count).map(file).collect();
        let inodes = files.iter().map(|file| file.metadata().unwrap().ino()).collect();
        (files.into_iter().map(OwnedFd::from).collect(), inodes)
    }

    fn inodes(descriptors: Vec<OwnedFd>) -> Vec<u64> {
        descriptors.into_iter().map(|descriptor| File::from(descriptor).metadata().unwrap().ino()).collect()
    }

    #[test]
    fn an_introduction_arrives_with_all_descriptors_in_their_order() {
        for (sockets, queues) in [(2, 1), (256, 128)] {
            let (here, there) = UnixStream::pair().unwrap();
            let (socket_files, expected_sockets) = files(sockets);
            let (queue_files, expected_queues) = files(queues);
            let (rest, expected_rest) = files(3);
            let mut rest = rest.into_iter();
            let [map, control, metrics] = [rest.next(), rest.next(), rest.next()];
            let handed = Handed { sockets: socket_files, queues: queue_files, map, control, metrics };
            let said = introduction(sockets, queues);
            said.send(&here, &handed).unwrap();
            drop(handed);
            let (heard, handed) = Introduction::receive(&there).unwrap();
            assert_eq!((heard.version, *heard.master, heard.alike), (9, [7; 32], said.alike));
            assert_eq!(inodes(handed.sockets), expected_sockets);
            assert_eq!(inodes(handed.queues), expected_queues);
            assert_eq!(
                inodes([handed.map, handed.control, handed.metrics].into_iter().flatten().collect()),
                expected_rest
            );
        }
    }

    #[test]
    fn what_is_no_introduction_is_refused_in_one_line() {
        let head = |version: u16, of_shards: u16, length: u32| {
            [&MAGIC[..], &version.to_be_bytes(), &of_shards.to_be_bytes(), &length.to_be_bytes()].concat()
        };
        for (said, expected) in [
            (vec![0; HEAD_BYTES], "does not begin"),
            (head(VERSION + 1, sibling::VERSION, 0), "restart the gateway"),
            (head(VERSION, sibling::VERSION + 1, 0), "restart the gateway"),
            (head(VERSION, sibling::VERSION, INTRODUCTION_BYTES_MAX + 1), "too long"),
            (head(VERSION, sibling::VERSION, 0), "cannot be read"),
            (b"Toll".to_vec(), "first words"),
        ] {
            let (here, there) = UnixStream::pair().unwrap();
            (&here).write_all(&said).unwrap();
            drop(here);
            let error = Introduction::receive(&there).map(drop).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
