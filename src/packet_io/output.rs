//! Output: everything that the machine has for the descriptors.

use std::time::Instant;

use tollgate_shards::packet::MergeKind;
use tollgate_shards::{DropReason, Machine};
use tracing::warn;

use super::PacketIo;
use super::health::is_final;
use crate::io::WriteOutcome;

impl PacketIo {
    /// Out: everything the machine has for both descriptors. What the UDP socket does not take now is kept.
    pub fn output(&mut self, machine: &mut impl Machine, now: Instant) {
        self.write_frames(machine);
        loop {
            while self.transmit.fill(|buf| machine.poll_transmit(now, buf)) {}
            if self.transmit.is_empty() {
                break;
            }
            let Some(udp) = &self.udp else {
                self.udp_blocked = true;
                break;
            };
            let full = self.transmit.is_full();
            let outcome = udp.send(&mut self.transmit);
            if outcome.dropped > 0 {
                machine.handle_drop(DropReason::UdpSend, outcome.dropped as u64);
            }
            if is_final(outcome.error) {
                self.lose_udp();
            }
            self.udp_blocked = outcome.blocked;
            if outcome.blocked || !full {
                break;
            }
        }
        // A descriptor that the poller does not know is closed.
        if self.poller.want_udp(self.udp_health.rests_until(now).is_none(), self.udp_blocked).is_err() {
            self.lose_udp();
        }
        if self.poller.want_tun(!self.udp_blocked && self.tun_health.rests_until(now).is_none()).is_err() {
            self.lose_tun();
        }
    }

    fn write_frames(&mut self, machine: &mut impl Machine) {
        let (mut refused, mut is_gone, mut given_up) = (0, false, [None; 2]);
        let Some(tun) = &self.tun else {
            if self.misses_tun {
                while let Some(frame) = machine.poll_frame() {
                    refused += frame.payloads.len() as u64;
                }
                count_refused(machine, refused);
            }
            return;
        };
        while let Some(frame) = machine.poll_frame() {
            match tun.write(&frame) {
                WriteOutcome::Written => {}
                WriteOutcome::Apart { refused: packets, given_up: kind } => {
                    refused += packets;
                    if let Some(kind) = kind {
                        given_up[kind as usize] = Some(kind);
                    }
                }
                outcome => {
                    // One payload to each packet that was merged.
                    refused += frame.payloads.len() as u64;
                    is_gone |= matches!(outcome, WriteOutcome::Refused(errno) if is_final(Some(errno)));
                }
            }
        }
        count_refused(machine, refused);
        for kind in given_up.into_iter().flatten() {
            let name = if kind == MergeKind::Tcp { "TCP" } else { "UDP" };
            warn!(
                "the kernel refuses {name} super-packets on the TUN device: their packets go one by one, which costs more CPU"
            );
            machine.handle_refused_merges(kind);
        }
        if is_gone {
            self.lose_tun();
        }
    }
}

fn count_refused(machine: &mut impl Machine, packets: u64) {
    if packets > 0 {
        machine.handle_drop(DropReason::TunWrite, packets);
    }
}
