//! Requests to a real kernel, in namespaces of their own.

mod address;
mod link;
mod route;
mod watch;

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}
