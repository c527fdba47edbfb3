//! Making certificates and keys for gateways and clients, and naming certificates by fingerprint.
//!
//! A certificate made here is self-signed and no authority: the other side trusts or authorizes just this one.

pub mod noise;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use tempfile::NamedTempFile;
use tollgate_config::{PemSource, open_file};
use tollgate_shards::Fingerprint;
use zeroize::Zeroizing;

use crate::tls::{self, TlsError};
use crate::whole_file;

/// How long a certificate is valid unless told otherwise, in days.
pub const DEFAULT_VALIDITY_DAYS: u32 = 3650;

/// Longest validity of a certificate, in days.
pub const VALIDITY_DAYS_MAX: u32 = 36_500;

/// Most names that a certificate may bear.
pub const NAMES_MAX: usize = 100;

const DAY: Duration = Duration::from_secs(86_400);

/// Why a certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A name that no certificate can bear.
    #[error("'{0}' is not a name for a certificate: give a DNS name or an IP address without port or brackets")]
    BadName(String),
    /// More than [`NAMES_MAX`] names.
    #[error("{0} names are too many for a certificate: give at most {NAMES_MAX}")]
    TooManyNames(usize),
    /// A validity of no days or of more than [`VALIDITY_DAYS_MAX`].
    #[error("a certificate cannot be valid for {0} days: give 1 to {VALIDITY_DAYS_MAX}")]
    BadValidity(u32),
    /// A file that is there already.
    #[error("'{}' exists already: choose another name, or allow overwriting with --force", .0.display())]
    Exists(PathBuf),
    /// A file that cannot be written.
    #[error("cannot write '{}': {error}", path.display())]
    Unwritable {
        /// The path of the file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// A certificate that cannot be read.
    #[error(transparent)]
    Unreadable(#[from] TlsError),
    /// The certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Refused(#[from] rcgen::Error),
    /// There is no Noise key.
    #[error(transparent)]
    Noise(#[from] noise::NoiseKeyError),
}

/// What can be done with certificates and keys on the command line.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a self-signed certificate and its key, and print the certificate's fingerprint.
    ///
    /// A gateway's certificate needs a --san for each name or address that clients connect to; a client's needs none.
    Gencert(Gencert),
    /// Print the fingerprint of a certificate, as `authorized_certs` in users.toml wants it.
    Fingerprint {
        /// The certificate, a PEM file.
        #[arg(value_name = "FILE")]
        certificate: PathBuf,
    },
    /// Make Noise keys, as `quincy-identity noise` does.
    #[command(subcommand)]
    Noise(noise::Command),
}

/// Options of `tollgate identity gencert`.
#[derive(Debug, clap::Args)]
pub struct Gencert {
    /// The subject's common name, for people.
    #[arg(long, visible_alias = "cn")]
    name: String,
    /// A DNS name or an IP address that the certificate bears. May be given several times.
    #[arg(long = "san", value_name = "NAME")]
    sans: Vec<String>,
    /// How long the certificate is valid.
    #[arg(long, default_value_t = DEFAULT_VALIDITY_DAYS)]
    days: u32,
    /// Where to write the certificate.
    #[arg(long, value_name = "FILE")]
    out_cert: PathBuf,
    /// Where to write the key, readable by its owner alone.
    #[arg(long, value_name = "FILE")]
    out_key: PathBuf,
    /// Overwrite files that exist.
    #[arg(long)]
    force: bool,
}

impl Command {
    /// Does it. Returns the line to be printed: a certificate's fingerprint, or a key.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written, or what was asked for is no certificate or key.
    pub fn run(self) -> Result<Zeroizing<String>, IdentityError> {
        match self {
            Command::Gencert(Gencert { name, sans, days, out_cert, out_key, force }) => {
                let sans: Vec<&str> = sans.iter().map(String::as_str).collect();
                Ok(line(gencert(&name, &sans, days, &out_cert, &out_key, force)?))
            }
            Command::Fingerprint { certificate } => Ok(line(fingerprint(&certificate)?)),
            Command::Noise(command) => Ok(command.run(std::io::stdin())?),
        }
    }
}

fn line(fingerprint: Fingerprint) -> Zeroizing<String> {
    Zeroizing::new(fingerprint.to_string())
}

/// A certificate with its key.
pub struct Identity {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PEM. Wiped from memory when dropped.
    pub key_pem: Zeroizing<String>,
    /// How a gateway knows the certificate.
    pub fingerprint: Fingerprint,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Identity {
    /// Makes a certificate of subject `name`, valid for [`DEFAULT_VALIDITY_DAYS`], and a new P-256 key for it.
    ///
    /// `sans` are the DNS names and IP addresses that it bears: a gateway's needs those that clients connect to, a client's needs none.
    ///
    /// # Errors
    ///
    /// If a name cannot be put in a certificate.
    pub fn generate(name: &str, sans: &[&str]) -> Result<Self, IdentityError> {
        Identity::generate_for_days(name, sans, DEFAULT_VALIDITY_DAYS)
    }

    /// As [`Identity::generate`], valid for `days` from now; and for one day before, since clocks differ.
    ///
    /// # Errors
    ///
    /// If a name cannot be put in a certificate, or `days` is 0 or above [`VALIDITY_DAYS_MAX`].
    pub fn generate_for_days(name: &str, sans: &[&str], days: u32) -> Result<Self, IdentityError> {
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
            return Err(IdentityError::BadName(name.to_owned()));
        }
        if sans.len() > NAMES_MAX {
            return Err(IdentityError::TooManyNames(sans.len()));
        }
        if !(1..=VALIDITY_DAYS_MAX).contains(&days) {
            return Err(IdentityError::BadValidity(days));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = sans.iter().map(|san| subject_alt_name(san)).collect::<Result<_, _>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + now.saturating_sub(DAY);
        params.not_after = epoch + now + DAY * days;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
            fingerprint: Fingerprint::of(certificate.der()),
        })
    }

    /// Writes certificate and key into two files; the key's is for its owner alone (mode 0600). Each appears whole or not at all.
    ///
    /// # Errors
    ///
    /// If a file cannot be written, or one is there already and `overwrite` is not set: then neither is touched.
    pub fn write(&self, certificate: &Path, key: &Path, overwrite: bool) -> Result<(), IdentityError> {
        if certificate == key {
            return Err(IdentityError::Exists(key.to_owned()));
        }
        for path in [certificate, key] {
            if !overwrite && path.symlink_metadata().is_ok() {
                return Err(IdentityError::Exists(path.to_owned()));
            }
        }
        let key_file = prepare(key, self.key_pem.as_bytes(), 0o600)?;
        let certificate_file = prepare(certificate, self.certificate_pem.as_bytes(), 0o644)?;
        persist(key_file, key, overwrite)?;
        let written = persist(certificate_file, certificate, overwrite);
        if written.is_err() && !overwrite {
            // A key alone is of no use, and would be in the way of the next try.
            let _ = std::fs::remove_file(key);
        }
        written
    }
}

