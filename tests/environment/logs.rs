//! What programs read of the log, objects of JSON and entries of systemd's journal; and what nobody is to read in any.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tollgate_noise::Kind;
use tollgate_test_support::client::Login;
use tollgate_test_support::deployment::{Deployment, Plan};
use tollgate_test_support::gateway::Gateway;
use tollgate_test_support::mounts::after_mounts;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, control, turn};
use tollgate_testkit::{Process, Topology, TopologyPlan};

/// The gateway's own address, for clients in its namespace.
const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);

fn written(format: &str) -> (Deployment, Topology, Command) {
    let deployment = Deployment::write(&Plan::default());
    let topology = Topology::build(&TopologyPlan { clients: 0, ..TopologyPlan::default() }).unwrap();
    let mut command = Gateway::command(&deployment);
    command.env("TOLLGATE_LOG__FORMAT", format);
    (deployment, topology, command)
}

/// Has alice log in, and sends her away.
fn log_in_and_kick(deployment: &Deployment, topology: &Topology) {
    let _alice = topology.gateway.run(|| TestTunnel::login(deployment, "alice", GATEWAY.into(), None));
    assert!(control::kick(deployment, "alice").done);
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn every_line_of_json_is_an_object_with_what_the_line_tells_and_so_are_the_last_words() {
    let _turn = turn::together();
    let (deployment, topology, command) = written("json");
    let mut gateway = Gateway::start_with(command, &topology.gateway);
    log_in_and_kick(&deployment, &topology);
    let files = Deployment::write(&Plan::default());
    let mut second = Gateway::command(&files);
    second.env("TOLLGATE_LOG__FORMAT", "json");
    let mut second = topology.gateway.spawn(second).unwrap();
    assert!(!second.wait(PATIENCE).unwrap().success());
    gateway.process.signal(Signal::TERM).unwrap();
    assert!(gateway.process.wait(PATIENCE).unwrap().success());
    let objects = |lines: Vec<String>| -> Vec<Value> {
        let lines = lines.iter();
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
    };
    let objects_of = objects(gateway.process.lines());
    let told = |message: &str| {
        let found = objects_of.iter().find(|object| object["message"] == message);
        found.unwrap_or_else(|| panic!("no {message:?} in {objects_of:#?}"))
    };
    let connected = told("client connected");
    assert_eq!((&connected["level"], &connected["user"]), (&"INFO".into(), &"alice".into()));
    assert!(connected["target"].as_str().unwrap().starts_with("tollgate") && connected["timestamp"].is_string());
    assert!(told("client disconnected")["reason"].is_string());
    let last = objects(second.lines()).pop().unwrap();
    assert_eq!(last["level"], "ERROR");
    assert!(last["message"].as_str().unwrap().contains("is in use by another process"), "{last}");
}

/// A place where entries of the journal arrive.
struct Journal(UnixDatagram);

impl Journal {
    fn open(folder: &Path) -> Self {
        let socket = UnixDatagram::bind(folder.join("socket")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Journal(socket)
    }

    /// The next entry whose message contains `words`.
    fn wait_for(&self, words: &str) -> BTreeMap<String, String> {
        loop {
            let mut entry = vec![0; 65536];
            let bytes = self.0.recv(&mut entry).unwrap_or_else(|error| panic!("no entry with {words:?}: {error}"));
            let mut rest = &entry[..bytes];
            let mut fields = BTreeMap::new();
            while !rest.is_empty() {
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
                let (length, value) = rest[end + 1..].split_first_chunk().unwrap();
                let (value, next) = value.split_at(u64::from_le_bytes(*length) as usize);
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                fields.insert(text(&rest[..end]), text(value));
                rest = &next[1..];
            }
            if fields.get("MESSAGE").is_some_and(|message| message.contains(words)) {
                return fields;
            }
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_journal_gets_a_field_for_each_value_also_when_it_was_started_anew() {
    let _turn = turn::together();
    let (deployment, topology, command) = written("journald");
    let folder = tempfile::tempdir().unwrap();
    let place = "/run/systemd/journal";
    let mounts =
        format!("mount -t tmpfs none /run && mkdir -p {place} && mount --bind {} {place}", folder.path().display());
    let journal = Journal::open(folder.path());
    let gateway = topology.gateway.spawn(after_mounts(&mounts, &command)).unwrap();
    journal.wait_for("listening on");
    log_in_and_kick(&deployment, &topology);
    let connected = journal.wait_for("client connected");
    let told = ["TOLLGATE_USER", "PRIORITY", "SYSLOG_IDENTIFIER"].map(|field| &connected[field][..]);
    assert_eq!(told, ["alice", "6", "tollgate"]);
    drop(journal);
    fs::remove_file(folder.path().join("socket")).unwrap();
    log_in_and_kick(&deployment, &topology);
    let journal = Journal::open(folder.path());
    log_in_and_kick(&deployment, &topology);
    assert_eq!(journal.wait_for("were lost: the journal did not take them")["PRIORITY"], "4");
    log_in_and_kick(&deployment, &topology);
    journal.wait_for("client connected");
    assert!(gateway.lines().is_empty(), "{:#?}", gateway.lines());
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn without_a_journal_the_gateway_says_so_and_ends() {
    let _turn = turn::together();
    let (_deployment, topology, command) = written("journald");
    let mut gateway = topology.gateway.spawn(after_mounts("mount -t tmpfs none /run", &command)).unwrap();
    assert!(!gateway.wait(PATIENCE).unwrap().success());
    let lines = gateway.lines();
    assert!(lines.len() == 1 && lines[0].contains("/run/systemd/journal/socket"), "{lines:#?}");
    assert!(lines[0].contains("write \"human\" or \"json\""), "{lines:#?}");
}

/// A secret in each form in which a line could have it.
struct Secret {
    of: String,
    forms: Vec<String>,
}

impl Secret {
    fn new(of: &str, bytes: &[u8]) -> Self {
        // Two pieces, so that a part of it is found too: what it begins with may be the same for all of its kind.
        let pieces = [&bytes[bytes.len() / 2..], &bytes[bytes.len() / 4..]].map(|from| &from[..from.len().min(12)]);
        let forms = pieces.iter().flat_map(|piece| {
            let list = format!("{piece:?}");
            let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
            [list.trim_matches(['[', ']']).to_owned(), hex.to_uppercase(), hex, piece.escape_ascii().to_string()]
        });
        // What stands whole in a file, as base64.
        let base64 = |skipped: usize| {
            let whole = BASE64_STANDARD.encode(&bytes[bytes.len() / 2 + skipped..]);
            whole[..whole.len().min(16)].to_owned()
        };
        Secret { of: of.to_owned(), forms: forms.chain([0, 1, 2].map(base64)).collect() }
    }

    fn is_in(&self, line: &str) -> bool {
        self.forms.iter().any(|form| line.contains(form))
    }
}

/// All that the gateway and its clients have to keep to themselves.
fn secrets(deployment: &Deployment) -> Vec<Secret> {
    let mut secrets = vec![Secret::new("keys", &fs::read(deployment.path("keys")).unwrap())];
    for name in ["server", "alice", "bob"] {
        let key = PrivateKeyDer::from_pem_file(deployment.path(&format!("{name}_key.pem"))).unwrap();
        secrets.push(Secret::new(&format!("the key of {name}'s certificate"), key.secret_der()));
        for kind in Kind::ALL {
            let key = BASE64_STANDARD.decode(deployment.private_key(name, kind)).unwrap();
            secrets.push(Secret::new(&format!("{name}'s Noise key ({kind})"), &key));
        }
    }
    secrets
}

#[test]
fn a_secret_is_found_in_each_form() {
    let bytes: Vec<u8> = (60..124).collect();
    let secret = Secret::new("", &bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let forms = [
        format!("{bytes:?}"),
        hex.to_uppercase(),
        hex,
        bytes.escape_ascii().to_string(),
        BASE64_STANDARD.encode(&bytes),
    ];
    forms.iter().for_each(|form| assert!(secret.is_in(&format!("key={form} and more")), "{form}"));
    assert!(!secret.is_in("a line without one"));
}

/// Gateway and clients at the highest level, over a run with all that secrets take part in.
#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn no_secret_stands_in_a_log_of_any_level() {
    let _turn = turn::together();
    let mut deployment = Deployment::write(&Plan { serves_noise: true, ..Plan::default() });
    deployment.write_identity("mallory", &[]);
    let topology = Topology::build(&TopologyPlan { clients: 3, ..TopologyPlan::default() }).unwrap();
    let at_trace = |mut command: Command| {
        command.env("RUST_LOG", "trace,quinn_proto=trace,rustls=trace,glommio=trace");
        command
    };
    let gateway = Gateway::start_with(at_trace(Gateway::command(&deployment)), &topology.gateway);
    let logins = [Login::of("alice"), Login::by_noise("bob", "hybrid"), Login::of("mallory")];
    let clients = logins.iter().zip(&topology.clients).map(|(login, at)| {
        let mut command = Command::new(tollgate_test_support::program());
        command.arg("connect").arg("--config").arg(deployment.write_client(*login)).current_dir(deployment.folder());
        at.namespace.spawn(at_trace(command)).unwrap()
    });
    let clients: Vec<Process> = clients.collect();
    for words in ["user=\"alice\"", "user=\"bob\"", "no user has this certificate"] {
        gateway.process.wait_for_line(words, PATIENCE).unwrap();
    }
    assert!(control::ask(&deployment, &["reload"]).done);
    gateway.status();
    assert!(control::kick(&deployment, "alice").done);
    let first = gateway.process.line_count();
    let upgraded = control::ask(&deployment, &["upgrade", "--within", "0s"]);
    assert!(upgraded.done, "{upgraded:?}");
    for user in ["alice", "bob"] {
        gateway.process.wait_for_line_from(first, &format!("client connected user=\"{user}\""), PATIENCE).unwrap();
    }
    let secrets = secrets(&deployment);
    let mut lines = 0;
    for process in clients.iter().chain([&gateway.process]) {
        for line in process.lines() {
            lines += 1;
            let told = secrets.iter().find(|secret| secret.is_in(&line));
            assert!(told.is_none(), "{}: {line}", told.map_or("", |secret| &secret.of));
        }
        assert!(process.lines().iter().any(|line| line.contains("TRACE")), "{:#?}", process.lines());
    }
    println!("{lines} lines, {} secrets", secrets.len());
}
