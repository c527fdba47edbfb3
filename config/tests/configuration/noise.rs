//! Noise modes: in Quincy's form, in ours, beside TLS.

use tollgate_config::{ClientProtocol, KeyExchange, NoiseKeySource};
use tollgate_noise::{Kind, PrivateKey};

use crate::common::{SERVER, load_client, load_server, load_server_with_users};

/// A private key of `kind`, of bytes that are all alike.
fn private_key(kind: Kind) -> String {
    let zeros = match kind {
        Kind::Standard => 32,
        Kind::PostQuantum => 96,
        Kind::Hybrid => 128,
    };
    let text = "AAAA".repeat(zeros / 3);
    match zeros % 3 {
        0 => text,
        1 => text + "AA==",
        _ => text + "AAA=",
    }
}

fn public_key(kind: Kind) -> String {
    PrivateKey::parse(&private_key(kind)).unwrap().public().to_string()
}

/// A server file with `protocol` in place of the tables of handshakes.
fn server(protocol: &str) -> String {
    format!("name = \"test\"\ntunnel_network = \"198.18.0.1/24\"\n{protocol}")
}

/// The problems of `text` under `variables`: path, and what the user reads.
fn problems(text: &str, variables: &[(&str, &str)]) -> Vec<(String, String)> {
    let error = load_server(text, variables).unwrap_err();
    error.problems().iter().map(|problem| (problem.key.clone(), problem.to_string())).collect()
}

#[test]
fn a_file_as_quincy_ships_it_serves_noise_alone() {
    let key = private_key(Kind::Standard);
    let text = format!(
        "name = \"tun0\"\ntunnel_network = \"10.0.0.1/24\"\n\
         [protocol]\nmode = \"noise\"\nkey_exchange = \"standard\"\nprivate_key = \"{key}\"\n\
         [connection]\nmtu = 1400\n[log]\nlevel = \"info\"\n"
    );
    let public = public_key(Kind::Hybrid);
    let users = format!("[users.alice]\nauthorized_keys = [\n \"{public}\",\n]\nauthorized_certs = [\n]\n");
    let config = load_server_with_users(&text, &users, &[]).unwrap();
    assert!(config.protocol.tls.is_none());
    let [NoiseKeySource::Inline(read)] = &config.protocol.noise[..] else { panic!("{:?}", config.protocol) };
    assert_eq!((&*read.to_base64(), read.kind()), (&key, Kind::Standard));
    assert_eq!(config.credentials[0].noise_keys[Kind::Hybrid as usize], 1);
    assert_eq!(config.warnings, [""; 0]);
    let effective = config.effective();
    assert!(
        effective.contains("[protocol]\nmode = \"noise\"\nkey_exchange = \"standard\"\nprivate_key = \"(masked)\"\n")
    );
    assert!(!effective.contains("certificate_file") && !effective.contains("[protocol."), "{effective}");
    assert!(effective.contains("1 users with 0 certificates and 1 Noise keys"), "{effective}");
}

#[test]
fn each_kind_is_served_and_a_key_of_another_is_refused() {
    for (key_exchange, kind) in
        [("standard", Kind::Standard), ("Hybrid", Kind::Hybrid), ("post_quantum", Kind::PostQuantum)]
    {
        let table = format!("[protocol]\nmode = \"noise\"\nkey_exchange = \"{key_exchange}\"\nprivate_key = ");
        let config = load_server(&server(&format!("{table}\" {} \"", private_key(kind))), &[]).unwrap();
        assert!(matches!(&config.protocol.noise[..], [NoiseKeySource::Inline(key)] if key.kind() == kind));
        let other = if kind == Kind::Hybrid { Kind::Standard } else { Kind::Hybrid };
        let refused = problems(&server(&format!("{table}\"{}\"", private_key(other))), &[]);
        let [(path, text)] = &refused[..] else { panic!("{refused:?}") };
        assert!(path == "protocol.private_key" && text.contains(&format!("set key_exchange = \"{other}\"")), "{text}");
    }
    let variables = [("QUINCY_PROTOCOL__PRIVATE_KEY", &private_key(Kind::Standard)[..])];
    let config = load_server(&server("[protocol]\nmode = \"noise\""), &variables).unwrap();
    assert_eq!(config.protocol.noise.len(), 1, "the kind is standard unless the file says another");
    let variables = [("QUINCY_PROTOCOL__MODE", "noise"), variables[0]];
    let config = load_server(SERVER, &variables).unwrap();
    assert!(config.protocol.tls.is_none());
    assert_eq!(config.warnings.len(), 2, "certificates mean nothing then: {:?}", config.warnings);
}

