//! `tollgate doctor` on a machine that lacks something, and after its own command has mended that.

use std::process::Command;

use serde_json::Value;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::turn;
use tollgate_testkit::Namespace;

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn what_is_missing_is_named_with_the_command_that_mends_it() {
    let _turn = turn::together();
    let deployment = Deployment::write(&Plan::default());
    let machine = Namespace::new("sick").unwrap();
    let sysctl = |setting: &str| machine.run(|| Command::new("sysctl").args(["-qw", setting]).status()).unwrap();
    assert!(sysctl("net.ipv4.ip_forward=0").success());
    let examine = |options: &[&str]| {
        let mut doctor = Command::new(tollgate_test_support::program());
        doctor.arg("doctor").arg("--config").arg(deployment.path("server.toml")).args(options);
        machine.run(|| doctor.current_dir(deployment.folder()).output()).unwrap()
    };
    let found = |about: &str| {
        let said: Value = serde_json::from_slice(&examine(&["--json"]).stdout).unwrap();
        assert_eq!(said["version"], 1);
        let finding = said["findings"].as_array().unwrap().iter().find(|finding| finding["about"] == about);
        finding.unwrap_or_else(|| panic!("nothing of {about}: {said}")).clone()
    };
    let output = examine(&[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("missing forwarding: net.ipv4.ip_forward is 0"), "{said}");
    let forwarding = found("forwarding");
    assert_eq!(forwarding["verdict"], "missing");
    let (command, _) = forwarding["mend"].as_str().unwrap().split_once(", or ").unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    assert!(machine.run(|| Command::new(words[0]).args(&words[1..]).status()).unwrap().success());
    assert_eq!(found("forwarding")["verdict"], "fine");
    assert_eq!(examine(&[]).status.code(), Some(0), "{}", String::from_utf8_lossy(&examine(&[]).stdout));
    ["io_uring", "locked memory", "CPU governor", "clock", "socket buffers", "certificate", "firewall"]
        .iter()
        .for_each(|about| _ = found(about));
}
