//! Every mistake is refused with its place, its key, what is wrong and what would be right.

use crate::common::{
    self, CLIENT, Directory, SERVER, env, load_client, load_server, load_server_with_users, name, range,
};
use std::path::PathBuf;

use proptest::prelude::*;
use tollgate_config::{ClientConfig, ConfigError, Entry, Place, Problem, Section, ServerConfig, files};

/// The only problem of `result`.
fn problem<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> Problem {
    let error = result.expect_err("a refusal");
    assert_eq!(error.problems().len(), 1, "{error}");
    assert_eq!(error.omitted(), 0);
    let lines = error.to_string().lines().count();
    assert!((1..=3).contains(&lines), "{lines} lines: {error}");
    error.problems()[0].clone()
}

/// `file` with `line` put into `table` in place of what the table said of the line's key; the line's number from 1.
fn with_line(file: &str, table: &str, line: &str) -> (String, usize) {
    let key = line.split_once(" =").unwrap().0;
    let mut lines: Vec<&str> = Vec::new();
    let mut current = "";
    let header = format!("[{table}]");
    for old in file.lines() {
        if old.starts_with('[') {
            current = old.trim_matches(['[', ']']);
        }
        if current != table || old.split_once(" =").is_none_or(|(old, _)| old != key) {
            lines.push(old);
        }
    }
    let at = match lines.iter().position(|old| *old == header) {
        Some(at) => at + 1,
        None if table.is_empty() => 0,
        None => {
            lines.push(&header);
            lines.len()
        }
    };
    lines.insert(at, line);
    (lines.join("\n"), at + 1)
}

const WRONG_TYPE: &[&str] = &["[[1]]", "{ a = 1 }", "1.5", "1979-05-27"];

