//! A connection's handshake and secrets as quinn-proto asks for them.
//!
//! Noise messages travel in Initial packets. Each side then sends one empty message in a Handshake packet, which shows to the other one that it
//! has the keys: quinn-proto takes a connection for established by that.

use std::any::Any;
use std::sync::Arc;

use quinn_proto::crypto::{self, ExportKeyingMaterialError, KeyPair, Keys};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError};

use crate::announcement::Announcement;
use crate::failed::Failed;
use crate::handshake::Handshake;
use crate::keys::{Listed, PublicKey};
use crate::kind::Kind;
use crate::protection::TAG_BYTES;
use crate::random::Randomness;
use crate::refusal::{Refusal, UnlistedKey};
use crate::schedule::{Exporter, Level, RetryKey, Secrets};
use crate::stream::{self, Inbox};

/// What both sides have been given.
pub struct Given {
    pub handshake: Handshake,
    /// Of this side, as the handshake carries them.
    pub parameters: Vec<u8>,
    pub source: Arc<dyn Randomness>,
    /// Who may come in. Clients know whom they call.
    pub listed: Option<Arc<dyn Listed>>,
}

pub struct Session {
    kind: Kind,
    side: Side,
    state: State,
    inbox: Inbox,
    /// What is to be sent.
    outbox: Vec<u8>,
    /// The other side's.
    parameters: Option<TransportParameters>,
    peer: Option<PublicKey>,
    /// What the other side says of itself.
    announced: Option<Announcement>,
    /// Whether a message of the other side has come.
    has_read: bool,
    /// Whether its empty message has.
    is_confirmed: bool,
}

enum State {
    UnderWay(Box<Given>),
    /// Complete; quinn-proto has not asked for the keys of Handshake packets.
    Complete(Box<Secrets>),
    /// It has not asked for those of 1-RTT packets. A client whose message came last waits for the other side's empty message first: once it
    /// sends a Handshake packet, quinn-proto repeats no Initial (RFC 9001, section 4.9.1), so not its last message either.
    Half {
        data: Level,
        exporter: Exporter,
        waits: bool,
    },
    /// `next` is the level after the next key update.
    Established {
        next: Level,
        exporter: Exporter,
    },
    Failed,
}

impl Session {
    /// The handshake of a server.
    pub fn server(given: Given, kind: Kind) -> Self {
        Session::new(given, kind, Side::Server)
    }

    /// The handshake of a client, with its first message.
    pub fn client(given: Given, kind: Kind) -> Result<Self, Failed> {
        let mut session = Session::new(given, kind, Side::Client);
        session.advance()?;
        Ok(session)
    }

    fn new(given: Given, kind: Kind, side: Side) -> Self {
        debug_assert!(given.handshake.side() == side);
        Session { state: State::UnderWay(Box::new(given)), ..Session::failed(kind, side) }
    }

    /// One that comes to nothing.
    pub fn failed(kind: Kind, side: Side) -> Self {
        Session {
            kind,
            side,
            state: State::Failed,
            inbox: Inbox::default(),
            outbox: Vec::new(),
            parameters: None,
            peer: None,
            announced: None,
            has_read: false,
            is_confirmed: false,
        }
    }

    /// Takes what the other side's CRYPTO stream goes on with. Returns whether its first message has come with that.
    fn read(&mut self, mut stream: &[u8]) -> Result<bool, Refusal> {
        let had_read = self.has_read;
        while let Some(message) = self.inbox.read(&mut stream).map_err(|_| Refusal::Broken)? {
            match &mut self.state {
                State::UnderWay(_) => self.read_message(&message)?,
                // The empty message, once. Nothing comes after it.
                State::Half { .. } | State::Established { .. } if message.is_empty() && !self.is_confirmed => {
                    self.is_confirmed = true;
                }
                _ => return Err(Refusal::Broken),
            }
            self.has_read = true;
        }
        // Nothing follows the last message in Initial packets, whose keys anybody has.
        if matches!(self.state, State::Complete(_)) && !self.inbox.is_empty() {
            return Err(Refusal::Broken);
        }
        Ok(!had_read && self.has_read)
    }

    fn read_message(&mut self, message: &[u8]) -> Result<(), Refusal> {
        let State::UnderWay(given) = &mut self.state else { return Err(Refusal::Broken) };
        let payload = given.handshake.read(message)?;
        if let Some(peer) = given.handshake.peer() {
            if given.listed.as_ref().is_some_and(|listed| !listed.is_listed(peer)) {
                return Err(Refusal::Unlisted(UnlistedKey::new(peer)));
            }
            self.announced = Announcement::find(&payload);
            let mut payload = &payload[..];
            let parameters = TransportParameters::read(self.side, &mut payload).map_err(|_| Refusal::Broken)?;
            if !payload.is_empty() {
                return Err(Refusal::Broken);
            }
            (self.parameters, self.peer) = (Some(parameters), Some(peer.clone()));
        }
        Ok(self.advance()?)
    }

