//! What documents say of the repository holds: links, files, tests, commands, names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tollgate::control::protocol::{Answer, ConnectionRow, Place, Request, UsageRow, UserRow, decode, encode};
use tollgate::gateway::{HostReport, Report, State};
use tollgate::usage::Day;
use tollgate_shards::{DropReason, Usage};

use tollgate_test_support::pages::commands::Checker;
use tollgate_test_support::pages::{Page, all, page, root};
use tollgate_test_support::queries;

/// The folders that documents name files of.
const FOLDERS: [&str; 12] = [
    "packages/",
    "src/",
    "shards/",
    "config/",
    "netlink/",
    "bench/",
    "xtask/",
    "tests/",
    "docs/",
    ".ci/",
    ".cargo/",
    ".config/",
];

/// The parts of `text` between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the table below `heading`, each as its columns.
fn rows<'a>(page: &'a Page, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, section) = page.text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let lines = section.lines().take_while(|line| !line.starts_with('#'));
    let tables = lines.skip_while(|line| !line.starts_with("|---")).filter(|line| line.starts_with("| "));
    tables.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Whether any source below `folder` contains `text`.
fn sources_contain(folder: &Path, text: &str) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return sources_contain(&path, text);
        }
        path.extension().is_some_and(|extension| extension == "rs") && fs::read_to_string(&path).unwrap().contains(text)
    })
}

#[test]
fn examples_for_containers_are_of_this_version_and_call_what_there_is() {
    let root = root();
    let mut checker = Checker::of(&root, "tollgate", env!("CARGO_BIN_EXE_tollgate"));
    for name in ["compose.yml", "kubernetes.yml"] {
        let example = page(&root, &format!("packages/containers/{name}"));
        let image = format!("image: tollgate:{}\n", env!("CARGO_PKG_VERSION"));
        assert!(example.text.contains(&image), "{name} is of another version");
        let lists = example.text.lines().filter_map(|line| line.split_once('[').zip(line.rsplit_once(']')));
        let commands = lists.map(|((_, rest), _)| rest.split(']').next().unwrap_or_default().replace(['"', ','], ""));
        let calls = commands.filter_map(|command| {
            let (_, arguments) = command.split_once("/usr/bin/tollgate ")?;
            Some(format!("tollgate {arguments}\n"))
        });
        checker.check(&Page { text: format!("```sh\n{}```\n", calls.collect::<String>()), ..example });
    }
    assert!(checker.checked >= 4, "{}", checker.checked);
}

#[test]
fn every_field_case_names_tests_that_exist() {
    let table = page(&root(), "docs/field-cases.md");
    let is_case = |row: &&str| row.starts_with("| ") && !row.starts_with("| nr ");
    let mut cases = 0;
    for row in table.text.lines().filter(is_case) {
        let tests = row.split(" | ").nth(2).unwrap_or_else(|| panic!("three columns: {row}"));
        let mut source = None;
        for name in quoted(tests) {
            if name.ends_with(".rs") {
                source = Some(page(&root(), name).text);
            } else if let Some(source) = &source {
                assert!(source.contains(&format!("fn {name}(")), "no test is named {name}: {row}");
            }
        }
        cases += 1;
    }
    assert!(cases > 40, "{cases} cases");
}

#[test]
fn every_promise_of_security_names_what_shows_it() {
    let security = page(&root(), "SECURITY.md");
    let is_promise =
        |row: &&str| row.starts_with("| ") && row.matches('|').count() == 4 && !row.ends_with("shown by |");
    let mut tests = 0;
    for row in security.text.lines().filter(is_promise) {
        let shown_by = row.rsplit('|').nth(1).unwrap_or_default();
        assert!(shown_by.contains("simulator") || shown_by.contains('`'), "nothing shows it: {row}");
        for name in quoted(shown_by).filter(|name| !name.starts_with("--")) {
            let test = format!("fn {name}(");
            let is_there = ["src", "shards", "config", "netlink", "tests"]
                .iter()
                .any(|folder| sources_contain(&root().join(folder), &test));
            assert!(is_there, "no test is named {name}: {row}");
            tests += 1;
        }
    }
    assert!(tests > 40, "{tests} tests");
}

#[test]
fn every_link_within_the_repository_leads_somewhere() {
    let root = root();
    let pages = all(&root);
    let mut links = 0;
    for page in &pages {
        for link in page.links().into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let folder = root.join(&page.path);
            let target = if file.is_empty() { folder } else { folder.parent().unwrap().join(file) };
            let place = page.path.display();
            let target = target.canonicalize().unwrap_or_else(|error| panic!("{place}: {link}: {error}"));
            if let Some(anchor) = anchor {
                let known = pages.iter().find(|page| root.join(&page.path) == target);
                let known = known.unwrap_or_else(|| panic!("{place}: {link}: not a document"));
                assert!(known.anchors().iter().any(|known| known == anchor), "{place}: {link}: {:?}", known.anchors());
            }
            links += 1;
        }
    }
    assert!(links > 40, "{links} links");
}

