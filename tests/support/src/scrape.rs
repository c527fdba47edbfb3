//! Whoever scrapes a gateway's metrics.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use tollgate_testkit::Namespace;

use crate::PATIENCE;

/// Where metrics are served unless the configuration says otherwise.
pub const ENDPOINT: ([u8; 4], u16) = ([127, 0, 0, 1], 9090);

/// The text of a scrape.
#[derive(Debug, Clone)]
pub struct Scrape(String);

/// The head and the body of the answer to `request` at `endpoint` in `namespace`.
pub fn ask(namespace: &Namespace, endpoint: impl Into<SocketAddr>, request: &str) -> io::Result<(String, String)> {
    let endpoint = endpoint.into();
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&endpoint, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((head.to_owned(), body.to_owned()))
}

impl Scrape {
    /// Fetches one, whole, at the default [`ENDPOINT`] in `namespace`.
    pub fn fetch(namespace: &Namespace) -> io::Result<Self> {
        let (head, body) = ask(namespace, ENDPOINT, "GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n")?;
        assert!(head.starts_with("HTTP/1.1 200 ") && body.ends_with("\n# EOF\n"), "{head}\n{body}");
        Ok(Scrape(body))
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    /// The value of `sample`, a name with its labels, if there is such.
    pub fn find(&self, sample: &str) -> Option<f64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map(|value| value.parse().unwrap())
    }

    /// The value of `sample`.
    pub fn value(&self, sample: &str) -> f64 {
        self.find(sample).unwrap_or_else(|| panic!("no {sample} in {}", self.0))
    }

    /// Datagrams and bytes that Quincy's metrics have in one `direction`, under `labels`.
    pub fn carried(&self, direction: &str, labels: &str) -> [u64; 2] {
        ["datagrams", "bytes"].map(|what| self.value(&format!("quincy_{what}_{direction}_total{{{labels}}}")) as u64)
    }

    /// The value of `name` at shard `index`.
    pub fn of_shard(&self, index: usize, name: &str) -> f64 {
        self.value(&format!("{name}{{shard=\"{index}\"}}"))
    }

    /// The sum of `name` over all shards.
    pub fn sum(&self, name: &str) -> f64 {
        (0..self.value("tollgate_shards") as usize).map(|index| self.of_shard(index, name)).sum()
    }
}
