//! What scenario files say, and every mistake in them.

use std::fs;

use super::*;

const GOOD: &str = r#"duration = "20 s"
[gateway]
shards = 2
cpus = [0]
mtu = 1300
[users]
count = 10
connections = 2
absent = 5
limit = "80 mbps"
keep_alive = "5 s"
[ramp]
per_second = 2000
handshakes_max = 32
[harness]
threads = 2
cpus = [1]
seed = 7
[trouble]
churn_per_second = 10
churn_idle_only = true
loss = 0.01
rebinds_per_second = 0.5
[demand]
loss_max = 0.1
all_connected = false
bytes_per_churned_connection_max = 100
[[traffic]]
name = "web"
connections = 12
flows = 3
kind = "request"
rate = 2.5
size = [[100, 7], [1300, 1]]
answer_bytes = 1200
[[traffic]]
connections = 4
kind = "constant"
rate = 10
train = 3
size = "imix"
direction = "up"
[[traffic]]
kind = "bulk"
direction = "down"
"#;

const NAMED: &str = r#"duration = "1 min"
[gateway]
address = "192.0.2.1:55555"
trusted = "server.pem"
identities = "fleet"
far_end = "198.18.0.1:7000"
[users]
count = 100
"#;

fn load(text: &str) -> Result<Scenario, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("given.toml");
    fs::write(&path, text).unwrap();
    Scenario::load(&path)
}

/// The only mistake in `text`, without the file's name: line, column, key, what is wrong and what would be right.
fn mistake(text: &str) -> String {
    let error = load(text).expect_err("a refusal");
    assert_eq!(error.problems().len(), 1, "{error}");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line.split_once("given.toml").expect("the file's name").1.to_owned()
}

/// [`GOOD`] with the line `old` replaced by `new`; and the line's number.
fn with(old: &str, new: &str) -> (String, usize) {
    let line = GOOD.lines().position(|line| line == old).unwrap_or_else(|| panic!("no line {old}"));
    (GOOD.replacen(&format!("{old}\n"), &format!("{new}\n"), 1), line + 1)
}

#[test]
fn everything_that_a_file_says_is_in_the_scenario() {
    let scenario = load(GOOD).unwrap();
    let traffic = |name: &str, connections, flows, kind, direction, sizes: &[(u16, u32)]| TrafficPlan {
        name: name.to_owned(),
        connections,
        flows,
        kind,
        direction,
        sizes: Sizes(sizes.to_vec()),
    };
    let request = TrafficKind::Request { requests_per_second: 2.5, answer_bytes: Some(1200) };
    let constant = TrafficKind::Constant { packets_per_second: 10.0, train_packets: 3 };
    let expected = Scenario {
        name: "given".to_owned(),
        duration: Duration::from_secs(20),
        gateway: GatewayPlan::Started(StartedGateway {
            shards: Some(2),
            cpus: vec![0],
            mtu_bytes: 1300,
            idle_timeout: Duration::from_secs(30),
            log: None,
        }),
        users: UserPlan {
            count: 10,
            connections: 2,
            absent: 5,
            limit: Some("80 mbps".to_owned()),
            ramp_per_second: Some(2000.0),
            handshakes_max: 32,
            keep_alive: Duration::from_secs(5),
        },
        harness: HarnessPlan { threads: 2, cpus: vec![1], sources: Sources::Addresses, seed: 7 },
        trouble: Trouble { churn_per_second: 10.0, churn_idle_only: true, loss: 0.01, rebinds_per_second: 0.5 },
        traffic: vec![
            traffic("web", 12, 3, request, Direction::Both, &[(100, 7), (1300, 1)]),
            traffic("constant", 4, 1, constant, Direction::Up, &[(64, 7), (576, 4), (1300, 1)]),
            // What the others leave.
            traffic("bulk", 4, 1, TrafficKind::Bulk { window_bytes: 262_144 }, Direction::Down, &[(1300, 1)]),
        ],
        demands: Demands { loss_max: Some(0.1), bytes_per_churned_connection_max: Some(100.0), all_connected: false },
    };
    assert_eq!(scenario, expected);
}