#[test]
fn every_file_that_a_document_names_exists() {
    let root = root();
    // What was, not what is.
    let pages = all(&root).into_iter().filter(|page| page.path != Path::new("CHANGELOG.md"));
    let mut files = 0;
    for page in pages {
        let is_file =
            |name: &&str| !name.contains([' ', '*', '<']) && FOLDERS.iter().any(|folder| name.starts_with(folder));
        for name in page.quoted().into_iter().filter(is_file) {
            assert!(root.join(name).exists(), "{}: there is no {name}", page.path.display());
            files += 1;
        }
    }
    assert!(files > 40, "{files} files");
}

#[test]
fn every_command_of_the_gateway_in_a_document_is_one_that_it_knows() {
    let root = root();
    let mut checker = Checker::of(&root, "tollgate", env!("CARGO_BIN_EXE_tollgate"));
    all(&root).iter().for_each(|page| checker.check(page));
    assert!(checker.checked > 15, "{} commands", checker.checked);
}

#[test]
fn the_readme_is_short_and_names_the_command_for_tests() {
    let readme = page(&root(), "README.md");
    assert!(readme.text.lines().count() <= 150, "the details belong to docs/");
    assert!(readme.blocks().iter().any(|block| block.text.contains("cargo test --workspace ")));
}

#[test]
fn every_reason_for_a_drop_is_explained_once() {
    let operation = page(&root(), "docs/operation.md");
    let mut explained: Vec<&str> = rows(&operation, "### Drop reasons").iter().flat_map(|row| quoted(row[0])).collect();
    explained.sort_unstable();
    let mut reasons = DropReason::ALL.map(DropReason::name).to_vec();
    reasons.sort_unstable();
    assert_eq!(explained, reasons);
}

/// An answer in which nothing is left out.
fn full_answer() -> Answer {
    Answer {
        done: true,
        lines: vec!["1 connection closed".to_owned()],
        epoch: Some(3),
        closed_connections: Some(1),
        state: Some(State::Serving),
        clients: Some(2),
        drains_for_ms: Some(7),
        process: Some(8),
        took_ms: Some(1.5),
        users: Some(vec![user_row()]),
        connections: Some(vec![connection_row()]),
        usage: Some(vec![usage_row()]),
        next: Some(Place { user: "alice".to_owned(), address: Some([198, 19, 0, 2].into()), begin: Some(Day(1)) }),
        log_level: Some("debug".to_owned()),
        shards: Some(vec![Report::default()]),
        host: Some(HostReport::default()),
        unanswered: Some(vec![1]),
    }
}

fn user_row() -> UserRow {
    UserRow {
        user: "alice".to_owned(),
        connections: 1,
        usage: Usage::default(),
        limit_bits_per_s: Some(10_000_000),
        is_ordered: true,
        is_over_quota: true,
        since_unix_s: Some(1),
    }
}

fn connection_row() -> ConnectionRow {
    ConnectionRow {
        user: "alice".to_owned(),
        address: [198, 19, 0, 2].into(),
        shard: 0,
        mode: "TLS".to_owned(),
        since_unix_s: 1,
        heard_ms: 1,
        rtt_us: 1,
        rtt_min_us: 1,
        window_bytes: 1,
        mtu_bytes: 1,
        sent_packets: 1,
        lost_packets: 1,
        congestion_events: 1,
        queued_bytes: 1,
        usage: Usage::default(),
        outer: Some(([198, 18, 0, 2], 4433).into()),
    }
}

fn usage_row() -> UsageRow {
    UsageRow {
        user: "alice".to_owned(),
        begin: Some(Day(1)),
        usage: Usage::default(),
        connections: 1,
        connected_s: 1,
        first_unix_s: 1,
        last_unix_s: 1,
    }
}

/// The keys of an object.
fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().into_iter().flatten().map(|(key, _)| &key[..]).collect()
}