/// Makes an identity and writes it: [`Identity::generate_for_days`], then [`Identity::write`]. Gives the fingerprint.
///
/// # Errors
///
/// As of the two.
pub fn gencert(
    name: &str,
    sans: &[&str],
    days: u32,
    certificate: &Path,
    key: &Path,
    overwrite: bool,
) -> Result<Fingerprint, IdentityError> {
    let identity = Identity::generate_for_days(name, sans, days)?;
    identity.write(certificate, key, overwrite)?;
    Ok(identity.fingerprint)
}

/// The fingerprint of the first certificate in a PEM file, as `authorized_certs` of a users file wants it.
///
/// # Errors
///
/// If the file cannot be read or holds no certificate.
pub fn fingerprint(certificate: &Path) -> Result<Fingerprint, IdentityError> {
    let certificates = tls::certificates("certificate", &PemSource::File(certificate.to_owned()), &open_file)?;
    Ok(Fingerprint::of(&certificates[0]))
}

fn subject_alt_name(text: &str) -> Result<SanType, IdentityError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let refused = || IdentityError::BadName(text.to_owned());
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let labels = text.strip_prefix("*.").unwrap_or(text);
    // What looks like an address, but is none, is a slip.
    let numeric = labels.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    if text.len() > 253 || numeric || !labels.split('.').all(label) {
        return Err(refused());
    }
    Ok(SanType::DnsName(text.try_into().map_err(|_| refused())?))
}

fn prepare(path: &Path, contents: &[u8], mode: u32) -> Result<NamedTempFile, IdentityError> {
    whole_file::prepare(path, contents, mode)
        .map_err(|error| IdentityError::Unwritable { path: path.to_owned(), error })
}

