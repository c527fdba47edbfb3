//! The network: what is forwarded, what is thrown away on the way, what links carry, what they do in hardware or in one piece.

use std::io;
use std::net::IpAddr;

use serde_json::Value;
use tollgate_config::ServerConfig;

use super::machine::{Machine, say};
use super::{Finding, Verdict};
use crate::netlink::{Link, Netlink, NetlinkError};

/// What QUIC and the tunnel add to an inner packet, in bytes of UDP payload.
const TUNNEL_BYTES: u32 = 50;
/// IPv4 or IPv6 header, and UDP's.
const HEADER_BYTES: [u32; 2] = [28, 48];

/// What a link should do for large batches, as `ethtool` names it: the word before the colon, and what it costs without.
const FEATURES: [(&str, &str); 3] = [
    ("generic-receive-offload", "each packet passes the kernel's network stack alone"),
    ("rx-udp-gro-forwarding", "forwarded UDP, as QUIC inside the tunnel, passes it packet by packet"),
    ("tx-udp-segmentation", "each datagram to a client is sent alone"),
];

pub fn examine(config: &ServerConfig, machine: &Machine) -> Vec<Finding> {
    let is_v6 = config.tunnel_network.addr().is_ipv6();
    let ruleset = say("nft", &["--json", "list", "ruleset"]);
    let mut findings = vec![forwarding(machine, is_v6, config.host.needs_forwarding())];
    if config.host.needs_rules() {
        let interface = config.interface_name.as_deref().filter(|name| machine.has(&format!("/sys/class/net/{name}")));
        findings.push(own_rules(interface, ruleset.as_deref()));
    }
    findings.push(firewall(ruleset));
    match uplinks(config.bind_address) {
        Ok(uplinks) => {
            findings.extend(reverse_path(machine, is_v6, &uplinks));
            findings.extend(uplinks.iter().map(|link| carries(config, link)));
            let is_real = |link: &&Link| link.name != "lo";
            findings.extend(
                uplinks
                    .iter()
                    .filter(is_real)
                    .flat_map(|link| offloads(&link.name, say("ethtool", &["--show-features", &link.name]))),
            );
        }
        Err(error) => {
            findings.push(Finding { about: "links", verdict: Verdict::Unknown, told: error.to_string(), mend: None })
        }
    }
    findings
}

/// Interfaces over which clients come: those of the address that the gateway listens on, or of the default routes.
fn uplinks(address: IpAddr) -> Result<Vec<Link>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut uplinks = Vec::new();
    let routes = netlink.all_routes()?;
    for link in netlink.links()? {
        let is_uplink = if address.is_unspecified() {
            routes.iter().any(|route| route.destination.prefix_len() == 0 && route.interface == Some(link.index))
        } else {
            netlink.addresses(link.index)?.iter().any(|own| own.addr() == address)
        };
        if is_uplink {
            uplinks.push(link);
        }
    }
    Ok(uplinks)
}

/// `is_turned_on` by the gateway itself, when it starts.
pub(super) fn forwarding(machine: &Machine, is_v6: bool, is_turned_on: bool) -> Finding {
    let about = "forwarding";
    let (path, key) = if is_v6 {
        ("/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding")
    } else {
        ("/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward")
    };
    match machine.number(path) {
        Some(0) if is_turned_on => Finding::fine(about, format!("{key} is 0, and the gateway turns it on")),
        Some(0) => {
            let told = format!("{key} is 0: clients reach the gateway itself and nothing behind it");
            Finding::new(about, Verdict::Missing, told, format!("sysctl -w {key}=1, or forwarding = true in [host]"))
        }
        Some(_) => Finding::fine(about, format!("{key} is on")),
        None => Finding { about, verdict: Verdict::Unknown, told: format!("{path} cannot be read"), mend: None },
    }
}

