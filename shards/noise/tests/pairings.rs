//! Our servers and clients with each other and with those of `reishi-quinn`, over quinn-proto's endpoints.

mod ends;

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use quinn_proto::crypto;
use reishi_handshake::{HybridKeyPair, HybridPublicKey, KeyPair, PqKeyPair, PqPublicKey};
use reishi_quinn::{HybridNoiseConfigBuilder, NoiseConfigBuilder, PeerIdentity, PeerPublicKey, PqNoiseConfigBuilder};
use tollgate_noise::{ClientConfig, Handshakes, Kind, Listed, PrivateKey, PublicKey, ServerConfig, TLS_VERSION};

use ends::{End, Link, REFUSED, key, raw};

const DATAGRAMS: usize = 3000;

/// Lists those with these keys.
struct These(Vec<PublicKey>);

impl Listed for These {
    fn is_listed(&self, key: &PublicKey) -> bool {
        self.0.contains(key)
    }
}

fn our_server(own: &PrivateKey, listed: &[&PrivateKey]) -> Arc<dyn crypto::ServerConfig> {
    let listed = Arc::new(These(listed.iter().map(|key| key.public()).collect()));
    let noise = ServerConfig::new([own], listed, Arc::new(SystemRandom::new())).unwrap();
    Arc::new(Handshakes { tls: None, noise: Some(Arc::new(noise)) })
}

fn our_client(own: &PrivateKey, server: &PublicKey) -> Arc<dyn crypto::ClientConfig> {
    Arc::new(ClientConfig::new(own, server.clone(), Arc::new(SystemRandom::new())).unwrap())
}

fn their_server(own: &PrivateKey, listed: &[&PrivateKey]) -> Arc<dyn crypto::ServerConfig> {
    let listed = listed.iter().map(|key| key.public());
    match own.kind() {
        Kind::Standard => {
            let listed = listed.map(|key| reishi_quinn::PublicKey::from_bytes(key.as_bytes().try_into().unwrap()));
            let builder = NoiseConfigBuilder::new(KeyPair::from_secret_bytes(&raw(own)));
            Arc::new(builder.with_allowed_keys(listed).build_server_config().unwrap())
        }
        Kind::PostQuantum => {
            let listed = listed.map(|key| PqPublicKey::from_bytes(key.as_bytes().try_into().unwrap()));
            let builder = PqNoiseConfigBuilder::new(PqKeyPair::from_secret_bytes(&raw(own)));
            Arc::new(builder.with_allowed_keys(listed).build_server_config().unwrap())
        }
        Kind::Hybrid => {
            let listed = listed.map(|key| HybridPublicKey::from_bytes(key.as_bytes().try_into().unwrap()));
            let builder = HybridNoiseConfigBuilder::new(HybridKeyPair::from_secret_bytes(&raw(own)));
            Arc::new(builder.with_allowed_keys(listed).build_server_config().unwrap())
        }
    }
}

fn their_client(own: &PrivateKey, server: &PublicKey) -> Arc<dyn crypto::ClientConfig> {
    let server = server.as_bytes();
    match own.kind() {
        Kind::Standard => {
            let builder = NoiseConfigBuilder::new(KeyPair::from_secret_bytes(&raw(own)));
            let server = reishi_quinn::PublicKey::from_bytes(server.try_into().unwrap());
            Arc::new(builder.with_remote_public(server).build_client_config().unwrap())
        }
        Kind::PostQuantum => {
            let builder = PqNoiseConfigBuilder::new(PqKeyPair::from_secret_bytes(&raw(own)));
            let server = PqPublicKey::from_bytes(server.try_into().unwrap());
            Arc::new(builder.with_remote_public(server).build_client_config().unwrap())
        }
        Kind::Hybrid => {
            let builder = HybridNoiseConfigBuilder::new(HybridKeyPair::from_secret_bytes(&raw(own)));
            let server = HybridPublicKey::from_bytes(server.try_into().unwrap());
            Arc::new(builder.with_remote_public(server).build_client_config().unwrap())
        }
    }
}

/// Whom this end takes the other one for, in whichever crate's words.
fn peer(end: &End) -> Vec<u8> {
    let identity = end.connection().crypto_session().peer_identity().expect("it is connected");
    match identity.downcast::<PublicKey>() {
        Ok(key) => key.as_bytes().to_vec(),
        Err(identity) => match identity.downcast::<PeerIdentity>().expect("one of two").public_key {
            PeerPublicKey::Classical(key) => key.as_bytes().to_vec(),
            PeerPublicKey::PostQuantum(key) => key.to_bytes().to_vec(),
            PeerPublicKey::Hybrid(key) => key.to_bytes().to_vec(),
        },
    }
}

fn exported(end: &End) -> [u8; 100] {
    let mut output = [0; 100];
    end.connection().crypto_session().export_keying_material(&mut output, b"label", b"context").unwrap();
    output
}

