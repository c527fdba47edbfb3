//! The lines of the audit log.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;
use tollgate_shards::{End, Fingerprint, Peer, SessionEnd, Usage, close_code};

use super::sessions::{Change, Ending, Session};
use crate::handshakes::Mode;
use crate::log::Kind;

/// Lines of an answer to an order that are kept, and characters of each.
const ANSWER_LINES_MAX: usize = 8;
const ANSWER_CHARS_MAX: usize = 512;

/// The first of `lines`, cut.
pub(super) fn excerpts(lines: &[String]) -> Vec<String> {
    lines.iter().take(ANSWER_LINES_MAX).map(|line| line.chars().take(ANSWER_CHARS_MAX).collect()).collect()
}

/// Who gave an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct By {
    /// By way of the control socket, a signal or the users file.
    pub via: &'static str,
    /// Of a process at the control socket, as the kernel says (SO_PEERCRED).
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// A process at the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Process {
    /// The user whom it runs as.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Its number, in the gateway's namespace.
    pub pid: i32,
}

#[derive(Debug)]
pub(super) struct Given {
    pub number: u64,
    /// As it came.
    pub request: Value,
    pub by: By,
}

/// Somebody who was turned away.
#[derive(Debug)]
pub(super) struct Refused {
    pub kind: Kind,
    pub user: Option<String>,
    pub reason: Option<String>,
    pub peer: Peer,
}

/// What a line tells beside its time.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Start {
        version: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        took_over_from: Option<u32>,
    },
    Stop {
        is_replaced: bool,
    },
    Connected {
        #[serde(flatten)]
        client: Client<'a>,
    },
    Disconnected {
        #[serde(flatten)]
        client: Client<'a>,
        cause: &'static str,
        reason: &'a str,
        duration_ms: u64,
        #[serde(flatten)]
        usage: Usage,
    },
    Refused {
        why: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        mode: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        credential: Option<String>,
        outer: SocketAddr,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    },
    MoreRefused {
        why: &'static str,
        count: u64,
    },
    Order {
        number: u64,
        request: &'a Value,
        by: &'a By,
        #[serde(skip_serializing_if = "Option::is_none")]
        user_name: Option<String>,
    },
    Answer {
        number: u64,
        done: bool,
        lines: &'a [String],
    },
}

#[derive(Serialize)]
struct Client<'a> {
    connection: String,
    user: &'a str,
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
    outer: SocketAddr,
    address: IpAddr,
    shard: usize,
}

impl<'a> Client<'a> {
    fn of(session: &'a Session, id: String) -> Self {
        Client {
            connection: id,
            user: &session.user,
            mode: Mode::of(session.kind).to_string(),
            credential: session.credential.as_ref().map(Fingerprint::to_string),
            outer: session.remote,
            address: session.address,
            shard: session.connection.owner.place(),
        }
    }
}

fn text(line: &Line<'_>) -> String {
    serde_json::to_string(line).expect("strings and numbers")
}

pub(super) fn start(took_over_from: Option<u32>) -> String {
    text(&Line::Start { version: env!("CARGO_PKG_VERSION"), took_over_from })
}

pub(super) fn stop(is_replaced: bool) -> String {
    text(&Line::Stop { is_replaced })
}

/// A line where a session has begun or ended. `id` is the connection's.
pub(super) fn session(session: &Session, change: Change<'_>, id: String, now: Instant) -> Option<String> {
    let client = Client::of(session, id);
    match change {
        Change::Began => Some(text(&Line::Connected { client })),
        Change::Lasts => None,
        Change::Ended(Ending { end, reason }) => {
            let duration_ms = now.saturating_duration_since(session.began).as_millis() as u64;
            let (cause, usage) = (cause(*end), session.usage);
            Some(text(&Line::Disconnected { client, cause, reason, duration_ms, usage }))
        }
    }
}

pub(super) fn refused(Refused { kind, user, reason, peer }: &Refused) -> String {
    text(&Line::Refused {
        why: why(*kind),
        user: user.as_deref(),
        mode: Mode::of(peer.kind).to_string(),
        credential: peer.credential.as_ref().map(Fingerprint::to_string),
        outer: peer.remote,
        reason: reason.as_deref(),
    })
}

pub(super) fn more_refused(kind: Kind, count: u64) -> String {
    text(&Line::MoreRefused { why: why(kind), count })
}

/// A line of an order; `user_name` is that of the user who gave it, where it is known.
pub(super) fn order(Given { number, request, by }: &Given, user_name: Option<String>) -> String {
    text(&Line::Order { number: *number, request, by, user_name })
}

pub(super) fn answer(number: u64, done: bool, lines: &[String]) -> String {
    text(&Line::Answer { number, done, lines })
}

fn why(kind: Kind) -> &'static str {
    match kind {
        Kind::UnknownCredential => "unknown_credential",
        Kind::NoAddress => "no_address",
        Kind::TooManyConnections => "too_many_connections",
        Kind::OverQuota => "over_quota",
        _ => "handshake_failed",
    }
}

/// Why a connection has ended, in a word for programs.
fn cause(end: Option<End>) -> &'static str {
    match end {
        Some(End::Client(_)) => "client",
        Some(End::TimedOut) => "timed_out",
        Some(End::Failed) => "failed",
        Some(End::Session(SessionEnd::Idle)) => "idle",
        Some(End::Session(SessionEnd::Length)) => "length",
        Some(End::Session(SessionEnd::Certificate)) => "certificate",
        Some(End::Gateway(code)) => match code {
            close_code::SHUTDOWN => "shutdown",
            close_code::SUPERSEDED => "superseded",
            close_code::REVOKED => "revoked",
            close_code::DRAIN => "drained",
            close_code::QUOTA => "quota",
            close_code::UPGRADE => "moved",
            close_code::MISUSE => "misuse",
            _ => "closed",
        },
        None => "unknown",
    }
}
