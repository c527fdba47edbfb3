use std::os::unix::fs::{PermissionsExt, symlink};

use tollgate_shards::Steering;

use super::*;
use crate::host::client_route;
use crate::io::{Offloads, TunOptions};

const OWN: u32 = 7;
const OTHER: u32 = 2;

fn facts(name: &str) -> TunFacts {
    let offloads = Offloads { checksum: true, tso: true, uso: true };
    TunFacts { name: name.to_owned(), index: OWN, offloads, queue_frames_max: 1000, is_adopted: false }
}

fn config(users: &str) -> ServerConfig {
    let text = format!(
        "name = \"x\"\ntunnel_network = \"198.19.128.1/24\"\nusers_file = {users:?}\n[protocol]\nmode = \"tls\"\n\
         certificate_file = \"cert.pem\"\ncertificate_key_file = \"key.pem\"\n[shards]\nkey_file = \"keys\"\n"
    );
    ServerConfig::from_texts(&text, "").unwrap()
}

/// Of a gateway whose device has the index 7.
pub fn rules(interface: Option<&str>) -> Rules {
    let files = Named::of(Path::new("server.toml"), &config("users.toml"), Box::new(|_| Ok(config("other.toml"))));
    Rules {
        files,
        address: "[::]:55555".parse().unwrap(),
        tunnel: "198.19.128.1/24".parse().unwrap(),
        interface: interface.map(str::to_owned),
        mtu_bytes: 1400,
        send_buffer_bytes: 1 << 20,
        receive_buffer_bytes: 1 << 20,
        host: HostSettings { masquerade: true, forwarding: false, mss_clamp: false },
        device: Some(facts(interface.unwrap_or("tollgate0"))),
    }
}

fn tun(name: Option<&str>) -> TunPlan {
    TunPlan {
        name: name.map(str::to_owned),
        queues: 2,
        mtu_bytes: 1400,
        options: TunOptions::default(),
        address: "198.19.128.1/24".parse().unwrap(),
    }
}

fn sockets(address: &str) -> SocketPlan {
    let options = UdpOptions { send_buffer_bytes: 1 << 20, receive_buffer_bytes: 1 << 19, ..UdpOptions::default() };
    let options = UdpOptions { steering: Steering::BYTE_7, ..options };
    SocketPlan { address: address.parse().unwrap(), shards: 2, options, handshake_buffer_bytes: 1 << 19 }
}

fn route(destination: &str, interface: u32) -> Route {
    Route::on_link(destination.parse().unwrap(), interface)
}

fn forwarding(network: &str, interface: &str, masquerade: bool) -> Request {
    let (interface, network) = (interface.to_owned(), network.parse().unwrap());
    let plan = ForwardingPlan { interface, network, forwards: true, masquerade, mss_clamp: false };
    Request::SetForwarding { plan, is_tried: false }
}

#[test]
fn what_a_gateway_asks_for_is_allowed() {
    let own = "198.19.128.1/24".parse().unwrap();
    for request in [
        Request::MakeTun(tun(None)),
        Request::MakeTun(tun(Some("tollgate0"))),
        Request::JoinTun { plan: tun(Some("tollgate12")), is_adopted: false },
        Request::BindSockets(sockets("[::]:55555")),
        Request::JoinSockets(sockets("[::]:55555")),
        Request::RemoveLink { interface: OWN },
        Request::SetUp { interface: OWN },
        Request::SetName { interface: OWN, name: "tollgate0".to_owned() },
        Request::SetMtu { interface: OWN, mtu_bytes: 1400 },
        Request::SetQueueLength { interface: OWN, frames: 1000 },
        Request::KeepIpv6Addresses { name: "tollgate0".to_owned() },
        Request::AddAddress { interface: OWN, address: own },
        Request::RemoveAddress { interface: OWN, address: own },
        Request::SetRoute(client_route("198.19.128.9".parse().unwrap(), OWN, 1280)),
        Request::RemoveRoute(Route { table: Some(MAIN_TABLE), ..route("198.19.128.9/32", OWN) }),
        Request::SetRoute(route("198.19.128.0/24", OWN)),
        forwarding("198.19.128.0/24", "tollgate0", true),
        Request::StartSuccessor { program: None },
    ] {
        assert_eq!(rules(None).check(&request), Ok(()), "{request:?}");
    }
    let mut anywhere = Rules { address: "[::]:0".parse().unwrap(), ..rules(None) };
    assert_eq!(anywhere.check(&Request::BindSockets(sockets("[::]:40000"))), Ok(()));
    for (configured, name) in [("vpn", "vpn"), ("vpn%d", "vpn%d"), ("vpn%d", "vpn3"), ("a%db", "a12b")] {
        assert_eq!(rules(Some(configured)).check(&Request::MakeTun(tun(Some(name)))), Ok(()), "{name}");
    }
}

