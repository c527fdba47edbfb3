//! A crowd: one pinned thread that drives thousands of clients, and is the near end of their flows.
//!
//! Each client is a [`Tunnel`](tollgate_shards::Tunnel), the engine's own state machine, with an identity and an outer address or
//! port of its own. The thread makes no decision about the run: whoever owns the [`Crowd`] gives [`Order`]s and reads counts. It never
//! looks at the gateway from any side but a client's.

mod client;
mod common;
mod flow;
mod flows;
mod meter;
mod outlet;
mod report;
#[cfg(test)]
mod tests;
mod thread;
mod timers;
mod trouble;

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use quinn_proto::crypto::ClientConfig as CryptoConfig;
use tollgate::io::Wake;
use tollgate::lab::Namespace;

use crate::scenario::Scenario;

pub use outlet::require_descriptors;
pub use report::{CrowdCounts, CrowdReport, NearGroup};
use thread::Driver;

/// The most flows of one client.
pub const CLIENT_FLOWS_MAX: usize = 64;

/// The most threads of a run: flows are numbered so that each thread has numbers of its own.
pub const THREADS_MAX: u16 = 64;

/// How often a handshake is tried before it counts as failed for good.
pub const ATTEMPTS_MAX: u8 = 4;

/// The most different reasons of failed handshakes that are told apart.
pub const REASONS_MAX: usize = 16;

/// One client.
#[derive(Clone)]
pub struct ClientPlan {
    /// Its number among all clients of the run.
    pub index: u32,
    /// Its user's number. All clients of a user belong into one crowd where users are limited: that is where their rates are added up.
    pub user: u32,
    /// Its identity, and what it trusts.
    pub tls: Arc<dyn CryptoConfig>,
    /// Its outer address with [`Sources::Addresses`](crate::scenario::Sources::Addresses), no other client's; otherwise not looked at.
    pub source: Option<IpAddr>,
    /// Its traffic, as an index into the scenario's; `None` for an idle client.
    pub group: Option<u8>,
}

/// What a crowd is told at its start.
#[derive(Clone)]
pub struct CrowdPlan {
    /// The whole scenario. Of rates and bounds over all clients, the crowd takes its clients' share.
    pub scenario: Arc<Scenario>,
    /// The number of this crowd in the run, below [`THREADS_MAX`].
    pub thread: u16,
    /// The CPUs that its thread may use; none for any.
    pub cpus: Vec<usize>,
    /// Its clients.
    pub clients: Vec<ClientPlan>,
    /// Outer addresses for clients that change theirs, with [`Sources::Addresses`](crate::scenario::Sources::Addresses). An address that a
    /// client has left still leads to it, and goes to another one only after all others of these have.
    pub spare_sources: Vec<IpAddr>,
    /// The gateway's outer address.
    pub remote: SocketAddr,
    /// The name that the gateway's certificate must carry.
    pub server_name: String,
    /// The addresses of the far end, at least one. Each flow stays with one.
    pub far_ends: Vec<SocketAddrV4>,
    /// Tells this run's flows from any other's.
    pub run: u64,
}

/// What a crowd is to do. [`Crowd::order`] returns when it has begun; [`CrowdCounts`] tell when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Bring all clients up that never were: at the scenario's pace, and no more handshakes at once than it allows.
    Connect,
    /// Open the flows of all clients that are up, of each as soon as the far end agrees, and begin with churn, losses and rebinding.
    StartTraffic,
    /// End churn, losses and rebinding; stop sending in all flows, on both ends, and ask the far end for its counts.
    StopTraffic,
    /// Ask the far end for the counts of all flows once more, now that nothing is on the way. Only after [`Order::StopTraffic`].
    AskReports,
    /// Close all connections, and make no new ones. What is still queued is dropped and counted.
    Close,
}

/// A thread with its clients. Dropping it ends the thread without goodbye to the gateway; [`Order::Close`] says it.
#[derive(Debug)]
pub struct Crowd {
    requests: Sender<Request>,
    wake: Arc<Wake>,
    counts: Arc<Mutex<CrowdCounts>>,
    handle: Option<JoinHandle<Result<CrowdReport>>>,
}

