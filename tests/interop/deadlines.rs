//! Sessions that end: with the client's certificate, and when nothing is said, as a reload wants it.

use std::time::{Duration, Instant};

use tollgate_test_support::client::{Attached, Client, Login};
use tollgate_test_support::control;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::peers::Peers;
use tollgate_test_support::scrape::Scrape;
use tollgate_test_support::traffic::{assert_pings, wait_for_ping};
use tollgate_test_support::{PATIENCE, eventually, turn};
use tollgate_testkit::{SERVER_V4, Topology, TopologyPlan};

/// What quincy-client says of the code that is for this alone.
const OVER: &str = "QUIC application error: 10";
/// For how long alice's certificate is valid.
const VALID: Duration = Duration::from_secs(10);
/// How late a client on a busy machine may hear of it.
const LATE: Duration = Duration::from_secs(2);

#[test]
#[ignore = "needs root and Quincy's programs: cargo xtask test --full"]
fn a_session_ends_with_the_certificate_and_an_idle_one_when_a_reload_wants_it() {
    let peers = Peers::find();
    let _turn = turn::together();
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let mut deployment = Deployment::write(&Plan::default());
    deployment.edit_server(
        "[control]",
        "[metrics]\nenabled = true\n[sessions]\nenforce_certificate_expiry = true\n[control]",
    );
    let written = Instant::now();
    deployment.write_identity_for("alice", VALID);
    deployment.write_users(&[("alice".to_owned(), None), ("bob".to_owned(), None)]);
    let mut gateway = Gateway::start(&deployment, &topology.gateway);
    let [first, second] = [0, 1].map(|index| &topology.clients[index].namespace);

    let alice = Attached::start(&peers, &deployment, first, &gateway, Login::of("alice"));
    let bob = Attached::start(&peers, &deployment, second, &gateway, Login::of("bob"));
    [first, second].into_iter().for_each(|inside| wait_for_ping(inside, SERVER_V4));
    assert_eq!(gateway.count_lines("client's certificate ends soon"), 1, "{:?}", gateway.process.lines());
    assert!(alice.client.process.lines().iter().all(|line| !line.contains(OVER)));

    // In whole seconds of the day.
    alice.client.process.wait_for_line(OVER, PATIENCE).unwrap();
    let after = written.elapsed();
    assert!(after > VALID - Duration::from_secs(1) && after < VALID + LATE, "closed after {after:?}");
    let ended = |reason: &str| {
        let name = format!("tollgate_ended_sessions_total{{reason=\"{reason}\"}}");
        Scrape::fetch(&topology.gateway).unwrap().value(&name)
    };
    assert!(eventually(PATIENCE, || ended("certificate") == 1.0));
    gateway.process.wait_for_line("The certificate has expired", PATIENCE).unwrap();
    let again = Client::start(&peers, &deployment, first, Login::of("alice"));
    assert!(eventually(PATIENCE, || ended("certificate") == 2.0), "{:?}", again.process.lines());
    assert_pings(second, SERVER_V4);

    // He has long said nothing when the next reload is through.
    std::thread::sleep(Duration::from_millis(1500));
    deployment.edit_server("[sessions]\n", "[sessions]\nidle_timeout_s = 1\n");
    let answer = control::reload(&deployment);
    assert!(answer.done, "{answer:?}");
    bob.client.process.wait_for_line(OVER, PATIENCE).unwrap();
    assert!(answer.at.elapsed() < LATE, "{:?} after the reload", answer.at.elapsed());
    gateway.process.wait_for_line("The session was idle for too long", PATIENCE).unwrap();
    gateway.assert_sound();
}