#[test]
fn a_gateway_that_is_named_is_not_started_and_sees_ports() {
    let scenario = load(NAMED).unwrap();
    let GatewayPlan::Named(gateway) = &scenario.gateway else { panic!("{:?}", scenario.gateway) };
    assert_eq!((gateway.server_name.as_str(), gateway.mtu_bytes), ("192.0.2.1", 1400));
    assert_eq!((scenario.duration, scenario.harness.sources), (Duration::from_secs(60), Sources::Ports));
}

#[test]
fn nothing_may_be_lost_unless_the_scenario_makes_it_so() {
    let loss_max = |more: &str| {
        let text = format!("duration = \"1 s\"\n[users]\ncount = 1\n{more}");
        load(&text).unwrap().demands.loss_max
    };
    assert_eq!(loss_max(""), Some(0.0));
    assert_eq!(loss_max("limit = \"1 mbps\""), None);
    assert_eq!(loss_max("[trouble]\nloss = 0.1"), None);
    assert_eq!(loss_max("[trouble]\nloss = 0.1\n[demand]\nloss_max = 0.2"), Some(0.2));
}

#[test]
fn every_scenario_that_comes_with_the_harness_is_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let scenario = Scenario::load(&entry.unwrap().path()).unwrap_or_else(|error| panic!("{error}"));
        names.push(scenario.name);
    }
    names.sort();
    let expected = ["bulk", "churn", "clients-10k", "imix", "limited", "lossy", "named", "rebinding", "short"];
    assert_eq!(names, expected);
}

