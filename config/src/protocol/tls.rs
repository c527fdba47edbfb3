//! Certificates, keys and key exchange of the TLS handshake.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::{KEY_EXCHANGES, KeyExchange, MASK, require_one_source};
use crate::document::Report;
use crate::kind::{Kind, choice, path, quoted};
use crate::schema::{Declared, LIVE, RESTART, Shared, table};
use crate::setting::Setting;
use crate::table::Table;

/// Where PEM data comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum PemSource {
    /// A file. A relative path is relative to the working directory.
    File(PathBuf),
    /// The configuration itself. Wiped from memory when dropped, and not shown by `Debug`.
    Inline(Zeroizing<String>),
}

impl fmt::Debug for PemSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PemSource::File(path) => f.debug_tuple("File").field(path).finish(),
            PemSource::Inline(_) => f.write_str("Inline(masked)"),
        }
    }
}

const PEM_CERTIFICATE: &str = "write a certificate in PEM form, from -----BEGIN CERTIFICATE----- on";
const PEM_KEY: &str = "write a private key in PEM form, from -----BEGIN PRIVATE KEY----- on";

/// A file with PEM data.
fn file() -> Kind<PemSource> {
    let path_of = |source: &PemSource| match source {
        PemSource::File(path) if !path.as_os_str().is_empty() => Some(path.clone()),
        _ => None,
    };
    path("write the path of a PEM file").map(PemSource::File, path_of)
}

/// PEM data within the configuration, which no error shows. The key `file` of the same table names a file with such data instead.
fn inline(expected: &'static str, file: &'static str) -> Kind<PemSource> {
    let read = move |setting: Setting<'_>, report: &mut Report<'_>| {
        let path = setting.path.clone();
        let table = path.rsplit_once('.').map_or("", |(table, _)| table);
        let (place, pem) = setting.secret(report, expected)?;
        if pem.contains("-----BEGIN ") {
            return Some(pem);
        }
        // The likeliest mistake is a path.
        let remedy = format!("write the data from its -----BEGIN line on, or name its file with {table}.{file}");
        report.wrong(place, &path, "is not PEM data", remedy);
        None
    };
    let data_of = |source: &PemSource| if let PemSource::Inline(pem) = source { Some(pem.clone()) } else { None };
    Kind::new(expected, read, |_| quoted(MASK)).map(PemSource::Inline, data_of)
}

/// One of several sources.
fn one(kind: Kind<PemSource>) -> Kind<Vec<PemSource>> {
    let Kind { expected, absent, read, show } = kind;
    let read = Box::new(move |setting: Setting<'_>, report: &mut Report<'_>| Some(vec![read(setting, report)?]));
    Kind { expected, absent, read, show: Box::new(move |sources| sources.iter().find_map(&show)) }
}

table! {
    /// The server's side of the TLS handshake.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ServerTls of Quincy {
        /// The one key exchange to accept: "standard" (elliptic curves), "hybrid" (X25519 with ML-KEM-768) or "post_quantum" (ML-KEM-768).
        "key_exchange" => key_exchange: Option<KeyExchange> = None,
            choice(&KEY_EXCHANGES).optional("what the client offers"), LIVE.example("\"hybrid\"");
    }
    into {
        /// The gateway's certificate. Clients must trust it, and connect to a name that it bears. Make it and its key with
        /// `tollgate identity gencert --name vpn.example.org --san vpn.example.org --out-cert server_cert.pem --out-key server_key.pem`.
        "certificate_file" => certificates, one(file()), LIVE.in_example("\"server_cert.pem\"");
        /// The certificate itself instead of its file, or those that vouch for the file's.
        "certificate" => certificates, one(inline(PEM_CERTIFICATE, "certificate_file")), LIVE;
        /// The key of the gateway's certificate.
        "certificate_key_file" => key, file(), LIVE.in_example("\"server_key.pem\"");
        /// The key itself instead of its file.
        "certificate_key" => key, inline(PEM_KEY, "certificate_key_file"), LIVE;
    }
    and {
        /// The server's certificate and those that vouch for it, in this order: one or two sources.
        certificates: Vec<PemSource> = Vec::new();
        /// The key of the first certificate.
        key: PemSource = PemSource::File(PathBuf::new());
    }
}

