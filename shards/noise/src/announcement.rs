//! What a client says of itself beside its transport parameters, in one of private use, which the handshake encrypts like the others. Who does not know it
//! ignores it (RFC 9000, section 7.4.2).

use std::net::IpAddr;

use bytes::Buf;
use quinn_proto::VarInt;
use quinn_proto::coding::Codec;

/// Chosen by chance, and none of those that stand for nothing (RFC 9000, section 18.1).
const ID: VarInt = VarInt::from_u32(0x746f_6c6c);

/// A client that connects anew where the gateway ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// It does so by itself.
    Returns,
    /// It does so now: this connection is to take the place of the one with this address.
    Moves(IpAddr),
}

impl Announcement {
    /// Appends it to transport parameters.
    pub(crate) fn write(self, parameters: &mut Vec<u8>) {
        let mut value = Vec::new();
        match self {
            Announcement::Returns => {}
            Announcement::Moves(IpAddr::V4(address)) => value.extend(address.octets()),
            Announcement::Moves(IpAddr::V6(address)) => value.extend(address.octets()),
        }
        ID.encode(parameters);
        VarInt::from(value.len() as u8).encode(parameters);
        parameters.append(&mut value);
    }

    /// Finds it among transport parameters; none where they are not such.
    pub(crate) fn find(mut parameters: &[u8]) -> Option<Self> {
        loop {
            let (id, bytes) = (VarInt::decode(&mut parameters).ok()?, VarInt::decode(&mut parameters).ok()?);
            let value = parameters.get(..usize::try_from(bytes.into_inner()).ok()?)?;
            if id == ID {
                return Announcement::of(value);
            }
            parameters.advance(value.len());
        }
    }

    fn of(value: &[u8]) -> Option<Self> {
        let v4 = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(value).ok().map(IpAddr::from);
        if value.is_empty() { Some(Announcement::Returns) } else { v4().or_else(v6).map(Announcement::Moves) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use quinn_proto::Side;
    use quinn_proto::transport_parameters::TransportParameters;

    use super::*;

    fn announcement() -> impl Strategy<Value = Announcement> {
        prop_oneof![Just(Announcement::Returns), any::<IpAddr>().prop_map(Announcement::Moves)]
    }

    #[test]
    fn the_parameter_is_none_that_stands_for_nothing() {
        assert_ne!(ID.into_inner() % 31, 27);
    }

    proptest! {
        #[test]
        fn who_knows_it_finds_it_and_others_read_their_parameters(announcement in announcement()) {
            // max_idle_timeout is 100 ms.
            let mut parameters = vec![0x01, 0x02, 0x40, 0x64];
            prop_assert_eq!(Announcement::find(&parameters), None);
            let before = TransportParameters::read(Side::Server, &mut &parameters[..]);
            announcement.write(&mut parameters);
            prop_assert_eq!(Announcement::find(&parameters), Some(announcement));
            prop_assert_eq!(TransportParameters::read(Side::Server, &mut &parameters[..]), before);
        }

        #[test]
        fn garbage_is_read_to_its_end(parameters in vec(any::<u8>(), 0..200)) {
            let _ = Announcement::find(&parameters);
        }
    }
}
