//! The same work in every client's namespace at once, on threads of their own.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};

use super::DemoError;
use super::site::Site;
use tollgate_testkit::{ClientSite, LabError, Topology};

/// How often the one who waits is called back.
const TICK: Duration = Duration::from_millis(50);

/// Threads under way, one in each client's namespace. One that is no longer waited for ends with its work, or with the process.
pub(super) struct Clients<T> {
    results: Receiver<(usize, Result<T, LabError>)>,
    count: usize,
}

impl<T: Send + 'static> Clients<T> {
    /// Starts `work` for every client, which is given the client's number and site.
    pub(super) fn start(
        topology: &Arc<Topology>,
        work: impl Fn(usize, &ClientSite) -> Result<T, LabError> + Send + Sync + 'static,
    ) -> Self {
        let (sender, results) = unbounded();
        let work = Arc::new(work);
        let count = topology.clients.len();
        for index in 0..count {
            let (sender, topology, work) = (sender.clone(), Arc::clone(topology), Arc::clone(&work));
            thread::spawn(move || {
                let site = &topology.clients[index];
                let result = site.namespace.run(|| work(index, site));
                // Nobody may be waiting any more.
                let _ = sender.send((index, result));
            });
        }
        Clients { results, count }
    }

    /// Waits for all, calling `tick` often, and gives what came of each, in the order of the clients. The first failure, `tick`'s included,
    /// ends the wait.
    pub(super) fn finish(
        self,
        site: &mut Site,
        mut tick: impl FnMut(&mut Site) -> Result<(), DemoError>,
    ) -> Result<Vec<T>, DemoError> {
        let mut done: Vec<Option<T>> = (0..self.count).map(|_| None).collect();
        while done.iter().any(Option::is_none) {
            tick(site)?;
            match self.results.recv_timeout(TICK) {
                Ok((index, Ok(result))) => done[index] = Some(result),
                Ok((index, Err(source))) => return Err(DemoError::Traffic { source, logs: site.logs(index) }),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(DemoError::Panicked),
            }
        }
        Ok(done.into_iter().flatten().collect())
    }
}
