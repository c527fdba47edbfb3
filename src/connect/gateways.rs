//! The gateways of `connection_string`, and which of them is tried next.

use std::collections::VecDeque;

use tollgate_config::ServerAddress;

use super::control::Control;
use super::resolve::{Picked, Resolver};

/// The gateways, the one that is in use or tried next first.
#[derive(Debug)]
pub struct Gateways {
    order: VecDeque<Resolver>,
    /// How many failed one after the other.
    failures: usize,
}

impl Gateways {
    /// # Panics
    ///
    /// If there are none.
    pub fn new(servers: &[ServerAddress]) -> Self {
        assert!(!servers.is_empty(), "the configuration names at least one gateway");
        Gateways { order: servers.iter().map(Resolver::new).collect(), failures: 0 }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// The gateway that [`Gateways::pick`] picks.
    pub fn server(&self) -> &ServerAddress {
        self.order[0].server()
    }

    /// The address to try now: of the gateway that worked, until it fails or sends this client away.
    pub fn pick(&mut self, control: &Control<'_>) -> Picked {
        let is_alone = self.len() == 1;
        self.order[0].pick(control, is_alone)
    }

    /// The gateway has given this client an address.
    pub fn worked(&mut self) {
        self.failures = 0;
        self.order[0].worked(false);
    }

    /// The tunnel is lost. Its gateway has gone silent if `is_silent`. One that `sends_away` is tried last.
    pub fn lost(&mut self, is_silent: bool, sends_away: bool) {
        self.order[0].worked(is_silent);
        if sends_away {
            self.order.rotate_left(1);
        }
    }

    /// The gateway has not taken this client: the next one has its turn. Returns whether all have failed since one has worked, or since this
    /// last was so.
    pub fn failed(&mut self) -> bool {
        self.order[0].failed();
        self.order.rotate_left(1);
        self.failures += 1;
        self.failures.is_multiple_of(self.len())
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::unbounded;

    use super::*;
    use crate::io::Wake;

    struct Tried {
        gateways: Gateways,
        wake: Wake,
    }

    impl Tried {
        fn of(hosts: &[&str]) -> Self {
            let server = |host: &&str| ServerAddress { host: (*host).to_owned(), port: 55_555 };
            let servers: Vec<_> = hosts.iter().map(server).collect();
            Tried { gateways: Gateways::new(&servers), wake: Wake::new().unwrap() }
        }

        fn next(&mut self) -> String {
            let (_sender, signals) = unbounded();
            match self.gateways.pick(&Control::new(signals, &self.wake)) {
                Picked::Address(address) => {
                    assert_eq!(address.ip().to_string(), self.gateways.server().host);
                    address.ip().to_string()
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn gateways_are_tried_in_order_and_then_from_the_first_again() {
        let mut tried = Tried::of(&["198.18.0.1", "198.18.0.2", "198.18.0.3"]);
        let mut rounds = Vec::new();
        for expected in ["198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.1"] {
            assert_eq!(tried.next(), expected);
            rounds.push(tried.gateways.failed());
        }
        assert_eq!(rounds, [false, false, true, false]);
        tried.gateways.worked();
        assert_eq!([tried.gateways.failed(), tried.gateways.failed(), tried.gateways.failed()], [false, false, true]);
    }

    #[test]
    fn the_one_that_worked_is_tried_first_and_the_one_that_sends_away_last() {
        let mut tried = Tried::of(&["198.18.0.1", "198.18.0.2", "198.18.0.3"]);
        tried.gateways.failed();
        tried.gateways.worked();
        tried.gateways.lost(true, false);
        assert_eq!(tried.next(), "198.18.0.2");
        tried.gateways.worked();
        tried.gateways.lost(false, true);
        for expected in ["198.18.0.3", "198.18.0.1", "198.18.0.2"] {
            assert_eq!(tried.next(), expected);
            tried.gateways.failed();
        }
    }
}
