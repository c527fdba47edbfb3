//! What `tollgate check` says of modes, and Noise keys as people have them.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use tollgate_noise::Kind;
use tollgate_test_support::client::Login;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::peers::Peers;

/// Exit code, standard output and standard error of `program` with `input`.
fn run(program: &mut Command, input: &str) -> (Option<i32>, String, String) {
    let mut child =
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program");
    // It may not read it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn tollgate(arguments: &[&str], site: &Deployment) -> (Option<i32>, String, String) {
    run(Command::new(env!("CARGO_BIN_EXE_tollgate")).args(arguments).current_dir(site.folder()), "")
}

#[test]
fn a_check_says_by_which_modes_clients_can_come_in_and_whom_none_lets_in() {
    let site = Deployment::write(&Plan { serves_noise: true, ..Plan::default() });
    let check = || tollgate(&["check", "--config", "server.toml"], &site);
    let (code, text, warnings) = check();
    assert_eq!((code, &warnings[..]), (Some(0), ""));
    let all = "Clients can come in by TLS (2 users), Noise standard (2 users), Noise post_quantum (2 users), Noise hybrid (2 users).";
    assert!(text.contains(all), "{text}");

    for kind in Kind::ALL {
        site.edit("users.toml", &site.public_key("bob", kind), "");
    }
    let (_, text, warnings) = check();
    assert!(text.contains("TLS (2 users), Noise standard (1 user)"), "{text}");
    assert_eq!(warnings.lines().count(), 3, "an empty entry is no key: {warnings}");
    assert!(warnings.contains("authorized_keys[0]` is passed over"), "{warnings}");

    // Without the table of TLS.
    let server = fs::read_to_string(site.path("server.toml")).unwrap();
    let (before, tls) = server.split_once("[protocol.tls]").unwrap();
    let after = tls.split_once("\n[").map_or(String::new(), |(_, after)| format!("\n[{after}"));
    fs::write(site.path("server.toml"), before.to_owned() + &after).unwrap();
    let (code, _, warnings) = check();
    assert_eq!(code, Some(0), "{warnings}");
    assert!(warnings.contains("no mode that is served lets in \"bob\": give them"), "{warnings}");
}

#[test]
fn a_noise_key_that_is_none_is_refused_in_one_line_and_not_shown() {
    let site = Deployment::write(&Plan { serves_noise: true, ..Plan::default() });
    let key = fs::read_to_string(site.path("server_hybrid.key")).unwrap();
    for (contents, expected) in [
        ("c2VjcmV0\n", "server_hybrid.key' is no private key (6 bytes"),
        ("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n", "is no private key (not in standard base64"),
        ("", "is no private key (0 bytes"),
        (&fs::read_to_string(site.path("server_standard.key")).unwrap()[..], "two private keys for standard"),
    ] {
        fs::write(site.path("server_hybrid.key"), contents).unwrap();
        let (code, _, said) = tollgate(&["check", "--config", "server.toml"], &site);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(expected) && said.trim_end().lines().count() == 1, "{said}");
        assert!(contents.is_empty() || !said.contains(contents.trim_end()), "{said}");
    }
    fs::remove_file(site.path("server_hybrid.key")).unwrap();
    let (code, _, said) = tollgate(&["check", "--config", "server.toml"], &site);
    assert!(code == Some(1) && said.contains("cannot read the private key"), "{said}");
    fs::write(site.path("server_hybrid.key"), &key).unwrap();

    let client = site.write_client(Login::by_noise("alice", "hybrid"));
    let (code, text, warnings) = tollgate(&["check", "--client", "--config", client.to_str().unwrap()], &site);
    assert_eq!((code, &warnings[..]), (Some(0), ""));
    assert!(text.contains(&site.public_key("server", Kind::Hybrid)) && !text.contains(key.trim_end()), "{text}");
}

#[test]
#[ignore = "needs Quincy's programs: cargo xtask test --full"]
fn noise_keys_are_those_of_quincys_program() {
    let peers = Peers::find();
    let quincy =
        |arguments: &[&str], input: &str| run(Command::new(peers.identity()).arg("noise").args(arguments), input);
    let ours = |arguments: &[&str], input: &str| {
        run(Command::new(env!("CARGO_BIN_EXE_tollgate")).args(["identity", "noise"]).args(arguments), input)
    };
    for kind in ["standard", "hybrid", "post-quantum"] {
        for make in [&quincy as &dyn Fn(&[&str], &str) -> _, &ours] {
            let (code, key, _) = make(&["genkey", "-k", kind], "");
            assert_eq!((code, key.lines().count()), (Some(0), 1));
            let public = quincy(&["pubkey", "-k", kind], &key);
            assert_eq!(public.0, Some(0));
            assert_eq!(ours(&["pubkey", "-k", kind], &key), public);
            assert_eq!(ours(&["pubkey"], &key).1, public.1, "the length tells the kind");
        }
    }
}
