//! Handshakes in memory, and the ways in which PEM data is refused.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, Event};
use rustls::client::WantsClientCert;
use rustls::pki_types::ServerName;
use rustls::{ConfigBuilder, NamedGroup};
use tollgate_shards::Fingerprint;

use super::*;
use crate::identity::Identity;

const NAME: &str = "vpn.example.org";

fn inline(pem: &str) -> PemSource {
    PemSource::Inline(Zeroizing::new(pem.to_owned()))
}

fn server_tls(identity: &Identity, key_exchange: Option<KeyExchange>) -> ServerTls {
    let (certificate, key) = (inline(&identity.certificate_pem), inline(&identity.key_pem));
    ServerTls { key_exchange, certificates: vec![certificate], key }
}

fn client_tls(identity: &Identity, trusted: &Identity, key_exchange: KeyExchange) -> ClientTls {
    ClientTls {
        key_exchange,
        trusted: vec![inline(&trusted.certificate_pem)],
        certificates: vec![inline(&identity.certificate_pem)],
        key: inline(&identity.key_pem),
    }
}

fn server_identity() -> Identity {
    Identity::generate(NAME, &[NAME, "198.18.0.1", "fd00::1"]).unwrap()
}

fn client_identity() -> Identity {
    Identity::generate("alice", &[]).unwrap()
}

/// The beginning of a client's configuration that [`client_config`] would not make.
fn trusting(server: &Identity, provider: CryptoProvider) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(certificates("certificate", &inline(&server.certificate_pem), &open_file).unwrap().remove(0)).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS13]).unwrap();
    builder.with_root_certificates(roots)
}

/// Both ends of a handshake that went well.
#[derive(Debug)]
struct Done {
    protocol: Vec<u8>,
    group: NamedGroup,
    suite: rustls::CipherSuite,
    shown: Fingerprint,
}

/// Runs a handshake to its end. The error is that of the side that gave up first.
fn handshake(client: ClientConfig, server: ServerConfig, name: &str) -> Result<Done, Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = quic::ClientConnection::new(Arc::new(client), quic::Version::V1, name, vec![])?;
    let mut server = quic::ServerConnection::new(Arc::new(server), quic::Version::V1, vec![])?;
    // Each call gives what belongs under one set of keys: it is read apart, as QUIC does.
    for _ in 0..20 {
        let mut flight = Vec::new();
        client.write_hs(&mut flight);
        server.read_hs(&flight)?;
        flight.clear();
        server.write_hs(&mut flight);
        client.read_hs(&flight)?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.alpn_protocol(), server.alpn_protocol());
    assert!(server.zero_rtt_keys().is_none() && client.zero_rtt_keys().is_none());
    Ok(Done {
        protocol: server.alpn_protocol().unwrap().to_vec(),
        group: server.negotiated_key_exchange_group().unwrap().name(),
        suite: server.negotiated_cipher_suite().unwrap().suite(),
        shown: Fingerprint::of(&server.peer_certificates().unwrap()[0]),
    })
}

/// A handshake between `client` and a gateway of [`server_identity`]'s kind that it trusts.
fn connect(offers: KeyExchange, accepts: Option<KeyExchange>, name: &str) -> Result<Done, Error> {
    let (server, client) = (server_identity(), client_identity());
    let config = client_config(&client_tls(&client, &server, offers)).unwrap();
    let done = handshake(config, server_config(&server_tls(&server, accepts), &open_file).unwrap(), name)?;
    assert_eq!((done.shown, &done.protocol[..]), (client.fingerprint, ALPN));
    Ok(done)
}

/// A gateway tells such clients from Quincy's, and Quincy's server takes them as its own.
#[test]
fn a_client_that_comes_back_by_itself_says_so_to_servers_that_know_of_that() {
    let (server, identity) = (server_identity(), client_identity());
    let tls = client_tls(&identity, &server, KeyExchange::Hybrid);
    let gateways = server_config(&server_tls(&server, None), &open_file).unwrap();
    let mut quincys = gateways.clone();
    quincys.alpn_protocols = vec![ALPN.to_vec()];
    let returning = returning_client_config(&tls).unwrap();
    let own = certified(&tls.certificates, &tls.key, returning.crypto_provider()).unwrap();
    let moving = moving_client_config(&returning, &own, "198.18.0.7".parse().unwrap());
    for (client, server, protocol) in [
        (&returning, &gateways, RETURNING_PROTOCOL),
        (&moving, &gateways, RETURNING_PROTOCOL),
        (&returning, &quincys, ALPN),
        (&moving, &quincys, ALPN),
    ] {
        let done = handshake(client.clone(), server.clone(), NAME).unwrap();
        // Whatever else it shows: it is known by its first certificate.
        assert_eq!((&done.protocol[..], done.shown), (protocol, identity.fingerprint));
    }
}

