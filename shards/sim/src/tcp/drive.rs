//! Connections begin, send, receive and end.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use tollgate_shards::{Counters, Machine};

use super::endpoint::{EndSettings, Endpoint, Outgoing, Settings};
use super::segment::{Ends, Segment};
use super::{Calm, Connection, FIRST_PORT, PORTS};
use crate::client::End;
use crate::oracle::Violation;
use crate::packets::{Origin, Place, Way, kernel, wire};
use crate::plan::{Peer, TcpFlow};
use crate::schedule::Time;
use crate::trace::Who;
use crate::world::{Event, World};

/// The port of the other end.
const SERVICE: u16 = 443;
/// What a connection that lives when it gets calm may still send, in bytes, beyond what it has sent.
const REST_BYTES_MAX: u64 = 50_000;
/// What TCP sends in the calm takes no longer, about.
const CALM_BYTES_TAKE: Duration = Duration::from_secs(60);
/// When a device without an address is asked again.
const RETRY: Duration = Duration::from_millis(500);

impl World {
    pub(crate) fn schedule_tcp(&mut self) {
        for flow in 0..self.plan.tcp.len() as u32 {
            let after = self.tcp.random.around(self.plan.safety / 8);
            self.schedule.at(self.now + after, Event::TcpStart(flow));
        }
    }

    /// A flow's next connection is due.
    pub(crate) fn tcp_start(&mut self, index: u32) {
        let flow = self.plan.tcp[index as usize];
        let is_due = self.is_calm == self.tcp.calm.is_some() && !self.tcp.is_over;
        if !is_due || self.tcp.connections.iter().any(|it| it.flow == index && (it.is_calm || !it.is_over)) {
            return;
        }
        let ends = self.tcp_ends(&flow);
        let Some((ends, places)) = ends else {
            if self.tcp.calm.is_none() {
                self.schedule.at(self.now + RETRY, Event::TcpStart(index));
            }
            return;
        };
        let is_calm = self.tcp.calm.is_some();
        let number = self.tcp.connections.len() as u32;
        let port = FIRST_PORT + (number % PORTS) as u16;
        let [device, other] = ends;
        let sends = if is_calm { [0, 1].map(|side| self.affordable(&flow, side)) } else { flow.bytes };
        let settings = Settings {
            is_v6: device.is_ipv6(),
            has_timestamps: flow.has_timestamps,
            has_ecn: flow.has_ecn,
            content: self.plan.seed << 32 | u64::from(number),
        };
        let endpoints = [0, 1].map(|side| {
            let end = EndSettings {
                opens: flow.device_opens == (side == 0),
                mtu_bytes: flow.mtu_bytes[side],
                sends_bytes: sends[side],
                write_bytes: flow.write_bytes,
                buffer_bytes: flow.buffer_bytes[side],
                reads_every: flow.reads_every[side],
                initial_seq: self.tcp.random.between(0, 1 << 32) as u32,
                has_tso: self.has_frames(places[side]) && (flow.has_tso || places[side] != Place::Tun),
            };
            Endpoint::new(settings, end)
        });
        self.tcp.by_port.insert(port, number);
        self.tcp.connections.push(Connection {
            flow: index,
            ends: [(device, port), (other, SERVICE)],
            places,
            endpoints,
            sends: sends.map(|bytes| bytes > 0),
            identifications: [0; 2],
            wake: None,
            is_over: false,
            is_done: false,
            is_calm,
        });
        self.trace.note(self.now, Who::World, "tcp begins", u64::from(number));
        self.tcp_wake(number, self.now);
    }