/// Values that a key refuses, besides those of the wrong type and what is outside its range.
const WRONG: &[(&str, &[&str])] = &[
    ("name", &["5", "\"\"", "true"]),
    ("interface_name", &["5", "\"\"", "\"much-too-long-a-name\"", "\"a b\"", "\"a%s\""]),
    ("bind_address", &["5", "\"localhost\"", "\"224.0.0.1\""]),
    (
        "tunnel_network",
        &[
            "5",
            "\"198.18.0.1\"",
            "\"198.18.0.0/24\"",
            "\"198.18.0.255/24\"",
            "\"198.18.0.1/31\"",
            "\"198.18.0.1/32\"",
            "\"198.18.0.1/33\"",
            "\"198.18.0.1/0\"",
            "\"127.0.0.1/8\"",
            "\"224.0.0.1/24\"",
            "\"fd00::1/127\"",
            "\"fd00::1/128\"",
            "\"fd00::/64\"",
        ],
    ),
    ("default_bandwidth_limit", &["10", "\"10\"", "\"0 mbps\"", "\"5 mb\"", "\"2000 gbps\""]),
    ("protocol.mode", &["1", "\"tsl\"", "\"TLS\""]),
    ("protocol.key_exchange", &["1", "\"classic\"", "\"hybird\""]),
    ("protocol.certificate_file", &["1", "\"\""]),
    ("protocol.certificate", &["1", "\"cert.pem\""]),
    ("protocol.certificate_key_file", &["1", "\"\""]),
    ("protocol.certificate_key", &["1"]),
    ("protocol.private_key", &["1", "\"\"", "\"AAAA\""]),
    ("protocol.private_key_file", &["1", "\"\""]),
    ("protocol.server_public_key", &["1", "\"AAAA\""]),
    ("protocol.tls.key_exchange", &["1", "\"classic\""]),
    ("protocol.tls.certificate_file", &["1", "\"\""]),
    ("protocol.tls.certificate", &["1", "\"cert.pem\""]),
    ("protocol.tls.certificate_key_file", &["1", "\"\""]),
    ("protocol.tls.certificate_key", &["1"]),
    ("protocol.noise.private_key_files", &["1", "[1]", "[\"\"]"]),
    ("protocol.noise.private_keys", &["1", "[1]", "[\"AAAA\"]"]),
    ("connection.congestion_controller", &["1", "\"reno\"", "\"CUBIC\""]),
    ("connection.max_pending_handshakes_per_source", &["257"]),
    ("log.level", &["1", "\"loud\"", "\"inof\"", "\"\""]),
    ("log.format", &["1", "\"JSON\"", "\"journal\""]),
    ("metrics.address", &["1", "\"here\""]),
    ("shards.count", &["\"all\"", "\"0\""]),
    ("shards.cpus", &["0", "\"a\"", "\"core\"", "[]", "[-1]", "[1024]", "[0, 0]", "[\"0x\"]"]),
    ("shards.key_file", &["1", "\"\""]),
    ("usage.file", &["1", "\"\""]),
    ("audit.file", &["1", "\"\""]),
    ("audit.fsync", &["1", "\"always\""]),
    ("events.file", &["1", "\"\""]),
    ("events.socket", &["1", "\"\""]),
    ("events.fsync", &["true", "\"minute\""]),
    ("events.interim_interval_s", &["59", "86401", "\"5m\""]),
    ("usage.quota_per_day", &["1", "\"5\"", "\"0 B\"", "\"-1 GB\"", "\"5 Gb/s\"", "\"2e6 TB\""]),
    ("usage.quota_per_month", &["1", "\"much\""]),
    ("connection_ids.layout", &["1", "\"quic-lb\""]),
    ("connection_ids.server_id", &["1", "\"\"", "\"0\"", "\"0g\""]),
    ("connection_ids.key", &["1", "\"00\"", "\"é\""]),
    ("sessions.when_reached", &["1", "\"close\"", "\"refuse\""]),
    ("control.socket", &["1", "\"\""]),
    (
        "connection_string",
        &["1", "\"host\"", "\"host:0\"", "\"host:65536\"", "\":5\"", "\"fd00::1:5\"", "\"[x]:5\"", "\"a b:5\""],
    ),
    ("protocol.trusted_certificate_paths", &["1", "\"a.pem\"", "[]", "[\"\"]"]),
    ("protocol.trusted_certificates", &["1", "[\"a.pem\"]"]),
    ("protocol.client_certificate_file", &["1", "\"\""]),
    ("protocol.client_certificate", &["1", "\"cert.pem\""]),
    ("protocol.client_certificate_key_file", &["1", "\"\""]),
    ("protocol.client_certificate_key", &["1"]),
    ("network.routes", &["1", "\"198.18.0.0/24\"", "[1]", "[\"198.18.0.0\"]"]),
    ("network.dns_servers", &["1", "[1]", "[\"dns.example.org\"]"]),
    ("network.interface_name", &["5", "\"a/b\""]),
];

/// What `entry` refuses.
fn wrong(path: &str, entry: &Entry) -> Vec<String> {
    let listed = WRONG.iter().find(|(of, _)| *of == path).map_or(&[][..], |(_, values)| values);
    let mut values: Vec<String> = listed.iter().map(|value| value.to_string()).collect();
    if let Some((from, to)) = range(entry) {
        values.extend([format!("{}", from as i64 - 1), format!("{}", to + 1), "99999999999999999999".into()]);
        values.extend(["true", "\"x\""].map(String::from));
    }
    if entry.expected == "write true or false" {
        values.extend(["1", "\"on\""].map(String::from));
    }
    assert!(!values.is_empty(), "{path}: add what it refuses to the table");
    values
}