#[test]
fn each_key_exchange_connects_to_a_gateway_that_accepts_all() {
    for (offers, groups) in [
        (KeyExchange::Standard, &[NamedGroup::X25519, NamedGroup::X25519MLKEM768][..]),
        (KeyExchange::Hybrid, &[NamedGroup::X25519MLKEM768]),
        (KeyExchange::PostQuantum, &[NamedGroup::MLKEM768]),
    ] {
        let done = connect(offers, None, NAME).unwrap();
        assert!(groups.contains(&done.group), "{offers:?}: {:?}", done.group);
        assert_eq!(done.suite, rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
    }
}

#[test]
fn a_gateway_that_asks_for_one_key_exchange_takes_no_other() {
    use KeyExchange::{Hybrid, PostQuantum, Standard};
    assert_eq!(connect(Standard, Some(Hybrid), NAME).unwrap().group, NamedGroup::X25519MLKEM768);
    assert_eq!(connect(Hybrid, Some(Standard), NAME).unwrap().group, NamedGroup::X25519MLKEM768);
    for (offers, accepts) in
        [(Standard, PostQuantum), (Hybrid, PostQuantum), (PostQuantum, Hybrid), (PostQuantum, Standard)]
    {
        let error = connect(offers, Some(accepts), NAME).unwrap_err();
        assert!(matches!(error, Error::PeerIncompatible(_)), "{offers:?} {accepts:?}: {error}");
    }
}

#[test]
fn every_elliptic_curve_and_chacha20_are_accepted() {
    let (server, client) = (server_identity(), client_identity());
    for (group, name) in [(SECP256R1, NamedGroup::secp256r1), (SECP384R1, NamedGroup::secp384r1)] {
        let mut provider = provider(vec![group]);
        provider.cipher_suites = vec![TLS13_CHACHA20_POLY1305_SHA256];
        let own = Own::load(&[inline(&client.certificate_pem)], &inline(&client.key_pem), &open_file).unwrap();
        let mut config = trusting(&server, provider).with_client_auth_cert(own.chain, own.key).unwrap();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let done = handshake(config, server_config(&server_tls(&server, None), &open_file).unwrap(), NAME).unwrap();
        assert_eq!((done.group, done.suite), (name, rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256));
    }
}

#[test]
fn the_client_checks_the_servers_name_and_certificate() {
    for name in [NAME, "198.18.0.1", "fd00::1"] {
        connect(KeyExchange::Hybrid, None, name).unwrap();
    }
    for name in ["other.example.org", "198.18.0.2"] {
        let error = connect(KeyExchange::Hybrid, None, name).unwrap_err();
        let expected = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            )
        );
        assert!(expected, "{name}: {error:?}");
    }
    // A certificate with the right name that nobody trusts.
    let (server, client) = (server_identity(), client_identity());
    let config = client_config(&client_tls(&client, &server_identity(), KeyExchange::Hybrid)).unwrap();
    let error = handshake(config, server_config(&server_tls(&server, None), &open_file).unwrap(), NAME).unwrap_err();
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error:?}");
}

#[test]
fn a_client_without_a_certificate_or_without_the_protocol_is_refused() {
    let server = server_identity();
    let bare = |alpn: &[u8]| {
        let mut config = trusting(&server, provider(vec![X25519MLKEM768])).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        handshake(config, server_config(&server_tls(&server, None), &open_file).unwrap(), NAME).unwrap_err()
    };
    assert_eq!(bare(ALPN), Error::NoCertificatesPresented);
    assert_eq!(bare(b"h3"), Error::NoApplicationProtocol);
}

#[test]
fn a_client_that_shows_a_certificate_without_its_key_is_refused() {
    #[derive(Debug)]
    struct Thief(Arc<rustls::sign::CertifiedKey>);
    impl rustls::client::ResolvesClientCert for Thief {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(self.0.clone())
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let (server, victim, thief) = (server_identity(), client_identity(), client_identity());
    let stolen = certificates("certificate", &inline(&victim.certificate_pem), &open_file).unwrap();
    let key =
        aws_lc_rs::sign::any_supported_type(&private_key("key", &inline(&thief.key_pem), &open_file).unwrap()).unwrap();
    let mut config = client_config(&client_tls(&thief, &server, KeyExchange::Hybrid)).unwrap();
    config.client_auth_cert_resolver = Arc::new(Thief(Arc::new(rustls::sign::CertifiedKey::new(stolen, key))));
    let error = handshake(config, server_config(&server_tls(&server, None), &open_file).unwrap(), NAME).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::BadSignature));
}

