//! Certificates as users of a gateway have them: self-signed, each trusted or authorized by itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use sha2::{Digest, Sha256};

use crate::LabError;

#[derive(Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
    /// How a users file names the certificate: `sha256:` and hexadecimal digits.
    pub fingerprint: String,
}

impl Identity {
    /// Makes a certificate of the common name `name`, for the names and addresses `sans`.
    pub fn generate(name: &str, sans: &[&str]) -> Result<Self, LabError> {
        Self::generate_for(name, sans, None)
    }

    /// The same, valid for no longer than that from now on.
    pub fn generate_for(name: &str, sans: &[&str], valid: Option<Duration>) -> Result<Self, LabError> {
        let make = || -> Result<Self, rcgen::Error> {
            let mut params = CertificateParams::new(sans.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            if let Some(valid) = valid {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + valid;
            }
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?;
            let digest = Sha256::digest(certificate.der());
            let fingerprint = digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
            Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem(), fingerprint })
        };
        make().map_err(|error| LabError::cannot(name, "make a certificate", error))
    }

    /// Writes `{name}_cert.pem` and `{name}_key.pem` into `folder`, in place of what is there.
    pub fn write(&self, folder: &Path, name: &str) -> Result<(), LabError> {
        for (part, text, mode) in [("cert", &self.certificate_pem, 0o644), ("key", &self.key_pem, 0o600)] {
            let path = folder.join(format!("{name}_{part}.pem"));
            fs::write(&path, text)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
                .map_err(|source| LabError::cannot(path.display(), "write", source))?;
        }
        Ok(())
    }
}