    /// Writes what is to be written, now: where [`crypto::Session::write_handshake`] is called, nobody hears of a failure.
    fn advance(&mut self) -> Result<(), Failed> {
        let State::UnderWay(given) = &mut self.state else { return Err(Failed) };
        if given.handshake.is_to_write() {
            let message = given.handshake.write(&*given.source, &mut given.parameters)?;
            stream::write(&mut self.outbox, &message).map_err(|_| Failed)?;
        }
        if given.handshake.is_complete() {
            self.state = State::Complete(Box::new(given.handshake.secrets()?));
        }
        Ok(())
    }

    fn exporter(&self) -> Option<&Exporter> {
        match &self.state {
            State::Complete(secrets) => Some(&secrets.exporter),
            State::Half { exporter, .. } | State::Established { exporter, .. } => Some(exporter),
            State::UnderWay(_) | State::Failed => None,
        }
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        Level::initial(self.kind, dst_cid).keys(side)
    }

    /// An `Option` of an [`Announcement`]; [`crypto::Session::peer_identity`] says who it is.
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.has_read.then(|| Box::new(self.announced) as Box<dyn Any>)
    }

    /// A [`PublicKey`]. Before the connection is established it may be the repetition of one that somebody else has shown.
    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.peer.clone().map(|peer| Box::new(peer) as Box<dyn Any>)
    }

    fn early_crypto(&self) -> Option<(Box<dyn crypto::HeaderKey>, Box<dyn crypto::PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        !matches!(self.state, State::Established { .. } | State::Failed)
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        if let State::Failed = self.state {
            return Err(Refusal::Broken.into());
        }
        self.read(buf).map_err(|refusal| {
            self.state = State::Failed;
            refusal.into()
        })
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        Ok(self.parameters)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        // The Initial packet that the last message goes into is written with the keys that are there; the caller takes the new ones after it.
        let has_written = !self.outbox.is_empty();
        buf.append(&mut self.outbox);
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Complete(secrets) => {
                let Secrets { handshake, data, exporter } = *secrets;
                self.state = State::Half { data, exporter, waits: self.side == Side::Client && has_written };
                Some(handshake.keys(self.side))
            }
            State::Half { data, exporter, waits } if !waits || self.is_confirmed => {
                stream::write(buf, &[]).expect("it is empty");
                self.state = State::Established { next: data.next(), exporter };
                Some(data.keys(self.side))
            }
            state => {
                self.state = state;
                None
            }
        }
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn crypto::PacketKey>>> {
        let State::Established { next, .. } = &mut self.state else { return None };
        let keys = next.packet_keys(self.side);
        *next = next.next();
        Some(keys)
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        let Some((payload, tag)) = payload.split_last_chunk::<TAG_BYTES>() else { return false };
        RetryKey::new().tag_of(orig_dst_cid, [header, payload]) == *tag
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        let exporter = self.exporter().ok_or(ExportKeyingMaterialError)?;
        exporter.export(output, label, context).ok_or(ExportKeyingMaterialError)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use quinn_proto::crypto::Session as _;

    use super::*;
    use crate::keys::PrivateKey;
    use crate::random::NoRandomness;

    struct Everybody;

    impl Listed for Everybody {
        fn is_listed(&self, _: &PublicKey) -> bool {
            true
        }
    }

    struct Broken;

    impl Randomness for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), NoRandomness> {
            Err(NoRandomness)
        }
    }

    /// Client and server, the first message written.
    fn both(kind: Kind, of_server: Arc<dyn Randomness>, parameters: [&[u8]; 2]) -> (Session, Session) {
        let source: Arc<dyn Randomness> = Arc::new(SystemRandom::new());
        let [client, server] = [0; 2].map(|_| Arc::new(PrivateKey::generate(kind, &*source).unwrap().pair()));
        let [of_client, parameters] = parameters.map(<[u8]>::to_vec);
        let handshake = Handshake::initiator(&client, &server.public);
        let given = Given { handshake, parameters: of_client, source, listed: None };
        let client = Session::client(given, kind).unwrap();
        let handshake = Handshake::responder(&server);
        let given = Given { handshake, parameters, source: of_server, listed: Some(Arc::new(Everybody)) };
        (client, Session::server(given, kind))
    }

    /// What is written until nothing is left, and how many sets of keys came with it.
    fn flight(session: &mut Session) -> (Vec<u8>, usize) {
        let (mut stream, mut keys) = (Vec::new(), 0);
        loop {
            let before = stream.len();
            let has_keys = session.write_handshake(&mut stream).is_some();
            keys += usize::from(has_keys);
            if stream.len() == before && !has_keys {
                return (stream, keys);
            }
        }
    }

    fn system() -> Arc<dyn Randomness> {
        Arc::new(SystemRandom::new())
    }

    #[test]
    fn keys_come_when_the_reference_gives_them() {
        for kind in Kind::ALL {
            let (mut client, mut server) = both(kind, system(), [&[]; 2]);
            let (first, keys) = flight(&mut client);
            assert_eq!(keys, 0);
            assert!(server.read_handshake(&first).unwrap(), "its hello is complete");
            let (second, keys) = flight(&mut server);
            let takes_two = kind == Kind::Standard;
            assert_eq!(keys, if takes_two { 2 } else { 0 });
            assert_eq!(server.is_handshaking(), !takes_two);
            // The server's empty message travels in a Handshake packet, after its second message.
            let (second, confirmation) = second.split_at(second.len() - usize::from(takes_two));
            client.read_handshake(second).unwrap();
            let (third, keys) = flight(&mut client);
            if takes_two {
                assert_eq!((&third[..], keys), (&[0][..], 2));
                client.read_handshake(confirmation).unwrap();
                server.read_handshake(&third).unwrap();
            } else {
                assert_eq!(keys, 1, "its last message is not acknowledged");
                assert!(!server.read_handshake(&third).unwrap(), "there is one first message");
                assert_eq!(flight(&mut server), (vec![0], 2));
                client.read_handshake(&[0]).unwrap();
                assert_eq!(flight(&mut client), (vec![0], 1));
                server.read_handshake(&[0]).unwrap();
            }
            for session in [&mut client, &mut server] {
                assert!(!session.is_handshaking() && session.next_1rtt_keys().is_some());
                assert!(session.read_handshake(&[0]).is_err(), "a second empty message");
            }
        }
    }

    #[test]
    fn what_follows_the_last_message_in_initial_packets_is_refused() {
        for rest in [&[0][..], &[1], &[0x40], &[1, 7]] {
            let (mut client, mut server) = both(Kind::Standard, system(), [&[]; 2]);
            let mut first = flight(&mut client).0;
            first.extend_from_slice(rest);
            assert_eq!(server.read_handshake(&first).unwrap_err(), Refusal::Broken.into());
        }
    }

    #[test]
    fn a_message_that_is_too_long_or_truncated_is_refused() {
        for kind in Kind::ALL {
            let (mut client, _) = both(kind, system(), [&[]; 2]);
            let first = flight(&mut client).0;
            let (mut message, mut rest) = (Vec::new(), &first[..]);
            message.extend(Inbox::default().read(&mut rest).unwrap().unwrap());
            for length in [0, 1, 31, 32, 95, message.len() - 1] {
                let mut truncated = Vec::new();
                stream::write(&mut truncated, &message[..length]).unwrap();
                let (_, mut server) = both(kind, system(), [&[]; 2]);
                assert!(server.read_handshake(&truncated).is_err(), "{kind}, {length} bytes");
                assert!(server.read_handshake(&first).is_err(), "it has failed for good");
            }
            let (_, mut server) = both(kind, system(), [&[]; 2]);
            assert!(server.read_handshake(&[0x80, 0, 0x20, 1]).is_err(), "8,193 bytes");
        }
    }

    #[test]
    fn a_reply_that_cannot_be_written_fails_where_it_is_heard() {
        for kind in Kind::ALL {
            let (mut client, mut server) = both(kind, Arc::new(Broken), [&[]; 2]);
            assert!(server.read_handshake(&flight(&mut client).0).is_err());
            // Nor one that is longer than any message.
            let too_long = [0; stream::MESSAGE_BYTES_MAX];
            let (mut client, mut server) = both(kind, system(), [&[], &too_long]);
            assert!(server.read_handshake(&flight(&mut client).0).is_err(), "nor one that is too long");
        }
    }

    #[test]
    fn parameters_that_are_none_are_refused() {
        let (mut client, mut server) = both(Kind::Standard, system(), [&[1, 4, 0xff], &[]]);
        assert!(server.read_handshake(&flight(&mut client).0).is_err());
    }
}