/// Checks that each key refuses what is wrong with file, line, key and remedy.
fn refuses<T: std::fmt::Debug>(base: &str, sections: &[Section], load: impl Fn(&str) -> Result<T, ConfigError>) {
    for section in sections {
        for entry in section.entries.iter().filter(|entry| entry.name != "users_file") {
            let (path, key) = (section.path(entry), entry.name);
            let base = &common::base(&path, base);
            load(base).unwrap();
            for value in wrong(&path, entry).iter().map(String::as_str).chain(WRONG_TYPE.iter().copied()) {
                let (text, expected) = with_line(base, section.name, &format!("{key} = {value}"));
                let error = load(&text).expect_err(&format!("{path} = {value} is refused"));
                let found = error.problems().iter().find(|problem| problem.key.starts_with(&path));
                let Some(problem) = found else { panic!("{path} = {value} is not named: {error}") };
                let Place::Position { file, line, column } = &problem.place else { panic!("no position: {problem}") };
                assert!(name(file).ends_with(".toml"));
                assert_eq!(*line, expected, "{path} = {value}: {problem}");
                // The value's column, but for a list that lacks elements: there the key's.
                assert!(*column > key.len() || value == "[]", "{problem}");
                assert!(!problem.remedy.is_empty() && !problem.what.is_empty());
                // The number of shards and of CPUs have remedies by the type of what is there.
                if WRONG_TYPE.contains(&value) && !path.starts_with("shards.c") {
                    assert!(entry.expected.contains(&problem.remedy), "{path} = {value}: {problem}");
                }
            }
            let (text, line) = with_line(base, section.name, &format!("{key}x = 1"));
            let problem = problem(load(&text));
            assert_eq!(problem.key, format!("{path}x"));
            assert!(matches!(problem.place, Place::Position { line: at, column: 1, .. } if at == line), "{problem}");
            assert_eq!(problem.remedy, format!("did you mean `{key}`?"));
        }
    }
}

#[test]
fn each_key_refuses_wrong_types_wrong_values_and_unknown_siblings() {
    let [(_, server), _, (_, client)] = files();
    refuses(SERVER, &server, |text| load_server(text, &[]));
    refuses(CLIENT, &client, |text| load_client(text, &[]));
}

/// A layout in which IDs cannot be, or that nobody would read, is refused by the key that is to blame.
#[test]
fn connection_ids_that_do_not_fit_are_refused_by_name() {
    let with = |lines: &str| load_server(&format!("{SERVER}\n[connection_ids]\n{lines}"), &[]);
    let key = "key = \"000102030405060708090a0b0c0d0e0f\"";
    for (lines, blamed, remedy) in [
        ("layout = \"quic_lb\"", "server_id", "in hex"),
        ("layout = \"quic_lb\"\nserver_id = \"0a\"", "length", "10 or more"),
        ("layout = \"quic_lb\"\nserver_id = \"0a0b0c0d0e0f0a0b\"\nlength = 15", "length", "16 or more"),
        ("layout = \"quic_lb\"\nserver_id = \"0a0b0c0d0e0f0a0b0c0d0e0f01\"\nlength = 20", "server_id", "shorter"),
        ("server_id = \"0a\"", "server_id", "quic_lb"),
        ("rotation = 1", "rotation", "quic_lb"),
        (key, "key", "quic_lb"),
    ] {
        let problem = problem(with(lines));
        assert_eq!(problem.key, format!("connection_ids.{blamed}"), "{lines}");
        assert!(problem.remedy.contains(remedy), "{problem}");
        assert!(!problem.to_string().contains("00010203"), "{problem}");
    }
    let readable = "layout = \"quic_lb\"\nserver_id = \"0a0b0c0d0e0f0a0b\"\nlength = 20\n";
    let shards = |count: u16, lines: &str| with(&format!("{lines}[shards]\ncount = {count}"));
    assert_eq!(problem(shards(17, readable)).key, "connection_ids.server_id");
    assert!(shards(16, readable).is_ok() && shards(17, &format!("{readable}{key}\n")).is_ok());
    let shown = with(&format!("{readable}{key}")).unwrap();
    assert!(!format!("{shown:?}{}", shown.effective()).contains("00010203"));
}

