//! What a TCP endpoint sends, and when: Reno (RFC 5681) with NewReno's recovery (RFC 6582), timeouts (RFC 6298), timestamps (RFC 7323), and ECN (RFC 3168).

use std::time::Duration;

use super::segment::{ACK, ECE, Segment};
use crate::schedule::Time;

const RTO_INITIAL: Duration = Duration::from_secs(1);
/// Linux's `TCP_RTO_MIN`.
const RTO_MIN: Duration = Duration::from_millis(200);
/// Less than Linux has, so that the calm at the end of a run is not spent on waiting.
const RTO_MAX: Duration = Duration::from_secs(8);
/// Timeouts in a row after which a connection is given up.
const TIMEOUTS_MAX: u32 = 12;
/// RFC 6928.
const INITIAL_SEGMENTS: u64 = 10;
const DUP_ACKS: u32 = 3;

/// A run of the sequence space to be sent, in which 0 is the SYN and 1 the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub from: u64,
    /// Bytes of data.
    pub bytes: u64,
    pub has_fin: bool,
    pub is_new: bool,
    pub says_cwr: bool,
}

/// One direction of a connection, at its sender.
#[derive(Debug)]
pub struct Sender {
    /// Bytes of data in all.
    pub total: u64,
    /// The application writes so many bytes at once: the last of them are pushed.
    write_bytes: u64,
    pub mss: u64,
    has_ecn: bool,
    pub una: u64,
    next: u64,
    pub max: u64,
    window: u64,
    cwnd: u64,
    ssthresh: u64,
    dup_acks: u32,
    /// Recovery is over when this is acknowledged.
    recover: Option<u64>,
    must_retransmit: bool,
    smoothed: Option<(Duration, Duration)>,
    rto: Duration,
    timeouts: u32,
    pub timeout_at: Option<Time>,
    /// The window was reduced for a mark, and is not again before this is acknowledged.
    reduced_until: u64,
    must_say_cwr: bool,
    pub ece_seen: u64,
    pub is_given_up: bool,
}

impl Sender {
    pub fn new(total: u64, write_bytes: u64, mss: u64) -> Self {
        Sender {
            total,
            write_bytes,
            mss,
            has_ecn: false,
            una: 0,
            next: 0,
            max: 0,
            window: 0,
            cwnd: INITIAL_SEGMENTS * mss,
            ssthresh: u64::MAX,
            dup_acks: 0,
            recover: None,
            must_retransmit: false,
            smoothed: None,
            rto: RTO_INITIAL,
            timeouts: 0,
            timeout_at: None,
            reduced_until: 0,
            must_say_cwr: false,
            ece_seen: 0,
            is_given_up: false,
        }
    }

    /// The SYN has gone, or goes again.
    pub fn syn_sent(&mut self, now: Time) {
        (self.next, self.max) = (self.next.max(1), self.max.max(1));
        self.timeout_at = Some(now + self.rto);
    }

    pub fn set_ecn(&mut self, has_ecn: bool) {
        self.has_ecn = has_ecn;
    }

    pub fn is_established(&self) -> bool {
        self.una > 0
    }

    /// Where the sequence space ends.
    fn end(&self) -> u64 {
        1 + self.total + u64::from(self.total > 0)
    }

    /// Whether everything has arrived, as far as the other end has said.
    pub fn is_done(&self) -> bool {
        self.una == self.end()
    }

    /// Bytes that are still to be acknowledged.
    pub fn left(&self) -> u64 {
        self.end() - self.una
    }

    /// Nothing is sent beyond so many bytes more than what was sent.
    pub fn shorten(&mut self, more_bytes: u64) {
        if self.max < self.end() {
            self.total = self.total.min(self.max.max(1) - 1 + more_bytes).max(1);
        }
    }

    /// Whether the application's write, or the data, ends with the byte before `at`.
    pub fn is_pushed(&self, at: u64) -> bool {
        at > 1 && ((at - 1).is_multiple_of(self.write_bytes) || at > self.total)
    }

    /// The next run to send, of no more bytes than one super-packet has.
    pub fn next_run(&mut self, now: Time, super_bytes: u64) -> Option<Run> {
        if !self.is_established() || self.is_given_up {
            return None;
        }
        // What was missing may have been acknowledged since.
        let run = if std::mem::take(&mut self.must_retransmit) && self.una < self.max {
            self.run(self.una, self.mss, self.max)
        } else {
            let window_end = self.una + self.cwnd.min(self.window);
            let room = window_end.saturating_sub(self.next);
            if self.next < self.max {
                // What was sent before the timeout goes again, one by one.
                self.run(self.next, self.mss.min(room), self.max)
            } else {
                self.new_run(room, super_bytes)
            }
        }?;
        let end = run.from + run.bytes + u64::from(run.has_fin);
        self.next = self.next.max(end);
        self.max = self.max.max(end);
        if self.timeout_at.is_none() {
            self.timeout_at = Some(now + self.rto);
        }
        if run.says_cwr {
            self.must_say_cwr = false;
        }
        Some(run)
    }

