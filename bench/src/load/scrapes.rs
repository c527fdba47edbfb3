//! Somebody who scrapes the gateway's metrics while traffic runs, and what that costs the thread that answers.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tollgate_testkit::Namespace;
use tollgate_testkit::worker::Worker;

use super::worker::thread_cpu_seconds;

/// Where the gateway serves metrics.
const ENDPOINT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// How long one scrape may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What scraping came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Scrapes {
    pub scrapes: u64,
    pub failed: u64,
    /// Of the last one.
    pub bytes: u64,
    pub longest_seconds: f64,
    /// The part of a CPU that the gateway's control thread used meanwhile.
    pub control_thread_share: f64,
}

/// Scrapes until it is finished.
pub struct Scraper {
    figures: Arc<Mutex<Scrapes>>,
    worker: Worker,
    process: u32,
    began: Instant,
    control_seconds: f64,
}

impl Scraper {
    /// Scrapes the gateway `process` in `namespace` so many times a second.
    pub fn start(namespace: &Namespace, process: u32, per_second: u32) -> Result<Self> {
        let namespace = namespace.try_clone()?;
        let figures = Arc::new(Mutex::new(Scrapes::default()));
        let (shared, began) = (figures.clone(), Instant::now());
        let mut next = began;
        let worker = Worker::repeat(move || {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next += Duration::from_secs(1) / per_second;
            let started = Instant::now();
            let scraped = namespace.run(scrape);
            let mut figures = shared.lock().unwrap_or_else(PoisonError::into_inner);
            figures.scrapes += 1;
            match scraped {
                Ok(bytes) => figures.bytes = bytes,
                Err(_) => figures.failed += 1,
            }
            figures.longest_seconds = figures.longest_seconds.max(started.elapsed().as_secs_f64());
            true
        });
        Ok(Scraper { figures, worker, process, began, control_seconds: control_seconds(process)? })
    }

    pub fn finish(self) -> Result<Scrapes> {
        drop(self.worker);
        let share = (control_seconds(self.process)? - self.control_seconds) / self.began.elapsed().as_secs_f64();
        let figures = *self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Scrapes { control_thread_share: share, ..figures })
    }
}

/// The length of what is answered, in bytes.
fn scrape() -> io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&ENDPOINT, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if !answer.starts_with(b"HTTP/1.1 200 ") || !answer.ends_with(b"\n# EOF\n") {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(answer.len() as u64)
}

/// What the first thread of a gateway has used, in seconds: its control plane is there.
fn control_seconds(process: u32) -> Result<f64> {
    thread_cpu_seconds(&format!("/proc/{process}/task/{process}"))
}