/// A strict filter of sources drops what comes over another link than the answer would leave by.
pub(super) fn reverse_path(machine: &Machine, is_v6: bool, uplinks: &[Link]) -> Option<Finding> {
    let about = "rp_filter";
    if is_v6 {
        return None;
    }
    let of = |name: &str| machine.number(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
    // The kernel takes the larger one.
    let strict = uplinks.iter().find(|link| of("all").max(of(&link.name)) == 1);
    Some(match strict {
        Some(link) if uplinks.len() > 1 => {
            let told = format!(
                "it is strict on {}, one of {} uplinks: what comes over one and is answered over another is dropped",
                link.name,
                uplinks.len()
            );
            let mend = format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{}.rp_filter=2", link.name);
            Finding::new(about, Verdict::Missing, told, mend)
        }
        _ => Finding::fine(about, "it drops nothing that belongs to the gateway"),
    })
}

/// The rules that the gateway sets up itself; `interface` is there where the gateway runs.
pub(super) fn own_rules(interface: Option<&str>, ruleset: Result<&str, &io::Error>) -> Finding {
    let about = "rules of [host]";
    let ruleset = match ruleset {
        Ok(ruleset) => ruleset,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let told = "masquerade and mss_clamp need the program nft: the gateway does not start without it";
            return Finding::new(about, Verdict::Missing, told, "apt-get install nftables");
        }
        Err(error) => {
            let told = format!("nft says nothing of them: {error}");
            return Finding { about, verdict: Verdict::Unknown, told, mend: None };
        }
    };
    let ruleset: Value = serde_json::from_str(ruleset).unwrap_or_default();
    let tables = || ruleset["nftables"].as_array().into_iter().flatten().map(|object| &object["table"]["name"]);
    match interface.map(|interface| format!("tollgate_{interface}")) {
        Some(table) if !tables().any(|name| *name == table[..]) => {
            let told = format!(
                "the gateway's table {table} is gone, as after a reload of nftables that begins with 'flush ruleset'"
            );
            Finding::new(about, Verdict::Missing, told, "tollgate upgrade, which sets it up again")
        }
        Some(table) => Finding::fine(about, format!("they are in nftables' table {table}")),
        None => Finding::fine(about, "nft is there, and the gateway sets them up when it starts"),
    }
}

/// Chains that drop what no rule of theirs accepts.
pub(super) fn firewall(ruleset: io::Result<String>) -> Finding {
    let about = "firewall";
    let unknown = |told: String| {
        Finding::new(about, Verdict::Unknown, told, "nft list ruleset, as root, and look for 'policy drop'")
    };
    let ruleset = match ruleset {
        Ok(ruleset) => ruleset,
        Err(error) => return unknown(format!("nft says nothing of it: {error}")),
    };
    let Ok(ruleset) = serde_json::from_str::<Value>(&ruleset) else {
        return unknown("nft says what is no JSON".to_owned());
    };
    let objects = ruleset["nftables"].as_array().into_iter().flatten();
    let drops = |chain: &&Value| chain["policy"] == "drop" && (chain["hook"] == "forward" || chain["hook"] == "input");
    let chains: Vec<String> = objects
        .map(|object| &object["chain"])
        .filter(drops)
        .map(|chain| {
            let word = |name: &str| chain[name].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", word("family"), word("table"), word("name"))
        })
        .collect();
    if chains.is_empty() {
        return Finding::fine(about, "no chain of nftables drops input or forwarded packets by default");
    }
    let told = format!(
        "{} drops what no rule accepts: the gateway's UDP port and forwarded packets of the tunnel must be accepted there",
        chains.join(", ")
    );
    let mend = format!("nft list chain {}, and where they are not: nft add rule ... accept", chains[0]);
    Finding::new(about, Verdict::Unknown, told, mend)
}

fn carries(config: &ServerConfig, link: &Link) -> Finding {
    let about = "MTU";
    let Link { name, mtu_bytes, .. } = link;
    let headers = HEADER_BYTES[usize::from(!config.bind_address.is_ipv4())];
    let inner = u32::from(config.connection.mtu_bytes);
    if *mtu_bytes >= inner + TUNNEL_BYTES + headers {
        return Finding::fine(about, format!("{name} carries packets of the tunnel whole ({inner} bytes)"));
    }
    let fits = mtu_bytes.saturating_sub(TUNNEL_BYTES + headers);
    let told = format!(
        "{name} has an MTU of {mtu_bytes}: packets of the tunnel of more than {fits} bytes are fragmented or refused"
    );
    Finding::new(about, Verdict::Dear, told, format!("[connection] mtu = {fits}, at the gateway and its clients"))
}

/// What `ethtool` says of the features of interface `name`.
pub(super) fn offloads(name: &str, features: io::Result<String>) -> Vec<Finding> {
    let about = "offloads";
    let features = match features {
        Ok(features) => features,
        Err(error) => {
            let told = format!("ethtool says nothing of {name}: {error}");
            return vec![Finding::new(about, Verdict::Unknown, told, "apt-get install ethtool")];
        }
    };
    let state = |feature: &str| {
        let mut lines = features.lines().filter_map(|line| line.trim().split_once(':'));
        lines.find(|(name, _)| *name == feature).map(|(_, state)| state.trim().to_owned())
    };
    // What is fixed cannot be had.
    let are_off = FEATURES.iter().filter(|(feature, _)| state(feature).is_some_and(|state| state == "off"));
    let findings = are_off.map(|(feature, price)| {
        let told = format!("{feature} of {name} is off: {price}");
        Finding::new(about, Verdict::Dear, told, format!("ethtool -K {name} {feature} on"))
    });
    let findings: Vec<Finding> = findings.collect();
    if findings.is_empty() {
        return vec![Finding::fine(about, format!("{name} handles packets in batches as far as it can"))];
    }
    findings
}