#[test]
fn a_missing_key_is_named_with_what_to_write() {
    let server = |without: &str| {
        let text: Vec<&str> = SERVER.lines().filter(|line| !line.starts_with(without)).collect();
        load_server(&text.join("\n"), &[])
    };
    for (without, key) in [
        ("name", "name"),
        ("tunnel_network", "tunnel_network"),
        ("mode", "protocol.mode"),
        ("certificate_file", "protocol.certificate_file"),
        ("certificate_key_file", "protocol.certificate_key_file"),
    ] {
        let problem = problem(server(without));
        assert_eq!((problem.key.as_str(), problem.what.as_str()), (key, "is missing"));
        assert!(problem.remedy.contains(without), "{problem}");
    }
    let missing = |text: &str, variables: &[(&str, &str)]| -> Vec<String> {
        let error = load_server(text, variables).unwrap_err();
        error.problems().iter().map(|problem| problem.key.clone()).collect()
    };
    assert_eq!(missing("", &[]), ["name", "tunnel_network", "protocol"]);
    let directory = Directory::new();
    let refused = problem(ServerConfig::load(&directory.write("server.toml", SERVER), env(&[])));
    assert_eq!((refused.key.as_str(), refused.what.as_str()), ("users_file", "is missing"));
    let refused = load_client("", &[]).unwrap_err();
    let keys: Vec<_> = refused.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["connection_string", "protocol"]);
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_known_one_or_its_table() {
    for (table, key, remedy) in [
        ("connection", "mut", "did you mean `mtu`?"),
        ("connection", "congestion_control", "did you mean `congestion_controller`?"),
        ("protocol", "cert_file", "did you mean `certificate_file`?"),
        ("", "mtu", "`mtu` belongs in [connection]"),
        ("connection", "bind_port", "`bind_port` belongs at the top of the file, before the first [table]"),
        ("log", "zzz", "remove it; the keys of [log] are format, level"),
    ] {
        let (text, line) = with_line(SERVER, table, &format!("{key} = 1"));
        let problem = problem(load_server(&text, &[]));
        assert_eq!(problem.remedy, remedy);
        assert!(matches!(problem.place, Place::Position { line: at, column: 1, .. } if at == line), "{problem}");
    }
    let refused = problem(load_server(&format!("{SERVER}\n[shrads]\ncount = 1"), &[]));
    assert_eq!((refused.key.as_str(), refused.remedy.as_str()), ("shrads", "did you mean `shards`?"));
    // Also where the right one is missed.
    let refused = load_server(&SERVER.replace("name", "nmae").replace("protocol", "protocl"), &[]).unwrap_err();
    for remedy in ["did you mean `name`?", "did you mean `protocol`?"] {
        assert!(refused.problems().iter().any(|problem| problem.remedy == remedy), "{refused}");
    }
    let refused = problem(load_server(&format!("connection = 5\n{SERVER}"), &[]));
    assert_eq!(refused.key, "connection");
    assert!(refused.remedy.contains("[connection]"), "{refused}");
}

#[test]
fn a_problem_is_rendered_with_file_line_column_key_and_remedy() {
    let error = load_server(&format!("{SERVER}[connection]\n  mtu = 99"), &[]).unwrap_err().to_string();
    let (_, error) = error.split_once("server.toml").unwrap();
    let expected = ":9:9: `connection.mtu` is 99, which is too small; write a whole number of bytes from 576 to 9000";
    assert_eq!(error, expected);
}

