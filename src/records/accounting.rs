//! The lines of sessions' events: attributes of RADIUS accounting (RFC 2866) by their names. Octets are whole numbers of 64 bits, so that there are no
//! gigawords (RFC 2869).

use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tollgate_shards::{End, SessionEnd, close_code};

use super::recorder::Moment;
use super::sessions::{Change, Session};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Line<'a> {
    #[serde(rename = "Acct-Status-Type")]
    status: &'static str,
    #[serde(rename = "NAS-Identifier", skip_serializing_if = "str::is_empty")]
    gateway: &'a str,
    #[serde(rename = "Event-Timestamp")]
    unix_s: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    session: Option<Attributes<'a>>,
    #[serde(rename = "Acct-Terminate-Cause", skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
}

#[derive(Serialize)]
struct Attributes<'a> {
    #[serde(rename = "Acct-Session-Id")]
    id: String,
    #[serde(rename = "User-Name")]
    user: &'a str,
    #[serde(rename = "Framed-IP-Address", skip_serializing_if = "Option::is_none")]
    v4: Option<IpAddr>,
    #[serde(rename = "Framed-IPv6-Address", skip_serializing_if = "Option::is_none")]
    v6: Option<IpAddr>,
    #[serde(rename = "Calling-Station-Id")]
    remote: String,
    #[serde(rename = "NAS-Port")]
    shard: usize,
    #[serde(rename = "Acct-Session-Time")]
    seconds: u64,
    /// From the client: RADIUS counts what comes in at the port.
    #[serde(rename = "Acct-Input-Octets")]
    received_bytes: u64,
    #[serde(rename = "Acct-Output-Octets")]
    sent_bytes: u64,
    #[serde(rename = "Acct-Input-Packets")]
    received_datagrams: u64,
    #[serde(rename = "Acct-Output-Packets")]
    sent_datagrams: u64,
}

fn text(line: &Line<'_>) -> String {
    serde_json::to_string(line).expect("strings and numbers")
}

fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The gateway begins, or ends: no session of it is open (RFC 2866, section 5.1).
pub(super) fn accounting(is_on: bool, gateway: &str, now: Moment) -> String {
    let status = if is_on { "Accounting-On" } else { "Accounting-Off" };
    text(&Line { status, gateway, unix_s: unix_s(now.time), session: None, cause: None })
}

/// A line of a session; `id` is the connection's.
pub(super) fn session(session: &Session, change: Change<'_>, id: String, gateway: &str, now: Moment) -> String {
    let (status, cause) = match change {
        Change::Began => ("Start", None),
        Change::Lasts => ("Interim-Update", None),
        Change::Ended(ending) => ("Stop", Some(cause(ending.end))),
    };
    let attributes = attributes(session, id, now.at);
    text(&Line { status, gateway, unix_s: unix_s(now.time), session: Some(attributes), cause })
}

fn attributes(session: &Session, id: String, now: Instant) -> Attributes<'_> {
    let (address, usage) = (session.address, session.usage);
    Attributes {
        id,
        user: &session.user,
        v4: Some(address).filter(IpAddr::is_ipv4),
        v6: Some(address).filter(IpAddr::is_ipv6),
        remote: session.remote.to_string(),
        shard: session.connection.owner.place(),
        seconds: now.saturating_duration_since(session.began).as_secs(),
        received_bytes: usage.received_bytes,
        sent_bytes: usage.sent_bytes,
        received_datagrams: usage.received_datagrams,
        sent_datagrams: usage.sent_datagrams,
    }
}

/// RFC 2866, section 5.10.
fn cause(end: Option<End>) -> &'static str {
    match end {
        Some(End::Client(_)) => "User-Request",
        Some(End::TimedOut) => "Lost-Carrier",
        Some(End::Failed) => "User-Error",
        Some(End::Session(SessionEnd::Idle)) => "Idle-Timeout",
        Some(End::Session(_)) => "Session-Timeout",
        Some(End::Gateway(code)) => match code {
            close_code::SHUTDOWN => "NAS-Reboot",
            close_code::REVOKED => "Admin-Reset",
            close_code::MISUSE => "User-Error",
            _ => "NAS-Request",
        },
        None => "NAS-Error",
    }
}