fn persist(file: NamedTempFile, path: &Path, overwrite: bool) -> Result<(), IdentityError> {
    let result = if overwrite { file.persist(path) } else { file.persist_noclobber(path) };
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(IdentityError::Exists(path.to_owned()))
        }
        Err(error) => Err(IdentityError::Unwritable { path: path.to_owned(), error: error.error }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn certificate_and_key_are_written_and_the_key_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        let made = gencert("gateway", &["vpn.example.org", "198.18.0.1"], 30, &certificate, &key, false).unwrap();
        assert_eq!(fingerprint(&certificate).unwrap(), made);
        assert!(made.to_string().starts_with("sha256:"));
        assert_eq!((mode(&certificate), mode(&key)), (0o644, 0o600));
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2, "nothing is left over");
    }

    #[test]
    fn the_commands_take_the_options_that_the_examples_show() {
        #[derive(Debug, clap::Parser)]
        struct Cli {
            #[command(subcommand)]
            command: Command,
        }
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        let run = |line: &str| {
            let line = line.replace("CERT", certificate.to_str().unwrap()).replace("KEY", key.to_str().unwrap());
            let cli = <Cli as clap::Parser>::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
            cli.command.run().map_err(|error| error.to_string())
        };
        run("x gencert --name vpn.example.org --san vpn.example.org --san 198.18.0.1 --out-cert CERT --out-key KEY")
            .unwrap();
        run("x fingerprint CERT").unwrap();
        assert!(run("x gencert --cn alice --out-cert CERT --out-key KEY").unwrap_err().contains("--force"));
        run("x gencert --cn alice --days 5 --force --out-cert CERT --out-key KEY").unwrap();
        assert!(run("x fingerprint KEY").unwrap_err().contains("holds a private key only"));
    }

    #[test]
    fn files_are_not_overwritten_unless_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
        std::fs::write(&key, "precious").unwrap();
        let error = gencert("a", &[], 30, &certificate, &key, false).unwrap_err();
        assert!(matches!(&error, IdentityError::Exists(path) if *path == key), "{error}");
        assert!(error.to_string().contains("k.pem' exists already"), "{error}");
        assert!(!certificate.exists());
        assert_eq!(std::fs::read_to_string(&key).unwrap(), "precious");
        // A file that others may read does not stay so.
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        gencert("a", &[], 30, &certificate, &key, true).unwrap();
        assert!(std::fs::read_to_string(&key).unwrap().contains("PRIVATE KEY"));
        assert_eq!(mode(&key), 0o600);
        let error = gencert("a", &[], 30, &key, &key, true).unwrap_err();
        assert!(matches!(error, IdentityError::Exists(_)), "one file for both: {error}");
        let nowhere = directory.path().join("nowhere/c.pem");
        let error = gencert("a", &[], 30, &nowhere, &key, true).unwrap_err();
        assert!(error.to_string().contains("nowhere/c.pem': No such file"), "{error}");
    }

    #[test]
    fn the_certificate_is_no_authority_and_bears_its_names() {
        let identity = Identity::generate("gateway", &["vpn.example.org", "fd00::1"]).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(identity.certificate_pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let constraints = certificate.basic_constraints().unwrap().expect("explicit constraints");
        assert!(!constraints.value.ca);
        assert_eq!(certificate.subject().to_string(), "CN=gateway");
        let names = &certificate.subject_alternative_name().unwrap().expect("names").value.general_names;
        assert_eq!(names.len(), 2);
        let validity = certificate.validity();
        let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert_eq!(seconds, (i64::from(DEFAULT_VALIDITY_DAYS) + 1) * 86_400);
        assert!(validity.is_valid());
    }

    #[test]
    fn impossible_names_and_validities_are_refused() {
        for san in ["", "a b", "198.18.0.300", "[fd00::1]", "vpn.example.org:5", "a..b", "ü"] {
            assert!(matches!(Identity::generate("a", &[san]), Err(IdentityError::BadName(_))), "{san}");
        }
        assert!(matches!(Identity::generate("", &[]), Err(IdentityError::BadName(_))));
        assert!(matches!(Identity::generate("a", &["b"; NAMES_MAX + 1]), Err(IdentityError::TooManyNames(101))));
        for days in [0, VALIDITY_DAYS_MAX + 1] {
            assert!(matches!(Identity::generate_for_days("a", &[], days), Err(IdentityError::BadValidity(_))));
        }
    }

    #[test]
    fn the_fingerprint_of_what_holds_no_certificate_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("k.pem");
        std::fs::write(&path, Identity::generate("a", &[]).unwrap().key_pem.as_bytes()).unwrap();
        assert!(fingerprint(&path).unwrap_err().to_string().contains("holds a private key only"));
        assert!(fingerprint(&directory.path().join("x")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn an_identity_does_not_show_its_key() {
        let identity = Identity::generate("a", &[]).unwrap();
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }
}
