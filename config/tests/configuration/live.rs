//! What may change while the gateway runs, what has changed, and what users have of their own.

use std::num::NonZeroU32;

use tollgate_config::{Changed, Entry, ServerConfig, files};
use tollgate_shards::{ConnectionLimit, User, WhenReached};

use crate::common::{SERVER, base, load_server, load_server_with_users, range, variable};

/// Two values of each key whose declaration does not tell any.
const VALUES: &[(&str, [&str; 2])] = &[
    ("name", ["a", "b"]),
    ("interface_name", ["tun7", "tun8"]),
    ("bind_address", ["127.0.0.1", "127.0.0.2"]),
    ("tunnel_network", ["198.18.0.1/24", "198.18.0.2/24"]),
    ("default_bandwidth_limit", ["10 mbps", "20 mbps"]),
    ("protocol.certificate_file", ["a.pem", "b.pem"]),
    ("protocol.certificate_key_file", ["a.pem", "b.pem"]),
    ("protocol.tls.certificate_file", ["a.pem", "b.pem"]),
    ("protocol.tls.certificate_key_file", ["a.pem", "b.pem"]),
    ("protocol.noise.private_key_files", ["a.key", "b.key"]),
    ("log.level", ["info", "debug"]),
    ("metrics.address", ["127.0.0.1", "127.0.0.2"]),
    ("shards.cpus", ["[0]", "cores"]),
    ("connection_ids.server_id", ["01", "02"]),
    ("shards.key_file", ["a", "b"]),
    ("control.socket", ["a.sock", "b.sock"]),
    ("usage.quota_per_day", ["1 GB", "2 GB"]),
    ("usage.quota_per_month", ["1500 GB", "2 TB"]),
];

/// Keys that have one value, whose values are masked, or that are nothing without another.
const ELSEWHERE: &[&str] = &[
    "users_file",
    "protocol.mode",
    "protocol.certificate",
    "protocol.certificate_key",
    "protocol.private_key",
    "protocol.tls.certificate",
    "protocol.tls.certificate_key",
    "protocol.noise.private_keys",
    "connection_ids.layout",
    "connection_ids.key",
    "sessions.when_reached",
];

/// Two values that `entry` may have.
fn values(path: &str, entry: &Entry) -> [String; 2] {
    if let Some((from, _)) = range(entry) {
        return [from, from + 1].map(|number| number.to_string());
    }
    let listed = VALUES.iter().find(|(of, _)| *of == path).map(|(_, values)| values.map(String::from));
    // Of `write true or false`, or `write "one", "another" or "a third"`.
    let mut words =
        entry.expected.split([' ', ',']).filter(|word| !["write", "or", ""].contains(word)).map(String::from);
    listed.unwrap_or_else(|| [words.next().unwrap(), words.next().unwrap()])
}

fn with(path: &str, value: &str) -> ServerConfig {
    // The users file is a temporary one: its path is made the same.
    let mut config = load_server(&base(path, SERVER), &[(&variable(path), value)]).unwrap();
    config.users_file = "users.toml".into();
    config
}

#[test]
fn each_key_is_overridden_shown_and_compared() {
    let [(_, sections), ..] = files();
    for section in &sections {
        for entry in &section.entries {
            let path = section.path(entry);
            if ELSEWHERE.contains(&&path[..]) {
                continue;
            }
            let [from, to] = values(&path, entry);
            let (before, after) = (with(&path, &from), with(&path, &to));
            let shown =
                |line: &str| line.starts_with(&format!("{} = ", entry.name)) && line.contains(to.trim_matches('"'));
            assert!(after.effective().lines().any(shown), "{path} = {to}");
            let (refused, changed) = (before.restart_needed(&after), before.live_changes(&after));
            // A port is also in the default of the socket's path.
            let of_key = |changes: &[Changed]| changes.iter().filter(|changed| changed.key == path).count();
            let expected = if entry.traits.is_live { (0, 1) } else { (1, 0) };
            assert_eq!((of_key(&refused), of_key(&changed)), expected, "{path}: {refused:?}, {changed:?}");
            assert!(before.restart_needed(&before).is_empty() && before.live_changes(&before).is_empty(), "{path}");
        }
    }
}

#[test]
fn a_key_that_needs_a_restart_is_named_with_both_values() {
    let refused = with("bind_port", "1000").restart_needed(&with("bind_port", "1001"));
    assert!(refused.iter().any(|changed| changed.to_string() == "bind_port (1000 -> 1001)"), "{refused:?}");
    let refused = load_server(SERVER, &[]).unwrap().restart_needed(&with("shards.cpus", "[0]"));
    assert!(refused.iter().any(|changed| changed.to_string() == "shards.cpus (not set -> [0])"), "{refused:?}");
}

#[test]
fn users_are_counted_by_what_became_of_them() {
    let certificate = |digit: &str| format!("authorized_certs = [\"sha256:{}\"]\n", digit.repeat(64));
    let before = format!("[users.stays]\n{}[users.goes]\n[users.changes]\n", certificate("1"));
    let after = format!("[users.comes]\n[users.stays]\n{}[users.changes]\n{}", certificate("1"), certificate("2"));
    let load = |users: &str| load_server_with_users(SERVER, users, &[]).unwrap();
    let changes = load(&before).user_changes(&load(&after));
    assert_eq!(changes.to_string(), "users: 1 added, 1 removed, 1 changed");
    // What everybody has by default has changed for everybody.
    let limited = [("TOLLGATE_DEFAULT_BANDWIDTH_LIMIT", "10 mbps")];
    let limited = load_server_with_users(SERVER, &before, &limited).unwrap();
    assert_eq!(load(&before).user_changes(&limited).changed, 3);
}

#[test]
fn a_users_own_settings_win_over_the_sessions_table() {
    let server = format!(
        "default_bandwidth_limit = \"80 mbps\"\n{SERVER}[sessions]\nmax_connections = 4\nwhen_reached = \"close_oldest\"\nburst_ms = 100\n"
    );
    let users = "[users.a]\n[users.b]\nmax_connections = 2\n[users.c]\nwhen_reached = \"refuse_new\"\nburst_ms = 10\n";
    let config = load_server_with_users(&server, users, &[]).unwrap();
    let users = &config.users;
    let user = |name: &str| -> &User { users.user(users.find_name(name).unwrap()).unwrap() };
    let limit = |count: u32, when_reached| {
        let connections_max = NonZeroU32::new(count).unwrap();
        Some(ConnectionLimit { connections_max, when_reached })
    };
    assert_eq!(user("a").connection_limit, limit(4, WhenReached::CloseOldest));
    assert_eq!(user("b").connection_limit, limit(2, WhenReached::CloseOldest));
    assert_eq!(user("c").connection_limit, limit(4, WhenReached::RefuseNew));
    assert_eq!(user("a").limit.unwrap().burst_bytes, 1_000_000);
    assert_eq!(user("c").limit.unwrap().burst_bytes, 100_000);
}

#[test]
fn what_happens_at_a_limit_that_is_not_there_is_refused() {
    let error = load_server(&format!("{SERVER}[sessions]\nwhen_reached = \"close_oldest\"\n"), &[]).unwrap_err();
    assert!(error.to_string().contains("max_connections"), "{error}");
    let long = format!("{SERVER}[control]\nsocket = \"/{}\"\n", "x".repeat(107));
    assert!(load_server(&long, &[]).unwrap_err().to_string().contains("107 bytes"));
}
