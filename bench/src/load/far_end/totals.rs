//! What the far end counts over all flows.

/// Counts since the far end started, of all its threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FarTotals {
    /// Messages received, of all kinds.
    pub received_messages: u64,
    /// Bytes of those as inner packets.
    pub received_bytes: u64,
    /// Messages that the kernel took, of all kinds.
    pub sent_messages: u64,
    /// Messages that the kernel refused, and that were dropped.
    pub send_dropped: u64,
    /// Answers and control messages that were dropped because too many waited. They have no number.
    pub replies_dropped: u64,
    /// Datagrams that are no messages; not among [`received_messages`](Self::received_messages).
    pub foreign: u64,
    /// Messages, among [`received_messages`](Self::received_messages), of a flow that their sender has not opened, or that is over.
    pub unclaimed: u64,
    /// Datagrams, or aggregates of them, that the socket could not hand out.
    pub receive_errors: u64,
    /// Flows there are, those that were closed in the last [`LINGER`](super::LINGER) included.
    pub flows: u64,
    /// Flows opened.
    pub flows_opened: u64,
    /// Requests for a flow that were refused.
    pub flows_refused: u64,
    /// Flows that nobody closed.
    pub flows_expired: u64,
    /// Windows that were taken as lost.
    pub stalls: u64,
    /// Data sent later than [`LATE_AFTER`](super::LATE_AFTER) its schedule.
    pub late_packets: u64,
    /// How far behind its schedule data was at most, in nanoseconds.
    pub lateness_max_ns: u64,
    /// Times that a thread looked for work.
    pub passes: u64,
    /// Times that a socket was full, and sending waited.
    pub blocked: u64,
    /// CPU time of the threads, in nanoseconds, no more than 100 ms old.
    pub cpu_ns: u64,
}

impl FarTotals {
    /// Both together; of maxima, the larger.
    pub fn plus(self, other: FarTotals) -> FarTotals {
        FarTotals {
            received_messages: self.received_messages + other.received_messages,
            received_bytes: self.received_bytes + other.received_bytes,
            sent_messages: self.sent_messages + other.sent_messages,
            send_dropped: self.send_dropped + other.send_dropped,
            replies_dropped: self.replies_dropped + other.replies_dropped,
            foreign: self.foreign + other.foreign,
            unclaimed: self.unclaimed + other.unclaimed,
            receive_errors: self.receive_errors + other.receive_errors,
            flows: self.flows + other.flows,
            flows_opened: self.flows_opened + other.flows_opened,
            flows_refused: self.flows_refused + other.flows_refused,
            flows_expired: self.flows_expired + other.flows_expired,
            stalls: self.stalls + other.stalls,
            late_packets: self.late_packets + other.late_packets,
            lateness_max_ns: self.lateness_max_ns.max(other.lateness_max_ns),
            passes: self.passes + other.passes,
            blocked: self.blocked + other.blocked,
            cpu_ns: self.cpu_ns + other.cpu_ns,
        }
    }
}