    /// Addresses and places of a flow's ends, if they have some.
    fn tcp_ends(&self, flow: &TcpFlow) -> Option<([IpAddr; 2], [Place; 2])> {
        let device = self.devices[flow.device].address()?;
        let (other, place) = match flow.peer {
            Peer::Network(host) => (host, Place::Tun),
            // In the calm it is known whether they can reach each other.
            Peer::Device(_) if self.is_calm && self.gateway.snapshot.isolate_clients => return None,
            Peer::Device(other) => (self.devices[other].address()?, Place::Client(other as u32)),
        };
        Some(([device, other], [Place::Client(flow.device as u32), place]))
    }

    /// What an end sends in the calm: no more than the users' rates carry in some seconds, and its TCP in a minute.
    fn affordable(&self, flow: &TcpFlow, side: usize) -> u64 {
        let of_user = |device: usize| {
            let user = self.gateway.population.user(self.plan.devices[device].user)?;
            user.limit.map(|limit| limit.rate.bits_per_s() / 8 * 5)
        };
        let delay = |device: usize| self.plan.devices[device].up.delay + self.plan.devices[device].down.delay;
        let (rate, way) = match flow.peer {
            Peer::Device(other) => (of_user(other), delay(other)),
            Peer::Network(_) => (None, Duration::ZERO),
        };
        let round_trip = delay(flow.device) + way + self.plan.tick * 2;
        let of_tcp = flow.carried_bytes(side, CALM_BYTES_TAKE, round_trip);
        [of_user(flow.device), rate, Some(of_tcp)].into_iter().flatten().fold(flow.calm_bytes[side], u64::min)
    }

    fn tcp_wake(&mut self, index: u32, at: Time) {
        let connection = &mut self.tcp.connections[index as usize];
        if !connection.is_over && connection.wake.is_none_or(|wake| at < wake) {
            connection.wake = Some(at);
            self.schedule.at(at, Event::Tcp(index));
        }
    }

    /// A connection's time has come.
    pub(crate) fn tcp(&mut self, index: u32) -> Result<(), Violation> {
        let now = self.now;
        let connection = &mut self.tcp.connections[index as usize];
        if self.tcp.is_over || connection.is_over || connection.wake.is_none_or(|at| at > now) {
            return Ok(());
        }
        connection.wake = None;
        connection.endpoints.iter_mut().for_each(|endpoint| endpoint.handle_timeout(now));
        for side in [0, 1] {
            while let Some(outgoing) = self.tcp.connections[index as usize].endpoints[side].poll_transmit(now) {
                self.tcp_send((index, side), &outgoing)?;
            }
        }
        let is_cut_off = self.is_cut_off(index);
        let connection = &mut self.tcp.connections[index as usize];
        let [one, other] = &connection.endpoints;
        connection.is_done = one.is_done(connection.sends[1]) && other.is_done(connection.sends[0]);
        if connection.is_done || is_cut_off || one.sender.is_given_up || other.sender.is_given_up {
            return self.tcp_end(index);
        }
        let timeouts = connection.endpoints.iter().filter_map(Endpoint::poll_timeout).min();
        if let Some(at) = timeouts {
            let at = at.round_up(self.plan.tick).max(Time { ns: now.ns + 1 });
            self.tcp_wake(index, at);
        }
        Ok(())
    }

    /// Whether an end has another address by now, so that the connection is nobody's.
    fn is_cut_off(&self, index: u32) -> bool {
        let connection = &self.tcp.connections[index as usize];
        connection.places.iter().zip(&connection.ends).any(|(place, (address, _))| match place {
            Place::Client(device) => self.devices[*device as usize].address().is_some_and(|other| other != *address),
            Place::Tun => false,
        })
    }

