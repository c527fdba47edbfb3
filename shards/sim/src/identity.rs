//! Who clients are. Certificates and TLS of which nothing is left to chance: keys come from seeds, and what rustls draws, from a stream of the run's.
//!
//! The key exchange is a stand-in without security, because a real one draws from the system; signatures are real.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::aws_lc_rs::hmac;
use ::aws_lc_rs::signature::Ed25519KeyPair;
use quinn_proto::crypto::ClientConfig;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup, aws_lc_rs,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, NamedGroup, RootCertStore, SignatureScheme};
use siphasher::sip::SipHasher13;
use tollgate_noise::Announcement;
use tollgate_shards::{
    Fingerprint, IdLayout, MovingHandshake, RETURNING_PROTOCOL, ShardKeys, TLS_VERSION, TokenKey, claim,
};

use crate::noise;
use crate::open;
use crate::random::Stream;

thread_local! {
    /// Identities are the same in every run, and making one takes two signatures.
    static IDENTITIES: RefCell<BTreeMap<u64, Rc<Identity>>> = const { RefCell::new(BTreeMap::new()) };
    /// What rustls draws from. It asks for a `'static` source, and a run stays in its thread.
    static TLS_RANDOM: RefCell<Stream> = RefCell::new(Stream::new(0, "tls"));
    /// Whether QUIC packets are protected.
    static IS_OPEN: Cell<bool> = const { Cell::new(false) };
}

/// Lets TLS of this thread draw from the run of `seed` from now on, and protect packets unless the run `is_open`.
pub fn begin(seed: u64, is_open: bool) {
    TLS_RANDOM.set(Stream::new(seed, "tls"));
    IS_OPEN.set(is_open);
    noise::begin(seed);
}

const GATEWAY: u64 = u64::MAX;
/// The time of day when a run begins, since 1970.
pub const WALL_CLOCK_AT_START: Duration = Duration::from_secs(1_700_000_000);
const PROTOCOL: &[u8] = b"quincy";

/// What is unusual about a ClientHello.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hello {
    /// It takes two datagrams, as that of hybrid key exchange does.
    pub is_long: bool,
    /// It asks for a protocol that the gateway does not speak, which TLS refuses.
    pub asks_for_another_protocol: bool,
    /// It is of a client that comes back by itself.
    pub returns: bool,
    /// It is of such a client which moves, and has this address.
    pub claims: Option<IpAddr>,
}

pub struct Identity {
    number: u64,
    secret: Secret,
    /// How the gateway knows it.
    pub fingerprint: Fingerprint,
}

enum Secret {
    Certificate(CertificateDer<'static>, PrivateKeyDer<'static>),
    Noise(Arc<tollgate_noise::ClientConfig>),
}

/// How a client begins.
#[derive(Clone)]
pub struct Dial {
    pub handshake: Arc<dyn ClientConfig>,
    pub quic_version: u32,
}

impl Dial {
    pub fn tls(handshake: Arc<dyn ClientConfig>) -> Self {
        Dial { handshake, quic_version: TLS_VERSION }
    }
}

/// Where the number of an identity says when its certificate ends, and for how many bits.
const END_SHIFT: u32 = 40;
const END_BITS: u32 = 16;

/// The identity like `number` whose certificate ends so many seconds after the start of the run.
pub fn ending(number: u64, after_s: u64) -> u64 {
    number | after_s << END_SHIFT
}

/// How many seconds after the start of the run the certificate of `number` ends, if it does.
pub fn end_s(number: u64) -> Option<u64> {
    let after_s = number >> END_SHIFT & ((1 << END_BITS) - 1);
    (number != GATEWAY && noise::kind(number).is_none() && after_s > 0).then_some(after_s)
}

