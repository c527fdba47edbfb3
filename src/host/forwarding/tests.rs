use super::*;

fn plan(network: &str, interface: &str) -> ForwardingPlan {
    let settings = HostSettings { masquerade: true, forwarding: false, mss_clamp: true };
    ForwardingPlan::of(&settings, network.parse().unwrap(), interface).unwrap()
}

#[test]
fn settings_ask_for_what_they_need() {
    let of = |masquerade, forwarding, mss_clamp| {
        let settings = HostSettings { masquerade, forwarding, mss_clamp };
        let plan = ForwardingPlan::of(&settings, "198.18.0.1/24".parse().unwrap(), "tun0");
        plan.map(|plan| (plan.forwards, plan.masquerade, plan.mss_clamp))
    };
    assert_eq!(of(false, false, false), None);
    assert_eq!(of(true, false, false), Some((true, true, false)));
    assert_eq!(of(false, true, false), Some((true, false, false)));
    assert_eq!(of(false, false, true), Some((false, false, true)));
}

#[test]
fn rules_are_of_the_tunnels_family_and_network_alone() {
    let script = plan("198.18.0.1/24", "tun0").script(7).unwrap();
    assert!(script.starts_with("table ip tollgate_tun0\ndelete table ip tollgate_tun0\ntable ip tollgate_tun0 {\n"));
    assert!(script.contains("\nip saddr 198.18.0.0/24 oifname != \"tun0\" masquerade\n"), "{script}");
    let script = plan("fd00:18::1/64", "tun0").script(7).unwrap();
    assert!(script.contains("\nip6 saddr fd00:18::/64 oifname != \"tun0\" masquerade\n"), "{script}");
    assert!(!script.contains("ip "), "{script}");
}

#[test]
fn a_name_that_would_mean_something_to_nft_is_refused() {
    for name in ["", "a\"b", "a*", "a;b", "a{b", "a\\b", "tun\u{e9}", "$a", "@a", "#a"] {
        let refused = plan("198.18.0.1/24", name).script(7).unwrap_err();
        assert!(matches!(&refused, ForwardingError::Name(_)), "{name}: {refused}");
    }
    assert!(plan("198.18.0.1/24", "my-tun_0.1").script(7).is_ok());
}
