//! What may change while the gateway runs, what has changed, and what users have of their own.

use std::num::NonZeroU32;

use tollgate_config::ServerConfig;
use tollgate_shards::{ConnectionLimit, User, WhenReached};

use crate::common::{SERVER, load_server, load_server_with_users};

/// A key's variable, two values, and whether it may change.
const KEYS: &[(&str, &str, &str, bool)] = &[
    ("NAME", "a", "b", true),
    ("INTERFACE_NAME", "tun7", "tun8", false),
    ("BIND_ADDRESS", "127.0.0.1", "127.0.0.2", false),
    ("BIND_PORT", "1000", "1001", false),
    ("REUSE_SOCKET", "false", "true", false),
    ("TUNNEL_NETWORK", "198.18.0.1/24", "198.18.0.2/24", false),
    ("ISOLATE_CLIENTS", "true", "false", true),
    ("DEFAULT_BANDWIDTH_LIMIT", "10 mbps", "20 mbps", true),
    ("PROTOCOL__KEY_EXCHANGE", "hybrid", "standard", true),
    ("PROTOCOL__CERTIFICATE_FILE", "a.pem", "b.pem", true),
    ("PROTOCOL__CERTIFICATE_KEY_FILE", "a.pem", "b.pem", true),
    ("CONNECTION__MTU", "1300", "1400", false),
    ("CONNECTION__CONGESTION_CONTROLLER", "cubic", "bbr", false),
    ("CONNECTION__CONNECTION_TIMEOUT_S", "30", "31", false),
    ("CONNECTION__KEEP_ALIVE_INTERVAL_S", "25", "26", false),
    ("CONNECTION__SEND_BUFFER_SIZE", "65536", "65537", false),
    ("CONNECTION__RECV_BUFFER_SIZE", "65536", "65537", false),
    ("CONNECTION__DATAGRAM_SEND_BUFFER_SIZE", "65536", "65537", false),
    ("CONNECTION__DATAGRAM_RECEIVE_BUFFER_SIZE", "65536", "65537", false),
    ("CONNECTION__MAX_PENDING_HANDSHAKES", "100", "101", false),
    ("CONNECTION__MAX_PENDING_HANDSHAKES_PER_SOURCE", "7", "8", false),
    ("LOG__LEVEL", "info", "debug", true),
    ("METRICS__ENABLED", "false", "true", true),
    ("METRICS__ADDRESS", "127.0.0.1", "127.0.0.2", true),
    ("METRICS__PORT", "9090", "9091", true),
    ("METRICS__REPORTING_INTERVAL_S", "5", "6", true),
    ("METRICS__IDLE_TIMEOUT_S", "5", "6", true),
    ("SHARDS__COUNT", "auto", "2", false),
    ("SHARDS__CPUS", "[0]", "[0, 1]", false),
    ("SHARDS__KEY_FILE", "a", "b", false),
    ("DATA_PATH__COALESCE_US", "400", "0", false),
    ("DATA_PATH__BUSY_POLL_US", "0", "50", false),
    ("DATA_PATH__THIN_ACKS", "true", "false", false),
    ("DATA_PATH__GRO", "true", "false", false),
    ("DATA_PATH__GSO", "true", "false", false),
    ("DATA_PATH__TSO", "true", "false", false),
    ("DATA_PATH__USO", "true", "false", false),
    ("SESSIONS__MAX_CONNECTIONS", "1", "2", true),
    ("SESSIONS__BURST_MS", "1000", "1001", true),
    ("SESSIONS__BURST_BYTES_MIN", "65536", "65537", true),
    ("CONTROL__SOCKET", "a.sock", "b.sock", false),
    ("CONTROL__WATCH_USERS_FILE", "false", "true", true),
];

fn with(variable: &str, value: &str) -> ServerConfig {
    // The users file is a temporary one: its path is made the same.
    let mut config = load_server(SERVER, &[(&format!("TOLLGATE_{variable}"), value)]).unwrap();
    config.users_file = "users.toml".into();
    config
}

#[test]
fn each_key_is_live_or_needs_a_restart() {
    for (variable, from, to, live) in KEYS {
        let (before, after) = (with(variable, from), with(variable, to));
        let (refused, changed) = (before.restart_needed(&after), before.live_changes(&after));
        let key = variable.to_lowercase().replace("__", ".");
        // A port is also in the default of the socket's path.
        let of_key: Vec<_> = refused.iter().chain(&changed).filter(|changed| changed.key == key).collect();
        assert_eq!(of_key.len(), 1, "{variable}: {refused:?}, {changed:?}");
        assert_eq!(refused.iter().any(|changed| changed.key == key), !live, "{variable}");
        assert!(before.restart_needed(&before).is_empty() && before.live_changes(&before).is_empty(), "{variable}");
    }
}

#[test]
fn every_key_of_the_configuration_has_been_tried() {
    let effective = with("SESSIONS__MAX_CONNECTIONS", "2").effective();
    let mut table = String::new();
    for line in effective.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            table = format!("{}__", name.trim_end_matches(']').to_uppercase());
        } else if let Some((key, _)) = line.split_once(" = ") {
            let variable = format!("{table}{}", key.to_uppercase());
            let elsewhere = ["USERS_FILE", "PROTOCOL__MODE", "SESSIONS__WHEN_REACHED"];
            assert!(
                KEYS.iter().any(|(tried, ..)| *tried == variable) || elsewhere.contains(&&variable[..]),
                "{variable} is not in the table"
            );
        }
    }
}

#[test]
fn a_key_that_needs_a_restart_is_named_with_both_values() {
    let refused = with("BIND_PORT", "1000").restart_needed(&with("BIND_PORT", "1001"));
    assert!(refused.iter().any(|changed| changed.to_string() == "bind_port (1000 -> 1001)"), "{refused:?}");
    let refused = load_server(SERVER, &[]).unwrap().restart_needed(&with("SHARDS__CPUS", "[0]"));
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
    let directory = &config.users.directory;
    let user = |name: &str| -> &User { directory.user(directory.find_name(name).unwrap()).unwrap() };
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