impl Identity {
    /// Identity `number`, the same in every run.
    fn new(number: u64) -> Self {
        if let Some(kind) = noise::kind(number) {
            let key = noise::client_key(kind, number);
            let fingerprint = Fingerprint::of_key(&key.public());
            return Identity { number, secret: Secret::Noise(noise::client(&key)), fingerprint };
        }
        let key = Ed25519KeyPair::from_seed_unchecked(&Stream::numbered(0, "identity", number).seed())
            .and_then(|key| key.to_pkcs8v1().map_err(Into::into))
            .expect("32 bytes make a key");
        let key = PrivatePkcs8KeyDer::from(key.as_ref().to_vec());
        let signer = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519).expect("just made");
        let mut parameters = rcgen::CertificateParams::new(vec!["gateway".to_owned()]).expect("a DNS name");
        if let Some(after_s) = end_s(number) {
            let end = WALL_CLOCK_AT_START + Duration::from_secs(after_s);
            parameters.not_after = rcgen::date_time_ymd(1970, 1, 1) + end;
        }
        let certificate = parameters.self_signed(&signer).expect("a complete certificate").der().clone();
        let fingerprint = Fingerprint::of(&certificate);
        Identity { number, secret: Secret::Certificate(certificate, PrivateKeyDer::Pkcs8(key)), fingerprint }
    }

    /// Identity `number`, made once in a thread.
    pub fn cached(number: u64) -> Rc<Self> {
        IDENTITIES.with_borrow_mut(|all| all.entry(number).or_insert_with(|| Rc::new(Identity::new(number))).clone())
    }

    /// How its client moves, which begins with `hello`.
    pub fn moving(&self, hello: Hello) -> MovingHandshake {
        let number = self.number;
        Arc::new(move |address| {
            Some(Identity::cached(number).client(Hello { claims: Some(address), ..hello }).handshake)
        })
    }

    /// The handshake of a client that shows this certificate, or has this key.
    pub fn client(&self, hello: Hello) -> Dial {
        match &self.secret {
            Secret::Certificate(..) => {
                let tls = QuicClientConfig::try_from(self.client_config(hello)).expect("AES-128-GCM is there");
                Dial::tls(Arc::new(tls))
            }
            Secret::Noise(config) => {
                let announcement = match hello {
                    Hello { claims: Some(address), .. } => Some(Announcement::Moves(address)),
                    Hello { returns: true, .. } => Some(Announcement::Returns),
                    _ => None,
                };
                let announcing = announcement.map(|announcement| Arc::new(config.announcing(announcement)));
                Dial { handshake: announcing.unwrap_or_else(|| config.clone()), quic_version: config.quic_version() }
            }
        }
    }

    fn certificate(&self) -> (&CertificateDer<'static>, &PrivateKeyDer<'static>) {
        match &self.secret {
            Secret::Certificate(certificate, key) => (certificate, key),
            Secret::Noise(_) => panic!("it has a key"),
        }
    }

    /// TLS of a client that shows this certificate.
    pub fn client_config(&self, hello: Hello) -> rustls::ClientConfig {
        let gateway = Identity::cached(GATEWAY);
        let (certificate, key) = self.certificate();
        let mut roots = RootCertStore::empty();
        roots.add(gateway.certificate().0.clone()).expect("a certificate");
        let provider = provider(vec![if hello.is_long { &LONG } else { &SHORT }]);
        let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(StoppedClock))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(
                [Some(certificate.clone()), hello.claims.map(claim)].into_iter().flatten().collect(),
                key.clone_key(),
            )
            .expect("a key and its certificate");
        config.alpn_protocols = match hello {
            Hello { asks_for_another_protocol: true, .. } => vec![b"other".to_vec()],
            Hello { returns: true, .. } => vec![PROTOCOL.to_vec(), RETURNING_PROTOCOL.to_vec()],
            _ => vec![PROTOCOL.to_vec()],
        };
        config.resumption = Resumption::disabled();
        config
    }

    pub fn gateway() -> Arc<QuicServerConfig> {
        let gateway = Identity::cached(GATEWAY);
        let (certificate, key) = gateway.certificate();
        let mut config =
            rustls::ServerConfig::builder_with_details(provider(vec![&SHORT, &LONG]), Arc::new(StoppedClock))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("TLS 1.3")
                .with_client_cert_verifier(Arc::new(AnyClient))
                .with_single_cert(vec![certificate.clone()], key.clone_key())
                .expect("a key and its certificate");
        config.alpn_protocols = vec![RETURNING_PROTOCOL.to_vec(), PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        Arc::new(QuicServerConfig::try_from(config).expect("AES-128-GCM is there"))
    }
}

pub fn shard_keys(id_layout: IdLayout) -> ShardKeys {
    let reset = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &[3; 64]));
    ShardKeys { id_layout, reset, token: TokenKey::new(&[4; 32]) }
}

pub fn reset_key(seed: &[u8; 32]) -> Arc<hmac::Key> {
    Arc::new(hmac::Key::new(hmac::HMAC_SHA256, seed))
}

fn provider(kx_groups: Vec<&'static dyn SupportedKxGroup>) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![if IS_OPEN.get() { open::suite() } else { TLS13_AES_128_GCM_SHA256 }],
        kx_groups,
        secure_random: &SeededRandom,
        ..aws_lc_rs::default_provider()
    })
}

#[derive(Debug)]
struct SeededRandom;

impl SecureRandom for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        TLS_RANDOM.with_borrow_mut(|random| random.fill(bytes));
        Ok(())
    }
}

/// A key exchange of another's name and length. Both sides' public keys make the secret, so anybody can know it.
#[derive(Debug)]
struct StandIn {
    name: NamedGroup,
    key_bytes: usize,
}

static SHORT: StandIn = StandIn { name: NamedGroup::X25519, key_bytes: 32 };
static LONG: StandIn = StandIn { name: NamedGroup::X25519MLKEM768, key_bytes: 1216 };

#[derive(Debug)]
struct StandInKey {
    name: NamedGroup,
    public: Vec<u8>,
}

impl SupportedKxGroup for StandIn {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        let mut public = vec![0; self.key_bytes];
        TLS_RANDOM.with_borrow_mut(|random| random.fill(&mut public));
        Ok(Box::new(StandInKey { name: self.name, public }))
    }

    fn name(&self) -> NamedGroup {
        self.name
    }
}

impl ActiveKeyExchange for StandInKey {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, rustls::Error> {
        let both: Vec<u8> = self.public.iter().zip(peer).map(|(own, peer)| own ^ peer).collect();
        let secret = (0..4u64).flat_map(|part| {
            let mut hasher = SipHasher13::new_with_keys(part, 0);
            hasher.write(&both);
            hasher.finish().to_le_bytes()
        });
        Ok(SharedSecret::from(secret.collect::<Vec<u8>>()))
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        self.name
    }
}

#[derive(Debug)]
struct StoppedClock;

impl rustls::time_provider::TimeProvider for StoppedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_700_000_000)))
    }
}

/// Takes any client that holds its certificate's key; the engine looks up the fingerprint.
#[derive(Debug)]
struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
