//! The gateway where containers, service managers and other users set bounds: the real program under their rules, with a real client.

use std::collections::BTreeMap;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::process::Command;

use tollgate_testkit::{Namespace, Process, SERVER_V4, Topology, TopologyPlan};

use tollgate_testkit::bed::client::{Attached, Login};
use tollgate_testkit::bed::deployment::{Deployment, Plan};
use tollgate_testkit::bed::gateway::Gateway;
use tollgate_testkit::bed::mounts::after_mounts;
use tollgate_testkit::bed::peers::{Peers, gateways_can_run};
use tollgate_testkit::bed::traffic::{assert_pings, wait_for_ping};
use tollgate_testkit::bed::{PATIENCE, turn};

// The interop tests use the rest of it.

const PLAIN_THREADS: &str = "the shards run on plain pinned threads";

/// Set for this test program where it is to forbid system calls and become the command behind `--`: `call=errno` with commas between.
const FORBIDDEN: &str = "TOLLGATE_TEST_FORBIDDEN_CALLS";

/// The calls of io_uring, by number.
const URING_CALLS: [(&str, i64); 3] = [
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register),
];

/// A call that container engines of before 2021 do not know, nor kernels before 5.11.
const WAITING_CALL: (&str, i64) = ("epoll_pwait2", libc::SYS_epoll_pwait2);

/// What Kubernetes sets in each container of a name space that has a service of this name.
fn variables_of_a_service(name: &str) -> Vec<(String, &'static str)> {
    let variables = [
        ("SERVICE_HOST", "198.18.77.7"),
        ("SERVICE_PORT", "9090"),
        ("SERVICE_PORT_HTTP", "9090"),
        ("PORT", "tcp://198.18.77.7:9090"),
        ("PORT_9090_TCP", "tcp://198.18.77.7:9090"),
        ("PORT_9090_TCP_PROTO", "tcp"),
        ("PORT_9090_TCP_PORT", "9090"),
        ("PORT_9090_TCP_ADDR", "198.18.77.7"),
    ];
    variables.into_iter().map(|(suffix, value)| (format!("{name}_{suffix}"), value)).collect()
}

/// A gateway's files, and where it runs.
struct Site {
    deployment: Deployment,
    topology: Topology,
}

impl Site {
    fn new(plan: &Plan) -> Self {
        let deployment = Deployment::write(plan);
        let topology = Topology::build(&TopologyPlan { clients: 1, ..TopologyPlan::default() }).unwrap();
        Site { deployment, topology }
    }

    /// A configuration as Quincy's server has it: none of our own tables.
    fn with_quincys_own_file(plan: &Plan) -> Self {
        let site = Site::new(plan);
        let path = site.deployment.path("server.toml");
        let mut table: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        for ours in ["shards", "control"] {
            table.remove(ours);
        }
        fs::write(path, table.to_string()).unwrap();
        site
    }

    /// `tollgate serve` with words in front, as of `prlimit`.
    fn command(&self, prefix: &[&str]) -> Command {
        let serve = Gateway::command(&self.deployment);
        if prefix.is_empty() {
            return serve;
        }
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(serve.get_program()).args(serve.get_args());
        command.env("NO_COLOR", "1").env("RUST_LOG", "info").current_dir(self.deployment.folder());
        command
    }

    fn start(&self, command: Command) -> Gateway {
        start(&self.topology.gateway, command)
    }