#[test]
fn the_control_socket_is_documented_in_full() {
    let operation = page(&root(), "docs/operation.md");
    let tables = rows(&operation, "### Its protocol");
    let (requests, keys_of_answers): (Vec<_>, Vec<_>) = tables.into_iter().partition(|row| row.len() == 3);
    let mut documented = BTreeSet::new();
    let answer: Value = serde_json::from_slice(&encode(&full_answer())).unwrap();
    for row in &requests {
        let example = quoted(row[0]).next().unwrap();
        let (written, request): (Value, Request) =
            (serde_json::from_str(example).unwrap(), decode(example.as_bytes()).unwrap());
        // A key that nobody reads would be missing.
        assert_eq!(serde_json::from_slice::<Value>(&encode(&request)).unwrap(), written);
        documented.insert(written["order"].as_str().unwrap().to_owned());
        quoted(row[2]).for_each(|key| assert!(answer.get(key).is_some(), "no answer has {key}: {row:?}"));
    }
    let unknown = decode::<Request>(br#"{"order":""}"#).unwrap_err().to_string();
    let orders: BTreeSet<String> = quoted(&unknown).filter(|order| !order.is_empty()).map(str::to_owned).collect();
    assert_eq!(documented, orders);
    let explained: Vec<&str> = keys_of_answers.iter().filter_map(|row| quoted(row[0]).next()).collect();
    assert_eq!(explained.len(), explained.iter().collect::<BTreeSet<_>>().len(), "twice");
    assert_eq!(explained.into_iter().collect::<BTreeSet<_>>(), keys(&answer));
    let of_rows: BTreeSet<String> = rows(&operation, "#### Rows").iter().map(|row| row[0].replace('`', "")).collect();
    let rows = [
        serde_json::to_value(user_row()).unwrap(),
        serde_json::to_value(connection_row()).unwrap(),
        serde_json::to_value(usage_row()).unwrap(),
    ];
    let all: BTreeSet<&str> = rows.iter().flat_map(keys).collect();
    assert_eq!(of_rows.iter().map(|key| &key[..]).collect::<BTreeSet<_>>(), all);
}

#[test]
fn every_metric_is_explained_once() {
    let explained: Vec<String> = rows(&page(&root(), "docs/metrics.md"), "## The list")
        .iter()
        .flat_map(|row| quoted(row[0]))
        .map(str::to_owned)
        .collect();
    assert_eq!(explained, tollgate::control::metrics::names());
}

#[test]
fn every_metric_that_is_asked_for_exists_and_the_dashboard_asks_for_most() {
    let metrics = tollgate::control::metrics::names();
    let alerts = fs::read_to_string(queries::folder().join("alerts.yml")).unwrap();
    let dashboard = queries::of_dashboard();
    assert!(dashboard.len() > 30 && queries::of_documents().len() > 10, "{dashboard:?}");
    for text in dashboard.iter().chain(&queries::of_documents()).chain([&alerts]) {
        let names = queries::names(text);
        assert!(!names.is_empty(), "{text} asks for nothing");
        let unknown: Vec<_> = names.iter().filter(|name| !metrics.iter().any(|metric| metric == *name)).collect();
        assert!(unknown.is_empty(), "there are no {unknown:?}: {text}");
    }
}

#[test]
fn every_bound_has_the_name_of_something_in_the_sources() {
    let limits = page(&root(), "docs/limits.md");
    let mut names = 0;
    for row in rows(&limits, "## The bound of everything that grows") {
        for name in quoted(row[2]).map(|name| name.rsplit(' ').next().unwrap_or(name)) {
            let is_there = ["src", "shards/src", "shards/noise/src", "config/src"]
                .iter()
                .any(|folder| sources_contain(&root().join(folder), name));
            assert!(is_there, "docs/limits.md: no source has {name}: {row:?}");
            names += 1;
        }
    }
    assert!(names > 40, "{names} names");
}

/// `cargo xtask guards` sees that somebody misses it.
#[test]
fn every_bound_has_a_patch_that_takes_it_out() {
    let limits = page(&root(), "docs/limits.md");
    let bounds: BTreeSet<String> =
        rows(&limits, "## The bound of everything that grows").iter().map(|row| row[0].to_owned()).collect();
    let patches = fs::read_dir(root().join("xtask/guards")).unwrap();
    let texts = patches.map(|patch| fs::read_to_string(patch.unwrap().path()).unwrap());
    let of = |text: String| text.lines().find_map(|line| line.strip_prefix("Limit: ")).map(str::to_owned);
    let taken_out: BTreeSet<String> = texts.filter_map(of).collect();
    let without: Vec<_> = bounds.difference(&taken_out).collect();
    assert!(without.is_empty(), "no patch in xtask/guards has `Limit: ` and one of {without:?}");
    let unknown: Vec<_> = taken_out.difference(&bounds).collect();
    assert!(unknown.is_empty(), "docs/limits.md has no row {unknown:?}, which patches in xtask/guards name");
}

#[test]
fn the_tree_answers_where_something_is() {
    let contributing = page(&root(), "CONTRIBUTING.md");
    let questions = rows(&contributing, "## Where is ...?");
    for question in &questions {
        let [_, file, item] = question[..] else { panic!("three columns: {question:?}") };
        let only = |text| quoted(text).next().unwrap_or_else(|| panic!("nothing is quoted: {question:?}"));
        let source = page(&root(), only(file)).text;
        assert!(source.contains(only(item)), "{file} has no {item}: {question:?}");
    }
    assert_eq!(questions.len(), 22);
}