table! {
    /// The client's side of the TLS handshake.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ClientTls of Quincy {
        /// "standard" (elliptic curves), "hybrid" (X25519 with ML-KEM-768) or "post_quantum" (ML-KEM-768).
        "key_exchange" => key_exchange: KeyExchange = KeyExchange::Hybrid, choice(&KEY_EXCHANGES), RESTART;
    }
    into {
        /// Files with the gateway's own certificate, or that of who signed it. Nothing else is trusted.
        "trusted_certificate_paths" => trusted, file().list(usize::MAX), RESTART.in_example("[\"server_cert.pem\"]");
        /// Such certificates themselves.
        "trusted_certificates" => trusted, inline(PEM_CERTIFICATE, "trusted_certificate_paths").list(usize::MAX), RESTART;
        /// The certificate that logs this client in. Make it and its key with
        /// `tollgate identity gencert --name alice --out-cert alice_cert.pem --out-key alice_key.pem`,
        /// and give the fingerprint, which `tollgate identity fingerprint alice_cert.pem` prints, to whoever keeps the gateway's users.toml.
        "client_certificate_file" => certificates, one(file()), RESTART.in_example("\"alice_cert.pem\"");
        /// The certificate itself instead of its file, or those that vouch for the file's.
        "client_certificate" => certificates, one(inline(PEM_CERTIFICATE, "client_certificate_file")), RESTART;
        /// The key of this client's certificate.
        "client_certificate_key_file" => key, file(), RESTART.in_example("\"alice_key.pem\"");
        /// The key itself instead of its file.
        "client_certificate_key" => key, inline(PEM_KEY, "client_certificate_key_file"), RESTART;
    }
    and {
        /// Certificates to trust, of the server itself or of who signed it: at least one source.
        trusted: Vec<PemSource> = Vec::new();
        /// The client's certificate and those that vouch for it, in this order: one or two sources.
        certificates: Vec<PemSource> = Vec::new();
        /// The key of the first certificate.
        key: PemSource = PemSource::File(PathBuf::new());
    }
}

impl Shared for Vec<PemSource> {
    fn add(&mut self, other: Self) {
        self.extend(other);
    }
}

impl Shared for PemSource {
    fn add(&mut self, other: Self) {
        *self = other;
    }
}

impl ServerTls {
    /// Reads the keys of `table`, among which a certificate and its key must be. What is given after a problem is not to be used.
    pub(super) fn read_required(table: &mut Table<'_>, report: &mut Report<'_>) -> Self {
        let mut tls = ServerTls::initial();
        tls.read_keys(table, report);
        require_certificate(table, report, "certificate_file", "certificate");
        require_key(table, report, ["certificate_key_file", "certificate_key"]);
        tls
    }
}

/// Reads a client's keys. What is given after a problem is not to be used.
pub(super) fn read_client(table: &mut Table<'_>, report: &mut Report<'_>) -> ClientTls {
    let mut tls = ClientTls::initial();
    tls.read_keys(table, report);
    // Not a second problem for what was given but wrong.
    if tls.trusted.is_empty() && !report.is_wrong("protocol.trusted_certificate") {
        let taken = table.taken("trusted_certificate_paths");
        let what = if taken.is_some() { "names no certificate" } else { "is missing" };
        let place = taken.map_or(table.place(), |taken| taken.key.clone());
        let remedy =
            "name the server's certificate, or that of who signed it: trusted_certificate_paths = [\"server.pem\"]";
        report.wrong(place, "protocol.trusted_certificate_paths", what, remedy);
    }
    require_certificate(table, report, "client_certificate_file", "client_certificate");
    require_key(table, report, ["client_certificate_key_file", "client_certificate_key"]);
    tls
}

/// A certificate comes from a file, from the configuration, or from both.
fn require_certificate(table: &Table<'_>, report: &mut Report<'_>, file: &str, inline: &str) {
    if table.taken(file).or(table.taken(inline)).is_none() {
        let remedy = format!("name a PEM file with the certificate: {file} = \"certificate.pem\"");
        report.wrong(table.place(), &table.path_of(file), "is missing", remedy);
    }
}

fn require_key(table: &Table<'_>, report: &mut Report<'_>, keys: [&str; 2]) {
    let remedy = format!("name a PEM file with the certificate's key: {} = \"key.pem\"", keys[0]);
    require_one_source(table, report, keys, &remedy);
}