    fn start_and_fail(&self, command: Command) -> String {
        let mut process = self.topology.gateway.spawn(command).unwrap();
        assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(1), "{:#?}", process.lines());
        process.wait_for_line("no line says this", PATIENCE).unwrap_err();
        let lines = process.lines();
        assert_eq!(lines.iter().filter(|line| line.contains("listening on")).count(), 0, "{lines:#?}");
        lines.last().cloned().unwrap_or_default()
    }

    /// A real client gets its address and answers; then the gateway ends as it should.
    fn assert_serves(&self, peers: &Peers, mut gateway: Gateway) {
        let inside = &self.topology.clients[0].namespace;
        let client = Attached::start(peers, &self.deployment, inside, &gateway, Login::of("alice"));
        wait_for_ping(inside, SERVER_V4);
        assert_pings(inside, SERVER_V4);
        assert_pings(&self.topology.network, client.address);
        gateway.assert_sound();
        let ended = gateway.process.stop(PATIENCE).unwrap();
        assert!(ended.success(), "{ended}: {:#?}", gateway.process.lines());
    }
}

fn start(namespace: &Namespace, command: Command) -> Gateway {
    let process = namespace.spawn(command).unwrap();
    process.wait_for_line("listening on", PATIENCE).unwrap();
    Gateway { process }
}

/// Has `command` run without the system calls that `forbidden` names, by way of this test program.
fn forbidding(forbidden: &str, command: &Command) -> Command {
    let mut launcher = Command::new(std::env::current_exe().unwrap());
    launcher.args(["--exact", "a_program_is_run_without_some_system_calls", "--nocapture", "--test-threads=1", "--"]);
    launcher.arg(command.get_program()).args(command.get_args()).env(FORBIDDEN, forbidden);
    for (name, value) in command.get_envs() {
        launcher.env(name, value.unwrap_or_default());
    }
    if let Some(folder) = command.get_current_dir() {
        launcher.current_dir(folder);
    }
    launcher
}

/// Not a test by itself: with [`FORBIDDEN`] set, this program becomes another one, under a filter as container engines install it.
#[test]
fn a_program_is_run_without_some_system_calls() {
    let Ok(forbidden) = std::env::var(FORBIDDEN) else { return };
    for rule in forbidden.split(',') {
        let (call, errno) = rule.split_once('=').unwrap();
        let (_, number) = URING_CALLS.into_iter().chain([WAITING_CALL]).find(|(name, _)| *name == call).unwrap();
        let filter = seccompiler::SeccompFilter::new(
            BTreeMap::from([(number, vec![])]),
            seccompiler::SeccompAction::Allow,
            seccompiler::SeccompAction::Errno(errno.parse().unwrap()),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
    }
    let mut command = std::env::args_os().skip_while(|argument| argument != "--").skip(1);
    let error = Command::new(command.next().unwrap()).args(command).env_remove(FORBIDDEN).exec();
    panic!("not run: {error}");
}

/// The names of a process's threads, and the CPUs that they may use.
fn threads(process: &Process) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).unwrap().flatten();
    let mut threads: Vec<_> = tasks
        .map(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap();
            let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            (field("Name:"), field("Cpus_allowed_list:"))
        })
        .collect();
    threads.sort();
    threads
}

#[test]
fn where_io_uring_is_forbidden_the_shards_run_on_plain_pinned_threads() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let all = |errno: i32| URING_CALLS.map(|(call, _)| format!("{call}={errno}")).join(",");
    // As Docker's rules have it, as a kernel without io_uring has it, and as other filters may.
    for forbidden in [
        all(libc::EPERM),
        all(libc::ENOSYS),
        format!("io_uring_enter={}", libc::EPERM),
        format!("io_uring_register={}", libc::EACCES),
    ] {
        let site = Site::new(&Plan::default());
        let gateway = site.start(forbidding(&forbidden, &site.command(&[])));
        let line = gateway.process.wait_for_line(PLAIN_THREADS, PATIENCE).unwrap();
        assert!(line.contains("io_uring_") && line.contains("refused"), "{forbidden}: {line}");
        assert_eq!(gateway.count_lines(PLAIN_THREADS), 1);
        let shards: Vec<_> = threads(&gateway.process)
            .into_iter()
            .filter(|(name, _)| *name == "tollgate-0" || *name == "tollgate-1")
            .collect();
        assert!(shards.len() == 2 && shards.iter().all(|(_, cpus)| cpus.parse::<usize>().is_ok()), "{shards:?}");
        site.assert_serves(&peers, gateway);
    }
}

