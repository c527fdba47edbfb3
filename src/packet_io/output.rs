//! Output: everything that the machine has for the descriptors.

use std::time::Instant;

use tollgate_shards::packet::MergeKind;
use tollgate_shards::{DropReason, Machine, Output};
use tracing::warn;

use super::health::is_final;
use super::{Descriptors, PacketIo, Poller, TransmitBatch, Tun, Udp};
use crate::io::WriteOutcome;

impl<D: Descriptors> PacketIo<D> {
    /// Out: what the machine has for both descriptors. Returns the next thing that is for neither; `None` when everything is out. What the UDP
    /// socket does not take now waits, most of it inside the machine.
    pub fn output<M: Machine>(&mut self, machine: &mut M, now: Instant) -> Option<M::Action> {
        loop {
            if self.transmit.is_full() {
                self.flush(machine);
            }
            let takes_frames = self.tun.is_some() || self.misses_tun;
            let buf = if self.udp_blocked { None } else { self.transmit.buffer() };
            match machine.poll_output(now, takes_frames, buf) {
                Some(Output::Frame(frame)) => {
                    let packets = frame.payloads.len() as u64;
                    match self.tun.as_ref().map(|tun| tun.write(&frame)) {
                        Some(outcome) => self.written(machine, outcome, packets),
                        None => machine.handle_drop(DropReason::TunWrite, packets),
                    }
                }
                Some(Output::Transmit(transmit)) => self.transmit.push(transmit),
                Some(Output::Action(action)) => {
                    // Sends do not wait until actions are carried out.
                    self.flush(machine);
                    return Some(action);
                }
                None => break,
            }
        }
        self.flush(machine);
        // A descriptor that the poller does not know is closed.
        if self.poller.want_udp(self.udp_health.rests_until(now).is_none(), self.udp_blocked).is_err() {
            self.lose_udp();
        }
        if self.poller.want_tun(!self.udp_blocked && self.tun_health.rests_until(now).is_none()).is_err() {
            self.lose_tun();
        }
        None
    }

    /// Sends what was gathered, unless the socket is known to be full.
    fn flush(&mut self, machine: &mut impl Machine) {
        if self.udp_blocked || self.transmit.is_empty() {
            return;
        }
        let Some(udp) = &self.udp else {
            self.udp_blocked = true;
            return;
        };
        let outcome = udp.send(&mut self.transmit);
        self.udp_blocked = outcome.blocked;
        if outcome.dropped > 0 {
            machine.handle_drop(DropReason::UdpSend, outcome.dropped as u64);
        }
        if is_final(outcome.error) {
            self.lose_udp();
        }
    }

    /// Takes note of what became of a frame of so many payloads, one to each packet that was merged.
    #[inline]
    fn written(&mut self, machine: &mut impl Machine, outcome: WriteOutcome, packets: u64) {
        match outcome {
            WriteOutcome::Written => {}
            WriteOutcome::Apart { refused, given_up } => {
                machine.handle_drop(DropReason::TunWrite, refused);
                if let Some(kind) = given_up {
                    let name = if kind == MergeKind::Tcp { "TCP" } else { "UDP" };
                    warn!(
                        "the kernel refuses {name} super-packets on the TUN device: their packets go one by one, which costs more CPU"
                    );
                    machine.handle_refused_merges(kind);
                }
            }
            outcome => {
                machine.handle_drop(DropReason::TunWrite, packets);
                if matches!(outcome, WriteOutcome::Refused(errno) if is_final(Some(errno))) {
                    self.lose_tun();
                }
            }
        }
    }
}