/// What the owner sends to the thread.
#[derive(Debug)]
enum Request {
    Order(Order, Sender<()>),
    Report(Sender<CrowdReport>),
    End,
}

/// What a thread has of its owner.
struct Owner {
    requests: Receiver<Request>,
    wake: Arc<Wake>,
    counts: Arc<Mutex<CrowdCounts>>,
}

impl Crowd {
    /// Starts the thread and opens its sockets, in `namespace` or in this thread's own. No packet is sent before [`Order::Connect`].
    ///
    /// # Errors
    ///
    /// In one line: a plan out of bounds, too few descriptors or ports for the clients, a CPU that is not there.
    pub fn start(plan: CrowdPlan, namespace: Option<&Namespace>) -> Result<Crowd> {
        plan.check()?;
        let (requests, incoming) = unbounded();
        let wake = Arc::new(Wake::new().context("cannot make an eventfd")?);
        let counts = Arc::new(Mutex::default());
        let owner = Owner { requests: incoming, wake: Arc::clone(&wake), counts: Arc::clone(&counts) };
        let name = format!("crowd-{}", plan.thread);
        let (started, is_started) = bounded(1);
        let run = move || {
            let mut driver = Driver::new(plan, owner);
            // The owner may read the counts as soon as the start has returned.
            if let Ok(driver) = &mut driver {
                driver.publish();
            }
            let failure = driver.as_mut().err().map(|error| anyhow!("{error:#}"));
            // The receiver waits for exactly this.
            let _ = started.send(failure.map_or(Ok(()), Err));
            driver?.run()
        };
        let spawn = || std::thread::Builder::new().name(name).spawn(run).context("cannot start a thread");
        let handle = match namespace {
            Some(namespace) => namespace.run(spawn),
            None => spawn(),
        }?;
        is_started.recv().unwrap_or_else(|_| Err(anyhow!("a crowd's thread ended at once")))?;
        Ok(Crowd { requests, wake, counts, handle: Some(handle) })
    }

    /// Gives an order. Counts that are read afterwards show it: what it brings about is done or pending.
    ///
    /// # Errors
    ///
    /// When the thread has ended, of an error that [`Crowd::join`] tells.
    pub fn order(&self, order: Order) -> Result<()> {
        let (reply, is_begun) = bounded(1);
        self.request(Request::Order(order, reply))?;
        is_begun.recv().map_err(|_| anyhow!(ENDED))
    }

    /// The counts as of the end of the thread's last pass. It is not disturbed by that.
    pub fn counts(&self) -> CrowdCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was counted so far. It takes the thread up to some milliseconds, which its flows are late by.
    ///
    /// # Errors
    ///
    /// When the thread has ended, of an error that [`Crowd::join`] tells.
    pub fn report(&self) -> Result<CrowdReport> {
        let (reply, report) = bounded(1);
        self.request(Request::Report(reply))?;
        report.recv().map_err(|_| anyhow!(ENDED))
    }

    /// Whether the thread has ended, of an error that [`Crowd::join`] tells.
    pub fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread, and says what it had counted.
    ///
    /// # Errors
    ///
    /// When the thread had ended before, of an error that it could not recover from.
    pub fn join(mut self) -> Result<CrowdReport> {
        self.end().unwrap_or_else(|| Err(anyhow!(ENDED)))
    }

    fn request(&self, request: Request) -> Result<()> {
        self.requests.send(request).map_err(|_| anyhow!(ENDED))?;
        self.wake.notify();
        Ok(())
    }

    fn end(&mut self) -> Option<Result<CrowdReport>> {
        let handle = self.handle.take()?;
        // Where this fails, the thread has ended already.
        let _ = self.request(Request::End);
        Some(handle.join().unwrap_or_else(|_| Err(anyhow!("a crowd's thread panicked"))))
    }
}

const ENDED: &str = "a crowd's thread has ended";

impl Drop for Crowd {
    fn drop(&mut self) {
        // Who wants to know of errors calls `join`.
        let _ = self.end();
    }
}