#[test]
fn where_the_newer_way_to_wait_is_forbidden_the_older_one_serves() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    for errno in [libc::ENOSYS, libc::EPERM] {
        let site = Site::new(&Plan::default());
        let gateway = site.start(forbidding(&format!("epoll_pwait2={errno}"), &site.command(&[])));
        site.assert_serves(&peers, gateway);
    }
}

#[test]
fn with_little_lockable_memory_the_shards_run_on_plain_pinned_threads() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let gateway =
        site.start(site.command(&["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock"]));
    let line = gateway.process.wait_for_line(PLAIN_THREADS, PATIENCE).unwrap();
    assert!(line.contains("64 KiB of memory may be locked"), "{line}");
    site.assert_serves(&peers, gateway);
}

#[test]
fn a_soft_limit_of_lockable_memory_is_raised() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let mut gateway = site.start(site.command(&["prlimit", "--memlock=65536:2097152"]));
    let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.process.id())).unwrap();
    let locked = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap();
    assert_eq!(locked.split_whitespace().take(2).collect::<Vec<_>>(), ["2097152"; 2]);
    assert_eq!(gateway.count_lines(PLAIN_THREADS), usize::from(tollgate::io::uring::probe().is_err()));
    gateway.assert_sound();
}

#[test]
fn a_soft_limit_of_descriptors_is_raised_and_too_low_a_hard_one_is_named() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let site = Site::new(&Plan { shards: 24, ..Plan::default() });
    let mut gateway = site.start(site.command(&["prlimit", "--nofile=128:4096"]));
    assert_eq!(gateway.status().shards(), 24);
    let descriptors = gateway.process.open_descriptors().unwrap();
    assert!((128..=16 * 24 + 64).contains(&descriptors), "what is asked for is enough: {descriptors}");
    gateway.assert_sound();
    drop(gateway);
    let line = site.start_and_fail(site.command(&["prlimit", "--nofile=128:200"]));
    assert!(line.contains("24 shards need 448 open descriptors, and this process may have 200"), "{line}");
    assert!(line.contains("ulimit -Hn") && !line.contains("memory"), "{line}");
}

/// Mounts as of a container with a read-only root, and a user who has CAP_NET_ADMIN and nothing else.
const READ_ONLY: &str = "mount -t tmpfs -o ro none /run && mount -t tmpfs -o ro none /var";
const ANYBODYS_TUN: &str = "mount -t tmpfs -o mode=755 none /dev/net && mknod -m 666 /dev/net/tun c 10 200";
const ORDINARY_USER: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=+net_admin",
];

#[test]
fn quincys_own_file_serves_with_a_read_only_run_and_var() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    let gateway = site.start(after_mounts(READ_ONLY, &site.command(&[])));
    for (lost, path) in [("tollgate reload", "/run/tollgate"), ("notice a restart", "/var/lib/tollgate/keys")] {
        let line = gateway.process.wait_for_line(lost, PATIENCE).unwrap();
        assert!(line.contains("WARN") && line.contains(path) && line.contains("Read-only"), "{line}");
    }
    site.assert_serves(&peers, gateway);
}

#[test]
fn what_is_configured_and_cannot_be_made_is_refused() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    for (setting, word) in [
        ("[control]\nsocket = \"/run/tollgate/own.sock\"", "control socket"),
        ("[shards]\nkey_file = \"/var/lib/own\"", "key file"),
    ] {
        let site = Site::with_quincys_own_file(&Plan::default());
        let path = site.deployment.path("server.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}\n{setting}\n")).unwrap();
        let line = site.start_and_fail(after_mounts(READ_ONLY, &site.command(&[])));
        assert!(line.contains(word) && line.contains("Read-only"), "{line}");
    }
}

