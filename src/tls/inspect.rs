//! Whether clients will take the gateway's certificate: what they look at (RFC 5280, RFC 9525), before the first of them is refused. The
//! gateway asks this of the certificate that it shows, a client of those that it trusts.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use tollgate_config::{ClientTls, Open, ServerTls, open_file};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::X509Version;

use super::{Origin, TlsError, certificates};

/// Something that keeps clients from taking a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// Whether every client refuses it; otherwise it depends on what the client trusts.
    pub is_certain: bool,
    /// What is wrong and what would be right, in a line.
    pub text: String,
}

/// What clients will find wrong with the gateway's certificate, and those that vouch for it, in files that `open` opens, at the time `now`.
///
/// # Errors
///
/// If they cannot be read.
pub fn doubts(tls: &ServerTls, open: &Open<'_>, now: SystemTime) -> Result<Vec<Doubt>, TlsError> {
    let mut chain = Vec::new();
    for source in &tls.certificates {
        let origin = Origin(source).to_string();
        let found = certificates("certificate", source, open)?;
        chain.extend(found.into_iter().map(|certificate| (origin.clone(), certificate)));
    }
    // One that cannot be parsed is refused by TLS itself.
    let parsed: Vec<_> = chain.iter().filter_map(|(origin, der)| Some((&origin[..], parse(der)?))).collect();
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let mut doubts = Vec::new();
    for (origin, certificate) in &parsed {
        doubts.extend(doubt_of_time(origin, certificate, now));
    }
    if let Some((origin, own)) = parsed.first() {
        let doubt = |reason: &str| Doubt { is_certain: true, text: format!("the certificate {origin} {reason}") };
        doubts.extend(reasons(own).into_iter().map(doubt));
        if parsed.iter().all(|(_, certificate)| certificate.subject() != own.issuer()) {
            let issuer = own.issuer();
            let text = format!(
                "the certificate {origin} was signed by {issuer:?}, whose certificate is not in the file: append it, unless every client \
                 trusts that one itself",
                issuer = issuer.to_string()
            );
            doubts.push(Doubt { is_certain: false, text });
        }
    }
    Ok(doubts)
}

/// What will keep a client that connects to `host` from taking the certificates that it trusts as its gateway's, at the time `now`. An
/// authority's certificate is no gateway's, and what it has signed is not known here.
///
/// # Errors
///
/// If they cannot be read.
pub fn doubts_of_trusted(tls: &ClientTls, host: &str, now: SystemTime) -> Result<Vec<Doubt>, TlsError> {
    let mut trusted = Vec::new();
    for source in &tls.trusted {
        let origin = Origin(source).to_string();
        let found = certificates("trusted certificate", source, &open_file)?;
        trusted.extend(found.into_iter().map(|certificate| (origin.clone(), certificate)));
    }
    let parsed: Vec<_> = trusted.iter().filter_map(|(origin, der)| Some((&origin[..], der, parse(der)?))).collect();
    let gateways: Vec<_> = parsed.iter().filter(|(.., certificate)| !is_authority(certificate)).collect();
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let mut doubts = Vec::new();
    for (origin, _, certificate) in &gateways {
        doubts.extend(doubt_of_time(origin, certificate, now));
        let doubt = |what: String| Doubt { is_certain: true, text: format!("the trusted certificate {origin} {what}") };
        doubts.extend(reasons(certificate).into_iter().map(|reason| doubt(reason.to_owned())));
        if parsed.iter().all(|(.., other)| other.subject() != certificate.issuer()) {
            let issuer = certificate.issuer().to_string();
            doubts.push(doubt(format!("was signed by {issuer:?}, which is not trusted: trust that one's certificate")));
        }
    }
    let bears_name = |der: &CertificateDer<'_>| {
        let name = ServerName::try_from(host).ok()?;
        let certificate = ParsedCertificate::try_from(der).ok()?;
        verify_server_name(&certificate, &name).ok()
    };
    let mut named = gateways.iter().filter(|(.., certificate)| has_name(certificate)).peekable();
    if gateways.len() == parsed.len() && named.peek().is_some() && named.all(|(_, der, _)| bears_name(der).is_none()) {
        let text = format!(
            "no trusted certificate bears the name {host:?}: connect to a name that it bears, or have it made with `--san {host}`"
        );
        doubts.push(Doubt { is_certain: true, text });
    }
    Ok(doubts)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    x509_parser::parse_x509_certificate(der).ok().map(|(_, certificate)| certificate)
}

fn doubt_of_time(origin: &str, certificate: &X509Certificate<'_>, now: i64) -> Option<Doubt> {
    let validity = certificate.validity();
    let what = if validity.not_after.timestamp() < now {
        format!("has expired ({}): renew it", validity.not_after)
    } else if validity.not_before.timestamp() > now {
        format!("is not valid yet (from {}): set this machine's clock, or wait", validity.not_before)
    } else {
        return None;
    };
    let subject = certificate.subject().to_string();
    Some(Doubt {
        is_certain: true,
        text: format!("the certificate of {subject:?} in {origin} {what}; clients refuse it"),
    })
}

/// What a certificate of a server must have and has not.
fn reasons(own: &X509Certificate<'_>) -> Vec<&'static str> {
    let mut reasons = Vec::new();
    if own.version() != X509Version::V3 {
        reasons.push("is not of X.509 version 3, and clients refuse it: make it with extensions, as `tollgate identity gencert` does");
        return reasons;
    }
    if is_authority(own) {
        reasons.push(
            "is an authority's (CA:TRUE), and clients refuse it as a server's: make one with `tollgate identity gencert`, or sign one with it",
        );
    }
    if !has_name(own) {
        reasons.push(
            "bears no name or address (subjectAltName), and clients refuse it whatever they connect to: make one with `tollgate identity \
             gencert --san NAME`",
        );
    }
    if own.extended_key_usage().ok().flatten().is_some_and(|usage| !usage.value.server_auth) {
        reasons.push("is not meant for servers (extendedKeyUsage without serverAuth), and clients refuse it: have it made with serverAuth");
    }
    reasons
}

fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    certificate.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca)
}

fn has_name(certificate: &X509Certificate<'_>) -> bool {
    let names = certificate.subject_alternative_name().ok().flatten();
    let is_name = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_));
    names.is_some_and(|names| names.value.general_names.iter().any(is_name))
}
