//! TLS 1.3 for the gateway and its client: the cipher suites, key exchanges and certificate rules that Quincy's TLS mode speaks.
//!
//! This module reads PEM data and builds the configurations that quinn-proto wants. It does not decide who may connect: the gateway
//! lets every client through that holds the key of the certificate it shows, and the engine looks the certificate's fingerprint up
//! among the users.

mod form;
mod inspect;
mod validity;

use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::aws_lc_rs::kx_group::{MLKEM768, SECP256R1, SECP384R1, X25519, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, InconsistentKeys, RootCertStore,
    ServerConfig, SignatureScheme, quic,
};
use tollgate_config::{ClientTls, KeyExchange, Open, PemSource, ServerTls, open_file};
use tollgate_shards::{MovingHandshake, RETURNING_PROTOCOL, claim};
use zeroize::Zeroizing;

pub use inspect::{Doubt, doubts, doubts_of_trusted};
pub use validity::{OutOfValidity, ValidityNote};

use self::validity::NotingVerifier;

/// The application protocol (RFC 7301) that Quincy's server and clients insist on.
pub const ALPN: &[u8] = b"quincy";

/// Longest PEM file, in bytes.
pub const PEM_BYTES_MAX: u64 = 1 << 20;

/// Why TLS cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read the {role} {origin}: {error}")]
    Unreadable {
        /// What the file is for.
        role: &'static str,
        /// The file.
        origin: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// A file is longer than [`PEM_BYTES_MAX`].
    #[error("the {role} {origin} is longer than {PEM_BYTES_MAX} bytes: name a PEM file")]
    TooLong {
        /// What the file is for.
        role: &'static str,
        /// The file.
        origin: String,
    },
    /// PEM data without a certificate in it.
    #[error("no certificate in the {role} {origin}: it must hold -----BEGIN CERTIFICATE----- and what follows, whole")]
    NoCertificate {
        /// What the data is for.
        role: &'static str,
        /// The file, or the place in the configuration.
        origin: String,
    },
    /// Something else than PEM data of the kind that is needed.
    #[error("the {role} {origin} {is}: {remedy}")]
    WrongForm {
        /// What the data is for.
        role: &'static str,
        /// The file, or the place in the configuration.
        origin: String,
        /// The form that the data has.
        is: &'static str,
        /// The command that converts it.
        remedy: String,
    },
    /// PEM data without a private key in it.
    #[error("no private key in the {role} {origin}: it must hold -----BEGIN PRIVATE KEY----- and what follows, whole")]
    NoKey {
        /// What the data is for.
        role: &'static str,
        /// The file, or the place in the configuration.
        origin: String,
    },
    /// A certificate that cannot be parsed.
    #[error("the {role} {origin} is not a usable X.509 certificate: {reason}")]
    BadCertificate {
        /// What the certificate is for.
        role: &'static str,
        /// The file, or the place in the configuration.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key that belongs to another certificate.
    #[error(
        "the key {key} does not match the certificate {certificate}: name the key that the certificate was made for"
    )]
    KeyMismatch {
        /// Where the key is.
        key: String,
        /// Where the certificate is.
        certificate: String,
    },
    /// A key of a kind that cannot sign.
    #[error("the key {key} is of no usable kind: use ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 bits or more")]
    UnusableKey {
        /// Where the key is.
        key: String,
    },
    /// The client has no certificate to trust.
    #[error("no certificate to trust is configured: name the gateway's, or that of who signed it")]
    NothingTrusted,
    /// TLS refuses the settings for a reason of its own.
    #[error("TLS cannot be configured: {0}")]
    Refused(#[from] Error),
}

/// The gateway's side, of files that `open` opens: asks every client for a certificate, and takes any whose key the client proves to hold.
///
/// # Errors
///
/// If certificate or key cannot be read or do not fit together.
pub fn server(tls: &ServerTls, open: &Open<'_>) -> Result<Arc<QuicServerConfig>, TlsError> {
    let config = QuicServerConfig::with_initial(Arc::new(server_config(tls, open)?), initial_suite()?);
    config.map(Arc::new).map_err(|error| Error::General(error.to_string()).into())
}

/// The client's side: trusts only the configured certificates, and checks that the server's bears the name connected to.
///
/// # Errors
///
/// If a certificate or the key cannot be read, or certificate and key do not fit together.
pub fn client(tls: &ClientTls) -> Result<Arc<QuicClientConfig>, TlsError> {
    quic_client(client_config(tls)?)
}

/// That of a client which comes back by itself, and moves when the gateway asks it to.
pub struct ReturningClient {
    /// For a tunnel that comes up.
    pub config: Arc<QuicClientConfig>,
    /// For one that moves from one connection to another.
    pub moving: MovingHandshake,
    /// Where either notes that the server's certificate is out of its validity.
    pub validity: ValidityNote,
}

