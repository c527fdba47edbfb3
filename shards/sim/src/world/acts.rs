//! What devices do: come, go, vanish, and change their outer addresses.

use std::time::Duration;

use super::{Event, World};
use crate::client::Act;
use crate::identity::Identity;
use crate::noise;
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
                let number = self.gateway.population.identity(index as usize);
                let identity = Identity::cached(number);
                let device = &mut self.devices[index as usize];
                device.returning = false;
                if device.wanted && device.session.as_ref().is_none_or(|session| session.over) {
                    device.connect(&identity, self.transport.clone(), now);
                    let session = device.session.as_mut().expect("it has just begun");
                    session.key = noise::kind(number).map(|_| identity.fingerprint);
                    self.gateway.snapshots().for_each(|snapshot| session.judge(&snapshot.users));
                    device.shown = Some((identity.fingerprint, self.gateway.version_in_force()));
                    self.touch_device(index);
                    self.begin_race(index);
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
}

fn act_name(act: Act) -> &'static str {
    match act {
        Act::Connect => "connects",
        Act::Close => "closes",
        Act::Vanish => "vanishes",
        Act::Rebind => "gets another outer address",
    }
}
