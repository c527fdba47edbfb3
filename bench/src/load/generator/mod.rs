//! A generator: one pinned thread that drives thousands of clients, and is the near end of their flows.
//!
//! Each client is a [`Tunnel`](tollgate_shards::Tunnel), the engine's own state machine, with an identity and an outer address of its
//! own. The thread makes no decision about the run: whoever owns the [`Generator`] gives [`Order`]s and reads counts. It never looks at the
//! gateway from any side but a client's.

mod client;
mod counts;
mod flow;
mod flows;
mod impairment;
mod shared;
mod sockets;
mod thread;
pub mod timers;

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use quinn_proto::crypto::ClientConfig as CryptoConfig;
use tollgate::io::Wake;
use tollgate_testkit::Namespace;

use super::scenario::Scenario;

pub use counts::{GeneratorCounts, GeneratorReport, GroupCounts, TunnelTotals};
use thread::Driver;

/// The most flows of one client.
pub const CLIENT_FLOWS_MAX: usize = 64;

/// One client.
#[derive(Clone)]
pub struct ClientPlan {
    /// Its user's number. All clients of a user belong to one generator: that is where their rates are added up.
    pub user: u32,
    /// Its identity, and what it trusts.
    pub tls: Arc<dyn CryptoConfig>,
    /// Its outer address, no other client's.
    pub source: IpAddr,
    /// Its traffic, as an index into the scenario's; `None` for an idle client.
    pub group: Option<u8>,
}

/// What a generator is told at its start.
#[derive(Clone)]
pub struct GeneratorPlan {
    /// The whole scenario. Of rates and bounds over all clients, the generator takes its clients' share.
    pub scenario: Arc<Scenario>,
    /// The number of this generator in the run.
    pub thread: u16,
    /// The CPUs that its thread may use; none for any.
    pub cpus: Vec<usize>,
    pub clients: Vec<ClientPlan>,
    /// Outer addresses for clients that change theirs. An address that a client has left still leads to it, and goes to another one only
    /// after all others of these have.
    pub spare_sources: Vec<IpAddr>,
    /// The gateway's outer address.
    pub remote: SocketAddr,
    /// The addresses of responders, at least one. Each flow stays with one.
    pub responders: Vec<SocketAddrV4>,
}

/// What a generator is to do. [`Generator::order`] returns when it has begun; [`GeneratorCounts`] tell when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Bring all clients up that never were: at the scenario's pace, and no more handshakes at once than it allows.
    Connect,
    /// Open the flows of all clients that are up, of each as soon as the responder agrees, and begin with churn, losses and rebinding.
    StartTraffic,
    /// End churn, losses and rebinding; stop sending in all flows, on both ends, and ask the responder for its counts.
    StopTraffic,
    /// Ask the responder for the counts of all flows once more, now that nothing is on the way. Only after [`Order::StopTraffic`].
    AskReports,
    /// Close all connections, and make no new ones. What is still queued is dropped and counted.
    Close,
}

/// A thread with its clients. Dropping it ends the thread without goodbye to the gateway; [`Order::Close`] says it.
#[derive(Debug)]
pub struct Generator {
    requests: Sender<Request>,
    wake: Arc<Wake>,
    counts: Arc<Mutex<GeneratorCounts>>,
    handle: Option<JoinHandle<Result<GeneratorReport>>>,
}

/// What the owner sends to the thread.
#[derive(Debug)]
enum Request {
    Order(Order, Sender<()>),
    Report(Sender<GeneratorReport>),
    End,
}

/// What a thread has of its owner.
struct Owner {
    requests: Receiver<Request>,
    wake: Arc<Wake>,
    counts: Arc<Mutex<GeneratorCounts>>,
}

impl Generator {
    /// Starts the thread and opens its socket, in `namespace`. No packet is sent before [`Order::Connect`].
    pub fn start(plan: GeneratorPlan, namespace: &Namespace) -> Result<Generator> {
        let (requests, incoming) = unbounded();
        let wake = Arc::new(Wake::new().context("cannot make an eventfd")?);
        let counts = Arc::new(Mutex::default());
        let owner = Owner { requests: incoming, wake: Arc::clone(&wake), counts: Arc::clone(&counts) };
        let name = format!("generator-{}", plan.thread);
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
        let handle =
            namespace.run(|| std::thread::Builder::new().name(name).spawn(run).context("cannot start a thread"))?;
        is_started.recv().unwrap_or_else(|_| Err(anyhow!(ENDED)))?;
        Ok(Generator { requests, wake, counts, handle: Some(handle) })
    }

    /// Gives an order. Counts that are read afterwards show it: what it brings about is done or pending.
    pub fn order(&self, order: Order) -> Result<()> {
        let (reply, is_begun) = bounded(1);
        self.request(Request::Order(order, reply))?;
        is_begun.recv().map_err(|_| anyhow!(ENDED))
    }

    /// The counts as of the end of the thread's last pass. It is not disturbed by that.
    pub fn counts(&self) -> GeneratorCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was counted so far. It takes the thread up to some milliseconds, which its flows are late by.
    pub fn report(&self) -> Result<GeneratorReport> {
        let (reply, report) = bounded(1);
        self.request(Request::Report(reply))?;
        report.recv().map_err(|_| anyhow!(ENDED))
    }

    /// Whether the thread has ended, of an error that [`Generator::join`] tells.
    pub fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the thread, and says what it had counted.
    pub fn join(mut self) -> Result<GeneratorReport> {
        self.end().unwrap_or_else(|| Err(anyhow!(ENDED)))
    }

    fn request(&self, request: Request) -> Result<()> {
        self.requests.send(request).map_err(|_| anyhow!(ENDED))?;
        self.wake.notify();
        Ok(())
    }

    fn end(&mut self) -> Option<Result<GeneratorReport>> {
        let handle = self.handle.take()?;
        // Where this fails, the thread has ended already.
        let _ = self.request(Request::End);
        Some(handle.join().unwrap_or_else(|_| Err(anyhow!("a generator's thread panicked"))))
    }
}

const ENDED: &str = "a generator's thread has ended";

impl Drop for Generator {
    fn drop(&mut self) {
        // Who wants to know of errors calls `join`.
        let _ = self.end();
    }
}