#[test]
fn tables_serve_several_modes_at_once() {
    let [standard, hybrid] = [Kind::Standard, Kind::Hybrid].map(private_key);
    let text = server(&format!(
        "[protocol.tls]\ncertificate_file = \"c.pem\"\ncertificate_key_file = \"k.pem\"\n\
         [protocol.noise]\nprivate_key_files = [\"n.key\"]\nprivate_keys = [\"{standard}\", \"{hybrid}\"]\n"
    ));
    let config = load_server(&text, &[]).unwrap();
    assert!(config.protocol.tls.is_some());
    assert!(matches!(
        &config.protocol.noise[..],
        [NoiseKeySource::File(_), NoiseKeySource::Inline(_), NoiseKeySource::Inline(_)]
    ));
    let effective = config.effective();
    for part in [
        "[protocol.tls]\n# key_exchange: what the client offers\ncertificate_file = \"c.pem\"\n",
        "[protocol.noise]\nprivate_key_files = [\"n.key\"]\nprivate_keys = [\"(masked)\", \"(masked)\"]\n",
    ] {
        assert!(effective.contains(part), "{effective}");
    }
    assert!(!effective.contains("[protocol]"), "{effective}");
    let by_variable = [("TOLLGATE_PROTOCOL__NOISE__PRIVATE_KEYS", &format!("[{standard},{hybrid}]")[..])];
    let config = load_server(&server(""), &by_variable).unwrap();
    assert!(config.protocol.tls.is_none() && config.protocol.noise.len() == 2);
}

#[test]
fn the_two_forms_exclude_each_other_and_both_places_are_named() {
    let key = private_key(Kind::Standard);
    let table = format!("[protocol.noise]\nprivate_keys = [\"{key}\"]\n");
    let refused = problems(&server(&format!("[protocol]\nmode = \"noise\"\n{table}")), &[]);
    let [(path, text)] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!(path, "protocol.mode");
    assert!(text.contains("server.toml:4:1") && text.contains("server.toml:5:"), "{text}");

    let refused = problems(&server(&table), &[("QUINCY_PROTOCOL__PRIVATE_KEY", &key)]);
    let [(path, text)] = &refused[..] else { panic!("{refused:?}") };
    assert!(path == "protocol.private_key" && !text.contains(&key), "{text}");
    assert!(text.contains("QUINCY_PROTOCOL__PRIVATE_KEY") && text.contains("server.toml:3:"), "{text}");

    let refused = problems(SERVER, &[("TOLLGATE_PROTOCOL__NOISE__PRIVATE_KEYS", &key)]);
    let paths: Vec<&str> = refused.iter().map(|(path, _)| &path[..]).collect();
    assert_eq!(paths, ["protocol.mode", "protocol.certificate_file", "protocol.certificate_key_file"]);
    assert!(refused.iter().all(|(_, text)| text.contains("TOLLGATE_PROTOCOL__NOISE__PRIVATE_KEYS")), "{refused:?}");
}

#[test]
fn keys_that_are_missing_broken_or_there_twice_are_refused_and_not_shown() {
    let key = private_key(Kind::Standard);
    for (protocol, path, says) in [
        ("[protocol]\nmode = \"noise\"", "protocol.private_key", "is missing"),
        ("[protocol]\nmode = \"noise\"\nprivate_key = \"c2VjcmV0\"", "protocol.private_key", "6 bytes"),
        ("[protocol]\nmode = \"noise\"\nprivate_key = \"secret!\"", "protocol.private_key", "base64"),
        ("[protocol]\nmode = \"nosie\"", "protocol.mode", "\"tls\" or \"noise\""),
        ("[protocol]\n", "protocol.mode", "is missing"),
        ("[protocol.noise]\n", "protocol.noise.private_key_files", "is missing"),
        ("[protocol.noise]\nprivate_keys = []", "protocol.noise.private_key_files", "is missing"),
        ("[protocol.noise]\nprivate_keys = [\"c2VjcmV0\"]", "protocol.noise.private_keys[0]", "6 bytes"),
        ("[protocol.noise]\nprivate_keys = [\"KEY\", \"KEY\"]", "protocol.noise.private_keys", "the first is at"),
        ("[protocol]\nnoise = true", "protocol.noise", "not a table"),
        ("[protocol]\ntls = true", "protocol.tls", "not a table"),
        ("[protocol.tls]\ncertificate_file = \"c.pem\"", "protocol.tls.certificate_key_file", "is missing"),
        ("[protocol.tls]\ncertificate_key_file = \"c.pem\"", "protocol.tls.certificate_file", "is missing"),
        ("[protocol.nosie]\nprivate_keys = []", "protocol.mode", "is missing"),
    ] {
        let refused = problems(&server(&protocol.replace("KEY", &key)), &[]);
        let [(found, text), ..] = &refused[..] else { panic!("{protocol}") };
        assert!(refused.len() == 1 || protocol.contains("nosie"), "{refused:?}");
        assert!(found == path && text.contains(says), "{protocol}: {refused:?}");
        assert!(["c2VjcmV0", "secret!", &key].iter().all(|secret| !text.contains(secret)), "{text}");
    }
}