/// Loads it.
///
/// # Errors
///
/// As [`client`].
pub fn returning_client(tls: &ClientTls) -> Result<ReturningClient, TlsError> {
    let mut config = returning_client_config(tls)?;
    let provider = Arc::clone(config.crypto_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&tls.trusted)?), provider).build();
    let inner = verifier.map_err(|error| Error::General(error.to_string()))?;
    let validity = ValidityNote::default();
    config.dangerous().set_certificate_verifier(Arc::new(NotingVerifier { inner, note: validity.clone() }));
    let own = certified(&tls.certificates, &tls.key, config.crypto_provider())?;
    let returning = config.clone();
    let moving: MovingHandshake =
        Arc::new(move |address| Some(quic_client(moving_client_config(&returning, &own, address)).ok()?));
    Ok(ReturningClient { config: quic_client(config)?, moving, validity })
}

/// The client's side of many clients in one process, that trust the same certificates: those are kept once.
#[derive(Debug)]
pub struct Clients {
    /// Of a client that shows no certificate.
    config: ClientConfig,
}

impl Clients {
    /// Of clients that trust only the certificates in `trusted`, and offer `key_exchange`.
    ///
    /// # Errors
    ///
    /// If a certificate cannot be read, or there is none.
    pub fn new(trusted: &[PemSource], key_exchange: KeyExchange) -> Result<Self, TlsError> {
        Clients::offering(trusted, client_provider(key_exchange))
    }

    /// Of clients that trust only the certificates in `trusted`, and offer what `provider` has.
    ///
    /// # Errors
    ///
    /// If a certificate cannot be read, or there is none.
    pub fn offering(trusted: &[PemSource], provider: CryptoProvider) -> Result<Self, TlsError> {
        let roots = roots(trusted)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Clients { config })
    }

    /// The one that shows `chain`, its own certificate first, whose key is `key`.
    ///
    /// # Errors
    ///
    /// If a certificate or the key cannot be read, or they do not fit together.
    pub fn client(&self, chain: &[PemSource], key: &PemSource) -> Result<Arc<QuicClientConfig>, TlsError> {
        quic_client(self.client_config(chain, key)?)
    }

    fn client_config(&self, chain: &[PemSource], key: &PemSource) -> Result<ClientConfig, TlsError> {
        let certified = certified(chain, key, self.config.crypto_provider())?;
        let mut config = self.config.clone();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        Ok(config)
    }
}

/// What the certificates in `trusted` vouch for: at least one.
fn roots(trusted: &[PemSource]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for source in trusted {
        for certificate in certificates("trusted certificate", source, &open_file)? {
            roots.add(certificate).map_err(|error| bad_certificate("trusted certificate", source, &error))?;
        }
    }
    if roots.is_empty() { Err(TlsError::NothingTrusted) } else { Ok(roots) }
}

fn certified(chain: &[PemSource], key: &PemSource, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let own = Own::load(chain, key, &open_file)?;
    CertifiedKey::from_der(own.chain, own.key, provider).map_err(|error| refused_key(error, chain, key))
}

fn client_config(tls: &ClientTls) -> Result<ClientConfig, TlsError> {
    Clients::new(&tls.trusted, tls.key_exchange)?.client_config(&tls.certificates, &tls.key)
}

fn returning_client_config(tls: &ClientTls) -> Result<ClientConfig, TlsError> {
    let mut config = client_config(tls)?;
    config.alpn_protocols.push(RETURNING_PROTOCOL.to_vec());
    Ok(config)
}

fn moving_client_config(returning: &ClientConfig, own: &CertifiedKey, address: IpAddr) -> ClientConfig {
    let chain = own.cert.iter().cloned().chain([claim(address)]).collect();
    let mut config = returning.clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, own.key.clone())));
    config
}

fn quic_client(config: ClientConfig) -> Result<Arc<QuicClientConfig>, TlsError> {
    let config = QuicClientConfig::with_initial(Arc::new(config), initial_suite()?);
    config.map(Arc::new).map_err(|error| Error::General(error.to_string()).into())
}

fn server_config(tls: &ServerTls, open: &Open<'_>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(provider(server_groups(tls.key_exchange)));
    let verifier = Arc::new(AnyCertificate { algorithms: provider.signature_verification_algorithms });
    let own = Own::load(&tls.certificates, &tls.key, open)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain, own.key)
        .map_err(|error| refused_key(error, &tls.certificates, &tls.key))?;
    // The first that the client offers is taken.
    config.alpn_protocols = vec![RETURNING_PROTOCOL.to_vec(), ALPN.to_vec()];
    // A resumed session would bring no proof of the client's key, and no certificate is looked up twice.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn provider(kx_groups: Vec<&'static dyn SupportedKxGroup>) -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256],
        kx_groups,
        ..aws_lc_rs::default_provider()
    }
}

/// What the gateway accepts, best first: all that any client offers, unless the file asks for one key exchange.
fn server_groups(only: Option<KeyExchange>) -> Vec<&'static dyn SupportedKxGroup> {
    match only {
        Some(key_exchange) => client_groups(key_exchange),
        None => vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1, MLKEM768],
    }
}

