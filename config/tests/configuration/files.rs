//! Whole files: the examples, files written for Quincy, overrides by the environment, the effective configuration.

use std::path::Path;

use crate::common::{CLIENT, Directory, SERVER, env, load_client, load_server};
use tollgate_config::{ClientProtocol, Cpus, KeyExchange, PemSource, ServerConfig, ShardCount, control_socket};
use tollgate_shards::UserIndex;
use tollgate_shards::{Limit, Rate};

/// Every key that Quincy 3.1.1 knows in TLS mode, none at its default, written as its users write them.
const QUINCY_SERVER: &str = r#"
name = "quincy-server"
interface_name = "quincy0"
bind_address = "198.18.7.1"
bind_port = 4433
reuse_socket = true
tunnel_network = "198.18.0.1/24"
users_file = "USERS"
isolate_clients = false
default_bandwidth_limit = "50 mbps"

[protocol]
mode = "tls"
key_exchange = "PostQuantum"
certificate_file = "chain.pem"
certificate = """
-----BEGIN CERTIFICATE-----
AAAA
-----END CERTIFICATE-----
"""
certificate_key = """
-----BEGIN PRIVATE KEY-----
c2VjcmV0
-----END PRIVATE KEY-----
"""

[connection]
mtu = 1300
congestion_controller = "NewReno"
connection_timeout_s = 40
keep_alive_interval_s = 20
send_buffer_size = 1048576
recv_buffer_size = 1048577
datagram_send_buffer_size = 1048578
datagram_receive_buffer_size = 1048579
max_pending_handshakes = 128
max_pending_handshakes_per_source = 4

[log]
level = "DEBUG"

[metrics]
enabled = true
address = "0.0.0.0"
port = 9100
reporting_interval_s = 10
idle_timeout_s = 0
"#;

const QUINCY_USERS: &str = r#"
[users.zoe]
authorized_keys = ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
authorized_certs = ["sha256:ABcdef1234567890abcdef1234567890abcdef1234567890abcdef1234567890"]
bandwidth_limit = "1.5 GBPS"
address_pool = ["198.18.0.100/30", "198.18.0.120 - 198.18.0.122", "198.18.0.50-198.18.0.50"]

[users.bob]
authorized_keys = []
authorized_certs = []
"#;

#[test]
fn a_file_for_quincys_server_is_read_unchanged() {
    let directory = Directory::new();
    directory.write("users.toml", QUINCY_USERS);
    let text = QUINCY_SERVER.replace("USERS", directory.path("users.toml").to_str().unwrap());
    let config = ServerConfig::load(&directory.write("server.toml", &text), env(&[])).unwrap();
    // Every key of it, as Tollgate spells the values.
    let spelt = text.replace("PostQuantum", "post_quantum").replace("NewReno", "new_reno").replace("DEBUG", "debug");
    let effective = config.effective();
    for line in spelt.lines().filter(|line| line.contains(" = ") && !line.contains("\"\"\"")) {
        assert!(effective.lines().any(|effective| effective == line), "{line}:\n{effective}");
    }
    let tls = config.protocol.tls.unwrap();
    assert_eq!(tls.key_exchange, Some(KeyExchange::PostQuantum));
    assert_eq!(tls.certificates[0], PemSource::File("chain.pem".into()));
    assert!(matches!(tls.certificates[1..], [PemSource::Inline(_)]));
    assert!(matches!(&tls.key, PemSource::Inline(pem) if pem.contains("c2VjcmV0")));
    assert_eq!((config.shards.count, config.shards.cpus), (ShardCount::Auto, None));

    let users: Vec<_> = config.users.users().map(|(_, user)| user).collect();
    assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["zoe", "bob"], "order of the file");
    assert_eq!(users[0].limit, Rate::from_bits_per_s(1_500_000_000).map(Limit::new));
    assert_eq!(users[1].limit, config.default_bandwidth_limit.map(Limit::new), "the default limit");
    assert_eq!(users[0].pool.len(), 3);
    assert_eq!(config.users.find(&users[0].credentials[0]), Some(UserIndex(0)));
}