    fn tcp_end(&mut self, index: u32) -> Result<(), Violation> {
        let connection = &mut self.tcp.connections[index as usize];
        connection.is_over = true;
        let flow = connection.flow;
        self.trace.note(self.now, Who::World, "tcp ends", u64::from(index));
        let [one, other] = &self.tcp.connections[index as usize].endpoints;
        for (from, to) in [(one, other), (other, one)] {
            if self.tcp.connections[index as usize].is_done && to.receiver.ce_seen > 0 && from.sender.ece_seen == 0 {
                let what = format!("connection {index}: {} marks arrived, and no echo of them", to.receiver.ce_seen);
                return Err(Violation::new("tcp", what));
            }
        }
        let is_calm = self.tcp.connections[index as usize].is_calm;
        if !is_calm {
            let pause =
                if self.is_calm { Duration::ZERO } else { self.tcp.random.around(self.plan.tcp[flow as usize].pause) };
            self.schedule.at(self.now + pause, Event::TcpStart(flow));
        }
        Ok(())
    }

    fn tcp_send(&mut self, (index, side): (u32, usize), outgoing: &Outgoing) -> Result<(), Violation> {
        let connection = &mut self.tcp.connections[index as usize];
        let flow = self.plan.tcp[connection.flow as usize];
        let (ends, identification) = (connection.ends_from(side), connection.identifications[side]);
        let mut packet = outgoing.segment.packet(&ends, outgoing.ecn, identification, flow.may_be_fragmented);
        let (place, gso_size) = (connection.places[side], outgoing.gso_size);
        let is_damaged = gso_size.is_none() && self.tcp.random.ppm(flow.damaged_ppm);
        if is_damaged {
            let last = packet.len() - 1;
            packet[last] ^= 0x10;
        }
        let Place::Client(device) = place else {
            let is_chosen = gso_size.is_some() || self.tcp.random.permille(flow.offloaded_permille);
            let is_offloaded = is_chosen && !is_damaged;
            let frame = if is_offloaded { kernel::offloaded(packet, gso_size) } else { kernel::plain(&packet) };
            return self.tcp_frame_in((index, side), &ends, frame);
        };
        // Without a TUN queue, this is the device's kernel.
        let has_tun = self.has_frames(place);
        let tunnel_bytes = match self.devices[device as usize].attached() {
            Some((session, address)) if address == ends.source.0 => session.end.tunnel().inner_mtu_bytes(),
            // Its interface is gone.
            _ => return Ok(()),
        };
        if packet.len() > tunnel_bytes && !has_tun {
            self.tcp.connections[index as usize].endpoints[side].handle_too_big(tunnel_bytes as u64);
            return Ok(());
        }
        let frame = if gso_size.is_some() { kernel::offloaded(packet, gso_size) } else { kernel::plain(&packet) };
        let packets = kernel::taken_apart(&frame).map_err(|what| Violation::new("tcp", what))?;
        self.tcp.connections[index as usize].identifications[side] = identification.wrapping_add(packets.len() as u16);
        let way = self.packets.permission.way_up(ends.source.0, ends.source.0, ends.destination.0);
        let now = self.instant();
        let Some((session, _)) = self.devices[device as usize].attached() else { return Ok(()) };
        let origin = Origin { from: place, session: session.number, made: self.now, way };
        self.trace.note(self.now, Who::Device(device), "sends", (frame.len() - kernel::HEADER_BYTES) as u64);
        match &mut session.end {
            End::Client(client, _) => client.handle_frame(now, &frame),
            End::Tunnel(tunnel) => tunnel.send(Bytes::copy_from_slice(&packets[0])),
        }
        self.packets.tcp.sends(origin, (index, side), &packets);
        self.touch_device(device);
        Ok(())
    }

    /// Whether there is a TUN queue with frames of several packets.
    fn has_frames(&self, place: Place) -> bool {
        match place {
            Place::Tun => true,
            Place::Client(device) => self.devices[device as usize].plan.has_tun,
        }
    }

