//! Users with a certificate who mean harm: what their devices do beyond cheating their own QUIC.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use quinn_proto::Dir;

use super::cheat::carry;
use crate::oracle::Violation;
use crate::packets::Forger;
use crate::plan::{Cheat, CheatPlan};
use crate::random::Stream;
use crate::trace::Who;
use crate::world::{Event, World};

/// Length of the packets that go on to somebody who takes none, in bytes.
const PAYLOAD_BYTES: usize = 1200;

/// Frames of QUIC that an honest client never sends so, or so often (RFC 9000, section 19).
fn frames(random: &mut Stream) -> Vec<u8> {
    let number = |random: &mut Stream, max: u64| (random.between(0, max) as u32 | 0x8000_0000).to_be_bytes();
    let mut bytes = [0; 24];
    random.fill(&mut bytes);
    match random.between(0, 40) {
        // What the gateway has to bear: challenges, answers that nobody asked for, IDs that it gave away, pieces of a handshake that is over.
        0..14 => (0..random.between(1, 60)).flat_map(|token| [&[0x1a], &bytes[..7], &[token as u8]].concat()).collect(),
        14..20 => [&[0x1b], &bytes[..8]].concat(),
        20..30 => vec![0x19, random.between(0, 6) as u8],
        30..32 => (0..random.between(1, 16))
            .flat_map(|_| [&[0x06][..], &number(random, 4000), &[8], &bytes[..8]].concat())
            .collect(),
        // What it may not: IDs that it never gave, and so on.
        32 => [&[0x19][..], &number(random, 1 << 20)].concat(),
        // Acknowledgements of what was never sent, and of everything.
        33 => [&[0x02][..], &number(random, 1 << 20), &[0, 0, 0]].concat(),
        34 => vec![0x02, 0x3f, 0, 0, 0x3f],
        // Data on a stream, and its reset.
        35 => [&[0x0e, 2][..], &number(random, 1 << 20), &[8], &bytes[..8]].concat(),
        36 => vec![0x04, 2, 0, 0],
        // IDs of its own, with all before them retired.
        37 => [&[0x18, 40, 39, 8][..], &bytes].concat(),
        // A datagram that is longer than its packet, and frames that there are not.
        38 => vec![0x31, 0x7f, 0xff, 0x45],
        _ => vec![random.pick(&[0x1e, 0x07, 0x3f, 0x21, 0x40]), 0, 0],
    }
}

impl World {
    /// A device that means harm does something.
    pub(crate) fn cheat(&mut self, index: u32) -> Result<(), Violation> {
        let Some(plan) = self.plan.devices[index as usize].cheats.filter(|_| !self.is_calm) else { return Ok(()) };
        self.devices[index as usize].spoofs = None;
        if self.now.since_start() >= plan.until {
            return Ok(());
        }
        let burst = self.cheats.between(1, plan.burst + 1);
        match plan.cheat {
            Cheat::Frames => self.send_frames_of(index, burst)?,
            Cheat::Feigns => self.feign(index, true),
            Cheat::Wanders => self.wander(index),
            Cheat::Forges => self.forge(index, burst),
            Cheat::Crumbles => self.crumble(index, burst),
            Cheat::NeverAcknowledges => self.go_on_sending(index, burst),
            Cheat::Vanishes => {
                self.devices[index as usize].session = None;
                self.go_on_sending(index, burst);
            }
        }
        let CheatPlan { every, .. } = plan;
        self.schedule.at(self.now + every, Event::Cheat(index));
        Ok(())
    }

    fn send_frames_of(&mut self, index: u32, count: u64) -> Result<(), Violation> {
        let Some((session, _)) = self.devices[index as usize].attached() else { return Ok(()) };
        let mut streams = session.end.tunnel().connection_mut().streams();
        if streams.open(Dir::Uni).is_some() || streams.open(Dir::Bi).is_some() {
            return Err(Violation::new("streams", format!("device {index} has opened a stream")));
        }
        for _ in 0..count {
            let carried = carry(&frames(&mut self.cheats));
            session.end.tunnel().send(carried.into());
        }
        if self.cheats.permille(200) {
            let host = u32::from(Ipv4Addr::new(198, 19, 128, 0)) + self.cheats.between(0, 1 << 15) as u32;
            let port = 1024 + self.cheats.between(0, 60_000) as u16;
            self.devices[index as usize].spoofs = Some(SocketAddr::from((Ipv4Addr::from(host), port)));
        }
        self.trace.note(self.now, Who::Device(index), "cheats", count);
        self.touch_device(index);
        Ok(())
    }

