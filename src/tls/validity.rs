//! What a client knows of a server's certificate that is outside its validity, and of the clock that this was held against.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

/// A certificate that is not valid at the time that this machine's clock shows. Either may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfValidity {
    /// The certificate is not valid yet.
    NotYet {
        /// The start of its validity.
        valid_from: UnixTime,
        /// The clock's time.
        clock: UnixTime,
    },
    /// The certificate has expired.
    NoMore {
        /// The end of its validity.
        valid_until: UnixTime,
        /// The clock's time.
        clock: UnixTime,
    },
}

impl fmt::Display for OutOfValidity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OutOfValidity::NotYet { valid_from, clock } => write!(
                f,
                "the gateway's certificate is valid from {} on, and this machine's clock says {}: set the clock",
                Utc(*valid_from),
                Utc(*clock)
            ),
            OutOfValidity::NoMore { valid_until, clock } => write!(
                f,
                "the gateway's certificate was valid until {}, and this machine's clock says {}: renew the certificate at the gateway, or set the clock if it is ahead",
                Utc(*valid_until),
                Utc(*clock)
            ),
        }
    }
}

/// A time for people.
struct Utc(UnixTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let since = Duration::from_secs(self.0.as_secs()).try_into().ok();
        match since.and_then(|since| epoch.checked_add(since)) {
            Some(time) => {
                write!(f, "{} {:02}:{:02}:{:02} UTC", time.date(), time.hour(), time.minute(), time.second())
            }
            None => write!(f, "{} s after 1970", self.0.as_secs()),
        }
    }
}

/// Where the last certificate that was out of its validity is noted, until somebody takes the note.
#[derive(Debug, Clone, Default)]
pub struct ValidityNote(Arc<Mutex<Option<OutOfValidity>>>);

impl ValidityNote {
    /// The note, if there is one.
    pub fn take(&self) -> Option<OutOfValidity> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, error: &Error) {
        let out = match error {
            Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
                OutOfValidity::NotYet { valid_from: *not_before, clock: *time }
            }
            Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
                OutOfValidity::NoMore { valid_until: *not_after, clock: *time }
            }
            _ => return,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(out);
    }
}

/// Verifies as rustls does, and notes certificates that are out of their validity.
#[derive(Debug)]
pub(super) struct NotingVerifier {
    pub inner: Arc<WebPkiServerVerifier>,
    pub note: ValidityNote,
}

impl ServerCertVerifier for NotingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.inspect_err(|error| self.note.put(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_times_are_named_as_people_write_them() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let not_yet = OutOfValidity::NotYet { valid_from: at(1_700_000_000), clock: at(60) };
        let text = not_yet.to_string();
        assert!(
            text.contains("valid from 2023-11-14 22:13:20 UTC on") && text.contains("1970-01-01 00:01:00 UTC"),
            "{text}"
        );
        let no_more = OutOfValidity::NoMore { valid_until: at(60), clock: at(u64::MAX) };
        let text = no_more.to_string();
        assert!(text.contains("until 1970-01-01 00:01:00 UTC") && text.contains("18446744073709551615 s"), "{text}");
    }
}
