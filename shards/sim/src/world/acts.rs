//! What devices do: come, go, vanish, and change their outer addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{Event, World};
use crate::client::Act;
use crate::identity::Identity;
use crate::trace::Who;

impl World {
    /// A device whose connection is over tries again after a while.
    pub(super) fn come_back(&mut self, index: u32) {
        let calm = self.is_calm;
        let device = &mut self.devices[index as usize];
        if device.wanted && !device.returning {
            device.returning = true;
            let pause = if calm { Duration::from_millis(500) } else { device.random.around(device.plan.pause) };
            let pause = pause.max(Duration::from_millis(20));
            self.schedule.at(self.now + pause, Event::Device(index, Act::Connect));
        }
    }

    pub(super) fn act(&mut self, index: u32, act: Act) {
        self.trace.note(self.now, Who::Device(index), act_name(act), 0);
        let now = self.instant();
        match act {
            Act::Connect => {
                let identity = Identity::cached(self.gateway.population.identity(index as usize));
                let device = &mut self.devices[index as usize];
                device.returning = false;
                if device.wanted && device.session.as_ref().is_none_or(|session| session.over) {
                    device.connect(&identity, self.transport.clone(), now);
                    self.touch_device(index);
                }
            }
            Act::Close => {
                let device = &mut self.devices[index as usize];
                if let Some(session) = device.session.as_mut().filter(|session| !session.over) {
                    session.end.tunnel().close(now);
                    self.touch_device(index);
                }
            }
            Act::Vanish => {
                self.devices[index as usize].session = None;
                let same_place = self.devices[index as usize].random.permille(300);
                if !same_place {
                    self.rebind(index);
                }
                self.come_back(index);
            }
            Act::Rebind => {
                if self.is_calm {
                    return;
                }
                self.rebind(index);
                let device = &mut self.devices[index as usize];
                if let Some(every) = device.plan.rebind_every {
                    let pause = device.random.around(every) + Duration::from_millis(1);
                    self.schedule.at(self.now + pause, Event::Device(index, Act::Rebind));
                }
            }
        }
    }

    pub(super) fn rebind(&mut self, index: u32) {
        self.by_outer.remove(&self.devices[index as usize].outer);
        self.devices[index as usize].outer = self.fresh_outer_address(index);
    }

    /// A source address that nobody had before; sometimes only the port is new.
    pub(super) fn fresh_outer_address(&mut self, device: u32) -> SocketAddr {
        self.outer_addresses += 1;
        let number = self.outer_addresses;
        let host = if number.is_multiple_of(2) { device } else { 1000 + number };
        let ip = IpAddr::from(Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 19, 64, 0)) + (host & 0x3fff)));
        let outer = SocketAddr::new(ip, 10_000 + (number % 50_000) as u16);
        self.by_outer.insert(outer, device);
        outer
    }
}

fn act_name(act: Act) -> &'static str {
    match act {
        Act::Connect => "connects",
        Act::Close => "closes",
        Act::Vanish => "vanishes",
        Act::Rebind => "gets another outer address",
    }
}
