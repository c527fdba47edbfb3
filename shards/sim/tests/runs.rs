//! Runs as a whole: they repeat, they pass, and what is broken on purpose is found.

use std::process::Command;
use std::time::Duration;

use tollgate_sim::{Facts, Feature, Features, Options, Plan, Planted, Violation, run, run_bytes};

const SAFETY: Duration = Duration::from_secs(20);

/// Seconds of faults, and seeds that have failed with so many, with the features of those days.
const FAILED_ONCE: &[(u64, &[u64])] = &[
    // A command was never completed after a shard had been started anew: its siblings did not repeat their barriers.
    (60, &[186, 249, 616, 1236, 1336]),
    // A route to a connection that had closed while the address allocator died stayed for ever.
    (60, &[13, 947, 1001, 1054, 1170, 1361]),
    // A connection that was over before it could be told its address was said to be detached.
    (60, &[101_276]),
    // An answer in a client's name was the client's to pay for.
    (20, &[4]),
    // Packets that confirm what a path carries came from nowhere.
    (20, &[130]),
    // The answer to a packet for a client that had gone was given in its name.
    (20, &[38, 295]),
];

fn plan(seed: u64) -> Plan {
    Plan::new(seed, Features::ALL, SAFETY)
}

fn facts(seed: u64) -> Facts {
    run(plan(seed), Options::default()).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"))
}

/// The first violation that a fault leads to, among some seeds.
fn found(planted: Planted, features: &[Feature]) -> Violation {
    let options = Options { planted: Some(planted), ..Options::default() };
    let mut results = (0..40).map(|seed| run(Plan::new(seed, Features::of(features), SAFETY), options));
    results.find_map(Result::err).expect("some seed finds it")
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    let [one, same, other] = [4, 4, 3].map(facts);
    assert_eq!(one, same);
    assert_ne!(one.trace_hash, other.trace_hash);
}

#[test]
fn the_same_seed_gives_the_same_trace_in_every_process() {
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate-sim"))
        .args(["--seed", "3", "--simulated-seconds", &SAFETY.as_secs().to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let hash = format!("trace {:016x}", facts(3).trace_hash);
    assert!(output.status.success() && said.contains(&hash), "{hash} is not in {said}");
}

/// Bytes as a fuzzer may come up with: of each length, and of all values or of few.
fn bytes(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mask = [0xff, 0x0f, 0x80, 0][number as usize % 4];
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8 & mask
    };
    (0..number * 37 % 700).map(|_| next()).collect()
}

#[test]
fn any_bytes_make_a_small_plan_that_passes_and_the_same_bytes_the_same_trace() {
    let mut hashes = std::collections::BTreeSet::new();
    for number in 0..32 {
        let bytes = bytes(number);
        let plan = Plan::from_bytes(&bytes);
        let devices = plan.devices.iter().filter(|device| !device.is_left_out).count();
        assert!(plan.shards <= 4 && devices <= 6 && plan.flows.len() <= 12, "{number}");
        let facts = run_bytes(&bytes).unwrap_or_else(|violation| panic!("{number}: {violation}"));
        hashes.insert(facts.trace_hash);
        if number % 8 == 0 {
            assert_eq!(run_bytes(&bytes), Ok(facts), "{number}");
        }
    }
    // Of few values, some make the same plan.
    assert!(hashes.len() > 20, "{}", hashes.len());
}

#[test]
fn packets_are_carried() {
    let all =
        (0..3).map(|seed| run(Plan::new(seed, Features::RECORDED, SAFETY), Options::default()).expect("no violation"));
    let all: Vec<_> = all.collect();
    let (sent, delivered) =
        all.iter().fold((0, 0), |(sent, delivered), one| (sent + one.packets_sent, delivered + one.packets_delivered));
    assert!(delivered > 1000 && delivered * 2 > sent, "{delivered} of {sent}");
}

#[test]
fn seeds_that_have_failed_once_pass() {
    for &(seconds, seeds) in FAILED_ONCE {
        for &seed in seeds {
            let result = run(Plan::new(seed, Features::RECORDED, Duration::from_secs(seconds)), Options::default());
            assert!(result.is_ok(), "seed {seed}, {seconds} s: {}", result.unwrap_err());
        }
    }
}

/// `kept_seeds.txt` says what each was for.
#[test]
fn seeds_that_are_kept_pass() {
    let kept = include_str!("kept_seeds.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for arguments in kept {
        let told = said(arguments);
        assert!(told.contains("packets sent") && !told.contains("FAILS"), "{arguments}: {told}");
    }
}

#[test]
fn a_failing_seed_is_reported_with_the_command_that_repeats_it() {
    for (planted, what) in [("changed-at-tun", "packets:"), ("panic", "panic: this panic was planted")] {
        let output = Command::new(env!("CARGO_BIN_EXE_tollgate-sim"))
            .args(["--seeds", "7..8", "--only", "loss", "--simulated-seconds", "9", "--plant", planted])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("seed 7 FAILS: {what}")), "{said}");
        assert!(said.contains("tollgate-sim --seed 7 --simulated-seconds 9 --only loss"), "{said}");
    }
}