    fn new_run(&self, room: u64, super_bytes: u64) -> Option<Run> {
        let whole = (super_bytes.min(room) / self.mss).max(1) * self.mss;
        let mut run = self.run(self.next, whole, self.end())?;
        // Nothing shorter than a segment but the end of a write.
        let is_short = run.bytes < self.mss && !self.is_pushed(run.from + run.bytes);
        if run.bytes > room || is_short {
            return None;
        }
        run.is_new = true;
        run.says_cwr = self.must_say_cwr && run.bytes > 0;
        Some(run)
    }

    /// What there is from `from` on: `bytes` at most, not beyond `until`, nor beyond the end of the write.
    fn run(&self, from: u64, bytes: u64, until: u64) -> Option<Run> {
        let data_end = (1 + self.total).min(until);
        let in_write = self.write_bytes - (from.max(1) - 1) % self.write_bytes;
        let bytes = bytes.min(data_end.saturating_sub(from)).min(in_write);
        let has_fin = self.total > 0 && from + bytes == 1 + self.total && until == self.end();
        (bytes > 0 || has_fin).then_some(Run { from, bytes, has_fin, is_new: false, says_cwr: false })
    }

    /// Takes what a segment acknowledges: `ack`, in the sequence space.
    pub fn acknowledged(
        &mut self,
        now: Time,
        ack: u64,
        segment: &Segment,
        window: u64,
        clock: impl Fn(u32) -> Duration,
    ) {
        if ack < self.una {
            return;
        }
        let is_window_same = self.window == window;
        self.window = window;
        if self.has_ecn && segment.has(ECE | ACK) {
            self.ece_seen += 1;
            self.reduce_for_mark();
        }
        if ack > self.una {
            let acked = ack - self.una;
            self.una = ack;
            self.next = self.next.max(ack);
            self.timeouts = 0;
            if let Some((_, echoed)) = segment.timestamps {
                self.sample(clock(echoed));
            } else {
                self.rto = RTO_INITIAL;
            }
            self.timeout_at = (self.una < self.max).then_some(now + self.rto);
            self.dup_acks = 0;
            self.progress(acked);
        } else if segment.payload.is_empty() && segment.length() == 0 && is_window_same && self.una < self.max {
            self.dup_acks += 1;
            self.repeated();
        }
        if self.window < self.mss && self.timeout_at.is_none() && self.una < self.end() {
            self.timeout_at = Some(now + self.rto);
        }
    }

    fn progress(&mut self, acked: u64) {
        if let Some(recover) = self.recover {
            if self.una < recover {
                // Another one of the same window is missing (RFC 6582).
                self.must_retransmit = true;
                self.cwnd = self.cwnd.saturating_sub(acked).max(self.mss) + self.mss;
            } else {
                self.recover = None;
                self.cwnd = self.ssthresh.max(self.mss);
            }
        } else if self.cwnd < self.ssthresh {
            self.cwnd += acked.min(2 * self.mss);
        } else {
            self.cwnd += (self.mss * self.mss / self.cwnd).max(1);
        }
    }

    fn repeated(&mut self) {
        if self.recover.is_some() {
            self.cwnd += self.mss;
        } else if self.dup_acks == DUP_ACKS {
            self.ssthresh = (self.in_flight() / 2).max(2 * self.mss);
            self.cwnd = self.ssthresh + u64::from(DUP_ACKS) * self.mss;
            self.recover = Some(self.max);
            self.must_retransmit = true;
        }
    }

    fn in_flight(&self) -> u64 {
        self.max - self.una
    }

    fn reduce_for_mark(&mut self) {
        if self.una >= self.reduced_until && self.recover.is_none() {
            self.ssthresh = (self.cwnd / 2).max(2 * self.mss);
            self.cwnd = self.ssthresh;
            self.reduced_until = self.max.max(1);
            self.must_say_cwr = true;
        }
    }

    /// RFC 6298, section 2.
    fn sample(&mut self, measured: Duration) {
        let (smoothed, deviation) = match self.smoothed {
            None => (measured, measured / 2),
            Some((smoothed, deviation)) => {
                ((smoothed * 7 + measured) / 8, (deviation * 3 + smoothed.abs_diff(measured)) / 4)
            }
        };
        self.smoothed = Some((smoothed, deviation));
        self.rto = (smoothed + deviation * 4).clamp(RTO_MIN, RTO_MAX);
    }

    /// Nothing was acknowledged in time, or the window stays closed. Returns whether the SYN is to go again.
    pub fn timed_out(&mut self, now: Time) -> bool {
        self.timeouts += 1;
        self.is_given_up = self.timeouts > TIMEOUTS_MAX;
        self.rto = (self.rto * 2).min(RTO_MAX);
        self.timeout_at = (!self.is_given_up).then_some(now + self.rto);
        if !self.is_established() {
            return true;
        }
        if self.una == self.max {
            // A probe of the closed window (RFC 9293, section 3.8.6.1).
            self.window = self.window.max(self.mss);
            return false;
        }
        self.ssthresh = (self.in_flight() / 2).max(2 * self.mss);
        self.cwnd = self.mss;
        // Even where it is closed by now.
        self.window = self.window.max(self.mss);
        self.next = self.una;
        self.recover = None;
        self.dup_acks = 0;
        false
    }

    /// The path carries segments of no more than `mss`: what is under way goes again, and nothing was congested.
    pub fn narrow(&mut self, mss: u64) {
        if mss < self.mss {
            self.mss = mss;
            self.next = self.una.max(1);
        }
    }
}
