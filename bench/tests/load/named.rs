//! Loads of a gateway that runs already, as somebody else's would: the harness sees it from outside only.

use std::path::Path;
use std::time::Duration;

use tollgate_bench::deployment::{FilesPlan, Gateway, GatewayFiles, Network, SERVICE, usable_cpus};
use tollgate_bench::identities::Identities;
use tollgate_bench::load::far_end::FarEnd;
use tollgate_bench::progress::Progress;
use tollgate_bench::results::Direction;
use tollgate_bench::scenario::{GatewayPlan, NamedGateway, Scenario, Sizes, Sources, StartedGateway};

use crate::harness::{constant, machine, scenario, shown, tollgate};

const USERS: u32 = 20;

fn named(folder: &Path, certificates: &Path, far_end: &str) -> Scenario {
    let mut scenario = scenario(USERS, 2);
    scenario.harness.sources = Sources::Ports;
    scenario.traffic = vec![constant(USERS, Direction::Both, 50.0, Sizes::imix(1400))];
    scenario.gateway = GatewayPlan::Named(NamedGateway {
        address: SERVICE,
        server_name: SERVICE.ip().to_string(),
        trusted_certificates: certificates.to_owned(),
        identities: folder.to_owned(),
        far_end: far_end.parse().expect("an address"),
        mtu_bytes: 1400,
    });
    scenario
}

#[test]
fn a_gateway_that_runs_already_is_loaded_from_ports_and_its_flows_balance() {
    let Some(_machine) = machine() else { return };
    let parent = tempfile::tempdir().unwrap();
    let fleet = parent.path().join("fleet");
    let identities = Identities::generate(USERS, |_| ()).unwrap();
    identities.write(&fleet, None).unwrap();
    let users = identities.users_file(None, 0);
    let idle_timeout = Duration::from_secs(30);
    let files = GatewayFiles::write(&FilesPlan { users: &users, mtu_bytes: 1400, idle_timeout }).unwrap();
    let network = Network::build(1400).unwrap();
    let cpus = usable_cpus().unwrap();
    let plan = StartedGateway::default();
    let mut gateway = Gateway::start(&tollgate(), &plan, &cpus[..1], &files, network.gateway()).unwrap();
    let far_end = FarEnd::start(vec![network.far_socket(0).unwrap()], &[]).unwrap();
    let scenario = named(&fleet, &files.certificate(), &far_end.addresses()[0].to_string());
    let load = || tollgate_bench::load::run(&scenario, &tollgate(), &mut Progress::new());
    let result = network.clients().run(load).unwrap();
    let context = shown(&result);
    assert_eq!(result.failures, Vec::<String>::new(), "{context}");
    assert_eq!(result.gateway, SERVICE.to_string());
    assert!(result.gateway_usage.is_none() && result.shards.is_none(), "{context}");
    assert!(result.up.is_exact() && result.down.is_exact() && result.up.received > 1000, "{context}");
    assert_eq!(gateway.sample().unwrap().status.expect("Tollgate tells").shards[0].owned_connections, 0);
    // The gateway is somebody else's: it goes on.
    gateway.stop().unwrap();
    assert_eq!(far_end.stop().unwrap().flows_opened, u64::from(USERS));
}

#[test]
fn a_gateway_that_cannot_be_reached_ends_the_load_in_one_line() {
    let Some(_machine) = machine() else { return };
    let parent = tempfile::tempdir().unwrap();
    let fleet = parent.path().join("fleet");
    Identities::generate(USERS, |_| ()).unwrap().write(&fleet, None).unwrap();
    let idle_timeout = Duration::from_secs(30);
    let files = GatewayFiles::write(&FilesPlan { users: "", mtu_bytes: 1400, idle_timeout }).unwrap();
    let network = Network::build(1400).unwrap();
    let scenario = named(&fleet, &files.certificate(), "198.19.0.2:9");
    let failed = || {
        let load = || tollgate_bench::load::run(&scenario, &tollgate(), &mut Progress::new());
        format!("{:#}", network.clients().run(load).unwrap_err())
    };
    let error = failed();
    assert!(error.starts_with(&format!("no connection to the gateway at {SERVICE} came up in ")), "{error}");
    assert!(error.lines().count() == 1 && error.contains("the gateway assigned no address"), "{error}");
    // One that is there, but knows nobody, says so.
    let (plan, cpus) = (StartedGateway::default(), usable_cpus().unwrap());
    let gateway = Gateway::start(&tollgate(), &plan, &cpus[..1], &files, network.gateway()).unwrap();
    let error = failed();
    assert!(error.contains("Session establishment failed") && error.lines().count() == 1, "{error}");
    gateway.stop().unwrap();
}
