//! Packets in numbers that are too large for the clients they go to: they are answered, so many in a second, or come in fragments.

use std::net::IpAddr;

use super::{Event, World};
use crate::packets::{Form, IDENTIFICATION_MIN, Place, Way, kernel};
use crate::plan::{LargePlan, Source};

/// Of their payloads, in bytes: from, to.
const PAYLOAD_BYTES: (u64, u64) = (1280, 2000);
/// Their ports begin here.
const PORT: u16 = 7000;
/// The host of the network that they come from.
const HOST: u8 = 3;

impl World {
    /// A burst of large packets for some client.
    pub(super) fn send_large(&mut self) {
        let Some(plan) = self.plan.large.filter(|_| !self.is_calm) else { return };
        let LargePlan { every, burst, fragmentable_permille, relayed_permille } = plan;
        let count = self.large.log_uniform(1, burst);
        let (from, to) = (self.large.index(self.devices.len()), self.large.index(self.devices.len()));
        let is_relayed = self.large.permille(relayed_permille) && from != to;
        let is_fragmentable = self.large.permille(fragmentable_permille);
        let again = self.large.around(every);
        self.schedule.at(self.now + again, Event::Large);
        let Some(destination) = self.devices[to].last_address else { return };
        for _ in 0..count {
            let payload_bytes = self.large.between(PAYLOAD_BYTES.0, PAYLOAD_BYTES.1) as usize;
            let form = if is_fragmentable {
                self.large_packets = self.large_packets.wrapping_add(1);
                Form::Fragmentable { identification: IDENTIFICATION_MIN | self.large_packets }
            } else {
                Form::Whole
            };
            let port = PORT + 2 * to as u16 + u16::from(is_fragmentable);
            if is_relayed {
                self.flow_up(from as u32, Source::Own, (destination, port), (payload_bytes, form));
            } else {
                self.large_down(destination, port, (payload_bytes, form));
            }
        }
    }

    fn large_down(&mut self, destination: IpAddr, port: u16, shape: (usize, Form)) {
        let spec = self.spec_down(self.plan.network_host(HOST), destination, port);
        let packet = self.packets.make(self.now, spec, shape, Place::Tun, Way::Client { is_relayed: false });
        self.frame_in(destination, kernel::plain(&packet), 1);
    }
}
