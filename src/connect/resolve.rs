//! The gateway's addresses, and which of them is tried next.
//!
//! The system's resolver can hang for long, above all while the way to the DNS servers is the tunnel that is down. So it runs on a thread of
//! its own, at most one at a time, and addresses once known are used without it when it does not answer.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, bounded, select_biased};
use tollgate_config::ServerAddress;

use super::control::Control;
use super::failure::Failure;
use crate::signals::Signal;

/// How long to wait for the resolver while no address is known.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for news of addresses that are known, and for a name that is not the only one.
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
    /// Those that failed since one of them worked, the last one first; [`ADDRESSES_MAX`] at most.
    failed: Vec<SocketAddr>,
    /// The one in use.
    current: Option<SocketAddr>,
    /// Whether the name is still to be resolved for the next attempt.
    is_due: bool,
    /// Whether that is worth waiting for.
    is_doubted: bool,
    pending: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
}

impl Resolver {
    /// A resolver that has resolved nothing yet.
    pub fn new(server: &ServerAddress) -> Self {
        let literal = server.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, server.port));
        Resolver {
            server: server.clone(),
            is_due: literal.is_none(),
            is_doubted: literal.is_none(),
            addresses: literal.into_iter().collect(),
            failed: Vec::new(),
            current: None,
            pending: None,
        }
    }

    pub fn server(&self) -> &ServerAddress {
        &self.server
    }

    /// The address to try now: the one that worked, as long as the name has it and [`Resolver::failed`] does not say otherwise. Waits for the
    /// resolver where what is known has failed, and less long if `is_alone` is not so.
    pub fn pick(&mut self, control: &Control<'_>, is_alone: bool) -> Picked {
        let mut reason = "no answer from the resolver".to_owned();
        if self.is_due || self.pending.is_some() {
            let pending = self.pending.take().unwrap_or_else(|| resolve(&self.server));
            self.is_due = false;
            let patience = match (self.is_doubted, self.addresses.is_empty()) {
                (false, _) => Duration::ZERO,
                (true, true) if is_alone => FIRST_PATIENCE,
                (true, _) => PATIENCE,
            };
            // What is there already comes before the end of a wait of no time.
            select_biased! {
                recv(control.signals()) -> signal => {
                    self.pending = Some(pending);
                    return Picked::Signal(signal.unwrap_or(Signal::Stop));
                }
                recv(control.network_changes()) -> _ => {
                    self.pending = Some(pending);
                    return Picked::NetworkChanged;
                }
                recv(pending) -> answer => match answer.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())) {
                    Ok(addresses) if !addresses.is_empty() => {
                        self.addresses = addresses;
                        self.is_doubted = false;
                    }
                    Ok(_) => reason = "it has no address".to_owned(),
                    Err(error) => reason = error.to_string(),
                },
                recv(after(patience)) -> _ => self.pending = Some(pending),
            }
        }
        if self.addresses.iter().all(|address| self.failed.contains(address)) {
            self.failed.clear();
        }
        let fresh = || self.addresses.iter().find(|address| !self.failed.contains(address)).copied();
        self.current = self.current.filter(|current| self.addresses.contains(current)).or_else(fresh);
        match self.current {
            Some(address) => Picked::Address(address),
            None => Picked::None(Failure::Unresolved(reason)),
        }
    }

    /// A tunnel has come up, or is lost: the name is resolved for the next attempt, which does not wait for that unless `is_silent`: then the
    /// address that worked has gone silent, and its gateway may have moved.
    pub fn worked(&mut self, is_silent: bool) {
        self.failed.clear();
        self.ask_again(is_silent);
    }

    /// Goes on to the next address.
    pub fn failed(&mut self) {
        // A name may have others each time.
        self.failed.truncate(ADDRESSES_MAX - 1);
        if let Some(address) = self.current.take() {
            self.failed.insert(0, address);
        }
        self.ask_again(true);
    }

    fn ask_again(&mut self, is_doubted: bool) {
        let is_name = self.server.host.parse::<IpAddr>().is_err();
        self.is_due = is_name;
        self.is_doubted = is_name && is_doubted;
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

    struct Asked {
        resolver: Resolver,
        control: Control<'static>,
        signals: crossbeam_channel::Sender<Signal>,
    }

    impl Asked {
        fn about(host: &str) -> Self {
            let (sender, signals) = unbounded();
            let wake = Box::leak(Box::new(Wake::new().unwrap()));
            let resolver = Resolver::new(&ServerAddress { host: host.to_owned(), port: 55_555 });
            Asked { resolver, control: Control::new(signals, wake), signals: sender }
        }

        /// Picks after the resolver has answered with `addresses`.
        fn answered(&mut self, addresses: &[SocketAddr]) -> Option<SocketAddr> {
            self.resolver.pending = Some(answered(Ok(addresses.to_vec())));
            self.picked()
        }

        fn picked(&mut self) -> Option<SocketAddr> {
            match self.resolver.pick(&self.control, true) {
                Picked::Address(address) => Some(address),
                _ => None,
            }
        }
    }

    fn known() -> [SocketAddr; 3] {
        [1, 2, 3].map(|host| SocketAddr::new([198, 18, 0, host].into(), 1))
    }

    #[test]
    fn an_address_is_its_own_answer() {
        let mut asked = Asked::about("fd00:18::1");
        for _ in 0..3 {
            assert_eq!(asked.picked(), Some("[fd00:18::1]:55555".parse().unwrap()));
            asked.resolver.failed();
            assert!(asked.resolver.pending.is_none());
        }
    }

    #[test]
    fn addresses_take_turns_as_they_fail_whatever_their_order_in_the_answers() {
        let [a, b, c] = known();
        let mut asked = Asked::about("gateway.test");
        assert_eq!(asked.answered(&[a, b]), Some(a));
        asked.resolver.failed();
        assert_eq!(asked.answered(&[b, a]), Some(b));
        asked.resolver.failed();
        assert_eq!(asked.answered(&[a, b, c]), Some(c), "the only one that has not failed");
        asked.resolver.failed();
        assert_eq!(asked.answered(&[b, a, c]), Some(b), "all have");
        asked.resolver.failed();
        asked.resolver.pending = Some(answered(Err(io::ErrorKind::NotFound.into())));
        assert_eq!(asked.picked(), Some(a), "the old ones stay");
    }

    #[test]
    fn the_name_is_asked_for_at_each_attempt_and_the_address_that_worked_stays_while_the_name_has_it() {
        let [a, b, _] = known();
        let mut asked = Asked::about("gateway.test");
        assert_eq!(asked.answered(&[a, b]), Some(a));
        asked.resolver.worked(false);
        assert!(asked.resolver.is_due);
        assert_eq!(asked.answered(&[b, a]), Some(a));
        asked.resolver.worked(false);
        let (_never, pending) = bounded(1);
        asked.resolver.pending = Some(pending);
        assert_eq!(asked.picked(), Some(a), "without waiting for the resolver");
        assert_eq!(asked.answered(&[b]), Some(b), "the name has moved");
    }

    #[test]
    fn a_name_without_address_is_named_and_a_signal_comes_first() {
        let mut asked = Asked::about("gateway.test");
        asked.resolver.pending = Some(answered(Ok(Vec::new())));
        let Picked::None(failure) = asked.resolver.pick(&asked.control, true) else { panic!("an address") };
        assert!(failure.to_string().contains("it has no address"), "{failure}");
        let (_never, pending) = bounded(1);
        asked.resolver.pending = Some(pending);
        asked.signals.send(Signal::Stop).unwrap();
        assert!(matches!(asked.resolver.pick(&asked.control, true), Picked::Signal(Signal::Stop)));
    }

    fn answered(answer: io::Result<Vec<SocketAddr>>) -> Receiver<io::Result<Vec<SocketAddr>>> {
        let (sender, receiver) = bounded(1);
        sender.send(answer).unwrap();
        receiver
    }
}