    fn tcp_frame_in(&mut self, (index, side): (u32, usize), ends: &Ends, frame: Vec<u8>) -> Result<(), Violation> {
        let packets = kernel::taken_apart(&frame).map_err(|what| Violation::new("tcp", what))?;
        let connection = &mut self.tcp.connections[index as usize];
        connection.identifications[side] = connection.identifications[side].wrapping_add(packets.len() as u16);
        let Place::Client(device) = connection.places[1 - side] else { return Ok(()) };
        let session = self.devices[device as usize].session.as_ref().map_or(0, |session| session.number);
        let way = Way::Client { is_relayed: false };
        self.packets.tcp.sends(Origin { from: Place::Tun, session, made: self.now, way }, (index, side), &packets);
        self.packets.tcp.writes(&frame);
        self.frame_in(ends.destination.0, frame, packets.len() as u64);
        Ok(())
    }

    /// A frame of TCP has arrived at a place, in that session of a device's.
    pub(crate) fn tcp_arrives(&mut self, (at, session): (Place, u64), frame: &[u8]) -> Result<(), Violation> {
        let violation = |what| Violation::new("tcp", what);
        let packets = kernel::taken_apart(frame).map_err(violation)?;
        let arrivals = self.packets.handle_segments(self.now, (at, session), &packets).map_err(violation)?;
        self.oracle.arrived(self.now, at, &arrivals, &self.plan)?;
        // As one, like what a kernel has merged.
        let mut whole: Option<(Ends, Segment)> = None;
        for packet in packets.iter().filter(|packet| wire::transport_checksum_is_right(packet)) {
            let Some((ends, segment)) = Segment::read(packet) else { continue };
            match &mut whole {
                None => whole = Some((ends, segment)),
                Some((_, whole)) => {
                    whole.payload.extend(segment.payload);
                    whole.flags |= segment.flags;
                }
            }
        }
        let Some((ends, segment)) = whole else { return Ok(()) };
        let Some((index, side)) = self.tcp.find(&ends) else { return Ok(()) };
        let connection = &mut self.tcp.connections[index as usize];
        if connection.is_over || connection.places[1 - side] != at {
            return Ok(());
        }
        let ecn = packets.iter().map(|packet| wire::ecn_of(packet)).max().unwrap_or(0);
        let taken = connection.endpoints[1 - side].handle_segment(self.now, &segment, ecn);
        taken.map_err(|what| Violation::new("tcp", format!("connection {index}: {what}")))?;
        self.tcp_wake(index, self.now);
        Ok(())
    }

    /// What may be "packet too big" (RFC 1191, RFC 8201) has arrived.
    pub(crate) fn icmp_arrives(&mut self, at: Place, packet: &[u8]) {
        let Some((mtu_bytes, quoted)) = too_big(packet) else { return };
        let Some((index, side)) = quoted_ends(quoted).and_then(|ends| self.tcp.find(&ends)) else { return };
        let connection = &mut self.tcp.connections[index as usize];
        if connection.is_over || connection.places[side] != at {
            return;
        }
        connection.endpoints[side].handle_too_big(u64::from(mtu_bytes));
        self.trace.note(self.now, Who::World, "tcp learns an MTU", u64::from(mtu_bytes));
        self.tcp_wake(index, self.now);
    }

    /// From now on each connection that lives must end, and each flow must have another one.
    pub(crate) fn tcp_calm_down(&mut self) {
        let (losses, left_out) = (self.losses(), self.left_out());
        self.tcp.calm = Some(Calm { since: self.now, losses, left_out });
        for index in 0..self.tcp.connections.len() as u32 {
            let connection = &mut self.tcp.connections[index as usize];
            connection.endpoints.iter_mut().for_each(|endpoint| endpoint.sender.shorten(REST_BYTES_MAX));
        }
        for flow in 0..self.plan.tcp.len() as u32 {
            self.schedule.at(self.now, Event::TcpStart(flow));
        }
    }