#[test]
fn a_mistake_is_told_with_its_line_what_is_wrong_and_what_would_be_right() {
    // Line, what it is replaced by, key, a part of what is wrong, a part of what would be right.
    let mistakes: &[[&str; 5]] = &[
        ["duration = \"20 s\"", "duration = 20", "duration", "is the number 20", "\"20 s\", from 1 s to 6 d"],
        ["duration = \"20 s\"", "duration = \"20\"", "duration", "which has no unit", "ms, s, min, h or d"],
        ["duration = \"20 s\"", "duration = \"20 m\"", "duration", "whose unit \"m\" is unknown", "min"],
        ["duration = \"20 s\"", "duration = \"7 d\"", "duration", "which is out of range", "from 1 s to 6 d"],
        ["duration = \"20 s\"", "duration = \"- s\"", "duration", "does not start with a number", "write a number"],
        ["seed = 7", "seeds = 7", "harness.seeds", "is not a known key", "did you mean `seed`?"],
        ["shards = 2", "shards = 0", "gateway.shards", "is 0, which is too small", "from 1 to 128"],
        ["shards = 2", "shard = 2", "gateway.shard", "is not a known key", "did you mean `shards`?"],
        ["shards = 2", "far_end = \"198.18.0.1:1\"", "gateway.far_end", "none is named", "name the gateway: address"],
        ["cpus = [0]", "cpus = [0, 0]", "gateway.cpus", "names CPU 0 twice", "once"],
        ["cpus = [0]", "cpus = [\"a\"]", "gateway.cpus[0]", "is the string \"a\"", "from 0 to 1023"],
        ["mtu = 1300", "mtu = 100", "gateway.mtu", "is 100, which is too small", "from 576 to 9000"],
        ["count = 10", "count = 0", "users.count", "is 0, which is too small", "from 1 to 60000"],
        ["count = 10", "count = 60000", "users.count", "is 120000 connections", "at most 60000"],
        ["limit = \"80 mbps\"", "limit = \"80\"", "users.limit", "which has no unit", "write a number and bps"],
        ["keep_alive = \"5 s\"", "keep_alive = \"30 s\"", "users.keep_alive", "after 30 s", "make it shorter"],
        ["per_second = 2000", "per_second = 0", "ramp.per_second", "which is too small", "from 0.001 to"],
        ["threads = 2", "threads = 21", "harness.threads", "more threads than the 20 connections", "at least"],
        ["seed = 7", "sources = \"sockets\"", "harness.sources", "which is neither", "\"addresses\""],
        ["loss = 0.01", "loss = 0.6", "trouble.loss", "is 0.6, which is too large", "from 0 to 0.5"],
        ["loss = 0.01", "loss = nan", "trouble.loss", "is the fraction nan", "from 0 to 0.5"],
        ["loss_max = 0.1", "loss_max = -1", "demand.loss_max", "is -1, which is too small", "from 0 to 1"],
        ["all_connected = false", "all_connected = 1", "demand.all_connected", "is the number 1", "true or false"],
        ["name = \"web\"", "name = \"\"", "traffic[0].name", "which is no name", "1 to 24 characters"],
        ["name = \"web\"", "name = \"bulk\"", "traffic[2].name", "as another group's is", "a name of its own"],
        ["connections = 12", "connections = 17", "traffic[1].connections", "of which 3 are left", "more users"],
        ["flows = 3", "flows = 65", "traffic[0].flows", "which is too large", "from 1 to 64"],
        ["kind = \"request\"", "kind = \"requests\"", "traffic[0].kind", "no kind of traffic", "\"request\""],
        ["flows = 3", "flow = 3", "traffic[0].flow", "is not a known key", "did you mean `flows`?"],
        ["rate = 10", "rate = 0", "traffic[1].rate", "which is too small", "from 0.001"],
        ["answer_bytes = 1200", "answer_bytes = 51", "traffic[0].answer_bytes", "too small", "from 52 to 1300"],
        ["answer_bytes = 1200", "direction = \"up\"", "traffic[0].direction", "is one way", "kind = \"constant\""],
        ["answer_bytes = 1200", "window_bytes = 1", "traffic[0].window_bytes", "nothing for request", "only bulk"],
        ["size = \"imix\"", "size = 1301", "traffic[1].size", "is 1301, which is too large", "from 52 to 1300"],
        ["size = \"imix\"", "size = \"big\"", "traffic[1].size", "which is no known mix", "\"imix\""],
        ["size = \"imix\"", "size = [[100]]", "traffic[1].size[0]", "is no pair", "with their weights"],
        ["size = \"imix\"", "size = [[100, 0]]", "traffic[1].size[0][1]", "too small", "from 1 to 1000"],
        ["size = \"imix\"", "size = []", "traffic[1].size", "0 packet sizes are given", "with their weights"],
        ["direction = \"down\"", "rate = 5", "traffic[2].rate", "nothing for bulk traffic", "remove it"],
        ["direction = \"down\"", "direction = \"in\"", "traffic[2].direction", "which is no direction", "\"down\""],
    ];
    for [old, new, key, wrong, right] in mistakes {
        let (text, line) = with(old, new);
        let told = mistake(&text);
        assert!(told.contains(&format!("`{key}` ")) && told.contains(wrong) && told.contains(right), "{new}: {told}");
        // Where one mistake concerns two places, the later one is told.
        let is_elsewhere = ["name = \"bulk\"", "connections = 17"].contains(new);
        assert_eq!(told.starts_with(&format!(":{line}:")), !is_elsewhere, "{new}: {told}");
    }
}

#[test]
fn what_is_missing_is_told() {
    for (gone, key, right) in [
        ("duration = \"20 s\"\n", "`duration` is missing", "duration = \"20 s\""),
        ("count = 10\n", "`users.count` is missing", "count = 100"),
        ("rate = 2.5\n", "`traffic[0].rate` is missing", "rate = 10.0"),
        ("kind = \"bulk\"\n", "`traffic[2].kind` is missing", "\"bulk\", \"constant\" or \"request\""),
    ] {
        let told = mistake(&GOOD.replacen(gone, "", 1));
        assert!(told.contains(key) && told.contains(right), "{told}");
    }
    for gone in ["trusted", "identities", "far_end"] {
        let line = NAMED.lines().find(|line| line.starts_with(gone)).unwrap();
        let told = mistake(&NAMED.replacen(&format!("{line}\n"), "", 1));
        assert!(told.starts_with(":2:") && told.contains(&format!("`gateway.{gone}` is missing")), "{told}");
    }
}

