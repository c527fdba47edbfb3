//! The table `[protocol]`: certificates, keys and key exchange of the TLS handshake.
//!
//! Nothing is loaded here. The Noise handshake is recognised and refused.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::document::{Report, Table};
use crate::error::Place;
use crate::value;

const MODES: [(&str, Mode); 2] = [("tls", Mode::Tls), ("noise", Mode::Noise)];

const KEY_EXCHANGES: [(&str, KeyExchange); 6] = [
    ("standard", KeyExchange::Standard),
    ("hybrid", KeyExchange::Hybrid),
    ("post_quantum", KeyExchange::PostQuantum),
    ("Standard", KeyExchange::Standard),
    ("Hybrid", KeyExchange::Hybrid),
    ("PostQuantum", KeyExchange::PostQuantum),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
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

impl KeyExchange {
    /// The name in a configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            KeyExchange::Standard => "standard",
            KeyExchange::Hybrid => "hybrid",
            KeyExchange::PostQuantum => "post_quantum",
        }
    }
}

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

/// The server's side of the TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// The only key exchange to accept; `None`, unless the file asks for one, to accept what any client offers.
    pub key_exchange: Option<KeyExchange>,
    /// The server's certificate and those that vouch for it, in this order: one or two sources.
    pub certificates: Vec<PemSource>,
    /// The key of the first certificate.
    pub key: PemSource,
}

/// The client's side of the TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// What to offer the server.
    pub key_exchange: KeyExchange,
    /// Certificates to trust, of the server itself or of who signed it: at least one source.
    pub trusted: Vec<PemSource>,
    /// The client's certificate and those that vouch for it, in this order: one or two sources.
    pub certificates: Vec<PemSource>,
    /// The key of the first certificate.
    pub key: PemSource,
}

/// Reads a server's table; `None` if it cannot be used.
pub(crate) fn read_server(mut table: Table<'_>, report: &mut Report<'_>) -> Option<ServerTls> {
    if !reads_tls(&mut table, report) {
        table.abandon(report);
        return None;
    }
    let key_exchange = read_key_exchange(&mut table, report);
    let certificates = read_certificates(&mut table, report, "certificate_file", "certificate");
    let key = read_key(&mut table, report, "certificate_key_file", "certificate_key");
    table.finish(report);
    Some(ServerTls { key_exchange, certificates, key: key? })
}

/// Reads a client's table; `None` if it cannot be used.
pub(crate) fn read_client(mut table: Table<'_>, report: &mut Report<'_>) -> Option<ClientTls> {
    if !reads_tls(&mut table, report) {
        table.abandon(report);
        return None;
    }
    let key_exchange = read_key_exchange(&mut table, report).unwrap_or(KeyExchange::Hybrid);
    let trusted = read_trusted(&mut table, report);
    let certificates = read_certificates(&mut table, report, "client_certificate_file", "client_certificate");
    let key = read_key(&mut table, report, "client_certificate_key_file", "client_certificate_key");
    table.finish(report);
    Some(ClientTls { key_exchange, trusted, certificates, key: key? })
}

/// Whether the table is one for TLS, or at least not one for something else.
fn reads_tls(table: &mut Table<'_>, report: &mut Report<'_>) -> bool {
    let expected = "write mode = \"tls\"";
    table.require(report, "mode", expected);
    let Some(setting) = table.take(report, "mode") else { return true };
    let (place, path) = (setting.place.clone(), setting.path.clone());
    let mode = setting.parsed(report, expected, |text| value::one_of(&MODES, text));
    if mode == Some(Mode::Noise) {
        let remedy = "write mode = \"tls\" and give a certificate and its key; `tollgate identity gencert` makes both";
        report.wrong(place, &path, "is \"noise\", which is not supported yet", remedy);
    }
    mode != Some(Mode::Noise)
}

fn read_key_exchange(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<KeyExchange> {
    let expected = "write \"standard\", \"hybrid\" or \"post_quantum\"";
    table.parsed(report, "key_exchange", expected, |text| value::one_of(&KEY_EXCHANGES, text))
}

fn read_trusted(table: &mut Table<'_>, report: &mut Report<'_>) -> Vec<PemSource> {
    let (paths, inline) = ("trusted_certificate_paths", "trusted_certificates");
    let place = table.place_of(paths);
    let what = if table.is_set(report, paths) { "names no certificate" } else { "is missing" };
    let problems = report.problems();
    let files = table.list(report, paths, "write the path of a PEM file", value::path).unwrap_or_default();
    let mut trusted: Vec<PemSource> = files.into_iter().map(|(_, path)| PemSource::File(path)).collect();
    let elements = table.take(report, inline).and_then(|setting| setting.elements(report, PEM_CERTIFICATE));
    for element in elements.unwrap_or_default() {
        let path = element.path.clone();
        if let Some((place, pem)) = element.secret(report, PEM_CERTIFICATE) {
            trusted.extend(checked_pem(report, place, &path, pem, paths));
        }
    }
    // Not a second problem for what was given but wrong.
    if trusted.is_empty() && report.problems() == problems {
        let remedy =
            "name the server's certificate, or that of who signed it: trusted_certificate_paths = [\"server.pem\"]";
        report.wrong(place, &format!("protocol.{paths}"), what, remedy);
    }
    trusted
}

const PEM_CERTIFICATE: &str = "write a certificate in PEM form, from -----BEGIN CERTIFICATE----- on";

/// Certificates from a file, from the configuration, or from both, the file's first.
fn read_certificates(table: &mut Table<'_>, report: &mut Report<'_>, file: &str, inline: &str) -> Vec<PemSource> {
    if !table.is_set(report, file) && !table.is_set(report, inline) {
        table.require(report, file, &format!("name a PEM file with the certificate: {file} = \"certificate.pem\""));
    }
    let path = table.parsed(report, file, "write the path of a PEM file", value::path);
    let pem = table.secret(report, inline, PEM_CERTIFICATE);
    let pem = pem.and_then(|(place, pem)| checked_pem(report, place, &format!("protocol.{inline}"), pem, file));
    path.map(PemSource::File).into_iter().chain(pem).collect()
}

/// A key from a file or from the configuration, but not both.
fn read_key(table: &mut Table<'_>, report: &mut Report<'_>, file: &str, inline: &str) -> Option<PemSource> {
    let expected = "write a private key in PEM form, from -----BEGIN PRIVATE KEY----- on";
    let (has_file, has_inline) = (table.is_set(report, file), table.is_set(report, inline));
    if !has_file && !has_inline {
        table.require(report, file, &format!("name a PEM file with the certificate's key: {file} = \"key.pem\""));
    }
    let path = table.parsed(report, file, "write the path of a PEM file", value::path);
    let Some((place, pem)) = table.secret(report, inline, expected) else { return path.map(PemSource::File) };
    if has_file {
        let remedy = format!("keep either protocol.{file} or protocol.{inline}");
        report.wrong(place, &format!("protocol.{inline}"), format!("is given beside protocol.{file}"), remedy);
        return path.map(PemSource::File);
    }
    checked_pem(report, place, &format!("protocol.{inline}"), pem, file)
}

/// Catches the likeliest mistake: a path where the data itself belongs.
fn checked_pem(
    report: &mut Report<'_>,
    place: Place,
    path: &str,
    pem: Zeroizing<String>,
    file: &str,
) -> Option<PemSource> {
    if pem.contains("-----BEGIN ") {
        return Some(PemSource::Inline(pem));
    }
    let remedy = format!("write the data from its -----BEGIN line on, or name its file with protocol.{file}");
    report.wrong(place, path, "is not PEM data", remedy);
    None
}