    /// Connections that have not ended.
    pub(crate) fn tcp_left(&self) -> Vec<String> {
        let left = self.tcp.connections.iter().zip(0..).filter(|&(connection, index)| {
            let Connection { is_over, places, ends, .. } = connection;
            let is_reachable = |(place, end): (&Place, &(IpAddr, u16))| match place {
                Place::Client(device) => self.devices[*device as usize].address() == Some(end.0),
                Place::Tun => true,
            };
            !is_over
                && !self.is_cut_off(index)
                && places.iter().zip(ends).all(is_reachable)
                && self.may_pass(connection)
        });
        left.map(|(connection, index)| {
            let left = connection.endpoints.each_ref().map(|endpoint| endpoint.sender.left());
            format!("connection {index} of flow {} has {left:?} bytes left", connection.flow)
        })
        .collect()
    }

    fn may_pass(&self, connection: &Connection) -> bool {
        connection.places[1] == Place::Tun || !self.gateway.snapshot.isolate_clients
    }

    /// All is said. Looks whether what is missing of it was left out by right, if nothing was lost.
    pub(crate) fn tcp_judge(&mut self) -> Result<(), Violation> {
        self.tcp.is_over = true;
        let Some(Calm { since, losses, left_out }) = self.tcp.calm else { return Ok(()) };
        if self.losses() != losses {
            return Ok(());
        }
        let fresh =
            self.tcp.connections.iter().zip(0..).filter(|(connection, _)| connection.is_calm && connection.is_done);
        // Who writes frames for the receiver may leave acknowledgements out.
        let ends = fresh.flat_map(|(connection, index)| {
            [0, 1].map(|side| ((index, side), self.has_frames(connection.places[1 - side])))
        });
        let missing = self.packets.tcp.superseded(since, ends).map_err(|what| Violation::new("tcp", what))?;
        let left_out = self.left_out() - left_out;
        self.trace.note(self.now, Who::World, "tcp is judged, acknowledgements missing:", missing);
        if missing > left_out {
            let what = format!("{missing} acknowledgements are missing at the TUN, {left_out} were left out");
            return Err(Violation::new("tcp", what));
        }
        Ok(())
    }

    /// Acknowledgements that the gateway has left out.
    fn left_out(&self) -> u64 {
        self.gateway.cores.iter().map(|core| core.shard().counters().thinned_acks).sum()
    }

    /// Everything that has been lost so far, wherever, and whatever may have lost something.
    fn losses(&mut self) -> u64 {
        let drops = |counters: Counters| counters.drops.iter().map(|(_, packets)| packets).sum::<u64>();
        let gateway: u64 = self.gateway.cores.iter().map(|core| drops(core.shard().counters())).sum();
        let devices = self.devices.iter_mut().map(|device| {
            let own = device.session.as_mut().map_or(0, |session| drops(session.end.tunnel().counters()));
            own + device.sessions + device.up.lost + device.down.lost
        });
        let kernel = self.shell.as_ref().map_or(0, |shell| shell.lost);
        gateway + devices.sum::<u64>() + self.mesh.lost_packets + self.gateway.restarts + kernel
    }
}

fn too_big(packet: &[u8]) -> Option<(u16, &[u8])> {
    let at = wire::header_bytes(packet)?;
    let icmp = packet.get(at..)?;
    match (wire::protocol_of(packet), icmp.get(..2)?) {
        (1, [3, 4]) => Some((wire::u16_at(icmp, 6)?, icmp.get(8..)?)),
        (58, [2, 0]) => Some((wire::u16_at(icmp, 6)?, icmp.get(8..)?)),
        _ => None,
    }
}

/// The ends of a quoted packet of TCP, of which there may be only the head.
fn quoted_ends(quoted: &[u8]) -> Option<Ends> {
    let (source, destination) = wire::addresses_of(quoted)?;
    let at = if wire::is_v6(quoted) { 40 } else { usize::from(quoted[0] & 0xf) * 4 };
    let ends =
        Ends { source: (source, wire::u16_at(quoted, at)?), destination: (destination, wire::u16_at(quoted, at + 2)?) };
    (wire::protocol_of(quoted) == wire::TCP).then_some(ends)
}
