//! What a file that should hold a key or a certificate holds instead, and the command that makes it right.
//!
//! This module never shows what is in the file.

use tollgate_config::PemSource;

/// Why data is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// What it is, as the rest of a sentence.
    pub is: &'static str,
    /// The command that converts it.
    pub remedy: String,
}

/// The byte order mark that some editors put in front of UTF-8.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What is said of whole lines that begin a PEM block, in place of a key.
const NO_KEYS: [(&str, &str, &str); 8] = [
    ("ENCRYPTED PRIVATE KEY", "is encrypted", DECRYPT),
    ("OPENSSH PRIVATE KEY", "is in OpenSSH's own form", "convert a copy of it with `ssh-keygen -p -m PKCS8 -f FILE`"),
    ("PUBLIC KEY", "is a public key", "name the private key that it belongs to"),
    ("RSA PUBLIC KEY", "is a public key", "name the private key that it belongs to"),
    ("CERTIFICATE", "holds certificates only", "name the file with the private key of the first one"),
    ("TRUSTED CERTIFICATE", "holds certificates only", "name the file with the private key of the first one"),
    ("CERTIFICATE REQUEST", "is a request for a certificate", "name the private key that it was made with"),
    ("EC PARAMETERS", "holds the parameters of a key only", "name the file with -----BEGIN EC PRIVATE KEY-----"),
];

/// The same in place of a certificate.
const NO_CERTIFICATES: [(&str, &str, &str); 8] = [
    ("TRUSTED CERTIFICATE", "is in OpenSSL's own form", "convert it with `openssl x509 -in FILE -out certificate.pem`"),
    ("X509 CERTIFICATE", "has an old heading", "convert it with `openssl x509 -in FILE -out certificate.pem`"),
    ("PKCS7", "is a PKCS #7 bundle", "convert it with `openssl pkcs7 -print_certs -in FILE -out certificate.pem`"),
    ("CERTIFICATE REQUEST", "is a request and no certificate yet", "name what the authority made of it"),
    ("NEW CERTIFICATE REQUEST", "is a request and no certificate yet", "name what the authority made of it"),
    ("PRIVATE KEY", "holds a private key only", "name the file with the certificate that was made for it"),
    ("EC PRIVATE KEY", "holds a private key only", "name the file with the certificate that was made for it"),
    ("RSA PRIVATE KEY", "holds a private key only", "name the file with the certificate that was made for it"),
];

const DECRYPT: &str = "decrypt it with `openssl pkey -in FILE -out key.pem`, and let nobody else read that file";

/// What `data` is where it should be a private key.
pub fn instead_of_key(data: &[u8], source: &PemSource) -> Option<Form> {
    let commands = Commands {
        der: "convert it with `openssl pkey -inform DER -in FILE -out key.pem`",
        bundle: "convert it with `openssl pkcs12 -in FILE -nodes -nocerts -out key.pem`, and let nobody else read that file",
    };
    // RFC 1421's way of encryption, in a block with the heading of an open key.
    let is_encrypted = contains(data, b"Proc-Type: 4,ENCRYPTED");
    let encrypted = is_encrypted.then_some(("is encrypted", DECRYPT));
    finding(encrypted.or_else(|| found(data, "PRIVATE KEY", &NO_KEYS)).or_else(|| no_text(data, &commands)), source)
}

/// What `data` is where it should be certificates.
pub fn instead_of_certificate(data: &[u8], source: &PemSource) -> Option<Form> {
    let commands = Commands {
        der: "convert it with `openssl x509 -inform DER -in FILE -out certificate.pem`",
        bundle: "convert it with `openssl pkcs12 -in FILE -nokeys -out certificate.pem`",
    };
    finding(found(data, " CERTIFICATE", &NO_CERTIFICATES).or_else(|| no_text(data, &commands)), source)
}

struct Commands {
    der: &'static str,
    bundle: &'static str,
}

fn finding(found: Option<(&'static str, &'static str)>, source: &PemSource) -> Option<Form> {
    let (is, remedy) = found?;
    let file = match source {
        PemSource::File(path) => path.display().to_string(),
        PemSource::Inline(_) => "FILE".to_owned(),
    };
    Some(Form { is, remedy: remedy.replace("FILE", &file) })
}

/// The first of the `known` headings that `data` has. One of the kind that is `wanted` says more than the others: without it, nothing is said
/// of a block that should do, and is damaged.
fn found(
    data: &[u8],
    wanted: &str,
    known: &[(&str, &'static str, &'static str)],
) -> Option<(&'static str, &'static str)> {
    let has_wanted = contains(data, format!("{wanted}-----").as_bytes());
    let is_told = |label: &str| {
        contains(data, format!("-----BEGIN {label}-----").as_bytes()) && (!has_wanted || label.ends_with(wanted))
    };
    known.iter().find(|(label, ..)| is_told(label)).map(|(_, is, remedy)| (*is, *remedy))
}

/// What data without any PEM block in it is.
fn no_text(data: &[u8], commands: &Commands) -> Option<(&'static str, &'static str)> {
    let is_blank = data.iter().all(u8::is_ascii_whitespace);
    match data {
        _ if is_blank => {
            Some(("is empty", "make certificate and key with `tollgate identity gencert`, or copy them again"))
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(("is UTF-16 text", "save it as ASCII or UTF-8")),
        // A SEQUENCE (X.690) whose first element is the version of PKCS #12: 3.
        [0x30, ..] if first_element(data).is_some_and(|element| element.starts_with(&[2, 1, 3])) => {
            Some(("is a PKCS #12 bundle", commands.bundle))
        }
        [0x30, 0x80..=0x84, ..] => Some(("is in DER form", commands.der)),
        // An Ed25519 or P-256 key is shorter than 128 bytes.
        [0x30, length, rest @ ..] if rest.len() == usize::from(*length) => Some(("is in DER form", commands.der)),
        _ => None,
    }
}

/// What is in the outer element of DER data.
fn first_element(data: &[u8]) -> Option<&[u8]> {
    match data.get(1)? {
        length @ 0x80..=0x84 => data.get(2 + usize::from(length & 0x0f)..),
        _ => data.get(2..),
    }
}

fn contains(data: &[u8], wanted: &[u8]) -> bool {
    data.windows(wanted.len()).any(|window| window == wanted)
}
