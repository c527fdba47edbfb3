//! The table `[protocol]`: certificates, keys and key exchange of the TLS handshake.
//!
//! Nothing is loaded here. The Noise handshake is recognised and refused.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::document::Report;
use crate::kind::{Kind, choice, path, quoted, text};
use crate::schema::{Declared, LIVE, RESTART, Section, Shared, table};
use crate::setting::Setting;
use crate::table::Table;
use crate::value;

const MODES: [(&str, Mode); 2] = [("tls", Mode::Tls), ("noise", Mode::Noise)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Tls,
    Noise,
}

/// Which key exchange the TLS handshake uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyExchange {
    /// Elliptic curves: X25519, P-256, P-384, and as a last choice X25519MLKEM768.
    Standard,
    /// X25519 and ML-KEM-768 together: X25519MLKEM768 only.
    Hybrid,
    /// ML-KEM-768 only.
    PostQuantum,
}

const KEY_EXCHANGES: [(&str, KeyExchange); 6] = [
    ("standard", KeyExchange::Standard),
    ("hybrid", KeyExchange::Hybrid),
    ("post_quantum", KeyExchange::PostQuantum),
    ("Standard", KeyExchange::Standard),
    ("Hybrid", KeyExchange::Hybrid),
    ("PostQuantum", KeyExchange::PostQuantum),
];

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

/// What stands in place of a secret.
const MASK: &str = "(masked)";

const PEM_CERTIFICATE: &str = "write a certificate in PEM form, from -----BEGIN CERTIFICATE----- on";
const PEM_KEY: &str = "write a private key in PEM form, from -----BEGIN PRIVATE KEY----- on";

/// A file with PEM data.
fn file() -> Kind<PemSource> {
    let path_of = |source: &PemSource| if let PemSource::File(path) = source { Some(path.clone()) } else { None };
    path("write the path of a PEM file").map(PemSource::File, path_of)
}

/// PEM data within the configuration, which no error shows. The key `file` names a file with such data instead.
fn inline(expected: &'static str, file: &'static str) -> Kind<PemSource> {
    let read = move |setting: Setting<'_>, report: &mut Report<'_>| {
        let path = setting.path.clone();
        let (place, pem) = setting.secret(report, expected)?;
        if pem.contains("-----BEGIN ") {
            return Some(pem);
        }
        // The likeliest mistake is a path.
        let remedy = format!("write the data from its -----BEGIN line on, or name its file with protocol.{file}");
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

fn mode() -> Kind<Mode> {
    text("write mode = \"tls\"", |text| value::one_of(&MODES, text), |_| "tls".into())
}

table! {
    /// How the two sides prove who they are.
    #[derive(Debug)]
    struct Handshake of Quincy {
        /// "tls" is the only mode so far.
        "mode" => mode: Mode = Mode::Tls, mode(), LIVE.required("\"tls\"");
    }
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

/// The table with its values.
pub(crate) fn section(tls: &impl Declared) -> Section {
    Handshake::initial().section("protocol").and(tls.section("protocol"))
}

/// Takes a server's table out of `root`. What is given after a problem is not to be used.
pub(crate) fn read_server(root: &mut Table<'_>, report: &mut Report<'_>) -> ServerTls {
    let mut tls = ServerTls::initial();
    let expected = "write a table [protocol] with mode = \"tls\", certificate_file and certificate_key_file";
    let Some(mut table) = handshake(root, report, expected) else { return tls };
    tls.read_keys(&mut table, report);
    require_certificate(&table, report, "certificate_file", "certificate");
    require_key(&table, report, "certificate_key_file", "certificate_key");
    table.finish(report);
    tls
}

/// Takes a client's table out of `root`. What is given after a problem is not to be used.
pub(crate) fn read_client(root: &mut Table<'_>, report: &mut Report<'_>) -> ClientTls {
    let mut tls = ClientTls::initial();
    let expected = "write a table [protocol] with mode = \"tls\", trusted_certificate_paths, client_certificate_file and \
                    client_certificate_key_file";
    let Some(mut table) = handshake(root, report, expected) else { return tls };
    tls.read_keys(&mut table, report);
    // Not a second problem for what was given but wrong.
    if tls.trusted.is_empty() && !report.is_wrong("protocol.trusted_certificate") {
        let taken = table.taken("trusted_certificate_paths");
        let what = if taken.is_some() { "names no certificate" } else { "is missing" };
        let place = taken.map_or(table.place(), |taken| taken.key.clone());
        let remedy =
            "name the server's certificate, or that of who signed it: trusted_certificate_paths = [\"server.pem\"]";
        report.wrong(place, "protocol.trusted_certificate_paths", what, remedy);
    }
    require_certificate(&table, report, "client_certificate_file", "client_certificate");
    require_key(&table, report, "client_certificate_key_file", "client_certificate_key");
    table.finish(report);
    tls
}

/// The table, if it is there and is one for TLS, or at least not one for something else.
fn handshake<'i>(root: &mut Table<'i>, report: &mut Report<'_>, expected: &str) -> Option<Table<'i>> {
    if !root.requires(report, "protocol", expected) {
        return None;
    }
    let mut table = root.table(report, "protocol");
    let mut handshake = Handshake::initial();
    handshake.read_keys(&mut table, report);
    let Some(taken) = table.taken("mode").filter(|_| handshake.mode == Mode::Noise) else { return Some(table) };
    let remedy = "write mode = \"tls\" and give a certificate and its key; `tollgate identity gencert` makes both";
    report.wrong(taken.value.clone(), "protocol.mode", "is \"noise\", which is not supported yet", remedy);
    table.abandon(report);
    None
}

/// A certificate comes from a file, from the configuration, or from both.
fn require_certificate(table: &Table<'_>, report: &mut Report<'_>, file: &str, inline: &str) {
    if table.taken(file).or(table.taken(inline)).is_none() {
        let remedy = format!("name a PEM file with the certificate: {file} = \"certificate.pem\"");
        report.wrong(table.place(), &format!("protocol.{file}"), "is missing", remedy);
    }
}

/// A key comes from a file or from the configuration, but not from both.
fn require_key(table: &Table<'_>, report: &mut Report<'_>, file: &str, inline: &str) {
    match (table.taken(file), table.taken(inline)) {
        (None, None) => {
            let remedy = format!("name a PEM file with the certificate's key: {file} = \"key.pem\"");
            report.wrong(table.place(), &format!("protocol.{file}"), "is missing", remedy);
        }
        (Some(_), Some(taken)) => {
            let remedy = format!("keep either protocol.{file} or protocol.{inline}");
            let what = format!("is given beside protocol.{file}");
            report.wrong(taken.value.clone(), &format!("protocol.{inline}"), what, remedy);
        }
        _ => {}
    }
}
