//! The inner packets of a run: who sends what, and where it arrives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use tollgate_shards::Ecn;
use tollgate_shards::packet::ecn;

use crate::client::Device;
use crate::oracle::{Violation, frame_within_bounds};
use crate::packets::{Arrival, FlowSpec, Form, Place, Way, destination_of, kernel, source_of, wire};
use crate::plan::{FlowPlan, Peer, Source};
use crate::trace::Who;
use crate::world::{Event, Input, World};

/// Shortest payload of a packet that is followed, in bytes.
const MARK_BYTES: u64 = 8;
/// Longest payload of a fragment, in bytes.
const FRAGMENT_BYTES_MAX: usize = 1000;
/// What a UDP super-packet may carry, in bytes, with room for its headers.
const SUPER_PACKET_BYTES_MAX: usize = 65_000;

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
        if self.sends_super_packet(flow, burst) {
            return;
        }
        for _ in 0..burst {
            let payload_bytes = self.traffic.between(flow.payload_bytes.0, flow.payload_bytes.1) as usize;
            self.send(flow, payload_bytes);
        }
    }

    /// Sends one packet of `flow`, if its ends have addresses.
    fn send(&mut self, flow: FlowPlan, payload_bytes: usize) {
        match flow.peer {
            Peer::Network(host) if flow.down => {
                // To where it was last, even if it is not there any more.
                if let Some(destination) = self.devices[flow.device].last_address {
                    self.flow_down(host, destination, flow.port, payload_bytes);
                }
            }
            Peer::Network(host) => self.send_formed(flow, host, payload_bytes),
            Peer::Device(other) => {
                if let Some(destination) = self.devices[other].last_address {
                    self.send_formed(flow, destination, payload_bytes);
                }
            }
        }
    }

    /// Sends a device's packet in the form that it is given to have.
    fn send_formed(&mut self, flow: FlowPlan, destination: IpAddr, payload_bytes: usize) {
        let forms: &[Form] = match self.plan.frames {
            // These fit any path, so that nobody makes fragments of them.
            Some(frames) if self.frames.permille(frames.fragmented_permille) && payload_bytes <= FRAGMENT_BYTES_MAX => {
                &[Form::Fragment { is_first: true }, Form::Fragment { is_first: false }]
            }
            Some(frames) if self.frames.permille(frames.damaged_permille) => &[Form::Damaged],
            _ => &[Form::Whole],
        };
        for &form in forms {
            self.flow_up(flow.device as u32, flow.source, (destination, flow.port), (payload_bytes, form));
        }
    }

    /// Sends datagrams of a flow from the network as one super-packet (USO), if they are to go so.
    fn sends_super_packet(&mut self, flow: FlowPlan, burst: u64) -> bool {
        let (Peer::Network(host), true, Some(frames)) = (flow.peer, flow.down, self.plan.frames) else { return false };
        if burst < 2 || !self.frames.permille(frames.super_permille) {
            return false;
        }
        let Some(destination) = self.devices[flow.device].last_address else { return true };
        let payload_bytes = self.frames.between(flow.payload_bytes.0, flow.payload_bytes.1).max(MARK_BYTES) as usize;
        let count = (burst as usize).min(SUPER_PACKET_BYTES_MAX / payload_bytes);
        let mut lengths = vec![payload_bytes; count];
        // The last one may be shorter.
        lengths[count - 1] = self.frames.between(MARK_BYTES, payload_bytes as u64 + 1) as usize;
        let spec = self.spec_down(host, destination, flow.port);
        let packet = self.packets.make_super(self.now, spec, &lengths, Place::Tun, Way::Client { is_relayed: false });
        self.frame_in(destination, kernel::offloaded(packet, Some(payload_bytes as u16)), count as u64);
        true
    }

    pub(crate) fn flow_up(
        &mut self,
        device: u32,
        source: Source,
        (destination, port): (IpAddr, u16),
        shape: (usize, Form),
    ) {
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
        let packet = self.packets.make(self.now, spec, shape, Place::Client(device), way);
        let (session, _) = self.devices[device as usize].attached().expect("it was a moment ago");
        self.trace.note(self.now, Who::Device(device), "sends", packet.len() as u64);
        session.end.tunnel().send(Bytes::from(packet));
        self.touch_device(device);
    }

    pub(crate) fn flow_down(&mut self, source: IpAddr, destination: IpAddr, port: u16, payload_bytes: usize) {
        let spec = self.spec_down(source, destination, port);
        let way = Way::Client { is_relayed: false };
        let packet = self.packets.make(self.now, spec, (payload_bytes, Form::Whole), Place::Tun, way);
        let is_offloaded = self.plan.frames.is_some_and(|frames| self.frames.permille(frames.offloaded_permille));
        let frame = if is_offloaded { kernel::offloaded(packet, None) } else { kernel::plain(&packet) };
        self.frame_in(destination, frame, 1);
    }

    /// What tells a flow from the network to a client.
    pub(crate) fn spec_down(&self, source: IpAddr, destination: IpAddr, port: u16) -> FlowSpec {
        let of_client = |device: &&Device| device.last_address == Some(destination);
        let session = self.devices.iter().find(of_client).and_then(|device| device.session.as_ref());
        let session = session.map_or(0, |session| session.number);
        FlowSpec { source, destination, source_port: port ^ 0x8000, destination_port: port, session }
    }

    /// The kernel writes a frame that stands for so many packets to the TUN queue that `destination` leads to.
    pub(crate) fn frame_in(&mut self, destination: IpAddr, frame: Vec<u8>, packets: u64) {
        let index = self.gateway.steer_tun(destination);
        self.trace.note(self.now, Who::Shard(index), "tun in", (frame.len() - kernel::HEADER_BYTES) as u64);
        if self.shell.is_some() {
            return self.deliver_frame(index, frame, packets);
        }
        self.input(index, Input::Frame(frame, packets));
    }

    /// A shard has written a frame to its TUN queue.
    pub(crate) fn arrive_at_tun(&mut self, index: u16, frame: &[u8]) -> Result<(), Violation> {
        let packet = &frame[kernel::HEADER_BYTES..];
        frame_within_bounds(frame)?;
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
        if ecn::codepoint(packet) == Some(Ecn::Ce) {
            self.hits.marked(true);
            self.oracle.standing.marked();
        }
        if wire::is_tcp(packet) {
            return self.tcp_arrives((Place::Tun, 0), frame);
        }
        self.icmp_arrives(Place::Tun, packet);
        let arrivals = self.packets.handle_arrival(self.now, (Place::Tun, 0), frame);
        let arrivals = arrivals.map_err(|violation| Violation::new("packets", violation))?;
        self.goodput += self.honest(Place::Tun, &arrivals);
        self.oracle.arrived(self.now, Place::Tun, &arrivals, &self.plan)
    }

    /// How many of these have nothing to do with devices that mean harm.
    fn honest(&self, at: Place, arrivals: &[Arrival]) -> u64 {
        let means_harm = |place| match place {
            Place::Client(device) => self.plan.devices.get(device as usize).is_some_and(|plan| plan.cheats.is_some()),
            Place::Tun => false,
        };
        arrivals.iter().filter(|arrival| !means_harm(at) && !means_harm(arrival.from)).count() as u64
    }

    /// A device has got an inner packet, or several as one frame.
    pub(crate) fn arrive_at_device(&mut self, index: u32, frame: &[u8]) -> Result<(), Violation> {
        let packet = &frame[kernel::HEADER_BYTES..];
        let device = &mut self.devices[index as usize];
        if self.seen.is_kept {
            device.received.push(packet.to_vec());
            return Ok(());
        }
        if self.is_calm {
            device.exchanged.1 += 1;
        }
        if ecn::codepoint(packet) == Some(Ecn::Ce) {
            self.hits.marked(false);
            self.oracle.standing.marked();
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
        let place = Place::Client(index);
        if wire::is_tcp(packet) {
            return self.tcp_arrives((place, session), frame);
        }
        self.icmp_arrives(place, packet);
        let arrivals = self.packets.handle_arrival(self.now, (place, session), frame);
        let arrivals = arrivals.map_err(|violation| Violation::new("packets", violation))?;
        self.goodput += self.honest(Place::Client(index), &arrivals);
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
                self.flow_up(index, Source::Own, (host, 9000 + index as u16), (100, Form::Whole));
            }
            if down == 0 {
                self.flow_down(host, address, 9000 + index as u16, 100);
            }
        }
        Ok(())
    }
}
