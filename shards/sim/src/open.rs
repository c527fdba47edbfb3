//! A cipher suite that hides nothing: packets go as they are, with a tag that says only that they are whole. Whoever knows the format can write
//! packets for any connection, which is what a fuzzer needs.

use std::sync::LazyLock;

use rustls::crypto::CipherSuiteCommon;
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::quic::{Algorithm, HeaderProtectionKey, PacketKey, Tag};
use rustls::{Error, SupportedCipherSuite, Tls13CipherSuite};

/// What ends every packet of this suite, as long as an AES-GCM tag.
pub const TAG: [u8; 16] = *b"whole and open: ";

static SUITE: LazyLock<Tls13CipherSuite> = LazyLock::new(|| {
    let sealing = TLS13_AES_128_GCM_SHA256.tls13().expect("a suite of TLS 1.3");
    let CipherSuiteCommon { suite, hash_provider, confidentiality_limit, .. } = sealing.common;
    Tls13CipherSuite {
        common: CipherSuiteCommon { suite, hash_provider, confidentiality_limit },
        hkdf_provider: sealing.hkdf_provider,
        aead_alg: sealing.aead_alg,
        quic: Some(&Open),
    }
});

pub fn suite() -> SupportedCipherSuite {
    SupportedCipherSuite::Tls13(&SUITE)
}

struct Open;

impl Algorithm for Open {
    fn packet_key(&self, _: AeadKey, _: Iv) -> Box<dyn PacketKey> {
        Box::new(Open)
    }

    fn header_protection_key(&self, _: AeadKey) -> Box<dyn HeaderProtectionKey> {
        Box::new(Open)
    }

    fn aead_key_len(&self) -> usize {
        16
    }
}

impl PacketKey for Open {
    fn encrypt_in_place(&self, _: u64, _: &[u8], _: &mut [u8]) -> Result<Tag, Error> {
        Ok(Tag::from(&TAG[..]))
    }

    fn decrypt_in_place<'a>(&self, _: u64, _: &[u8], payload: &'a mut [u8]) -> Result<&'a [u8], Error> {
        let payload: &'a [u8] = payload;
        payload.strip_suffix(&TAG).ok_or(Error::DecryptError)
    }

    fn tag_len(&self) -> usize {
        TAG.len()
    }

    fn confidentiality_limit(&self) -> u64 {
        u64::MAX
    }

    fn integrity_limit(&self) -> u64 {
        u64::MAX
    }
}

impl HeaderProtectionKey for Open {
    fn encrypt_in_place(&self, _: &[u8], _: &mut u8, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    fn decrypt_in_place(&self, _: &[u8], _: &mut u8, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    fn sample_len(&self) -> usize {
        16
    }
}
