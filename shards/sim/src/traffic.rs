//! The inner packets of a run: who sends what, and where it arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use tollgate_shards::Machine;
use tollgate_shards::packet::vnet::HEADER_BYTES;

use crate::client::Device;
use crate::oracle::Violation;
use crate::packets::{FlowSpec, Place, Way, destination_of, source_of};
use crate::plan::{FlowPlan, Peer, Source};
use crate::trace::Who;
use crate::world::{Event, World};

/// Where packets go whose source is of another family than the tunnel.
const ELSEWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);

impl World {
    /// A flow's time has come.
    pub(crate) fn flow(&mut self, index: u32) {
        if self.is_calm {
            return;
        }
        let flow = self.plan.flows[index as usize];
        let burst = self.traffic.between(1, flow.burst + 1);
        let pause = self.traffic.around(flow.every);
        self.schedule.at(self.now + pause + std::time::Duration::from_micros(1), Event::Flow(index));
        for _ in 0..burst {
            let payload_bytes = self.traffic.between(flow.payload_bytes.0, flow.payload_bytes.1) as usize;
            self.send(flow, payload_bytes);
        }
    }

    /// Sends one packet of `flow`, if its ends have addresses.
    fn send(&mut self, flow: FlowPlan, payload_bytes: usize) {
        let device = flow.device as u32;
        match flow.peer {
            Peer::Network(host) if flow.down => {
                // To where it was last, even if it is not there any more.
                if let Some(destination) = self.devices[flow.device].last_address {
                    self.flow_down(host, destination, flow.port, payload_bytes);
                }
            }
            Peer::Network(host) => self.flow_up(device, flow.source, host, flow.port, payload_bytes),
            Peer::Device(other) => {
                if let Some(destination) = self.devices[other].last_address {
                    self.flow_up(device, flow.source, destination, flow.port, payload_bytes);
                }
            }
        }
    }

    fn flow_up(&mut self, device: u32, source: Source, destination: IpAddr, port: u16, payload_bytes: usize) {
        let of_another = match source {
            Source::Own => None,
            Source::Device(other) => self.devices[other].last_address,
            Source::Forged(address) => Some(address),
        };
        let Some((session, leased)) = self.devices[device as usize].attached() else { return };
        let source = of_another.unwrap_or(leased);
        // A packet has one version, that of its source.
        let destination = match (source.is_ipv4(), destination.is_ipv4()) {
            (true, false) => IpAddr::V4(ELSEWHERE_V4),
            (false, true) => IpAddr::V6(ELSEWHERE_V6),
            _ => destination,
        };
        let session_number = session.number;
        let spec = FlowSpec { source, destination, source_port: port, destination_port: 7, session: session_number };
        let way = self.packets.permission.way_up(leased, source, destination);
        let packet = self.packets.make(self.now, spec, payload_bytes, Place::Client(device), way);
        let (session, _) = self.devices[device as usize].attached().expect("it was a moment ago");
        self.trace.note(self.now, Who::Device(device), "sends", packet.len() as u64);
        session.end.tunnel().send(Bytes::from(packet));
        self.touch_device(device);
    }

    fn flow_down(&mut self, source: IpAddr, destination: IpAddr, port: u16, payload_bytes: usize) {
        let of_client = |device: &&Device| device.last_address == Some(destination);
        let session = self.devices.iter().find(of_client).and_then(|device| device.session.as_ref());
        let session = session.map_or(0, |session| session.number);
        let spec = FlowSpec { source, destination, source_port: port ^ 0x8000, destination_port: port, session };
        let packet = self.packets.make(self.now, spec, payload_bytes, Place::Tun, Way::Client { is_relayed: false });
        let index = self.gateway.steer_tun(destination);
        self.trace.note(self.now, Who::Shard(index), "tun in", packet.len() as u64);
        let frame = [&[0; HEADER_BYTES], &packet[..]].concat();
        self.frames_in += 1;
        let now = self.instant();
        self.shard_mut(index).handle_frame(now, &frame);
    }

    /// A shard has written a frame to its TUN queue.
    pub(crate) fn arrive_at_tun(&mut self, index: u16, frame: &[u8]) -> Result<(), Violation> {
        let (header, packet) = frame.split_at(HEADER_BYTES);
        self.oracle.at_tun(self.now, index, packet)?;
        if self.seen.is_kept {
            self.seen.tun.push((index, packet.to_vec()));
            return Ok(());
        }
        if self.is_calm
            && let Some(source) = source_of(packet)
            && let Some(device) = self.devices.iter_mut().find(|device| device.address() == Some(source))
        {
            device.exchanged.0 += 1;
        }
        let arrivals = self.packets.handle_arrival(self.now, (Place::Tun, 0), header, packet);
        let arrivals = arrivals.map_err(|violation| Violation::new("packets", violation))?;
        self.oracle.arrived(self.now, Place::Tun, &arrivals, &self.plan)
    }

    /// A device has got an inner packet.
    pub(crate) fn arrive_at_device(&mut self, index: u32, packet: &[u8]) -> Result<(), Violation> {
        let device = &mut self.devices[index as usize];
        if self.seen.is_kept {
            device.received.push(packet.to_vec());
            return Ok(());
        }
        if self.is_calm {
            device.exchanged.1 += 1;
        }
        let destination = destination_of(packet);
        // Datagrams may arrive before the stream that tells the address.
        if device.address().is_some() && destination != device.address() {
            let what = format!("device {index} with {:?} got a packet for {destination:?}", device.address());
            return Err(Violation::new("packets", what));
        }
        let session = device.session.as_ref().map_or(0, |session| session.number);
        if self.packets.is_forbidden(self.now, index, session) {
            let what = format!("device {index} got a packet for {destination:?} after it had been sent away");
            return Err(Violation::new("packets", what));
        }
        let arrivals =
            self.packets.handle_arrival(self.now, (Place::Client(index), session), &[0; HEADER_BYTES], packet);
        let arrivals = arrivals.map_err(|violation| Violation::new("packets", violation))?;
        self.oracle.arrived(self.now, Place::Client(index), &arrivals, &self.plan)
    }

    /// In calm, whoever is attached and has not yet exchanged packets tries.
    pub(crate) fn exchange(&mut self) -> Result<(), Violation> {
        let host = self.plan.network_host(0);
        for index in 0..self.devices.len() as u32 {
            let device = &mut self.devices[index as usize];
            let (up, down) = device.exchanged;
            let Some((_, address)) = device.attached() else { continue };
            if up == 0 {
                self.flow_up(index, Source::Own, host, 9000 + index as u16, 100);
            }
            if down == 0 {
                self.flow_down(host, address, 9000 + index as u16, 100);
            }
        }
        Ok(())
    }
}
