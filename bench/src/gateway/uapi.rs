//! The control socket of WireGuard programs: `set=1` and a key and value on each line
//! (the cross-platform userspace interface's configuration protocol).

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use ipnet::IpNet;
use zeroize::Zeroizing;

/// How long a program may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a socket that is not there yet is tried.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// Room for a request: it never grows, which would leave copies of the key behind. Bytes.
const REQUEST_BYTES_MAX: usize = 1024;

/// A key pair of WireGuard. The private key is never printed.
pub(super) struct KeyPair {
    private: PrivateKey,
}

/// One end of a tunnel with one peer.
pub(super) struct End<'a> {
    /// Its own keys.
    pub(super) keys: &'a KeyPair,
    /// The UDP port that it listens on.
    pub(super) port: u16,
    /// The other end's keys, of which the public one is told.
    pub(super) peer: &'a KeyPair,
    /// Where the other end is; `None` when it will show itself.
    pub(super) peer_address: Option<SocketAddr>,
    /// The inner addresses that are the other end's.
    pub(super) peer_networks: &'a [IpNet],
}

impl KeyPair {
    /// A new one.
    ///
    /// # Errors
    ///
    /// When there is no randomness.
    pub(super) fn generate() -> Result<Self> {
        let private = PrivateKey::generate(&X25519).map_err(|_| anyhow!("cannot make an X25519 key"))?;
        Ok(KeyPair { private })
    }

    fn private_bytes(&self) -> Result<Curve25519SeedBin<'static>> {
        self.private.as_be_bytes().map_err(|_| anyhow!("cannot read an X25519 key"))
    }

    fn public_bytes(&self) -> Result<Vec<u8>> {
        let public = self.private.compute_public_key().map_err(|_| anyhow!("cannot compute an X25519 key"))?;
        Ok(public.as_ref().to_vec())
    }
}

impl End<'_> {
    /// The request that makes a program this end.
    fn request(&self) -> Result<Zeroizing<String>> {
        let mut text = Zeroizing::new(String::with_capacity(REQUEST_BYTES_MAX));
        text.push_str("set=1\nprivate_key=");
        push_hex(&mut text, self.keys.private_bytes()?.as_ref());
        write!(text, "\nlisten_port={}\nreplace_peers=true\npublic_key=", self.port)?;
        push_hex(&mut text, &self.peer.public_bytes()?);
        if let Some(address) = self.peer_address {
            write!(text, "\nendpoint={address}")?;
        }
        for network in self.peer_networks {
            write!(text, "\nallowed_ip={network}")?;
        }
        text.push_str("\n\n");
        Ok(text)
    }
}

/// Makes the program behind `socket` the end `end`. Waits for the socket until `deadline`, as long as `is_alive` says that its program is.
///
/// # Errors
///
/// When there is no such socket in time, or the program refuses.
pub(super) fn configure(
    socket: &Path,
    end: &End<'_>,
    deadline: Instant,
    mut is_alive: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() >= deadline || !is_alive()? => {
                return Err(error).with_context(|| format!("no control socket {}", socket.display()));
            }
            Err(_) => thread::sleep(RETRY_INTERVAL),
        }
    };
    exchange(stream, &end.request()?).with_context(|| format!("control socket {}", socket.display()))
}

/// Sends `request` and reads the answer: lines, an empty one at the end, and among them the error number.
fn exchange(mut stream: UnixStream, request: &str) -> Result<()> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    for line in BufReader::new(stream).lines() {
        match line?.strip_prefix("errno=") {
            Some("0") => return Ok(()),
            Some(number) => {
                let error = number.parse().map_or("unknown error".to_owned(), |number: i32| {
                    io::Error::from_raw_os_error(number.saturating_abs()).to_string()
                });
                bail!("the program refused its configuration: {error}");
            }
            None => {}
        }
    }
    bail!("the program closed it without an answer")
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn end<'a>(keys: &'a KeyPair, peer: &'a KeyPair, networks: &'a [IpNet]) -> End<'a> {
        let peer_address = Some("198.18.1.1:51820".parse().unwrap());
        End { keys, port: 51_820, peer, peer_address, peer_networks: networks }
    }

    fn hex(bytes: &[u8]) -> String {
        let mut text = String::new();
        push_hex(&mut text, bytes);
        text
    }

    /// What a program that answers `answer` was told, and how that was taken.
    fn told(answer: &'static str) -> (String, Result<()>) {
        let (near, mut far) = UnixStream::pair().unwrap();
        let program = thread::spawn(move || {
            let mut request = [0; 3];
            far.read_exact(&mut request).unwrap();
            far.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request.to_vec()).unwrap()
        });
        let done = exchange(near, "abc");
        (program.join().unwrap(), done)
    }

    #[test]
    fn a_request_names_the_own_private_and_the_peers_public_key() {
        let (keys, peer) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let networks = ["198.19.0.0/16".parse().unwrap(), "198.18.0.0/24".parse().unwrap()];
        let request = end(&keys, &peer, &networks).request().unwrap();
        let private = hex(keys.private_bytes().unwrap().as_ref());
        let public = hex(&peer.public_bytes().unwrap());
        assert_eq!((private.len(), public.len()), (64, 64));
        let expected = format!(
            "set=1\nprivate_key={private}\nlisten_port=51820\nreplace_peers=true\npublic_key={public}\n\
             endpoint=198.18.1.1:51820\nallowed_ip=198.19.0.0/16\nallowed_ip=198.18.0.0/24\n\n"
        );
        assert_eq!(*request, expected);
        assert_eq!(request.capacity(), REQUEST_BYTES_MAX, "it has not grown");
    }

    #[test]
    fn an_answer_is_taken_or_told() {
        let (request, done) = told("errno=0\n\n");
        assert_eq!((request.as_str(), done.is_ok()), ("abc", true));
        for answer in ["errno=-22\n\n", "protocol_version=1\nerrno=22\n\n"] {
            let error = told(answer).1.unwrap_err().to_string();
            assert!(error.contains("refused its configuration: Invalid argument"), "{error}");
        }
        assert!(told("").1.unwrap_err().to_string().contains("without an answer"));
    }

    #[test]
    fn a_program_that_has_ended_is_not_waited_for() {
        let (keys, peer) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let far_away = Instant::now() + Duration::from_secs(3600);
        let done = configure(Path::new("/nowhere/x.sock"), &end(&keys, &peer, &[]), far_away, || Ok(false));
        assert_eq!(done.unwrap_err().to_string(), "no control socket /nowhere/x.sock");
    }
}
