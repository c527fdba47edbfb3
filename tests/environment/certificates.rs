//! Certificates as people make them.

use std::fs;
use std::process::Command;

use tollgate_test_support::client::Login;
use tollgate_test_support::deployment::{Deployment, Plan};

/// Doubtful certificates, each with what `tollgate check` says of it.
fn doubtful_certificates() -> Vec<(&'static str, String, String, &'static str)> {
    let params = || rcgen::CertificateParams::new(vec!["vpn.example.org".to_owned()]).unwrap();
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut authority = params();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "the authority");
    let mut expired = params();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    let mut early = params();
    early.not_before = rcgen::date_time_ymd(2090, 1, 1);
    let nameless = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let mut of_clients = params();
    of_clients.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let mut made = Vec::new();
    for (name, params, expected) in [
        ("authority", authority.clone(), "CA:TRUE"),
        ("expired", expired, "has expired"),
        ("early", early, "not valid yet"),
        ("nameless", nameless, "subjectAltName"),
        ("of clients", of_clients, "serverAuth"),
    ] {
        let key = key();
        made.push((name, params.self_signed(&key).unwrap().pem(), key.serialize_pem(), expected));
    }
    let (authoritys_key, own) = (key(), key());
    let issuer = rcgen::Issuer::new(authority, authoritys_key);
    let mut signed = params();
    signed.distinguished_name.push(rcgen::DnType::CommonName, "the gateway");
    made.push(("incomplete", signed.signed_by(&own, &issuer).unwrap().pem(), own.serialize_pem(), "append it"));
    made
}

#[test]
fn a_check_warns_of_certificates_that_clients_refuse() {
    let site = Deployment::write(&Plan::default());
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let output = command.args(["check", "--config", "server.toml"]).current_dir(site.folder()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, _, warnings) = check();
    assert_eq!((code, &warnings[..]), (Some(0), ""));
    for (name, certificate, key, expected) in doubtful_certificates() {
        fs::write(site.path("server_cert.pem"), certificate).unwrap();
        fs::write(site.path("server_key.pem"), key).unwrap();
        let (code, effective, warnings) = check();
        assert_eq!(code, Some(0), "{name}: {warnings}");
        assert!(effective.contains("is valid"), "{effective}");
        assert!(warnings.contains(expected) && warnings.lines().count() == 1, "{name}: {warnings}");
        assert!(warnings.starts_with("tollgate: warning: the certificate"), "{warnings}");
    }
}

#[test]
fn a_check_warns_of_trusted_certificates_that_no_gateway_can_use() {
    let site = Deployment::write(&Plan::default());
    let config = site.write_client(Login { endpoint: "vpn.example.org:55555", ..Login::of("alice") });
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let output = command.args(["check", "--client", "--config"]).arg(&config).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let trusted = site.path("server_cert.pem");
    let (code, warnings) = check();
    assert_eq!(code, Some(0), "{warnings}");
    assert!(warnings.contains("no trusted certificate bears the name \"vpn.example.org\""), "{warnings}");
    for (name, certificate, _, expected) in doubtful_certificates() {
        // What an authority has signed is not known here; a certificate of one is nothing that the authority's own would vouch for.
        let expected = match name {
            "authority" => None,
            "incomplete" => Some("which is not trusted"),
            _ => Some(expected),
        };
        fs::write(&trusted, certificate).unwrap();
        let (code, warnings) = check();
        assert_eq!(code, Some(0), "{name}: {warnings}");
        assert_eq!(warnings.lines().count(), usize::from(expected.is_some()), "{name}: {warnings}");
        assert!(expected.is_none_or(|expected| warnings.contains(expected)), "{name}: {warnings}");
    }
    // Of two that are trusted, one may be the next.
    let own = tollgate::identity::Identity::generate("a", &["vpn.example.org"]).unwrap();
    let other = tollgate::identity::Identity::generate("b", &["other.example.org"]).unwrap();
    fs::write(&trusted, format!("{}{}", other.certificate_pem, own.certificate_pem)).unwrap();
    assert_eq!(check(), (Some(0), String::new()));
}
