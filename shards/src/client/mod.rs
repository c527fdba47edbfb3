//! The client's end of the tunnel: one connection, one address, one TUN queue.
//!
//! [`Tunnel`] is the connection; [`Client`] puts a TUN queue to it. `tollgate connect` is a shell around a client, the load generator one
//! around thousands of tunnels. Neither ever reconnects by itself: whoever drives it decides whether and when to make a new one.

mod message;
mod moving;
mod tunnel;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::ConnectError;
use quinn_proto::crypto::{ClientConfig as CryptoConfig, HmacKey};

use crate::assignment::{Assignment, AssignmentError};
use crate::drops::DropReason;
use crate::excerpt::excerpt;
use crate::io::{Received, WakeReason};
use crate::machine::{Machine, Output};
use crate::packet::coalesce::{Coalescer, MergeLimits};
use crate::packet::fragment::{fragment, may_be_fragmented};
use crate::packet::icmp::packet_too_big;
use crate::packet::inner::{InnerPacket, MTU_BYTES_MIN_V6};
use crate::packet::split::split;
use crate::packet::vnet::VnetHeader;
use crate::packet::{MergeKind, PacketPool};
use crate::quic::peer::words;

pub use moving::MovingHandshake;
pub use tunnel::{Tunnel, TunnelParams};

/// Something the driver must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// The tunnel is up: these are its addresses. Said again when it has moved to another connection.
    Assigned(Assignment),
    /// The path to the gateway carries inner packets of this many bytes from now on: another number than before.
    PathMtu(u16),
    /// The tunnel is down for good.
    Closed(CloseCause),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseCause {
    #[error("closed by this client")]
    Local,
    /// The gateway closed it, with an application code.
    #[error("closed by the gateway: {reason} (code {code:#04x})")]
    Gateway { code: u64, reason: String },
    /// The gateway has forgotten the connection (RFC 9000, section 10.3): it has been restarted.
    #[error("the gateway has forgotten this connection: it was restarted")]
    Reset,
    /// Nothing was heard for the idle timeout, or the handshake got no answer.
    #[error("the gateway does not answer")]
    TimedOut,
    /// The gateway lets no handshake begin (RFC 9000, section 20.1: CONNECTION_REFUSED): it drains.
    #[error("the gateway does not take new clients now")]
    NotTaken,
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    /// The handshake failed, on either side: a certificate, a name, no common key exchange, a Noise key (RFC 9001, section 4.8).
    #[error("{0}")]
    Handshake(String),
    /// The server speaks no version of QUIC that this client does.
    #[error("the server speaks another version of QUIC")]
    Version,
    #[error("{0}")]
    Other(String),
}

/// A client of one gateway. See the crate's documentation for how to drive it.
pub struct Client {
    pub tunnel: Tunnel,
    gateway: IpAddr,
    coalescer: Coalescer,
    pool: PacketPool,
}

impl Client {
    /// Begins the handshake.
    ///
    /// # Errors
    ///
    /// If the remote address or the server name cannot be used.
    pub fn new(
        params: TunnelParams,
        merge: MergeLimits,
        handshake: Arc<dyn CryptoConfig>,
        reset_key: Arc<dyn HmacKey>,
        now: Instant,
    ) -> Result<Self, ConnectError> {
        let gateway = params.remote.ip();
        let tunnel = Tunnel::new(params, handshake, reset_key, now)?;
        Ok(Client { tunnel, gateway, coalescer: Coalescer::new(merge), pool: PacketPool::default() })
    }

    /// Splits a frame into packets for the gateway, or tells its sender how long they may be.
    fn send_frame(&mut self, header: &VnetHeader, packet: &[u8]) -> Result<(), DropReason> {
        let assignment = self.tunnel.assignment().ok_or(DropReason::NotAttached)?;
        let inner = InnerPacket::parse(packet).map_err(|_| DropReason::Malformed)?;
        if inner.source != assignment.client_address.addr() {
            return Err(DropReason::ForgedSource);
        }
        if inner.destination == self.gateway {
            // The gateway would drop it. It may be this connection's own datagram, when the route that keeps those outside is missing.
            return Err(DropReason::OuterAddress);
        }
        let packet_bytes = header.segment_bytes(packet);
        let mtu_bytes = self.tunnel.inner_mtu_bytes();
        if packet_bytes > mtu_bytes && !may_be_fragmented(packet) {
            if self.tunnel.link.path.is_searching() {
                self.tunnel.link.path.answer_later(packet, packet_bytes);
            } else {
                self.reply_too_big(packet, mtu_bytes);
            }
            return Err(DropReason::TooBig);
        }
        let tunnel = &mut self.tunnel;
        let mut send = |packet: Bytes| {
            if packet.len() <= mtu_bytes {
                tunnel.send(packet);
            } else if fragment(&packet, mtu_bytes, &mut |fragment| {
                tunnel.counters.own_packets += 1;
                tunnel.send(fragment);
            }) {
                // All but the first one.
                tunnel.counters.own_packets -= 1;
                tunnel.counters.fragmented_packets += 1;
            } else {
                tunnel.counters.drops.count(DropReason::TooBig);
            }
        };
        split(header, packet, &mut self.pool, &mut send).map_err(|_| DropReason::Malformed)?;
        Ok(())
    }