#[test]
fn a_user_with_nothing_but_the_right_to_make_network_devices_serves() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    open_to_all(&site.deployment);
    let gateway = site.start(after_mounts(ANYBODYS_TUN, &site.command(&ORDINARY_USER)));
    let line = gateway.process.wait_for_line("listening on", PATIENCE).unwrap();
    assert!(line.contains("the driver's flow table"), "no eBPF without CAP_BPF: {line}");
    site.assert_serves(&peers, gateway);
}

#[test]
fn without_a_tun_driver_the_gateway_says_so_in_one_line() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let mut process =
        site.topology.gateway.spawn(after_mounts("mount -t tmpfs none /dev/net", &site.command(&[]))).unwrap();
    assert_eq!(process.wait(PATIENCE).unwrap().code(), Some(1));
    process.wait_for_line("no line says this", PATIENCE).unwrap_err();
    let lines = process.lines();
    let told: Vec<_> = lines.iter().filter(|line| line.contains("tun")).collect();
    assert!(told.len() == 1 && told[0].starts_with("tollgate: ") && told[0].contains("/dev/net/tun"), "{lines:#?}");
    assert!(told[0].contains("load the module `tun`, or give the container this device"), "{told:?}");
}

#[test]
fn a_hardened_container_of_a_cluster_serves() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    open_to_all(&site.deployment);
    let forbidden = URING_CALLS.map(|(call, _)| format!("{call}={}", libc::EPERM)).join(",");
    // The filter goes in last, as the user: a test program that others may run.
    let program = site.deployment.path("launcher");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let served = site.deployment.path("tollgate");
    fs::copy(env!("CARGO_BIN_EXE_tollgate"), &served).unwrap();
    let mut serve = Command::new(&served);
    serve.args(Gateway::command(&site.deployment).get_args());
    let filtered = forbidding(&forbidden, &serve);
    let mut command = Command::new(ORDINARY_USER[0]);
    command.args(&ORDINARY_USER[1..]).arg(&program).args(filtered.get_args()).env(FORBIDDEN, forbidden);
    command.env("NO_COLOR", "1").env("RUST_LOG", "info").current_dir(site.deployment.folder());
    for service in ["QUINCY", "QUINCY_METRICS", "QUINCY_BIND", "TOLLGATE", "TOLLGATE_METRICS", "TOLLGATE_SERVER"] {
        command.envs(variables_of_a_service(service));
    }
    command.env("QUINCY_VERSION", "3.1.1");
    let gateway = site.start(after_mounts(&format!("{READ_ONLY} && {ANYBODYS_TUN}"), &command));
    gateway.process.wait_for_line(PLAIN_THREADS, PATIENCE).unwrap();
    site.assert_serves(&peers, gateway);
}

#[test]
fn a_full_disk_at_the_first_start_leaves_nothing_behind() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let site = Site::with_quincys_own_file(&Plan::default());
    let folder = site.deployment.path("full");
    fs::create_dir(&folder).unwrap();
    let full = folder.display();
    let program = env!("CARGO_BIN_EXE_tollgate");
    for arguments in [
        format!("serve --config {}", site.deployment.path("with_key_file.toml").display()),
        format!("identity gencert --name a --out-cert {full}/c.pem --out-key {full}/k.pem"),
    ] {
        let text = fs::read_to_string(site.deployment.path("server.toml")).unwrap();
        let text = format!("{text}\n[control]\nsocket = \"control\"\n[shards]\nkey_file = \"{full}/keys\"\n");
        fs::write(site.deployment.path("with_key_file.toml"), text).unwrap();
        let script = format!(
            "exec 2>&1; mount -t tmpfs -o size=4k,nr_inodes=100 none {full}; head -c 4096 /dev/zero > {full}/filler || true; \
             {program} {arguments} || echo refused; ls -A {full}"
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .current_dir(site.deployment.folder());
        let mut process = site.topology.gateway.spawn(command).unwrap();
        process.wait(PATIENCE).unwrap();
        let _closed = process.wait_for_line("no line says this", PATIENCE);
        let lines = process.lines();
        let refused = lines.iter().position(|line| line == "refused").unwrap_or_else(|| panic!("{lines:#?}"));
        assert!(lines[..refused].iter().any(|line| line.contains("No space left")), "{lines:#?}");
        assert_eq!(lines[refused + 1..], ["filler"], "{lines:#?}");
    }
}

