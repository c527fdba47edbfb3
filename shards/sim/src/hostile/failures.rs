//! Strangers at one address who have the gateway begin handshakes that fail: its address is doubted, then ignored, and nobody else's is.

use std::collections::VecDeque;
use std::net::SocketAddr;

use tollgate_shards::TLS_VERSION;

use super::floods::{SOURCE, client_hello};
use super::initial::{Header, crypto_frame, read_retry};
use crate::identity::Hello;
use crate::link::Aggregate;
use crate::oracle::Shown;
use crate::random::{Draws, Stream};
use crate::world::{Event, World};

const ADDRESS: [u8; 4] = [198, 19, 1, 9];
const PORT_MIN: u64 = 1024;
const TOKENS_MAX: usize = 256;

#[derive(Debug)]
pub struct Failures {
    random: Stream,
    /// Where tokens were issued, with the ID and the token.
    tokens: VecDeque<(SocketAddr, Vec<u8>, Vec<u8>)>,
    /// What leads to the shard that they go to.
    steer: u8,
    whole: Vec<u8>,
    refused: Vec<u8>,
}

impl Failures {
    pub fn new(draws: &Draws) -> Self {
        let mut random = draws.stream("failures");
        let steer = random.between(0, 256) as u8;
        Failures { random, tokens: VecDeque::new(), steer, whole: Vec::new(), refused: Vec::new() }
    }

    /// The gateway sends a datagram to some address.
    pub fn receive(&mut self, address: SocketAddr, datagram: &[u8]) {
        if address.ip() == SocketAddr::from((ADDRESS, 0)).ip()
            && self.tokens.len() < TOKENS_MAX
            && let Some((_, id, token)) = read_retry(datagram)
        {
            self.tokens.push_back((address, id, token));
        }
    }

    /// A ClientHello without a token, from a port of its own.
    fn first(&mut self) -> (SocketAddr, Vec<u8>) {
        let address = SocketAddr::from((ADDRESS, self.random.between(PORT_MIN, 1 << 16) as u16));
        let mut id = [self.steer; 8];
        self.random.fill(&mut id[..7]);
        (address, Header { version: TLS_VERSION, destination: &id, source: &SOURCE, token: &[] }.unreadable(0))
    }

    /// The same with a token, and what that shows if it is refused.
    fn second(&mut self, whole_permille: u32) -> Option<(SocketAddr, Option<Shown>, Vec<u8>)> {
        let (address, id, token) = self.tokens.pop_front()?;
        let is_whole = self.random.permille(whole_permille);
        let (hello, shown) = if is_whole { (&self.whole, None) } else { (&self.refused, Some(Shown::Refused)) };
        let header = Header { version: TLS_VERSION, destination: &id, source: &SOURCE, token: &token };
        Some((address, shown, header.seal(0, &crypto_frame(0, hello))?))
    }
}

impl World {
    /// Some more handshakes fail.
    pub(crate) fn fail(&mut self) {
        let Some(plan) = self.plan.failures.filter(|_| !self.is_calm) else { return };
        if self.now.since_start() >= plan.until {
            return;
        }
        if self.failures.whole.is_empty() {
            self.failures.whole = client_hello(Hello::default());
            self.failures.refused = client_hello(Hello { asks_for_another_protocol: true, ..Hello::default() });
        }
        while let Some((from, shown, datagram)) = self.failures.second(plan.whole_permille) {
            self.strangers.proves(from);
            match shown {
                Some(shown) => self.oracle.proofs.shows(from, shown),
                None => self.oracle.proofs.proves(from),
            }
            (0..plan.times).for_each(|_| self.strike_from(from, &datagram));
        }
        for _ in 0..self.failures.random.between(1, plan.burst + 1) {
            let (from, datagram) = self.failures.first();
            self.strike_from(from, &datagram);
        }
        self.schedule.at(self.now + plan.every, Event::Fail);
    }

    pub(super) fn strike_from(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.strangers.sends(from, datagram);
        self.reach_gateway(from, Aggregate { segment_bytes: datagram.len(), ecn: None, data: datagram.into() });
    }
}