#[test]
fn a_file_for_quincys_client_is_read_unchanged() {
    let text = r#"
        connection_string = "[fd00::5]:4433"
        [protocol]
        mode = "tls"
        key_exchange = "Standard"
        trusted_certificate_paths = ["a.pem", "b.pem"]
        trusted_certificates = ["-----BEGIN CERTIFICATE-----"]
        client_certificate = "-----BEGIN CERTIFICATE-----"
        client_certificate_key_file = "key.pem"
        [connection]
        mtu = 1500
        max_pending_handshakes = 128
        [network]
        routes = ["198.18.1.0/24", "fd00:1::/64"]
        dns_servers = ["198.18.0.53", "fd00::53"]
        interface_name = "quincy0"
        [log]
        level = "warn"
    "#;
    let config = load_client(text, &[]).unwrap();
    let [server] = &config.servers[..] else { panic!("{:?}", config.servers) };
    assert_eq!((server.host.as_str(), server.port), ("fd00::5", 4433));
    assert_eq!(server.to_string(), "[fd00::5]:4433");
    let ClientProtocol::Tls(tls) = config.protocol else { panic!("{:?}", config.protocol) };
    assert_eq!(tls.key_exchange, KeyExchange::Standard);
    assert_eq!(tls.trusted.len(), 3);
    assert_eq!(tls.key, PemSource::File("key.pem".into()));
    assert_eq!(config.connection.mtu_bytes, 1500);
    assert_eq!(config.network.routes.len(), 2);
    assert_eq!(
        config.network.dns_servers,
        ["198.18.0.53".parse::<std::net::IpAddr>().unwrap(), "fd00::53".parse().unwrap()]
    );
    assert_eq!(config.network.interface_name.as_deref(), Some("quincy0"));
}

#[test]
fn a_client_may_have_several_gateways_in_order() {
    let servers = |value: &str, variables: &[(&str, &str)]| {
        let config = load_client(&CLIENT.replace("\"vpn.example.org:55555\"", value), variables).unwrap();
        config.servers.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let one = "\"a.test:1\"";
    assert_eq!(servers("[\"b.test:2\", \"[fd00::1]:3\"]", &[]), ["b.test:2", "[fd00::1]:3"]);
    assert_eq!(servers("[\"b.test:2\"]", &[]), ["b.test:2"]);
    for (variable, expected) in [
        ("b.test:2", &["b.test:2"][..]),
        ("b.test:2,[fd00::1]:3", &["b.test:2", "[fd00::1]:3"]),
        ("[b.test:2, [fd00::1]:3]", &["b.test:2", "[fd00::1]:3"]),
        ("[fd00::1]:3", &["[fd00::1]:3"]),
    ] {
        assert_eq!(servers(one, &[("TOLLGATE_CONNECTION_STRING", variable)]), expected, "{variable}");
    }
}

#[test]
fn the_environment_overrides_the_file_and_tollgate_overrides_quincy() {
    let variables = [
        ("TOLLGATE_BIND_PORT", "1001"),
        ("QUINCY_BIND_PORT", "1000"),
        ("QUINCY_CONNECTION__MTU", "1310"),
        ("quincy_log__level", "\"warn\""),
        ("TOLLGATE_SHARDS__COUNT", "3"),
        ("TOLLGATE_SHARDS__CPUS", "[1, 0]"),
        ("QUINCY_METRICS__ENABLED", "true"),
        ("TOLLGATE_SERVICE_HOST", "198.18.0.9"),
        ("UNRELATED__MTU", "5"),
    ];
    let config = load_server(&format!("bind_port = 999\n{SERVER}"), &variables).unwrap();
    assert_eq!(config.bind_port, 1001);
    assert_eq!(config.connection.mtu_bytes, 1310);
    assert_eq!(config.log.level.as_str(), "warn");
    assert_eq!(config.shards.count, ShardCount::Fixed(3.try_into().unwrap()));
    assert_eq!(config.shards.cpus, Some(Cpus::List(vec![1, 0])));
    assert!(config.metrics.enabled);
    assert_eq!(config.ignored_variables, ["TOLLGATE_SERVICE_HOST"]);
    let config = load_client(CLIENT, &[("QUINCY_NETWORK__ROUTES", "[198.18.1.0/24,\"198.18.2.7/24\"]")]).unwrap();
    assert_eq!(
        config.network.routes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["198.18.1.0/24", "198.18.2.0/24"]
    );
}

#[test]
fn variables_that_a_container_platform_sets_for_services_are_ignored() {
    let mut variables = Vec::new();
    for service in ["QUINCY", "QUINCY_METRICS", "QUINCY_BIND", "TOLLGATE", "TOLLGATE_METRICS", "TOLLGATE_BIND"] {
        for (suffix, value) in [
            ("SERVICE_HOST", "198.18.0.7"),
            ("SERVICE_PORT", "9090"),
            ("SERVICE_PORT_HTTP_METRICS", "9090"),
            ("PORT", "tcp://198.18.0.7:9090"),
            ("PORT", "udp://198.18.0.7:55555"),
            ("PORT_9090_TCP", "tcp://198.18.0.7:9090"),
            ("PORT_9090_TCP_PROTO", "tcp"),
            ("PORT_9090_TCP_PORT", "9090"),
            ("PORT_9090_TCP_ADDR", "198.18.0.7"),
            ("PORT_55555_UDP_ADDR", "198.18.0.7"),
        ] {
            variables.push((format!("{service}_{suffix}"), value));
        }
    }
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (&name[..], *value)).collect();
    let config = load_server(SERVER, &variables).unwrap();
    assert_eq!(config.bind_port, 55_555);
    assert_eq!((config.ignored_variables.len(), config.warnings), (variables.len(), vec![]));
    let config = load_client(CLIENT, &variables).unwrap();
    assert_eq!((config.ignored_variables.len(), config.warnings), (variables.len(), vec![]));
}