/// Lets other users read what only root may.
fn open_to_all(deployment: &Deployment) {
    fs::set_permissions(deployment.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(deployment.path("server_key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn variables_of_services_and_of_quincys_other_programs_do_not_keep_a_gateway_from_serving() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let mut command = site.command(&[]);
    for service in ["QUINCY", "QUINCY_METRICS", "QUINCY_BIND", "TOLLGATE", "TOLLGATE_METRICS", "TOLLGATE_CONTROL"] {
        command.envs(variables_of_a_service(service));
    }
    let others = [
        ("QUINCY_VERSION", "3.1.1"),
        ("QUINCY_CONNECTION_STRING", "vpn.example.org:1"),
        ("QUINCY_NETWORK__ROUTES", "[]"),
    ];
    command.envs(others).env("QUINCY_CONNECTION__MTUU", "1300");
    let mut gateway = site.start(command);
    for (name, _) in others.into_iter().chain([("QUINCY_CONNECTION__MTUU", "")]) {
        let line = gateway.process.wait_for_line(&format!("variable {name}:"), PATIENCE).unwrap();
        assert!(line.contains("WARN") && line.contains("ignored"), "{line}");
    }
    assert_eq!(gateway.count_lines("SERVICE") + gateway.count_lines("9090"), 0);
    gateway.assert_sound();
}

/// Runs `tollgate` with `arguments` where the gateways' files are, and returns what it says.
fn order(site: &Site, variables: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).current_dir(site.deployment.folder()).envs(variables.iter().copied());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn two_gateways_with_one_port_on_two_addresses_are_told_apart() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let first = Site::with_quincys_own_file(&Plan { bind: "198.18.0.1", ..Plan::default() });
    let second =
        Site::with_quincys_own_file(&Plan { bind: "198.18.1.1", tunnel: "198.19.129.1/24", ..Plan::default() });
    second.deployment.edit_server("tollgate0", "tollgate1");
    let folder = first.deployment.path("run").display().to_string();
    let variables = [("RUNTIME_DIRECTORY", &folder[..]), ("STATE_DIRECTORY", &folder[..])];
    let start_in_one_place = |site: &Site| {
        let mut command = site.command(&[]);
        command.envs(variables);
        start(&first.topology.gateway, command)
    };
    let mut gateways = [start_in_one_place(&first), start_in_one_place(&second)];
    for (index, site) in [&first, &second].into_iter().enumerate() {
        let counts = || [0, 1].map(|index: usize| gateways[index].count_lines("reloaded on order"));
        let before = counts();
        let (code, text) = order(site, &variables, &["reload", "--config", "server.toml"]);
        assert_eq!(code, Some(0), "{text}");
        gateways[index].process.wait_for_line("reloaded on order", PATIENCE).unwrap();
        let after = counts();
        assert_eq!(
            (after[index], after[1 - index]),
            (before[index] + 1, before[1 - index]),
            "the other one is left alone"
        );
    }
    assert_eq!(gateways.iter().map(|gateway| gateway.count_lines("WARN")).sum::<usize>(), 0, "{gateways:#?}");
    gateways.iter_mut().for_each(Gateway::assert_sound);
}

#[test]
fn a_control_socket_that_another_gateway_has_is_a_warning_where_none_is_configured() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let (first, second) =
        (Site::with_quincys_own_file(&Plan::default()), Site::with_quincys_own_file(&Plan::default()));
    let folder = first.deployment.path("run").display().to_string();
    let start_with_one_run = |site: &Site| {
        let mut command = site.command(&[]);
        command.env("RUNTIME_DIRECTORY", &folder).env("STATE_DIRECTORY", &folder);
        site.start(command)
    };
    let mut one = start_with_one_run(&first);
    let two = start_with_one_run(&second);
    let line = two.process.wait_for_line("a gateway already listens on the control socket", PATIENCE).unwrap();
    assert!(line.contains("WARN") && line.contains("tollgate reload") && line.contains("SIGHUP"), "{line}");
    // Whichever file it is given, it is the first one that takes the order; the second one takes signals.
    let variables = [("RUNTIME_DIRECTORY", &folder[..])];
    for file in [&first, &second] {
        let before = one.process.line_count();
        let (code, text) = order(file, &variables, &["reload", "--config", "server.toml"]);
        assert_eq!(code, Some(0), "{text}");
        one.process.wait_for_line_from(before, "reloaded on order", PATIENCE).unwrap();
    }
    assert!(line.contains("whichever --config"), "{line}");
    two.process.signal(rustix::process::Signal::HUP).unwrap();
    two.process.wait_for_line("reloaded on SIGHUP", PATIENCE).unwrap();
    assert_eq!((two.count_lines("reloaded on order"), one.count_lines("reloaded on SIGHUP")), (0, 0));
    second.assert_serves(&peers, two);
    let (code, text) = order(&first, &[("RUNTIME_DIRECTORY", &folder)], &["reload", "--config", "server.toml"]);
    assert_eq!(code, Some(0), "the first one keeps its socket: {text}");
    one.assert_sound();
}

#[test]
fn a_tunnel_in_a_link_local_network_reaches_the_gateway_and_other_clients() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let deployment = Deployment::write(&Plan { tunnel: "169.254.7.1/24", isolate_clients: false, ..Plan::default() });
    let topology = Topology::build(&TopologyPlan { clients: 2, ..TopologyPlan::default() }).unwrap();
    let mut gateway = start(&topology.gateway, Gateway::command(&deployment));
    let [_alice, bob] = [(0, "alice"), (1, "bob")].map(|(index, user)| {
        let inside = &topology.clients[index].namespace;
        Attached::start(&peers, &deployment, inside, &gateway, Login::of(user))
    });
    let inside = &topology.clients[0].namespace;
    let own: std::net::IpAddr = "169.254.7.1".parse().unwrap();
    for target in [own, bob.address] {
        wait_for_ping(inside, target);
        assert_pings(inside, target);
    }
    gateway.assert_sound();
}