#[test]
fn a_malformed_key_of_a_user_is_passed_over_with_a_warning() {
    let [standard, hybrid] = [Kind::Standard, Kind::Hybrid].map(public_key);
    let users = format!(
        "[users.alice]\nauthorized_keys = [\"{standard}\", \"nothing\", \"AAAA\"]\n[users.bob]\nauthorized_keys = [\"{hybrid}\"]\n"
    );
    let config = load_server_with_users(SERVER, &users, &[]).unwrap();
    assert_eq!(config.credentials[0].noise_keys, [1, 0, 0]);
    assert_eq!(config.credentials[1].noise_keys[Kind::Hybrid as usize], 1);
    let [first, second] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    assert!(first.contains("users.toml:2:") && first.contains("authorized_keys[1]"), "{first}");
    assert!(first.contains("base64") && second.contains("3 bytes"), "{second}");
    // A thousand of them are not a thousand lines.
    let users = format!("[users.alice]\nauthorized_keys = [{}]", "\"x\", ".repeat(1000));
    let warnings = load_server_with_users(SERVER, &users, &[]).unwrap().warnings;
    assert!(warnings.len() == 101 && warnings[100].contains("900 more"), "{}", warnings.len());

    let users = users.replace(&"\"x\", ".repeat(1000), &format!("\"{standard}\", \"{standard}\""));
    let error = load_server_with_users(SERVER, &users, &[]).unwrap_err();
    assert!(error.to_string().contains("which user 'alice' has already"), "{error}");
}

#[test]
fn a_client_speaks_noise_with_the_gateways_public_key() {
    let (private, public) = (private_key(Kind::Hybrid), public_key(Kind::Hybrid));
    let client = |table: &str| format!("connection_string = \"h:5\"\n[protocol]\nmode = \"noise\"\n{table}");
    let keys = format!("key_exchange = \"hybrid\"\nserver_public_key = \"{public}\"\nprivate_key = \"{private}\"");
    let config = load_client(&client(&keys), &[]).unwrap();
    let ClientProtocol::Noise(noise) = &config.protocol else { panic!("{:?}", config.protocol) };
    assert_eq!(noise.key_exchange, KeyExchange::Hybrid);
    assert_eq!(noise.server_public_key.as_ref().unwrap().to_string(), public);
    assert!(matches!(&noise.private_key, Some(NoiseKeySource::Inline(key)) if *key.to_base64() == private));
    let effective = config.effective();
    let of_noise = format!("mode = \"noise\"\nkey_exchange = \"hybrid\"\nserver_public_key = \"{public}\"\n");
    assert!(effective.contains(&of_noise) && !effective.contains("trusted"), "{effective}");
    assert!(!effective.contains(&private) && !format!("{config:?}").contains(&private));

    let in_file = format!("key_exchange = \"hybrid\"\nserver_public_key = \"{public}\"\nprivate_key_file = \"k\"");
    assert!(load_client(&client(&in_file), &[]).is_ok());
    for (table, path) in [
        (format!("private_key = \"{private}\"\nkey_exchange = \"hybrid\""), "protocol.server_public_key"),
        (format!("server_public_key = \"{public}\"\nkey_exchange = \"hybrid\""), "protocol.private_key_file"),
        (format!("{keys}\nprivate_key_file = \"k\""), "protocol.private_key"),
        (keys.replace("hybrid", "standard"), "protocol.server_public_key"),
    ] {
        let error = load_client(&client(&table), &[]).unwrap_err();
        assert_eq!(error.problems()[0].key, path, "{error}");
        assert!(!error.to_string().contains(&private));
    }
    let both = format!("{}\n{keys}", crate::common::CLIENT.replace("\"tls\"", "\"noise\""));
    assert_eq!(load_client(&both, &[]).unwrap().warnings.len(), 3, "what is for TLS means nothing");
}

#[test]
fn a_change_of_the_mode_needs_a_restart() {
    let key = private_key(Kind::Standard);
    let noise = load_server(&server(&format!("[protocol]\nmode = \"noise\"\nprivate_key = \"{key}\"")), &[]).unwrap();
    let restart = load_server(SERVER, &[]).unwrap().restart_needed(&noise);
    assert_eq!(restart.iter().map(ToString::to_string).collect::<Vec<_>>(), ["protocol.mode (\"tls\" -> \"noise\")"]);
}
