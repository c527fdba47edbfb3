//! The gateway's addresses, and which of them is tried next.
//!
//! The system's resolver can hang for long, above all while the way to the DNS servers is the tunnel that is down. So it runs on a thread of
//! its own, at most one at a time, and addresses once known are used without it when it does not answer.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, bounded, select};
use tollgate_config::ServerAddress;

use super::control::Control;
use super::failure::Failure;
use crate::signals::Signal;

/// How long to wait for the resolver while no address is known.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for news of addresses that are known.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most addresses of one name.
const ADDRESSES_MAX: usize = 16;

/// The outcome of [`Resolver`]'s choice.
#[derive(Debug)]
pub enum Picked {
    /// The address to try next.
    Address(SocketAddr),
    /// No address is known, for this reason.
    None(Failure),
    /// A signal comes first; ask again after it.
    Signal(Signal),
    /// This machine's network has changed; ask again after looking at it.
    NetworkChanged,
}

/// The addresses of a gateway.
#[derive(Debug)]
pub struct Resolver {
    server: ServerAddress,
    addresses: Vec<SocketAddr>,
    next: usize,
    stale: bool,
    pending: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
}

impl Resolver {
    /// A resolver that has resolved nothing yet.
    pub fn new(server: &ServerAddress) -> Self {
        let literal = server.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, server.port));
        Resolver {
            server: server.clone(),
            stale: literal.is_none(),
            addresses: literal.into_iter().collect(),
            next: 0,
            pending: None,
        }
    }

    /// The address to try now: the one that worked, until [`Resolver::failed`] says that it does not.
    pub fn pick(&mut self, control: &Control<'_>) -> Picked {
        let mut reason = "no answer from the resolver".to_owned();
        if self.stale {
            let pending = self.pending.take().unwrap_or_else(|| resolve(&self.server));
            let patience = if self.addresses.is_empty() { FIRST_PATIENCE } else { PATIENCE };
            select! {
                recv(pending) -> answer => match answer.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())) {
                    Ok(addresses) if !addresses.is_empty() => {
                        (self.addresses, self.next, self.stale) = (addresses, 0, false);
                    }
                    Ok(_) => reason = "it has no address".to_owned(),
                    Err(error) => reason = error.to_string(),
                },
                recv(control.signals()) -> signal => {
                    self.pending = Some(pending);
                    return Picked::Signal(signal.unwrap_or(Signal::Stop));
                }
                recv(control.network_changes()) -> _ => {
                    self.pending = Some(pending);
                    return Picked::NetworkChanged;
                }
                recv(after(patience)) -> _ => self.pending = Some(pending),
            }
        }
        match self.addresses.get(self.next) {
            Some(&address) => Picked::Address(address),
            None => Picked::None(Failure::Unresolved(reason)),
        }
    }

    /// Resolves the name anew before the next attempt: the address that worked has gone silent, and its gateway may have moved.
    pub fn doubt(&mut self) {
        self.stale = self.server.host.parse::<IpAddr>().is_err();
    }

    /// Goes on to the next address; after the last one the name is resolved again.
    pub fn failed(&mut self) {
        self.next += 1;
        if self.next >= self.addresses.len() {
            self.next = 0;
            self.stale = self.server.host.parse::<IpAddr>().is_err();
        }
    }
}

fn resolve(server: &ServerAddress) -> Receiver<io::Result<Vec<SocketAddr>>> {
    let (sender, receiver) = bounded(1);
    let ServerAddress { host, port } = server.clone();
    let resolving = move || {
        let found = (host.as_str(), port).to_socket_addrs();
        // Whoever asked may have ended.
        let _ = sender.send(found.map(|addresses| addresses.take(ADDRESSES_MAX).collect()));
    };
    // Without a thread the sender is dropped, which the receiver notices.
    let _ = thread::Builder::new().name("tollgate-resolver".to_owned()).spawn(resolving);
    receiver
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;
    use crate::io::Wake;

    fn resolver(host: &str) -> Resolver {
        Resolver::new(&ServerAddress { host: host.to_owned(), port: 55_555 })
    }

    #[test]
    fn an_address_is_its_own_answer() {
        let (_sender, signals) = unbounded();
        let wake = Wake::new().unwrap();
        let control = Control::new(signals, &wake);
        let mut resolver = resolver("fd00:18::1");
        for _ in 0..3 {
            let Picked::Address(address) = resolver.pick(&control) else { panic!("no address") };
            assert_eq!(address, "[fd00:18::1]:55555".parse().unwrap());
            resolver.failed();
        }
    }

    #[test]
    fn addresses_take_turns_as_they_fail_and_then_the_name_is_resolved_again() {
        let (_sender, signals) = unbounded();
        let wake = Wake::new().unwrap();
        let control = Control::new(signals, &wake);
        let mut resolver = resolver("gateway.test");
        let known: Vec<SocketAddr> = ["198.18.0.1:1", "198.18.0.2:1"].iter().map(|it| it.parse().unwrap()).collect();
        resolver.pending = Some(answered(Ok(known.clone())));
        for expected in [known[0], known[0]] {
            assert!(matches!(resolver.pick(&control), Picked::Address(address) if address == expected));
        }
        resolver.failed();
        assert!(matches!(resolver.pick(&control), Picked::Address(address) if address == known[1]));
        resolver.failed();
        resolver.pending = Some(answered(Err(io::ErrorKind::NotFound.into())));
        assert!(
            matches!(resolver.pick(&control), Picked::Address(address) if address == known[0]),
            "the old ones stay"
        );
        resolver.pending = Some(answered(Ok(known[1..].to_vec())));
        assert!(matches!(resolver.pick(&control), Picked::Address(address) if address == known[1]));
    }

    #[test]
    fn a_name_without_address_is_named_and_a_signal_comes_first() {
        let (sender, signals) = unbounded();
        let wake = Wake::new().unwrap();
        let control = Control::new(signals, &wake);
        let mut resolver = resolver("gateway.test");
        resolver.pending = Some(answered(Ok(Vec::new())));
        let Picked::None(failure) = resolver.pick(&control) else { panic!("an address") };
        assert!(failure.to_string().contains("it has no address"), "{failure}");
        let (_never, pending) = bounded(1);
        resolver.pending = Some(pending);
        sender.send(Signal::Stop).unwrap();
        assert!(matches!(resolver.pick(&control), Picked::Signal(Signal::Stop)));
    }

    fn answered(answer: io::Result<Vec<SocketAddr>>) -> Receiver<io::Result<Vec<SocketAddr>>> {
        let (sender, receiver) = bounded(1);
        sender.send(answer).unwrap();
        receiver
    }
}