/// Runs `ip` (iproute2) in the gateway's namespace.
fn ip(site: &Site, arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    let mut process = site.topology.gateway.spawn(command).unwrap();
    let status = process.wait(PATIENCE).unwrap();
    assert!(status.success(), "ip {arguments:?}: {:?}", process.lines());
}

#[test]
fn the_names_that_the_kernel_takes_are_valid_for_check_serve_and_connect() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    for (name, made) in [("vpn.0", "vpn.0"), ("quincy%d", "quincy0"), ("tun+1", "tun+1")] {
        let site = Site::new(&Plan::default());
        site.deployment.edit_server("\"tollgate0\"", &format!("{name:?}"));
        let (code, text) = order(&site, &[], &["check", "--config", "server.toml"]);
        assert_eq!(code, Some(0), "{text}");
        let gateway = site.start(site.command(&[]));
        gateway.process.wait_for_line(&format!(" on {made};"), PATIENCE).unwrap();

        let file = site.deployment.write_client("bob", "198.18.0.1:55555", "hybrid");
        site.deployment.edit("client_bob.toml", "\"quincy0\"", &format!("{name:?}"));
        let mut connect = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        connect.arg("connect").arg("--config").arg(file).env("NO_COLOR", "1").env_remove("RUST_LOG");
        let inside = &site.topology.clients[0].namespace;
        let mut client = inside.spawn(connect).unwrap();
        client.wait_for_line(&format!(" on {made}"), PATIENCE).unwrap();
        wait_for_ping(inside, SERVER_V4);
        assert!(client.stop(PATIENCE).unwrap().success());
        site.assert_serves(&peers, gateway);
    }
}