#[test]
fn a_gateway_that_was_taken_over_gets_nothing_that_is_not_its_own() {
    let (own, foreign) = ("198.19.128.1/24".parse().unwrap(), "198.18.0.1/24".parse().unwrap());
    let to_gateway = Route { gateway: Some("198.19.128.9".parse().unwrap()), ..route("198.19.128.0/25", OWN) };
    for request in [
        Request::MakeTun(tun(Some("eth0"))),
        Request::MakeTun(tun(Some("tollgate"))),
        Request::MakeTun(tun(Some("tollgate0/../x"))),
        Request::MakeTun(TunPlan { address: foreign, ..tun(None) }),
        Request::MakeTun(TunPlan { mtu_bytes: 9000, ..tun(None) }),
        Request::JoinTun { plan: tun(Some("tun0")), is_adopted: true },
        Request::BindSockets(sockets("[::]:53")),
        Request::BindSockets(sockets("127.0.0.1:55555")),
        Request::JoinSockets(sockets("[::]:53")),
        Request::BindSockets(SocketPlan {
            options: UdpOptions { receive_buffer_bytes: 1 << 30, ..sockets("[::]:1").options },
            ..sockets("[::]:55555")
        }),
        Request::RemoveLink { interface: OTHER },
        Request::SetUp { interface: OTHER },
        Request::SetName { interface: OTHER, name: "tollgate0".to_owned() },
        Request::SetName { interface: OWN, name: "eth0".to_owned() },
        Request::SetMtu { interface: OTHER, mtu_bytes: 1400 },
        Request::SetMtu { interface: OWN, mtu_bytes: 68 },
        Request::SetQueueLength { interface: OTHER, frames: 1000 },
        Request::SetQueueLength { interface: OWN, frames: 1 << 20 },
        Request::KeepIpv6Addresses { name: "../../../kernel".to_owned() },
        Request::AddAddress { interface: OTHER, address: own },
        Request::AddAddress { interface: OWN, address: foreign },
        Request::RemoveAddress { interface: OTHER, address: own },
        Request::SetRoute(route("198.19.128.9/32", OTHER)),
        Request::SetRoute(route("0.0.0.0/0", OWN)),
        Request::SetRoute(route("198.19.0.0/16", OWN)),
        Request::SetRoute(Route { interface: None, ..route("198.19.128.9/32", OWN) }),
        Request::SetRoute(Route { table: Some(255), ..route("198.19.128.9/32", OWN) }),
        Request::SetRoute(Route { unreachable: true, ..route("198.19.128.9/32", OWN) }),
        Request::SetRoute(to_gateway),
        Request::RemoveRoute(route("0.0.0.0/0", OTHER)),
        forwarding("198.19.0.0/16", "tollgate0", true),
        forwarding("198.19.128.0/24", "eth0", true),
        forwarding("198.19.128.0/24", "tollgate0", false),
    ] {
        let refused = rules(None).check(&request);
        assert!(matches!(refused, Err(Forbidden::NotItsOwn(_))), "{request:?}: {refused:?}");
    }
    for (configured, name) in [
        ("vpn", Some("tollgate0")),
        ("vpn", None),
        ("vpn%d", Some("vpn")),
        ("vpn%d", Some("vpn1x")),
        ("vpn%d", Some("x1")),
        ("a%da", Some("a")),
    ] {
        assert!(rules(Some(configured)).check(&Request::MakeTun(tun(name))).is_err(), "{configured}: {name:?}");
    }
    let mut without_device = Rules { device: None, ..rules(None) };
    assert!(without_device.check(&Request::RemoveLink { interface: OWN }).is_err());
}

/// Who runs tests may be root or not; the system's programs are root's.
#[test]
fn only_a_program_that_nobody_but_root_can_change_is_started_in_the_place_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let is_root = rustix::process::getuid().is_root();
    let program = folder.path().join("program");
    fs::write(&program, "").unwrap();
    assert!(is_of_root(Path::new("/bin/sh")));
    assert_eq!(is_of_root(&program), is_root);
    for (path, mode) in [(&program, 0o775), (&program, 0o757)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(!is_of_root(path), "{mode:o}");
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let link = folder.path().join("link");
    symlink("program", &link).unwrap();
    assert_eq!(is_of_root(&link), is_root);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(!is_of_root(&program) && !is_of_root(&link));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let circle = folder.path().join("circle");
    symlink("circle", &circle).unwrap();
    assert!(!is_of_root(&circle));
    let forbidden = rules(None).check(&Request::StartSuccessor { program: Some(circle.clone()) }).unwrap_err();
    assert_eq!(forbidden, Forbidden::Program(circle));
    assert!(forbidden.to_string().contains("root") && !forbidden.to_string().contains('\n'), "{forbidden}");
}

#[test]
fn files_are_opened_that_the_configuration_names_now() {
    let mut rules = rules(None);
    let mut may = |path: &str| {
        let watch = Request::WatchFolder { file: path.into() };
        let open = rules.check(&Request::OpenFile { path: path.into() });
        assert_eq!(open, rules.check(&watch));
        open.is_ok()
    };
    assert!(["server.toml", "users.toml", "cert.pem", "key.pem", "keys"].into_iter().all(&mut may));
    // It is looked at again, and names another one now.
    assert!(may("other.toml") && !may("users.toml"));
    assert!(!may("/etc/shadow") && !may("./cert.pem") && !may(""));
}
