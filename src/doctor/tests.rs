use std::fs;
use std::io::{Error, ErrorKind};

use tempfile::TempDir;

use super::machine::Machine;
use super::network::{firewall, forwarding, offloads, own_rules, reverse_path};
use super::resources::{buffers, governor, memlock, of_clock};
use super::*;
use crate::netlink::Link;

/// A machine with these files.
fn machine(files: &[(&str, &str)]) -> (TempDir, Machine) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }
    let machine = Machine::at(root.path());
    (root, machine)
}

fn link(name: &str) -> Link {
    Link {
        name: name.to_owned(),
        index: 1,
        mtu_bytes: 1500,
        queue_frames: 1000,
        is_up: true,
        is_running: true,
        is_tun: false,
    }
}

#[test]
fn forwarding_is_that_of_the_tunnels_family() {
    let (_root, it) = machine(&[("proc/sys/net/ipv4/ip_forward", "0"), ("proc/sys/net/ipv6/conf/all/forwarding", "1")]);
    let found = forwarding(&it, false, false);
    let mend = found.mend.as_deref().unwrap_or_default();
    assert!(found.verdict == Verdict::Missing && mend.starts_with("sysctl -w net.ipv4.ip_forward=1"), "{found:?}");
    assert_eq!(forwarding(&it, false, true).verdict, Verdict::Fine);
    assert_eq!(forwarding(&it, true, false).verdict, Verdict::Fine);
    let (_root, bare) = machine(&[]);
    assert_eq!(forwarding(&bare, true, false).verdict, Verdict::Unknown);
}

#[test]
fn a_strict_filter_of_sources_matters_where_there_are_several_uplinks() {
    let (_root, it) =
        machine(&[("proc/sys/net/ipv4/conf/all/rp_filter", "0"), ("proc/sys/net/ipv4/conf/b/rp_filter", "1")]);
    let verdict = |links: &[&str]| {
        let links: Vec<Link> = links.iter().map(|name| link(name)).collect();
        reverse_path(&it, false, &links).unwrap().verdict
    };
    assert_eq!(
        [verdict(&["a"]), verdict(&["b"]), verdict(&["a", "b"])],
        [Verdict::Fine, Verdict::Fine, Verdict::Missing]
    );
    assert_eq!(reverse_path(&it, true, &[link("a"), link("b")]), None);
}

#[test]
fn a_chain_that_drops_by_default_is_named() {
    let ruleset = r#"{"nftables":[{"metainfo":{}},
        {"chain":{"family":"inet","table":"filter","name":"out","hook":"output","policy":"drop"}},
        {"chain":{"family":"inet","table":"filter","name":"through","hook":"forward","policy":"drop"}},
        {"chain":{"family":"ip","table":"nat","name":"in","hook":"input","policy":"accept"}}]}"#;
    let found = firewall(Ok(ruleset.to_owned()));
    assert!(found.verdict == Verdict::Unknown && found.told.starts_with("inet filter through drops"), "{found:?}");
    assert_eq!(firewall(Ok(r#"{"nftables":[]}"#.to_owned())).verdict, Verdict::Fine);
    assert_eq!(firewall(Err(Error::from(ErrorKind::NotFound))).verdict, Verdict::Unknown);
}

#[test]
fn rules_of_the_gateway_that_are_gone_are_missed() {
    let ruleset = Ok(r#"{"nftables":[{"metainfo":{}},{"table":{"family":"ip","name":"tollgate_tun0"}}]}"#);
    let verdicts = [Some("tun0"), Some("tun1"), None].map(|interface| own_rules(interface, ruleset).verdict);
    assert_eq!(verdicts, [Verdict::Fine, Verdict::Missing, Verdict::Fine]);
    let without = Err(&Error::from(ErrorKind::NotFound));
    let found = own_rules(None, without);
    assert_eq!((found.verdict, found.mend.as_deref()), (Verdict::Missing, Some("apt-get install nftables")));
}

#[test]
fn what_a_link_could_do_and_does_not_is_named_with_the_command() {
    let said = "Features for eth0:\ngeneric-receive-offload: on\nrx-udp-gro-forwarding: off\ntx-udp-segmentation: off [fixed]\n";
    let found = offloads("eth0", Ok(said.to_owned()));
    let mends: Vec<_> = found.iter().filter_map(|finding| finding.mend.as_deref()).collect();
    assert_eq!(mends, ["ethtool -K eth0 rx-udp-gro-forwarding on"]);
    assert_eq!(offloads("eth0", Ok("generic-receive-offload: on".to_owned()))[0].verdict, Verdict::Fine);
    assert_eq!(offloads("eth0", Err(Error::from(ErrorKind::NotFound)))[0].verdict, Verdict::Unknown);
}

#[test]
fn cores_that_save_power_and_buffers_that_are_small_are_dear() {
    let governed =
        |of: &str, governor: &'static str| (format!("sys/devices/system/cpu/{of}/cpufreq/scaling_governor"), governor);
    let files = [governed("cpu0", "performance"), governed("cpu1", "powersave"), governed("cpuidle", "menu")];
    let (_root, it) = machine(&files.each_ref().map(|(path, text)| (&path[..], *text)));
    let found = governor(&it);
    assert!(found.verdict == Verdict::Dear && found.told.starts_with("cpu1 is governed by \"powersave\""), "{found:?}");
    let (_root, it) = machine(&[("proc/sys/net/core/rmem_max", "212992"), ("proc/sys/net/core/wmem_max", "8388608")]);
    assert_eq!(
        (governor(&it).verdict, buffers(&it, true).verdict, buffers(&it, false).verdict),
        (Verdict::Fine, Verdict::Fine, Verdict::Dear)
    );
    assert_eq!([of_clock(true), of_clock(false)].map(|found| found.verdict), [Verdict::Fine, Verdict::Dear]);
}

#[test]
fn locked_memory_matters_on_old_kernels_only() {
    for (release, verdict) in
        [("5.10.0-30-amd64", Verdict::Missing), ("5.12.1", Verdict::Fine), ("6.18.5", Verdict::Fine)]
    {
        let (_root, it) = machine(&[("proc/sys/kernel/osrelease", release)]);
        assert_eq!(memlock(&it, Some(64 << 10)).verdict, verdict, "{release}");
        assert_eq!(memlock(&it, None).verdict, Verdict::Fine);
    }
}

#[test]
fn the_worst_comes_first_with_what_mends_it_below() {
    let doubt = Doubt { is_certain: true, text: "the certificate has expired".to_owned() };
    let mut all =
        vec![Finding::fine("clock", "it is kept right"), Finding::new("MTU", Verdict::Dear, "it is small", "raise it")];
    all.extend(of_certificate(&[doubt]));
    let found = Findings::of(all);
    assert!(found.are_grave());
    let said = "missing certificate: the certificate has expired\n\
                dear    MTU: it is small\n        mend: raise it\n\
                fine    clock: it is kept right";
    assert_eq!(found.to_string(), said);
}