#[test]
fn what_a_named_gateway_cannot_have_is_refused() {
    for (line, key, wrong) in [
        ("[gateway]\nshards = 2", "gateway.shards", "`address` names one that runs already"),
        ("[users]\nabsent = 2", "users.absent", "whose users file is written already"),
    ] {
        let header = line.lines().next().unwrap();
        let told = mistake(&NAMED.replacen(header, line, 1));
        assert!(told.contains(&format!("`{key}`")) && told.contains(wrong), "{told}");
    }
    let told = mistake(&format!("{NAMED}[harness]\nsources = \"addresses\"\n"));
    assert!(told.starts_with(":10:") && told.contains("only in namespaces made for the run; use \"ports\""), "{told}");
    for (old, new, wrong) in [
        ("192.0.2.1:55555", "192.0.2.1", "which is no IP address with a port"),
        ("192.0.2.1:55555", "192.0.2.1:0", "which has port 0"),
        ("192.0.2.1:55555", "0.0.0.0:1", "which is nobody's address"),
        ("198.18.0.1:7000", "[fd00::1]:7000", "traffic inside the tunnel is IPv4"),
    ] {
        let told = mistake(&NAMED.replace(old, new));
        assert!(told.contains(wrong), "{told}");
    }
}

#[test]
fn bounds_of_the_whole_hold() {
    let of = |users: &str, more: &str| format!("duration = \"1 s\"\n[users]\n{users}\n{more}");
    let told = mistake(&of("count = 16001", ""));
    assert!(told.contains("of which there are 16000, but there are 16001 connections; have fewer"), "{told}");
    load(&of("count = 16001", "[harness]\nsources = \"ports\"")).unwrap();
    let told = mistake(&of("count = 10000", "[[traffic]]\nkind = \"bulk\"\nflows = 13"));
    assert!(told.starts_with(":4:") && told.contains("makes it 130000 flows in all; have at most 120000"), "{told}");
    let groups: String =
        (0..=GROUPS_MAX).map(|n| format!("[[traffic]]\nname = \"{n}\"\nkind = \"bulk\"\nconnections = 1\n")).collect();
    let told = mistake(&of("count = 100", &groups));
    assert!(told.contains("`traffic[32]` is one group too many; at most 32"), "{told}");
    let told = mistake(&of("count = 1", "[[traffic]]\nkind = \"bulk\"\n[[traffic]]\nname = \"b\"\nkind = \"bulk\""));
    assert!(told.contains("`traffic[1].connections` asks for 1 connections, of which 0 are left"), "{told}");
}

#[test]
fn all_mistakes_of_a_file_are_told_in_the_order_of_their_lines() {
    let text = GOOD.replace("mtu = 1300", "mtu = 1").replace("loss = 0.01", "loss = 2").replace("[ramp]", "[rump]");
    let error = load(&text).unwrap_err();
    let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3, "{error}");
    assert!(lines[0].contains("`gateway.mtu`") && lines[1].contains("`rump` is not a known key; did you mean `ramp`?"));
    assert!(lines[2].contains("`trouble.loss`"), "{error}");
}

#[test]
fn what_is_no_scenario_file_at_all_is_told_in_a_line() {
    let error = Scenario::load(Path::new("/nowhere/x.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/x.toml: cannot be read: ") && error.lines().count() == 1, "{error}");
    assert!(mistake("duration = 20 s\n").starts_with(":1:"), "{}", mistake("duration = 20 s\n"));
    let told = mistake("duration = \"1 s\"\ntraffic = 5\n[users]\ncount = 1\n");
    assert!(told.contains("`traffic` is the number 5, not a list") && told.contains("[[traffic]]"), "{told}");
}