#[test]
fn a_wrong_override_names_its_variable() {
    for (variable, value, key, part) in [
        ("QUINCY_CONNECTION__MTU", "99", "connection.mtu", "too small"),
        ("TOLLGATE_CONNECTION__MTU", "big", "connection.mtu", "big"),
        ("TOLLGATE_CONNECTION__MTO", "1400", "connection.mto", "`mtu`"),
        ("TOLLGATE_BIND_PROT", "5", "bind_prot", "`bind_port`"),
        ("TOLLGATE_METRICS__ENABLED", "perhaps", "metrics.enabled", "true or false"),
        ("TOLLGATE_SHARDS__CPUS", "0,x", "shards.cpus[1]", "from 0 to 1023"),
    ] {
        let problem = problem(load_server(SERVER, &[(variable, value)]));
        assert_eq!(problem.place, Place::Variable(variable.into()));
        assert_eq!(problem.key, key);
        assert!(problem.to_string().contains(part), "{problem}");
    }
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_the_file() {
    let text = "name = 5\nbind_port = 0\ntunnel_network = \"x\"\n[protocol]\nmode = \"tls\"\n[log]\nlevle = \"info\"";
    let error = load_server(text, &[]).unwrap_err();
    let keys: Vec<&str> = error.problems().iter().map(|problem| problem.key.as_str()).collect();
    let expected = [
        "name",
        "bind_port",
        "tunnel_network",
        "protocol.certificate_file",
        "protocol.certificate_key_file",
        "log.levle",
    ];
    assert_eq!(keys, expected, "{error}");
}

#[test]
fn secrets_are_in_no_error() {
    let key = "-----BEGIN PRIVATE KEY-----SECRET";
    for text in [
        format!("{SERVER}certificate_key = \"{key}\""),
        format!("{SERVER}certificate_key = \"SECRET\""),
        format!("{SERVER}certificate_key = [\"{key}\"]"),
        format!("{SERVER}certificate_kye = \"{key}\""),
        format!("certificate_key = \"{key}\"\n{SERVER}"),
        format!("{SERVER}certificate_key = \"{key}"),
        format!("{SERVER}certificate_key = {key}"),
        format!("{SERVER}certificate_key = \"{key}\" \"{key}\""),
    ] {
        let error = load_server(&text, &[]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
    }
    let error = load_server(SERVER, &[("QUINCY_PROTOCOL__CERTIFICATE_KEY", "SECRET")]).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
}

#[test]
fn keys_that_exclude_each_other_are_refused() {
    let key = "\"-----BEGIN PRIVATE KEY-----\"";
    let refused = problem(load_server(&format!("{SERVER}certificate_key = {key}"), &[]));
    assert_eq!(refused.key, "protocol.certificate_key");
    assert!(refused.remedy.contains("either protocol.certificate_key_file or protocol.certificate_key"), "{refused}");
    let text = format!("{SERVER}[connection]\nmax_pending_handshakes = 4\nmax_pending_handshakes_per_source = 5");
    assert_eq!(problem(load_server(&text, &[])).key, "connection.max_pending_handshakes_per_source");
    let text = format!("{SERVER}[connection]\nmax_pending_handshakes = 4");
    assert_eq!(load_server(&text, &[]).unwrap().connection.pending_handshakes_per_source_max, 4);
    let text = format!("{CLIENT}[connection]\nconnection_timeout_s = 20");
    assert_eq!(problem(load_client(&text, &[])).key, "connection.keep_alive_interval_s");
    let (text, _) = with_line(&format!("{SERVER}[connection]\nmtu = 1279"), "", "tunnel_network = \"fd00::1/64\"");
    let refused = problem(load_server(&text, &[]));
    assert!(refused.remedy.contains("from 1280 to 9000"), "{refused}");
}

#[test]
fn a_file_that_is_absent_too_long_not_text_or_not_toml_is_refused() {
    let directory = Directory::new();
    let load = |path: PathBuf| ServerConfig::load(&path, env(&[])).unwrap_err().to_string();
    assert!(load(directory.path("nowhere.toml")).contains("nowhere.toml: cannot be read: No such file"));
    assert!(load(directory.write("a.toml", "# ".repeat(600_000))).contains("at most 1048576 bytes"));
    assert!(load(directory.write("b.toml", [b'#', 0xff])).contains("not UTF-8 from byte 1 on"));
    assert!(
        load(directory.write("c.toml", "name = \"a\"\nname = \"b\""))
            .contains("c.toml:2:1: is not valid TOML: duplicate key")
    );
    assert!(
        ClientConfig::load(&directory.write("d.toml", "x = "), env(&[])).unwrap_err().to_string().contains("d.toml:1:")
    );
}

#[test]
fn a_users_file_that_cannot_be_read_is_blamed_on_the_key_that_names_it() {
    let directory = Directory::new();
    let nowhere = directory.path("nowhere.toml");
    let text = format!("users_file = {nowhere:?}\n{SERVER}");
    let refused = problem(ServerConfig::load(&directory.write("server.toml", text), env(&[])));
    assert_eq!(refused.key, "users_file");
    assert!(refused.what.contains("nowhere.toml"), "{refused}");
    assert!(refused.remedy.contains("working directory"), "{refused}");
}

#[test]
fn wrong_users_are_refused() {
    let digits = "ab".repeat(32);
    let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (users, key, parts) in [
        ("[users.a]\nauthorized_cert = []".into(), "users.a.authorized_cert", &["`authorized_certs`"][..]),
        ("[user.a]\n".into(), "user", &["`users`"]),
        ("[users]\na = 5".into(), "users.a", &["[users.a]"]),
        ("[users.a]\nauthorized_certs = \"x\"".into(), "users.a.authorized_certs", &["in brackets", "sha256:"]),
        ("[users.a]\nauthorized_certs = [\"sha256:abc\"]".into(), "users.a.authorized_certs[0]", &["3 digits", "64"]),
        (format!("[users.a]\nauthorized_certs = [\"md5:{digits}\"]"), "users.a.authorized_certs[0]", &["sha256:"]),
        (
            format!(
                "[users.a]\nauthorized_certs = [\"sha256:{digits}\"]\n[users.b]\nauthorized_certs = [\"sha256:{digits}\"]"
            ),
            "users.b.authorized_certs",
            &["'a'"],
        ),
        ("[users.a]\nauthorized_keys = [5]".into(), "users.a.authorized_keys[0]", &["5", "base64"]),
        (
            format!("[users.a]\nauthorized_keys = [\"{key}\"]\n[users.b]\nauthorized_keys = [\"{key}\"]"),
            "users.b.authorized_keys",
            &["'a'"],
        ),
        ("[users.a]\nbandwidth_limit = \"fast\"".into(), "users.a.bandwidth_limit", &["10 mbps"]),
        ("[users.\"\"]".into(), "users.\"\"", &["name"]),
        ("[users.john.doe]\nbandwidth_limit = \"1 mbps\"".into(), "users.john.doe", &["quote", "[users.\"john.doe\"]"]),
        ("[users.john.van.doe]".into(), "users.john.van.doe", &["[users.\"john.van.doe\"]"]),
        ("[users.a]\naddress_pool = [\"198.19.0.0/24\"]".into(), "users.a.address_pool", &["inside", "198.18.0.0/24"]),
        ("[users.a]\naddress_pool = [\"198.18.0.0/23\"]".into(), "users.a.address_pool", &["inside"]),
        ("[users.a]\naddress_pool = [\"fd00::5/128\"]".into(), "users.a.address_pool", &["inside"]),
        ("[users.a]\naddress_pool = [\"198.18.0.1/32\"]".into(), "users.a.address_pool", &["the server's address"]),
        ("[users.a]\naddress_pool = [\"198.18.0.0 - 198.18.0.0\"]".into(), "users.a.address_pool", &["network's own"]),
        ("[users.a]\naddress_pool = [\"198.18.0.254/31\"]".into(), "users.a.address_pool", &["broadcast"]),
        ("[users.a]\naddress_pool = [\"198.18.0.9\"]".into(), "users.a.address_pool[0]", &["write a network"]),
        (
            "[users.b]\naddress_pool = [\"198.18.0.16/28\"]\n[users.a]\naddress_pool = [\"198.18.0.20/32\"]".into(),
            "users.a.address_pool",
            &["'a'", "'b'", "198.18.0.16 - 198.18.0.31"],
        ),
        (
            "[users.b]\naddress_pool = [\"198.18.0.20/32\"]\n[users.a]\naddress_pool = [\"198.18.0.16/28\"]".into(),
            "users.a.address_pool",
            &["'a'", "'b'"],
        ),
        (
            "[users.a]\naddress_pool = [\"198.18.0.5 - 198.18.0.7\", \"198.18.0.7/32\"]".into(),
            "users.a.address_pool",
            &["overlaps", "'a'"],
        ),
    ] {
        let users: String = users;
        let problem = problem(load_server_with_users(SERVER, &users, &[]));
        assert_eq!(problem.key, key, "{problem}");
        let Place::Position { file, .. } = &problem.place else { panic!("no position: {problem}") };
        assert_eq!(name(file), "users.toml");
        for part in parts {
            assert!(problem.to_string().contains(part), "{part}: {problem}");
        }
    }
}

#[test]
fn a_narrow_pool_inside_a_wide_one_is_found_behind_another() {
    let users = "[users.a]\naddress_pool = [\"198.18.0.16/28\"]\n[users.b]\naddress_pool = [\"198.18.0.17/32\"]\n\
                 [users.c]\naddress_pool = [\"198.18.0.30/32\"]";
    let error = load_server_with_users(SERVER, users, &[]).unwrap_err();
    let keys: Vec<&str> = error.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["users.b.address_pool", "users.c.address_pool"]);
}

#[test]
fn every_gateway_of_a_list_must_be_one_and_there_must_be_one() {
    let refused = |value: &str| problem(load_client(&CLIENT.replace("\"vpn.example.org:55555\"", value), &[]));
    let empty = refused("[]");
    assert_eq!((&empty.key[..], &empty.what[..]), ("connection_string", "is an empty list"), "{empty}");
    let second = refused("[\"a.test:1\", \"b.test\"]");
    assert_eq!(second.key, "connection_string[1]");
    assert!(second.what.contains("which has no port") && second.remedy.contains("vpn.example.org:55555"), "{second}");
    let number = refused("5");
    assert!(number.what.contains("the number 5") && number.remedy.starts_with("write host and port"), "{number}");
}

#[test]
fn a_url_as_connection_string_is_answered_with_what_to_write() {
    for (url, expected) in [
        ("https://vpn.example.org:443/", "\"vpn.example.org:443\""),
        ("https://vpn.example.org", "\"vpn.example.org:55555\""),
        ("quic://198.18.0.1:4433/path:1", "\"198.18.0.1:4433\""),
        ("https://[fd00::1]", "\"[fd00::1]:55555\""),
        ("https://[fd00::1]:7?x=y", "\"[fd00::1]:7\""),
    ] {
        let text = CLIENT.replace("vpn.example.org:55555", url);
        assert!(text.contains(url), "{text}");
        let problem = problem(load_client(&text, &[]));
        assert_eq!(problem.key, "connection_string");
        assert!(problem.what.contains("is a URL") && problem.what.contains(expected), "{problem}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\PC|\n){0,200}", value in "\\PC{0,40}") {
        let _ = load_client(&text, &[("QUINCY_CONNECTION_STRING", &value), ("TOLLGATE_CONNECTION__MTU", &value)]);
        let _ = load_server(&format!("{SERVER}\n{text}"), &[("QUINCY_SHARDS__CPUS", &value)]);
    }

    #[test]
    fn no_value_makes_the_reader_panic(at in 0..10_000_usize, value in "[-\"\\[\\]0-9a-z/.: ]{1,20}") {
        let [(_, sections), ..] = files();
        let section = &sections[at % sections.len()];
        let key = section.entries[at / sections.len() % section.entries.len()].name;
        let _ = load_server(&with_line(SERVER, section.name, &format!("{key} = {value}")).0, &[]);
    }
}

/// Keys and variables bear any name; what is said of them stays a line, and moves no cursor.
#[test]
fn a_name_that_would_move_a_terminals_cursor_is_escaped() {
    let file = format!("\"evil\\u001b[2J\\nfine: all is well\" = 1\n{SERVER}");
    let of_key = problem(load_server(&file, &[]));
    let of_variable = Problem { place: Place::Variable("TOLLGATE_evil\u{1b}[2J\nfine".into()), ..of_key.clone() };
    for text in [of_key, of_variable].map(|problem| problem.to_string()) {
        assert!(text.contains("evil\\u{1b}[2J\\nfine") && !text.chars().any(char::is_control), "{text:?}");
    }
}