    /// Tells a sender on this machine how long its packets may be.
    fn reply_too_big(&mut self, packet: &[u8], mtu_bytes: usize) {
        let Some(assignment) = self.tunnel.assignment() else { return };
        let from = assignment.server_address.addr();
        let mtu_bytes = if from.is_ipv6() { mtu_bytes.max(MTU_BYTES_MIN_V6) } else { mtu_bytes };
        if let Some(reply) = packet_too_big(packet, mtu_bytes as u16, from)
            && let Ok(inner) = InnerPacket::parse(&reply)
            && self.coalescer.push(reply, &inner).is_ok()
        {
            self.tunnel.counters.too_big_replies += 1;
        }
    }

    fn take_inner_packets(&mut self, now: Instant) {
        while !self.coalescer.is_full()
            && let Some(unanswered) = self.tunnel.link.path.poll_unanswered()
        {
            let mtu_bytes = self.tunnel.inner_mtu_bytes();
            self.reply_too_big(&unanswered.head, mtu_bytes);
        }
        while !self.coalescer.is_full()
            && let Some(packet) = self.tunnel.recv()
        {
            let address = self.tunnel.assignment().map(|assignment| assignment.client_address.addr());
            let counters = &mut self.tunnel.counters;
            let Ok(inner) = InnerPacket::parse(&packet) else {
                counters.drops.count(DropReason::Malformed);
                continue;
            };
            if address != Some(inner.destination) {
                counters.drops.count(DropReason::NoRoute);
                continue;
            }
            counters.down_packets += 1;
            counters.down_bytes += packet.len() as u64;
            if self.coalescer.push(packet, &inner).is_err() {
                counters.drops.count(DropReason::TunWrite);
            }
        }
        if self.coalescer.is_full() {
            self.tunnel.touch(now);
        }
    }
}

impl Machine for Client {
    type Action = ClientEvent;

    fn handle_udp(&mut self, now: Instant, received: Received) {
        self.tunnel.handle_udp(now, received);
    }

    fn handle_frame(&mut self, now: Instant, frame: &[u8]) {
        let Some((header, packet)) = VnetHeader::parse(frame) else {
            return self.tunnel.counters.drops.count(DropReason::Malformed);
        };
        if let Err(reason) = self.send_frame(&header, packet) {
            self.tunnel.counters.drops.add(reason, header.packets(packet));
        }
        self.tunnel.touch(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.tunnel.handle_timeout(now);
    }

    fn poll_output(
        &mut self,
        now: Instant,
        takes_frames: bool,
        buf: Option<&mut Vec<u8>>,
    ) -> Option<Output<'_, ClientEvent>> {
        if self.coalescer.is_empty() && self.tunnel.look() {
            self.take_inner_packets(now);
        }
        if takes_frames && !self.coalescer.is_empty() {
            return self.coalescer.poll_frame().map(Output::Frame);
        }
        if takes_frames {
            self.coalescer.poll_frame();
        }
        if let Some(buf) = buf
            && let Some(transmit) = self.tunnel.poll_transmit(now, buf)
        {
            return Some(Output::Transmit(transmit));
        }
        self.tunnel.poll_event().map(Output::Action)
    }

    fn handle_drop(&mut self, reason: DropReason, packets: u64) {
        self.tunnel.counters.drops.add(reason, packets);
    }

    fn handle_refused_merges(&mut self, kind: MergeKind) {
        self.coalescer.give_up(kind);
    }

    fn poll_timeout(&mut self) -> Option<(Instant, WakeReason)> {
        self.tunnel.poll_timeout()
    }
}

impl From<quinn_proto::ConnectionError> for CloseCause {
    fn from(error: quinn_proto::ConnectionError) -> Self {
        use quinn_proto::ConnectionError as E;
        match error {
            E::ApplicationClosed(close) => {
                CloseCause::Gateway { code: close.error_code.into_inner(), reason: excerpt(&close.reason) }
            }
            E::Reset => CloseCause::Reset,
            E::TimedOut => CloseCause::TimedOut,
            E::LocallyClosed => CloseCause::Local,
            E::VersionMismatch => CloseCause::Version,
            E::TransportError(ref failure) if is_tls_alert(failure.code) => CloseCause::Handshake(words(&error)),
            E::ConnectionClosed(ref close) if is_tls_alert(close.error_code) => CloseCause::Handshake(words(&error)),
            E::ConnectionClosed(ref close)
                if close.error_code == quinn_proto::TransportErrorCode::CONNECTION_REFUSED =>
            {
                CloseCause::NotTaken
            }
            other => CloseCause::Other(words(&other)),
        }
    }
}

/// RFC 9000, section 20.1: CRYPTO_ERROR.
fn is_tls_alert(code: quinn_proto::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}