    /// Parts of handshake messages behind a handshake that is over, with a gap in front of them.
    fn crumble(&mut self, index: u32, count: u64) {
        let Some((session, _)) = self.devices[index as usize].attached() else { return };
        for _ in 0..count {
            let offset = (self.cheats.between(8, 4000) as u32 | 0x8000_0000).to_be_bytes();
            session.end.tunnel().send(carry(&[&[0x06][..], &offset, &[4, 1, 2, 3, 4]].concat()).into());
        }
        self.trace.note(self.now, Who::Device(index), "crumbles", count);
        self.touch_device(index);
    }

    /// A device challenges the gateway from elsewhere, and is back at the next moment: whoever is there gets no answer.
    pub(crate) fn feign(&mut self, index: u32, is_away: bool) {
        if self.devices[index as usize].attached().is_none() || self.is_calm {
            return;
        }
        let mut token = [0; 8];
        self.cheats.fill(&mut token);
        let frames = if is_away { [&[0x1a][..], &token].concat() } else { vec![0x01] };
        if is_away {
            self.schedule.at(self.now + Duration::from_micros(1), Event::Feint(index, false));
        }
        let elsewhere = SocketAddr::from((Ipv4Addr::new(198, 19, 255, 7), 1024 + index as u16));
        let device = &mut self.devices[index as usize];
        device.spoofs = is_away.then_some(elsewhere);
        if let Some((session, _)) = device.attached() {
            session.end.tunnel().send(carry(&frames).into());
        }
        self.trace.note(self.now, Who::Device(index), "feigns", u64::from(is_away));
        self.touch_device(index);
    }

    /// A device sends so much from somewhere else, or from where it is, that an address that owes nothing would be believed.
    fn wander(&mut self, index: u32) {
        const DATAGRAMS: usize = 4;
        if self.devices[index as usize].attached().is_none() {
            return;
        }
        let elsewhere =
            SocketAddr::from((Ipv4Addr::new(198, 19, 254, 7), 1024 + self.cheats.between(0, 60_000) as u16));
        let is_away = self.cheats.permille(500);
        let device = &mut self.devices[index as usize];
        device.spoofs = is_away.then_some(elsewhere);
        if let Some((session, _)) = device.attached() {
            // A ping, and padding.
            let frames = [&[0x01][..], &[0; PAYLOAD_BYTES - 100]].concat();
            for _ in 0..DATAGRAMS {
                session.end.tunnel().send(carry(&frames).into());
            }
        }
        self.trace.note(self.now, Who::Device(index), "wanders", u64::from(elsewhere.port()));
        self.touch_device(index);
    }

    fn forge(&mut self, index: u32, count: u64) {
        let Some(leased) = self.devices[index as usize].address() else { return };
        let others = self.devices.iter().filter_map(|device| device.address()).filter(|&other| other != leased);
        let mut forger = Forger {
            random: self.cheats.clone(),
            tunnel: self.plan.tunnel,
            leased,
            others: others.collect(),
            // That may change meanwhile.
            is_isolated: false,
        };
        for _ in 0..count {
            let (packet, reason) = forger.forge();
            self.packets.permission.forged(reason);
            if let Some((session, _)) = self.devices[index as usize].attached() {
                session.end.tunnel().send(packet.into());
            }
        }
        self.cheats = forger.random;
        self.trace.note(self.now, Who::Device(index), "forges", count);
        self.touch_device(index);
    }

    /// Packets for a device that takes none.
    fn go_on_sending(&mut self, index: u32, count: u64) {
        let Some(destination) = self.devices[index as usize].last_address else { return };
        for _ in 0..count {
            self.flow_down(self.plan.network_host(4), destination, 8000 + index as u16, PAYLOAD_BYTES);
        }
    }
}