#[test]
fn a_tun_device_that_was_made_beforehand_is_adopted_and_stays() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    for (shards, kind) in [(1, None), (1, Some("multi_queue")), (2, Some("multi_queue"))] {
        let site = Site::new(&Plan { shards, ..Plan::default() });
        let add = ["tuntap", "add", "dev", "tollgate0", "mode", "tun"];
        ip(&site, &add.into_iter().chain(kind).collect::<Vec<_>>());
        for _ in 0..2 {
            let gateway = site.start(site.command(&[]));
            let second = Deployment::write(&Plan { shards, tunnel: "198.19.129.1/24", ..Plan::default() });
            second.edit_server("bind_port = 55555", "bind_port = 55556");
            let line = site.start_and_fail(Gateway::command(&second));
            assert!(line.contains("tollgate0 exists already"), "one that is in use is not adopted: {line}");
            site.assert_serves(&peers, gateway);
        }
        ip(&site, &["link", "show", "dev", "tollgate0"]);
    }
}

#[test]
fn a_device_that_does_not_fit_is_refused_with_what_would() {
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    ip(&site, &["tuntap", "add", "dev", "tollgate0", "mode", "tun"]);
    let line = site.start_and_fail(site.command(&[]));
    assert!(line.contains("with a single queue, and 2 shards need one each"), "{line}");
    assert!(line.contains("ip tuntap add dev tollgate0 mode tun multi_queue"), "{line}");
    ip(&site, &["link", "delete", "dev", "tollgate0"]);
    ip(&site, &["tuntap", "add", "dev", "tollgate0", "mode", "tap", "multi_queue"]);
    let line = site.start_and_fail(site.command(&[]));
    assert!(line.contains("tollgate0 exists already"), "{line}");
}

#[test]
fn a_name_that_another_process_holds_keeps_no_gateway_from_its_port() {
    let Some(peers) = Peers::find() else { return };
    let _turn = turn::together();
    let site = Site::new(&Plan::default());
    let name = SocketAddr::from_abstract_name("tollgate-udp-0.0.0.0:55555").unwrap();
    let _held = site.topology.gateway.run(|| UnixDatagram::bind_addr(&name)).unwrap();
    let gateway = site.start(site.command(&[]));
    let second = Deployment::write(&Plan { tunnel: "198.19.129.1/24", ..Plan::default() });
    second.edit_server("tollgate0", "tollgate1");
    let line = site.start_and_fail(Gateway::command(&second));
    assert!(line.contains("UDP address 0.0.0.0:55555 is in use"), "the port is still its own: {line}");
    site.assert_serves(&peers, gateway);
}

#[test]
fn the_documented_unit_starts_the_gateway_again_for_as_long_as_it_takes() {
    let document = include_str!("../docs/deployment.md");
    let (_, unit) = document.split_once("<!-- run: unit -->").expect("a unit");
    let (unit, _) = unit.split_once("\nEND\n").expect("an end");
    for setting in [
        "StartLimitIntervalSec=0",
        "Restart=on-failure",
        "RestartSec=1",
        "ExecReload=/usr/local/bin/tollgate reload --config /etc/tollgate/server.toml",
        "RuntimeDirectory=tollgate",
        "StateDirectory=tollgate",
    ] {
        assert!(unit.lines().any(|line| line == setting), "{setting} is not in {unit}");
    }
    // An address that is not there yet is a failure like others: systemd tries again.
    if !gateways_can_run() {
        return;
    }
    let _turn = turn::together();
    let site = Site::new(&Plan { bind: "198.18.0.77", ..Plan::default() });
    let line = site.start_and_fail(site.command(&[]));
    assert!(line.contains("no interface of this machine has the address 198.18.0.77"), "{line}");
    ip(&site, &["address", "add", "198.18.0.77/32", "dev", "lo"]);
    site.start(site.command(&[])).assert_sound();
}