/// The cryptography of a client that offers `key_exchange`.
pub fn client_provider(key_exchange: KeyExchange) -> CryptoProvider {
    provider(client_groups(key_exchange))
}

/// What a client offers.
fn client_groups(key_exchange: KeyExchange) -> Vec<&'static dyn SupportedKxGroup> {
    match key_exchange {
        KeyExchange::Standard => vec![X25519, SECP256R1, SECP384R1, X25519MLKEM768],
        KeyExchange::Hybrid => vec![X25519MLKEM768],
        KeyExchange::PostQuantum => vec![MLKEM768],
    }
}

/// The suite of Initial packets, whose keys are no secret (RFC 9001, section 5.2). It protects nothing else.
fn initial_suite() -> Result<quic::Suite, TlsError> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
    suite.ok_or_else(|| Error::General("AES-128-GCM is not available for QUIC".into()).into())
}

/// A side's own certificate chain and key.
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Own {
    fn load(sources: &[PemSource], key: &PemSource, open: &Open<'_>) -> Result<Self, TlsError> {
        let mut chain = Vec::new();
        for source in sources {
            chain.extend(certificates("certificate", source, open)?);
        }
        Ok(Own { chain, key: private_key("key", key, open)? })
    }
}

/// The certificates in PEM data, in a file that `open` opens, in order: at least one. `role` says what they are for, should there be an error.
///
/// # Errors
///
/// If the data cannot be read, or any of it is damaged, or it holds no certificate.
pub fn certificates(
    role: &'static str,
    source: &PemSource,
    open: &Open<'_>,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(role, source, open)?;
    let absent = || {
        wrong_form(role, source, form::instead_of_certificate(&pem, source))
            .unwrap_or_else(|| TlsError::NoCertificate { role, origin: Origin(source).to_string() })
    };
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(absent()),
    }
}

/// The first private key in PEM data: PKCS #8, PKCS #1 or SEC 1. The parser's own errors quote the data, so they are not passed on.
fn private_key(role: &'static str, source: &PemSource, open: &Open<'_>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(role, source, open)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        wrong_form(role, source, form::instead_of_key(&pem, source))
            .unwrap_or_else(|| TlsError::NoKey { role, origin: Origin(source).to_string() })
    })
}

fn wrong_form(role: &'static str, source: &PemSource, found: Option<form::Form>) -> Option<TlsError> {
    let form::Form { is, remedy } = found?;
    Some(TlsError::WrongForm { role, origin: Origin(source).to_string(), is, remedy })
}

/// PEM data, without the mark that some editors put in front of it.
fn read(role: &'static str, source: &PemSource, open: &Open<'_>) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let path: &Path = match source {
        PemSource::File(path) => path,
        PemSource::Inline(pem) => {
            let pem = pem.as_bytes();
            return Ok(Zeroizing::new(pem.strip_prefix(form::BYTE_ORDER_MARK).unwrap_or(pem).to_vec()));
        }
    };
    let origin = || Origin(source).to_string();
    // Of full size from the start: growing would leave copies of a key behind.
    let mut pem = Zeroizing::new(Vec::with_capacity(PEM_BYTES_MAX as usize + 1));
    open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX + 1).read_to_end(&mut pem))
        .map_err(|error| TlsError::Unreadable { role, origin: origin(), error })?;
    if pem.len() as u64 > PEM_BYTES_MAX {
        return Err(TlsError::TooLong { role, origin: origin() });
    }
    if pem.starts_with(form::BYTE_ORDER_MARK) {
        // In place: a copy would stay behind.
        pem.drain(..form::BYTE_ORDER_MARK.len());
    }
    Ok(pem)
}

fn bad_certificate(role: &'static str, source: &PemSource, error: &Error) -> TlsError {
    let reason = match error {
        Error::InvalidCertificate(CertificateError::BadEncoding) => "it is damaged".into(),
        error => error.to_string(),
    };
    TlsError::BadCertificate { role, origin: Origin(source).to_string(), reason }
}

/// What a refusal of certificate and key together means.
fn refused_key(error: Error, certificates: &[PemSource], key: &PemSource) -> TlsError {
    let Some(certificate) = certificates.first() else { return error.into() };
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            TlsError::KeyMismatch { key: Origin(key).to_string(), certificate: Origin(certificate).to_string() }
        }
        Error::InvalidCertificate(_) => bad_certificate("certificate", certificate, &error),
        _ => TlsError::UnusableKey { key: Origin(key).to_string() },
    }
}

/// The place of PEM data, for error messages.
struct Origin<'a>(&'a PemSource);

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            PemSource::File(path) => write!(f, "'{}'", path.display()),
            PemSource::Inline(_) => f.write_str("given in the configuration"),
        }
    }
}

/// Asks for a certificate and takes any, expired or not, whoever signed it, as long as the client proves to hold its key.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
