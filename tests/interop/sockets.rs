//! What the kernel drops at the gateway's sockets.

use tollgate_testkit::Namespace;

use tollgate_test_support::deployment::PORT;

/// Datagrams that the kernel has dropped at sockets of the gateway's port in `inside`, because they were full.
pub fn datagrams_lost(inside: &Namespace) -> u64 {
    let port = format!(":{PORT:04X}");
    inside.run(|| {
        let tables = ["udp", "udp6"].map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")));
        let tables = tables.map(|table| table.expect("a table of sockets"));
        let sockets: Vec<Vec<_>> = tables
            .iter()
            .flat_map(|table| table.lines().skip(1))
            .map(|line| line.split_whitespace().collect())
            .collect();
        let of_gateway: Vec<_> = sockets.iter().filter(|fields| fields[1].ends_with(&port)).collect();
        assert!(!of_gateway.is_empty(), "the gateway has sockets");
        of_gateway
            .iter()
            .map(|fields| fields.last().and_then(|drops| drops.parse::<u64>().ok()).expect("a number"))
            .sum()
    })
}