#[test]
fn an_expired_client_certificate_is_taken() {
    let server = server_identity();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["alice".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let mut tls = client_tls(&client_identity(), &server, KeyExchange::Hybrid);
    (tls.certificates, tls.key) = (vec![inline(&certificate.pem())], inline(&key.serialize_pem()));
    let done =
        handshake(client_config(&tls).unwrap(), server_config(&server_tls(&server, None), &open_file).unwrap(), NAME)
            .unwrap();
    assert_eq!(done.shown, Fingerprint::of(certificate.der()));
}

#[test]
fn quic_connects_and_the_gateway_sees_the_clients_certificate() {
    let (server, client) = (server_identity(), client_identity());
    let server_crypto = super::server(&server_tls(&server, None), &open_file).unwrap();
    let client_crypto = super::client(&client_tls(&client, &server, KeyExchange::Hybrid)).unwrap();
    let config = Arc::new(quinn_proto::ServerConfig::with_crypto(server_crypto));
    let mut listener = Endpoint::new(Arc::new(EndpointConfig::default()), Some(config), true, None);
    let mut dialer = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let address = "198.18.0.1:55555".parse().unwrap();
    let now = Instant::now();
    let (_, mut connection) =
        dialer.connect(now, quinn_proto::ClientConfig::new(client_crypto), address, NAME).unwrap();
    let mut accepted: Option<(ConnectionHandle, quinn_proto::Connection)> = None;
    let mut connected = false;
    for round in 0..20 {
        let now = now + Duration::from_millis(round);
        let mut buf = Vec::new();
        while let Some(transmit) = connection.poll_transmit(now, 1, &mut buf) {
            let data = BytesMut::from(&buf[..transmit.size]);
            buf.clear();
            match listener.handle(now, address, None, None, data, &mut Vec::new()) {
                Some(DatagramEvent::NewConnection(incoming)) => {
                    accepted = listener.accept(incoming, now, &mut Vec::new(), None).ok();
                }
                Some(DatagramEvent::ConnectionEvent(_, event)) => accepted.as_mut().unwrap().1.handle_event(event),
                _ => {}
            }
        }
        let Some((handle, server)) = accepted.as_mut() else { continue };
        while let Some(event) = server.poll_endpoint_events() {
            if let Some(event) = listener.handle_event(*handle, event) {
                server.handle_event(event);
            }
        }
        while let Some(transmit) = server.poll_transmit(now, 1, &mut buf) {
            let data = BytesMut::from(&buf[..transmit.size]);
            buf.clear();
            if let Some(DatagramEvent::ConnectionEvent(_, event)) =
                dialer.handle(now, address, None, None, data, &mut Vec::new())
            {
                connection.handle_event(event);
            }
        }
        while let Some(event) = server.poll() {
            connected |= matches!(event, Event::Connected);
        }
    }
    assert!(connected);
    let identity = accepted.unwrap().1.crypto_session().peer_identity().unwrap();
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().unwrap();
    assert_eq!(Fingerprint::of(&chain[0]), client.fingerprint);
}

#[test]
fn unusable_pem_data_is_refused_with_its_file_and_without_its_contents() {
    let directory = tempfile::tempdir().unwrap();
    let identity = server_identity();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        PemSource::File(path)
    };
    let (certificate, key) = (write("c.pem", &identity.certificate_pem), write("k.pem", &identity.key_pem));
    let absent = PemSource::File(directory.path().join("absent.pem"));
    let long = write("long.pem", &" ".repeat(PEM_BYTES_MAX as usize + 1));
    let other = write("other.pem", &server_identity().key_pem);
    let empty = write("empty.pem", "");
    let cut = write("cut.pem", &identity.certificate_pem[..200]);
    let damaged = write("damaged.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let bad_key = write("bad.pem", "-----BEGIN PRIVATE KEY-----\nU0VDUkVU\n-----END PRIVATE KEY-----\n");
    let cut_key = write("cut_key.pem", "-----BEGIN PRIVATE KEY-----\nU0VDUkVU");
    for (certificate, key, parts) in [
        (&absent, &key, &["cannot read the certificate '", "absent.pem'", "No such file"][..]),
        (&certificate, &absent, &["cannot read the key '", "absent.pem'", "No such file"]),
        (&long, &key, &["long.pem' is longer than 1048576 bytes"]),
        (&empty, &key, &["the certificate '", "empty.pem' is empty"]),
        (&key, &key, &["the certificate '", "k.pem' holds a private key only"]),
        (&cut, &key, &["no certificate in the certificate '", "cut.pem'"]),
        (&damaged, &key, &["the certificate '", "damaged.pem' is not a usable X.509 certificate"]),
        (&certificate, &certificate, &["the key '", "c.pem' holds certificates only"]),
        (&certificate, &empty, &["the key '", "empty.pem' is empty"]),
        (&certificate, &cut_key, &["no private key in the key '", "cut_key.pem'"]),
        (&certificate, &bad_key, &["the key '", "bad.pem' is of no usable kind"]),
        (&certificate, &other, &["the key '", "other.pem' does not match the certificate '", "c.pem'"]),
    ] {
        let tls = ServerTls { key_exchange: None, certificates: vec![certificate.clone()], key: key.clone() };
        let error = super::server(&tls, &open_file).err().expect("a refusal");
        let shown = error.to_string();
        for part in parts {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert_eq!(shown.lines().count(), 1, "{shown}");
        assert!(!format!("{shown} {error:?}").contains("U0VDUkVU"), "{shown}");
    }
    let mut tls = client_tls(&client_identity(), &identity, KeyExchange::Hybrid);
    tls.trusted = vec![damaged];
    let shown = super::client(&tls).err().expect("a refusal").to_string();
    assert!(shown.contains("the trusted certificate '") && shown.contains("damaged.pem'"), "{shown}");
    tls.trusted.clear();
    assert!(matches!(super::client(&tls), Err(TlsError::NothingTrusted)));
}

#[test]
fn keys_and_certificates_in_other_forms_are_named_with_the_command_that_mends_them() {
    let directory = tempfile::tempdir().unwrap();
    let identity = server_identity();
    let write = |name: &str, data: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, data).unwrap();
        PemSource::File(path)
    };
    let block = |label: &str| format!("-----BEGIN {label}-----\nU0VDUkVU\n-----END {label}-----\n").into_bytes();
    let der = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
    let (certificate, key) =
        (write("c.pem", identity.certificate_pem.as_bytes()), write("k.pem", identity.key_pem.as_bytes()));
    let rfc1421 = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nU0VDUkVU\n-----END RSA PRIVATE KEY-----\n";
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(identity.key_pem.bytes().flat_map(|byte| [byte, 0])).collect();
    let bundle = [0x30, 0x82, 0x0a, 0x00, 0x02, 0x01, 0x03, 0x30, 0x82];
    for (name, data, parts) in [
        ("e.key", &block("ENCRYPTED PRIVATE KEY")[..], &["is encrypted", "openssl pkey -in", "e.key"][..]),
        ("old.key", rfc1421, &["is encrypted", "openssl pkey -in"]),
        ("der.key", &der(&identity.key_pem), &["is in DER form", "openssl pkey -inform DER -in", "der.key"]),
        ("bundle.p12", &bundle, &["PKCS #12", "openssl pkcs12 -in", "bundle.p12"]),
        ("ssh.key", &block("OPENSSH PRIVATE KEY"), &["OpenSSH", "ssh-keygen -p -m PKCS8"]),
        ("public.pem", &block("PUBLIC KEY"), &["is a public key"]),
        ("request.pem", &block("CERTIFICATE REQUEST"), &["is a request"]),
        ("utf16.key", &utf16, &["is UTF-16", "UTF-8"]),
        ("blank.key", b"\n \r\n", &["is empty"]),
    ] {
        let tls = ServerTls { key_exchange: None, certificates: vec![certificate.clone()], key: write(name, data) };
        let shown = super::server(&tls, &open_file).err().expect("a refusal").to_string();
        for part in parts {
            assert!(shown.contains(part), "{name}: {part}: {shown}");
        }
        assert!(shown.starts_with("the key '") && shown.lines().count() == 1, "{name}: {shown}");
        assert!(!shown.contains("no private key") && !shown.contains("U0VDUkVU"), "{name}: {shown}");
    }
    for (name, data, parts) in [
        (
            "der.crt",
            &der(&identity.certificate_pem)[..],
            &["is in DER form", "openssl x509 -inform DER -in", "der.crt"][..],
        ),
        ("bundle.p12", &bundle, &["PKCS #12", "openssl pkcs12 -in"]),
        ("c.p7b", &block("PKCS7"), &["PKCS #7", "openssl pkcs7 -print_certs -in"]),
        ("trusted.pem", &block("TRUSTED CERTIFICATE"), &["OpenSSL's own form", "openssl x509 -in"]),
        ("c.csr", &block("CERTIFICATE REQUEST"), &["is a request and no certificate"]),
    ] {
        let tls = ServerTls { key_exchange: None, certificates: vec![write(name, data)], key: key.clone() };
        let shown = super::server(&tls, &open_file).err().expect("a refusal").to_string();
        for part in parts {
            assert!(shown.contains(part), "{name}: {part}: {shown}");
        }
    }
    // A mark in front changes nothing, in a file or in the configuration.
    let marked = |pem: &str| format!("\u{feff}{pem}");
    for (certificate, key) in [
        (
            write("m.pem", marked(&identity.certificate_pem).as_bytes()),
            write("m.key", marked(&identity.key_pem).as_bytes()),
        ),
        (inline(&marked(&identity.certificate_pem)), inline(&marked(&identity.key_pem))),
    ] {
        let tls = ServerTls { key_exchange: None, certificates: vec![certificate], key };
        assert!(super::server(&tls, &open_file).is_ok());
    }
}