#[test]
fn variables_of_quincys_other_programs_and_with_slips_are_warnings() {
    let of_the_client = [
        ("QUINCY_CONNECTION_STRING", "vpn.example.org:55555"),
        ("QUINCY_NETWORK__ROUTES", "[\"198.18.1.0/24\"]"),
        ("QUINCY_PROTOCOL__CLIENT_CERTIFICATE_FILE", "client.pem"),
    ];
    let of_the_server = [
        ("QUINCY_TUNNEL_NETWORK", "198.18.0.1/24"),
        ("QUINCY_METRICS__ENABLED", "true"),
        ("QUINCY_PROTOCOL__CERTIFICATE_FILE", "server.pem"),
    ];
    let of_nobody = [("QUINCY_VERSION", "3.1.1"), ("QUINCY_LOG", "debug"), ("QUINCY_CONNECTION__MTUU", "1300")];
    let warnings = |config: Vec<String>, variables: &[(&str, &str)]| {
        for (name, value) in variables {
            let told =
                config.iter().filter(|warning| warning.contains(&format!("variable {name}:"))).collect::<Vec<_>>();
            assert!(told.len() == 1 && told[0].contains("is ignored"), "{name}: {config:?}");
            assert!(!told[0].contains(value), "{told:?} shows a value");
        }
        assert_eq!(config.len(), variables.len());
        config.join("\n")
    };
    let variables = [&of_the_client[..], &of_nobody[..]].concat();
    let text = warnings(load_server(SERVER, &variables).unwrap().warnings, &variables);
    assert!(text.contains("did you mean `connection.mtu`?"), "{text}");
    let variables = [&of_the_server[..], &of_nobody[..]].concat();
    warnings(load_client(CLIENT, &variables).unwrap().warnings, &variables);
}

#[test]
fn files_that_are_not_configured_go_where_systemd_says_and_bear_the_address() {
    for (bind, name) in [
        ("0.0.0.0", "55555.sock"),
        ("::", "55555.sock"),
        ("198.18.0.1", "198.18.0.1-55555.sock"),
        ("::ffff:198.18.0.1", "198.18.0.1-55555.sock"),
        ("fd00::1", "fd00::1-55555.sock"),
    ] {
        for (runtime, folder) in [
            (None, "/run/tollgate"),
            (Some(""), "/run/tollgate"),
            (Some("/run/vpn"), "/run/vpn"),
            (Some("/run/vpn:/run/two"), "/run/vpn"),
        ] {
            let variables: Vec<_> = runtime.map(|runtime| ("RUNTIME_DIRECTORY", runtime)).into_iter().collect();
            let config = load_server(&format!("bind_address = {bind:?}\n{SERVER}"), &variables).unwrap();
            assert_eq!(config.control.socket.path, Path::new(folder).join(name));
            assert!(!config.control.socket.is_configured);
        }
    }
    let config = load_server(SERVER, &[("STATE_DIRECTORY", "/var/lib/vpn:/var/lib/two")]).unwrap();
    assert_eq!(config.shards.key_file.path, Path::new("/var/lib/vpn/keys"));
    assert!(!config.shards.key_file.is_configured);
    let text = format!("{SERVER}[shards]\nkey_file = \"k\"\n[control]\nsocket = \"s\"");
    let folders = [("STATE_DIRECTORY", "/var/lib/vpn"), ("RUNTIME_DIRECTORY", "/run/vpn")];
    let config = load_server(&text, &folders).unwrap();
    assert_eq!((config.shards.key_file.path, config.control.socket.path), ("k".into(), "s".into()));
    assert!(config.shards.key_file.is_configured && config.control.socket.is_configured);
}