#[test]
fn every_server_works_with_every_client_with_and_without_a_retry() {
    for kind in Kind::ALL {
        let (server, client) = (key(kind, 1), key(kind, 2));
        for (whose, ours) in [("ours", true), ("theirs", false)] {
            for retries in [false, true] {
                let config = if ours { our_server } else { their_server }(&server, &[&client]);
                for (name, dial) in [("ours", our_client as fn(&_, &_) -> _), ("theirs", their_client)] {
                    println!("{kind}: server {whose}, client {name}, retries: {retries}");
                    let mut link = Link::new(config.clone(), kind.quic_version(), retries);
                    link.connect(dial(&client, &server.public()), kind.quic_version());
                    assert!(link.run(), "connected");
                    assert_eq!(peer(&link.client), server.public().as_bytes());
                    assert_eq!(peer(&link.server), client.public().as_bytes());
                    assert_eq!(exported(&link.client), exported(&link.server));
                    link.exchange(DATAGRAMS);
                }
            }
        }
    }
}

#[test]
fn a_key_that_is_not_listed_is_refused_within_the_handshake_as_the_reference_does() {
    for kind in Kind::ALL {
        let (server, client) = (key(kind, 1), key(kind, 2));
        for config in [our_server(&server, &[&server]), their_server(&server, &[&server])] {
            let mut link = Link::new(config, kind.quic_version(), false);
            link.connect(our_client(&client, &server.public()), kind.quic_version());
            assert!(!link.run());
            assert_eq!(link.client.closed_with(), Some(REFUSED), "{kind}");
            assert_eq!(link.server.connected, 0);
        }
    }
}

#[test]
fn a_client_with_another_servers_key_is_refused_at_its_first_message() {
    for kind in Kind::ALL {
        let (server, client) = (key(kind, 1), key(kind, 2));
        let mut link = Link::new(our_server(&server, &[&client]), kind.quic_version(), false);
        link.connect(our_client(&client, &key(kind, 3).public()), kind.quic_version());
        assert!(!link.run());
        assert_eq!(link.client.closed_with(), Some(REFUSED), "{kind}");
        assert_eq!(link.server.connected, 0);
    }
}

#[test]
fn a_first_message_that_somebody_repeats_connects_nobody() {
    for kind in Kind::ALL {
        let (server, client) = (key(kind, 1), key(kind, 2));
        let config = our_server(&server, &[&client]);
        let mut link = Link::new(config.clone(), kind.quic_version(), false);
        link.connect(our_client(&client, &server.public()), kind.quic_version());
        assert!(link.run());
        let first_flight = std::mem::take(&mut link.first_flight);
        assert_eq!(first_flight.len(), if kind == Kind::Standard { 1 } else { 3 }, "{kind}");
        let mut again = Link::new(config, kind.quic_version(), false);
        again.server_receives(first_flight);
        assert!(!again.run());
        assert_eq!((again.server.accepted, again.server.connected), (1, 0));
    }
}

#[test]
fn tls_and_noise_are_served_on_one_port_and_a_version_that_is_not_served_is_told() {
    let listed = Arc::new(These(Kind::ALL.map(|kind| key(kind, 2).public()).to_vec()));
    let own = [Kind::Standard, Kind::Hybrid].map(|kind| key(kind, 1));
    let noise = ServerConfig::new(&own, listed, Arc::new(SystemRandom::new())).unwrap();
    let (tls_server, tls_client) = ends::tls();
    let all = Handshakes { tls: Some(tls_server), noise: Some(Arc::new(noise)) };
    assert_eq!(all.versions(), [TLS_VERSION, 0x5251_0101, 0x5251_0401]);
    let versions = all.versions();
    let all: Arc<dyn crypto::ServerConfig> = Arc::new(all);
    for retries in [false, true] {
        let mut link = Link::of_versions(all.clone(), versions.clone(), retries);
        link.connect(tls_client.clone(), TLS_VERSION);
        assert!(link.run());
        link.exchange(DATAGRAMS);
        for kind in Kind::ALL {
            let mut link = Link::of_versions(all.clone(), versions.clone(), retries);
            link.connect(our_client(&key(kind, 2), &key(kind, 1).public()), kind.quic_version());
            assert_eq!(link.run(), kind != Kind::PostQuantum);
            assert_eq!(link.client.is_version_refused(), kind == Kind::PostQuantum);
        }
    }
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let source = || Arc::new(SystemRandom::new());
    let error = ClientConfig::new(&key(Kind::Standard, 1), key(Kind::Hybrid, 1).public(), source()).err().unwrap();
    assert!(error.to_string().starts_with("the private key is standard and the server's public key hybrid"));
    for (kind, damaged) in [(Kind::Standard, vec![0; 32]), (Kind::PostQuantum, vec![0xff; 1184])] {
        use base64::Engine;
        let damaged = PublicKey::parse(&base64::engine::general_purpose::STANDARD.encode(damaged)).unwrap();
        let error = ClientConfig::new(&key(kind, 1), damaged, source()).err().unwrap();
        assert!(error.to_string().contains("damaged"), "{error}");
    }
    let twice = [key(Kind::Hybrid, 1), key(Kind::Standard, 1), key(Kind::Hybrid, 2)];
    let error = ServerConfig::new(&twice, Arc::new(These(Vec::new())), source()).err().unwrap();
    assert_eq!(error.to_string(), "two private keys for hybrid; a server has one for each kind");
}
