//! Clients' outer addresses: who has which, and what NATs do to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustc_hash::FxHashMap;

use super::{Event, World};
use crate::gateway::GATEWAYS;
use crate::plan::Plan;
use crate::random::Stream;
use crate::trace::Who;

/// Ports that a NAT has free again and gives out once more.
const FORMER_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Outer {
    pub holders: FxHashMap<SocketAddr, u32>,
    /// How many addresses have been given out.
    given: u32,
    /// What clients behind NATs had, the latest last.
    former: Vec<(usize, SocketAddr)>,
    random: Stream,
}

impl Outer {
    pub fn new(plan: &Plan) -> Self {
        Outer { holders: FxHashMap::default(), given: 0, former: Vec::new(), random: Stream::new(plan.seed, "outer") }
    }
}

impl World {
    pub(super) fn rebind(&mut self, index: u32) {
        self.leave_outer_address(index);
        self.devices[index as usize].outer = self.fresh_outer_address(index);
    }

    /// From now on a client's datagrams come from `outer`, and what is sent there reaches it.
    pub(super) fn take_outer_address(&mut self, index: u32, outer: SocketAddr) {
        self.outer.holders.insert(outer, index);
        self.devices[index as usize].outer = outer;
    }

    pub(super) fn leave_outer_address(&mut self, index: u32) {
        let device = &self.devices[index as usize];
        self.outer.holders.remove(&device.outer);
        if let Some(nat) = device.plan.nat {
            if self.outer.former.len() == FORMER_MAX {
                self.outer.former.remove(0);
            }
            self.outer.former.push((nat, device.outer));
        }
    }

    /// A source address that nobody had before; sometimes only the port is new, behind a NAT always.
    pub(super) fn fresh_outer_address(&mut self, device: u32) -> SocketAddr {
        self.outer.given += 1;
        let number = self.outer.given;
        let host = if number.is_multiple_of(2) { device } else { 1000 + number };
        let plan = self.plan.devices.get(device as usize);
        let is_v6 = plan.is_some_and(|plan| GATEWAYS[plan.gateway].is_ipv6());
        let ip = match plan.and_then(|plan| plan.nat) {
            Some(nat) => IpAddr::from(Ipv4Addr::new(198, 18, 100, 1 + nat as u8)),
            None if is_v6 => IpAddr::from(outer_v6(host)),
            None => IpAddr::from(Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 19, 64, 0)) + (host & 0x3fff))),
        };
        let outer = SocketAddr::new(ip, 10_000 + (number % 50_000) as u16);
        self.outer.holders.insert(outer, device);
        outer
    }

    /// A NAT forgets: its clients get other ports all at once, or each other's, or one that somebody had before, whether the gateway has a
    /// connection there or not.
    pub(super) fn nat(&mut self) {
        if self.is_calm {
            return;
        }
        let nats: Vec<usize> = self.devices.iter().filter_map(|device| device.plan.nat).collect();
        if !nats.is_empty() {
            let nat = self.outer.random.pick(&nats);
            let behind = (0..).zip(&self.devices).filter(|(_, device)| device.plan.nat == Some(nat));
            let behind: Vec<u32> = behind.map(|(index, _)| index).collect();
            self.forget(nat, &behind);
        }
        self.disturb_again(self.plan.surroundings.nat_every, Event::Nat);
    }

    fn forget(&mut self, nat: usize, behind: &[u32]) {
        let outers: Vec<_> = behind.iter().map(|&index| self.devices[index as usize].outer).collect();
        let one = self.outer.random.index(behind.len());
        let what = match self.outer.random.between(0, 4) {
            0 => {
                behind.iter().for_each(|&index| self.rebind(index));
                "forgets all"
            }
            1 => {
                let taken = (0..).map(|place: usize| outers[(place + 1 + one) % outers.len()]);
                behind.iter().zip(taken).for_each(|(&index, outer)| self.take_outer_address(index, outer));
                "gives all others' ports"
            }
            2 => {
                let other = (one + 1) % behind.len();
                self.rebind(behind[other]);
                if other != one {
                    self.outer.former.retain(|(_, former)| *former != outers[other]);
                    self.leave_outer_address(behind[one]);
                    self.take_outer_address(behind[one], outers[other]);
                }
                "gives one another's port"
            }
            _ => {
                let former = self.outer.former.iter().rposition(|&(of, _)| of == nat);
                if let Some(former) = former {
                    let (_, outer) = self.outer.former.remove(former);
                    self.leave_outer_address(behind[one]);
                    self.take_outer_address(behind[one], outer);
                }
                "gives one a port that is free again"
            }
        };
        self.trace.note(self.now, Who::World, what, nat as u64);
    }
}

/// Hosts of few sites, so that several are of one /64, /56 or /48.
fn outer_v6(host: u32) -> Ipv6Addr {
    let (site, subnet) = ((host % 3) as u16, (host / 3 % 4) as u16);
    Ipv6Addr::new(0xfd00, 0x19, 1 + site, ((subnet / 2) << 8) | (subnet % 2), 0, 0, (host >> 16) as u16, host as u16)
}
