//! Application close codes, as Quincy uses them, and one of ours.

/// The gateway or the client stops.
pub const SHUTDOWN: u32 = 0x01;
/// The credential is nobody's, or there is no address.
pub const ESTABLISHMENT_FAILED: u32 = 0x02;
/// The user's fixed address, or the place of its oldest connection, has gone to a newer one.
pub const SUPERSEDED: u32 = 0x03;
/// The user, the credential or the address is not valid any more, or the operator has sent the user away.
pub const REVOKED: u32 = 0x04;
/// The gateway drains: the client is to come back, to another gateway if it knows one.
pub const DRAIN: u32 = 0x05;
/// The user has carried as much as allowed for now.
pub const QUOTA: u32 = 0x06;
/// Another process of the gateway takes its clients: the client is to come back, here. Or it has, and its newer connection has the address.
pub const UPGRADE: u32 = 0x09;
/// The session is over: it was idle for too long, has lasted as long as it may, or the certificate has expired.
pub const SESSION_OVER: u32 = 0x0a;
/// The client sends what the protocol has no place for.
pub const MISUSE: u32 = 0x08;