#[test]
fn the_control_socket_is_the_gateways_even_if_all_else_is_wrong() {
    let directory = Directory::new();
    let users = directory.write("users.toml", "");
    let socket = |text: &str, variable: Option<(&str, &str)>| {
        control_socket(&directory.write("server.toml", text), env(variable.as_slice()))
    };
    for (bind, control, variable) in [
        ("", "", None),
        ("bind_port = 7", "", None),
        ("bind_address = \"::\"", "", None),
        ("bind_address = \"198.18.0.1\"", "", None),
        ("bind_address = \"fd00::1\"\nbind_port = 7", "", None),
        ("", "", Some(("QUINCY_BIND_ADDRESS", "198.18.0.2"))),
        ("", "", Some(("RUNTIME_DIRECTORY", "/run/one:/run/two"))),
        ("", "", Some(("QUINCY_BIND_PORT", "tcp://198.18.0.7:80"))),
        ("", "socket = \"here\"", None),
        ("bind_port = 7", "", Some(("QUINCY_BIND_PORT", "8"))),
        ("", "socket = \"here\"", Some(("TOLLGATE_CONTROL__SOCKET", "there"))),
    ] {
        let text = format!("{bind}\nusers_file = {users:?}\n{SERVER}[control]\n{control}\n");
        let path = directory.write("server.toml", &text);
        let config = ServerConfig::load(&path, env(variable.as_slice())).unwrap();
        assert_eq!(socket(&text, variable).unwrap(), config.control.socket.path, "{text}");
        let wrong = text.replace("name", "mane").replace("tls", "slt") + "watch = 3";
        assert_eq!(socket(&wrong, variable).unwrap(), config.control.socket.path, "{wrong}");
    }
    assert!(socket("[control]\nsocket = 3", None).is_err());
}

#[test]
fn required_keys_may_come_from_the_environment_alone() {
    let directory = Directory::new();
    let users = directory.write("users.toml", "");
    let file = directory.write("server.toml", "");
    let variables = [
        ("QUINCY_NAME", "n"),
        ("QUINCY_TUNNEL_NETWORK", "fd00::1/64"),
        ("QUINCY_USERS_FILE", users.to_str().unwrap()),
        ("QUINCY_PROTOCOL__MODE", "tls"),
        ("QUINCY_PROTOCOL__CERTIFICATE_FILE", "c.pem"),
        ("QUINCY_PROTOCOL__CERTIFICATE_KEY", "-----BEGIN PRIVATE KEY-----"),
    ];
    let config = ServerConfig::load(&file, env(&variables)).unwrap();
    assert_eq!(config.tunnel_network.to_string(), "fd00::1/64");
    assert!(matches!(config.protocol.tls.unwrap().key, PemSource::Inline(_)));
}

#[test]
fn the_effective_configuration_masks_secrets_and_reads_back_the_same() {
    let config = load_server(SERVER, &[("QUINCY_DEFAULT_BANDWIDTH_LIMIT", "1500 kbps")]).unwrap();
    let effective = config.effective();
    // The users file is a temporary one that is gone by now.
    let directory = Directory::new();
    let again =
        effective.replace(config.users_file.to_str().unwrap(), directory.write("users.toml", "").to_str().unwrap());
    let again = ServerConfig::load(&directory.write("server.toml", &again), env(&[])).unwrap();
    let users_lines =
        |text: &str| text.lines().filter(|line| !line.contains("users")).map(String::from).collect::<Vec<_>>();
    assert_eq!(users_lines(&again.effective()), users_lines(&effective));
    assert!(effective.contains("default_bandwidth_limit = \"1500 kbps\""), "{effective}");

    let directory = Directory::new();
    let users = directory.write("users.toml", QUINCY_USERS);
    let text = QUINCY_SERVER.replace("USERS", users.to_str().unwrap());
    let config = ServerConfig::load(&directory.write("server.toml", &text), env(&[])).unwrap();
    for shown in [config.effective(), format!("{config:?}")] {
        assert!(!shown.contains("c2VjcmV0"), "{shown}");
    }
    assert!(config.effective().contains("certificate_key = \"(masked)\""));

    let client = load_client(CLIENT, &[]).unwrap().effective();
    assert_eq!(load_client(&client, &[]).unwrap().effective(), client);
}