#[test]
fn a_packet_between_clients_that_is_delivered_twice_is_found() {
    let violation = found(Planted::HairpinTwice, &[Feature::Peers]);
    assert_eq!(violation.oracle, "packets", "{violation}");
}

#[test]
fn a_packet_that_changes_at_the_tun_is_found() {
    let violation = found(Planted::ChangedAtTun, &[]);
    assert_eq!(violation.oracle, "packets", "{violation}");
}

#[test]
fn an_order_that_a_shard_is_not_told_of_is_found() {
    let violation = found(Planted::OrderNotTold, &[Feature::Kick]);
    assert_eq!(violation.oracle, "liveness", "{violation}");
}

/// What `tollgate-sim` says with `arguments`, which are separated by spaces.
fn said(arguments: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate-sim")).args(arguments.split(' ')).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_failing_seed_becomes_a_small_plan_that_fails_alike() {
    let seeds =
        said("--seeds 0..40 --simulated-seconds 20 --plant hairpin-twice --only peers,loss,limits --failures 1");
    let (words, command) = seeds
        .lines()
        .find_map(|line| {
            line.split_once(": tollgate-sim --seed")?
                .0
                .contains("shrunk")
                .then(|| line.split_once(": tollgate-sim "))
                .flatten()
        })
        .expect(&seeds);
    assert!(words.starts_with("  shrunk to 1 of ") && words.contains(" 2 of ") && words.contains(" 1 of "), "{words}");
    let again = said(command);
    assert!(again.contains("arrived twice") && !again.contains("shrunk"), "{command}: {again}");
    assert_eq!(again, said(command));
}

#[test]
fn a_campaign_goes_on_where_it_was_interrupted_and_counts_each_seed_once() {
    let folder = std::env::temp_dir().join(format!("tollgate-campaign-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("campaign.json");
    // It stops at its failures: no clock has a say in when.
    let planted = format!(
        "--campaign {} --simulated-seconds 2 --jobs 2 --plant changed-at-tun --failures 1 --no-shrink",
        file.display()
    );
    let read = || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap() };
    let number = |campaign: &serde_json::Value, key: &str| campaign[key].as_u64().unwrap();
    let told = said(&planted);
    assert!(told.contains("FAILS: packets:") && told.contains("tollgate-sim --seed "), "{told}");
    let first = read();
    let told = said(&planted.replace("--failures 1", "--failures 3"));
    let second = read();
    assert_eq!(first["first"], second["first"]);
    assert!(number(&second, "failed") >= 3, "{told}");
    for campaign in [first, second] {
        let ahead = campaign["ahead"].as_array().unwrap().len() as u64;
        let run = number(&campaign, "next") - number(&campaign, "first") + ahead;
        assert_eq!(number(&campaign, "seeds"), run, "{campaign}");
        assert_eq!(number(&campaign, "passed") + number(&campaign, "failed"), run, "{campaign}");
    }
    let other = Command::new(env!("CARGO_BIN_EXE_tollgate-sim"))
        .args(["--campaign", file.to_str().unwrap(), "--seconds", "0"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && told.contains("go on with the same, or name another file"), "{told}");
    std::fs::remove_dir_all(&folder).unwrap();
}
