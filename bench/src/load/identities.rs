//! Identities for thousands of users: a certificate and a key each, and the users file that lets them in.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use quinn_proto::crypto::rustls::QuicClientConfig;
use tollgate::tls::Clients;
use tollgate_config::{KeyExchange, PemSource};
use tollgate_testkit::deploy::{Identity, user_entry};

use super::scenario::UserPlan;

/// Certificates and keys of users, numbered from 0.
#[derive(Debug)]
pub struct Identities(Vec<Identity>);

impl Identities {
    /// Makes `users` of them; calls `progress` with the number that is done.
    pub fn generate(users: u32, mut progress: impl FnMut(u32)) -> Result<Self> {
        let make = |user| {
            progress(user);
            Identity::generate(&name(user), &[])
        };
        Ok(Identities((0..users).map(make).collect::<Result<_, _>>()?))
    }

    /// The users file: all of these, and those whose keys nobody has.
    pub fn users_file(&self, plan: &UserPlan) -> String {
        let limit = plan.limit.as_ref().map(|limit| format!("bandwidth_limit = \"{limit}\"")).unwrap_or_default();
        let users = (0..).zip(&self.0).map(|(user, identity)| user_entry(&name(user), &identity.fingerprint, &limit));
        users.chain((1..=plan.absent).map(|number| absent_user(number, &limit))).collect()
    }

    /// TLS of `user`'s connections to a gateway of [`trusted`] certificate.
    pub fn client_tls(&self, user: u32, trusted: &Clients) -> Result<Arc<QuicClientConfig>> {
        let Identity { certificate_pem, key_pem, .. } = &self.0[user as usize];
        let [certificate, key] = [certificate_pem, key_pem].map(|pem| PemSource::Inline(pem.clone().into()));
        trusted.client(&[certificate], &key).with_context(|| format!("user {}", name(user)))
    }
}

/// The entry of a user whose key nobody has.
pub fn absent_user(number: u32, settings: &str) -> String {
    user_entry(&format!("absent{number:06}"), &format!("sha256:{number:064x}"), settings)
}

/// What clients share that trust only the certificate in this PEM file, and offer what Quincy's client does by default.
pub fn trusted(certificate: &Path) -> Result<Clients> {
    Ok(Clients::new(&[PemSource::File(certificate.to_owned())], KeyExchange::Hybrid)?)
}

fn name(user: u32) -> String {
    format!("u{:05}", user + 1)
}
