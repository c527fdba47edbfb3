//! Routes that refuse packets where the tunnel's routes are missing, so that nothing leaves in clear.
//!
//! Behind each route of the tunnel, and behind the host route to the gateway, stands an "unreachable" route to the same destination: of
//! lower preference, and without an interface with which it could go. When the kernel or somebody else takes the tunnel's route away,
//! packets are refused until it is put back. It also stays behind a client that is killed, until the next one has its tunnel.
//!
//! A guard's metric names the tunnel's interface: once that is gone, nobody owns the guard, nor the host route that it stands behind.

use ipnet::IpNet;

use crate::netlink::{Link, PROTOCOL_OWN, Route};

/// The metric that the kernel gives IPv6 routes; IPv4 routes get 0. Guards stand behind those.
pub const DEFAULT_METRIC_V6: u32 = 1024;

/// The guard of the client with the tunnel interface `owner`, behind the routes to `destination`.
pub fn guard(destination: IpNet, owner: u32) -> Route {
    Route::unreachable(destination.trunc(), base(destination).saturating_add(owner))
}

/// The tunnel interface of the client that `route` is a guard of.
pub fn owner(route: &Route) -> Option<u32> {
    let metric = route.metric.filter(|_| route.unreachable && route.protocol == PROTOCOL_OWN)?;
    metric.checked_sub(base(route.destination)).filter(|owner| *owner > 0)
}

/// Those of `routes`, all that this program ever added, that belong to no client that lives: guards whose tunnel is gone, and host routes
/// without a guard. `links` are the interfaces that there are.
pub fn orphans(routes: &[Route], links: &[Link]) -> Vec<Route> {
    let is_alive = |index: u32| links.iter().any(|link| link.index == index);
    let is_guarded =
        |destination| routes.iter().any(|route| route.destination == destination && owner(route).is_some_and(is_alive));
    // What leads into a TUN device goes with it.
    let is_tunneled = |route: &Route| links.iter().any(|link| Some(link.index) == route.interface && link.is_tun);
    let is_orphan = |route: &&Route| match owner(route) {
        Some(owner) => !is_alive(owner),
        None => {
            let is_host = route.destination.prefix_len() == route.destination.max_prefix_len();
            is_host && !route.unreachable && !is_tunneled(route) && !is_guarded(route.destination)
        }
    };
    let own = routes.iter().filter(|route| route.protocol == PROTOCOL_OWN);
    own.filter(is_orphan).copied().collect()
}

fn base(destination: IpNet) -> u32 {
    if destination.addr().is_ipv4() { 0 } else { DEFAULT_METRIC_V6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn link(index: u32, is_tun: bool) -> Link {
        Link {
            index,
            name: format!("link{index}"),
            mtu_bytes: 1500,
            queue_frames: 500,
            is_up: true,
            is_running: true,
            is_tun,
        }
    }

    #[test]
    fn a_guard_names_its_owner_and_is_behind_the_kernels_metrics() {
        for (destination, metric) in [("0.0.0.0/1", 7), ("fd00::/8", 1031)] {
            let guard = guard(net(destination), 7);
            assert_eq!((guard.metric, owner(&guard)), (Some(metric), Some(7)));
            assert_eq!(owner(&guard.foreign()), None);
        }
        assert_eq!(owner(&Route::on_link(net("0.0.0.0/1"), 7)), None);
    }

    #[test]
    fn orphans_are_what_no_living_tunnel_stands_for() {
        let via = |destination, interface| Route {
            interface: Some(interface),
            ..Route::via(net(destination), "198.18.1.1".parse().unwrap())
        };
        let living = [
            via("198.18.0.1/32", 2),
            guard(net("198.18.0.1/32"), 5),
            guard(net("0.0.0.0/1"), 5),
            Route::on_link(net("0.0.0.0/1"), 5),
        ];
        let served = [Route::on_link(net("198.19.128.2/32"), 6)];
        let theirs = [via("198.18.0.9/32", 2).foreign()];
        let killed = [via("198.18.0.2/32", 2), guard(net("198.18.0.2/32"), 4), guard(net("::/1"), 4)];
        let unguarded = [Route::on_link(net("fd00:18::1/128"), 2)];
        let routes = [&living[..], &served, &theirs, &killed, &unguarded].concat();
        let links = [link(1, false), link(2, false), link(5, true), link(6, true)];
        assert_eq!(orphans(&routes, &links), [&killed[..], &unguarded].concat());
    }
}