/// Certificates as people make them, each with what `tollgate check` says of it.
fn doubtful_certificates() -> Vec<(&'static str, String, String, &'static str)> {
    let params = || rcgen::CertificateParams::new(vec!["vpn.example.org".to_owned()]).unwrap();
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut authority = params();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "the authority");
    let mut expired = params();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    let mut early = params();
    early.not_before = rcgen::date_time_ymd(2090, 1, 1);
    let nameless = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let mut of_clients = params();
    of_clients.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let mut made = Vec::new();
    for (name, params, expected) in [
        ("authority", authority.clone(), "CA:TRUE"),
        ("expired", expired, "has expired"),
        ("early", early, "not valid yet"),
        ("nameless", nameless, "subjectAltName"),
        ("of clients", of_clients, "serverAuth"),
    ] {
        let key = key();
        made.push((name, params.self_signed(&key).unwrap().pem(), key.serialize_pem(), expected));
    }
    let (authoritys_key, own) = (key(), key());
    let issuer = rcgen::Issuer::new(authority, authoritys_key);
    let mut signed = params();
    signed.distinguished_name.push(rcgen::DnType::CommonName, "the gateway");
    made.push(("incomplete", signed.signed_by(&own, &issuer).unwrap().pem(), own.serialize_pem(), "append it"));
    made
}

#[test]
fn a_check_warns_of_certificates_that_clients_refuse() {
    let site = Deployment::write(&Plan::default());
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let output = command.args(["check", "--config", "server.toml"]).current_dir(site.folder()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, _, warnings) = check();
    assert_eq!((code, &warnings[..]), (Some(0), ""));
    for (name, certificate, key, expected) in doubtful_certificates() {
        fs::write(site.path("server_cert.pem"), certificate).unwrap();
        fs::write(site.path("server_key.pem"), key).unwrap();
        let (code, effective, warnings) = check();
        assert_eq!(code, Some(0), "{name}: {warnings}");
        assert!(effective.contains("is valid"), "{effective}");
        assert!(warnings.contains(expected) && warnings.lines().count() == 1, "{name}: {warnings}");
        assert!(warnings.starts_with("tollgate: warning: the certificate"), "{warnings}");
    }
}

#[test]
fn a_check_warns_of_trusted_certificates_that_no_gateway_can_use() {
    let site = Deployment::write(&Plan::default());
    let config = site.write_client("alice", "vpn.example.org:55555", "hybrid");
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let output = command.args(["check", "--client", "--config"]).arg(&config).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let trusted = site.path("server_cert.pem");
    let (code, warnings) = check();
    assert_eq!(code, Some(0), "{warnings}");
    assert!(warnings.contains("no trusted certificate bears the name \"vpn.example.org\""), "{warnings}");
    for (name, certificate, _, expected) in doubtful_certificates() {
        // What an authority has signed is not known here; a certificate of one is nothing that the authority's own would vouch for.
        let expected = match name {
            "authority" => None,
            "incomplete" => Some("which is not trusted"),
            _ => Some(expected),
        };
        fs::write(&trusted, certificate).unwrap();
        let (code, warnings) = check();
        assert_eq!(code, Some(0), "{name}: {warnings}");
        assert_eq!(warnings.lines().count(), usize::from(expected.is_some()), "{name}: {warnings}");
        assert!(expected.is_none_or(|expected| warnings.contains(expected)), "{name}: {warnings}");
    }
    // Of two that are trusted, one may be the next.
    let own = tollgate::identity::Identity::generate("a", &["vpn.example.org"]).unwrap();
    let other = tollgate::identity::Identity::generate("b", &["other.example.org"]).unwrap();
    fs::write(&trusted, format!("{}{}", other.certificate_pem, own.certificate_pem)).unwrap();
    assert_eq!(check(), (Some(0), String::new()));
}
