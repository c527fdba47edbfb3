//! `tollgate-bench report`, on results that are made here. The page of them all stays in `target/tmp/report` to be looked at.

mod sample;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sample::{all, failed_load, gateway, load, load_result, provenance, record};
use serde_json::Value;
use tollgate_bench::report;
use tollgate_bench::results::{Finding, Record};

fn write_samples(folder: &Path) -> Vec<PathBuf> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).unwrap();
    let write = |(index, record)| {
        let path = folder.join(format!("{index:02}.json"));
        fs::write(&path, serde_json::to_string_pretty(&record).unwrap()).unwrap();
        path
    };
    all().into_iter().enumerate().map(write).collect()
}

fn run(folder: &Path, arguments: &[&str], results: &[PathBuf]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate-bench"));
    command.current_dir(folder).arg("report").args(arguments).args(results).output().unwrap()
}

/// Changes every leaf of `value` with `change`, which is given its path.
fn change_leaves(value: &mut Value, path: &str, change: &mut dyn FnMut(&str, &mut Value)) {
    match value {
        Value::Array(values) => {
            values.iter_mut().enumerate().for_each(|(index, it)| change_leaves(it, &format!("{path}/{index}"), change));
        }
        Value::Object(values) => {
            values.iter_mut().for_each(|(key, it)| change_leaves(it, &format!("{path}/{key}"), change));
        }
        leaf => change(path, leaf),
    }
}

/// All records, with every leaf changed.
fn changed(mut change: impl FnMut(&str, &mut Value)) -> Vec<Record> {
    let changed = all().into_iter().map(|record| {
        let mut value = serde_json::to_value(record).unwrap();
        change_leaves(&mut value, "", &mut change);
        serde_json::from_value(value).unwrap()
    });
    changed.collect()
}

/// The page without its plots, hence with tables and text alone.
fn without_plots(page: &str) -> String {
    page.split("<svg").map(|part| part.split_once("</svg>").map_or(part, |(_, rest)| rest)).collect()
}

/// All records, with long lists cut short.
fn short() -> Vec<Record> {
    let mut records = all();
    for record in &mut records {
        match &mut record.finding {
            Finding::Gateway(result) => result.pairs.truncate(2),
            Finding::Load(load) => load.samples.truncate(4),
            Finding::Soak(soak) => soak.load.samples.truncate(4),
            Finding::Latency(latency) => latency.points.truncate(4),
            _ => {}
        }
    }
    records
}

#[test]
fn results_become_a_page_and_a_plot() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    let results = write_samples(&folder);
    let output = run(&folder, &["--out", "report.html", "--plot", "cpu_per_gigabyte", "--svg", "cpu.svg"], &results);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(folder.join("report.html")).unwrap(), report::page(&all()), "files lose nothing");
    let plot = report::plot(&all(), "cpu_per_gigabyte");
    assert_eq!(fs::read_to_string(folder.join("cpu.svg")).ok(), plot);
}

#[test]
fn every_plot_is_on_the_page_once_with_a_title_and_a_description() {
    let (page, plots) = (report::page(&all()), report::plots(&all()));
    assert!(plots.len() > 30, "{plots:?}");
    for element in ["<svg", "<figcaption", "<title id=", "<desc id="] {
        assert_eq!(page.matches(element).count(), plots.len(), "{element}");
    }
    for plot in &plots {
        assert_eq!(page.matches(&format!("<figure id=\"{plot}\">")).count(), 1, "{plot}");
        let alone = report::plot(&all(), plot).unwrap();
        assert!(alone.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && alone.contains("class=\"paper\""));
        assert!(alone.contains("0123456789ab"), "{plot} does not tell where it came from");
    }
    let ids: Vec<&str> = page.split(" id=\"").skip(1).map(|part| part.split('"').next().unwrap()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "no two elements have the same id");
    assert_eq!(report::plot(&all(), "none"), None);
}

#[test]
fn a_figure_that_changes_changes_the_page_beside_its_plots_too() {
    let mut unseen = Vec::new();
    for record in short() {
        let before = without_plots(&report::page(std::slice::from_ref(&record)));
        let whole_before = report::page(std::slice::from_ref(&record));
        let value = serde_json::to_value(&record).unwrap();
        let mut leaves = Vec::new();
        change_leaves(&mut value.clone(), "", &mut |path, _| leaves.push(path.to_owned()));
        for leaf in leaves.iter().filter(|leaf| *leaf != "/format") {
            let mut value = value.clone();
            let place = value.pointer_mut(leaf).unwrap();
            *place = match &*place {
                Value::Number(number) if number.is_u64() => (number.as_u64().unwrap() * 3 + 1_000).into(),
                // A share beyond 1 is no share.
                Value::Number(number) if leaf.contains("/quantiles/") => (number.as_f64().unwrap() * 0.7).into(),
                Value::Number(number) => (number.as_f64().unwrap() * 3.0 + 1.0).into(),
                Value::Bool(is) => (!is).into(),
                Value::String(text) => format!("{text} changed").into(),
                other => other.clone(),
            };
            // What is a choice, such as the kind of work, or absent, cannot be changed so.
            let Ok(after) = serde_json::from_value::<Record>(value) else { continue };
            let page = report::page(std::slice::from_ref(&after));
            // A whole distribution is drawn; its table has the quantiles that have names.
            let is_seen =
                if leaf.contains("/quantiles/") { page != whole_before } else { without_plots(&page) != before };
            if after != record && !is_seen {
                unseen.push(leaf.clone());
            }
        }
    }
    assert!(unseen.is_empty(), "not on the page: {unseen:#?}");
}

#[test]
fn text_from_files_is_escaped_wherever_it_is_shown() {
    const HOSTILE: &str = "</title></style></svg><script>alert('&\"')</script>\u{1}";
    let records = changed(|path, leaf| {
        let is_choice =
            ["/benchmark", "/work", "/limited_by", "/direction"].iter().any(|choice| path.ends_with(choice));
        if let (Value::String(text), false) = (leaf, is_choice) {
            text.push_str(HOSTILE);
        }
    });
    let mut records = records;
    for record in &mut records {
        if let Finding::Load(load) = &mut record.finding {
            load.up.drops.insert(HOSTILE.to_owned(), 1);
        }
    }
    let page = report::page(&records);
    let shown = page.matches("&lt;script&gt;").count();
    assert!(shown > 300, "shown {shown} times");
    let plots = report::plots(&records).into_iter().map(|plot| report::plot(&records, &plot).unwrap());
    for text in plots.chain([page]) {
        for wrong in ["<script", "</title></style>", "'&\""] {
            assert!(!text.contains(wrong), "{wrong} is not escaped");
        }
        let sizes = ["<svg", "</svg>"].map(|tag| text.matches(tag).count());
        assert_eq!(sizes[0], sizes[1]);
    }
    assert!(report::plots(&records).iter().all(|plot| !report::plot(&records, plot).unwrap().contains('\u{1}')));
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let page = report::page(&all());
    for outside in ["http://", "https://", "<script", "src=", "url(", "@import", "<link", "<iframe"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("prefers-color-scheme:dark") && page.contains("@media print"));
}

#[test]
fn zero_huge_and_missing_figures_make_a_page_without_nonsense() {
    let set = |figure: f64, count: u64| {
        changed(move |path, leaf| {
            let Value::Number(number) = &*leaf else { return };
            if path != "/format" {
                *leaf = if number.is_f64() { figure.into() } else { count.into() };
            }
        })
    };
    let emptied = all().into_iter().map(|record| {
        let mut value = serde_json::to_value(record).unwrap();
        let result = value.get_mut("result").and_then(Value::as_object_mut).unwrap();
        let lists = result.iter_mut().filter(|(name, _)| *name != "clients");
        lists.filter_map(|(_, it)| it.as_array_mut()).for_each(Vec::clear);
        serde_json::from_value(value).unwrap()
    });
    for records in [set(0.0, 0), set(-1.5, 1), set(1e300, 60_000), set(1e-300, 1), emptied.collect(), Vec::new()] {
        let page = report::page(&records);
        for wrong in ["NaN", "inf\"", "inf ", " inf", "-inf"] {
            assert!(!page.contains(wrong), "{wrong} in {}", &page[page.find(wrong).unwrap() - 200..][..300]);
        }
    }
    assert!(report::page(&[]).contains("There are no figures in these results"));
}

#[test]
fn sections_without_figures_are_left_out() {
    let page = report::page(&[load()]);
    assert_eq!(page.matches("<section").count(), 1);
    assert!(page.contains("id=\"section-load\""));
}

#[test]
fn several_peers_share_one_plot_for_each_figure() {
    let records = [gateway("quincy-server", 1.9), gateway("wireguard-go", 1.5)];
    assert_eq!(report::plots(&records), ["cpu_per_gigabyte", "cpu_ratio", "throughput", "cpu_share", "floor"]);
    let plot = report::plot(&records, "cpu_per_gigabyte").unwrap();
    for (gateway, colour) in [("tollgate", "ours"), ("quincy-server", "peer0"), ("wireguard-go", "peer1")] {
        assert_eq!(plot.matches(&format!(">{gateway}</text>")).count(), 3, "one bar of {gateway} for each work");
        assert_eq!(plot.matches(&format!("class=\"fill {colour}\"")).count(), 3);
    }
    assert_eq!(plot.matches("class=\"whisker\"").count(), 9);
    assert_eq!(plot.matches(">floor 0.").count(), 3);
}

#[test]
fn results_of_different_machines_are_shown_apart() {
    let mut other = load();
    other.provenance.machine.kernel = Some("7.0.0".to_owned());
    let page = report::page(&[load(), other]);
    assert!(page.contains("id=\"setup-A\"") && page.contains("id=\"setup-B\"") && page.contains("Linux 7.0.0"));
    assert_eq!(page.matches("<section").count(), 2);
    assert!(page.contains("Loads (setup B)"));
}

#[test]
fn the_same_result_counts_once_and_so_does_where_it_came_from() {
    assert_eq!(report::page(&[load(), load()]), report::page(&[load()]));
    let mut longer = load_result();
    longer.scenario = "longer".to_owned();
    let twin = Record { provenance: load().provenance, ..record(Finding::Load(longer), "") };
    let page = report::page(&[load(), twin]);
    let command =
        provenance("tollgate-bench load bench/scenarios/clients-10k.toml --json load.json").command_line.join(" ");
    assert_eq!(page.matches(&command).count(), 1);
}

#[test]
fn failures_are_told_before_anything_else() {
    let page = report::page(&[load(), failed_load()]);
    let (header, main) = page.split_once("<main>").unwrap();
    assert!(header.contains("Not all is as it should be") && header.contains("mixed on quincy-server: 3 figures"));
    assert!(main.contains("group bulk, down: 1 packet arrived with wrong bytes"));
    assert!(main.contains("The harness was the limit"));
    assert!(!report::page(&[load()]).contains("Not all is as it should be"));
}

#[test]
fn a_ledger_that_does_not_balance_is_a_failure_even_when_the_load_does_not_say_so() {
    let mut load = load_result();
    load.up.unaccounted = -2;
    let page = report::page(&[record(Finding::Load(load), "x")]);
    assert!(page.contains("up: −2 packets are unaccounted for"));
}

#[test]
fn figures_of_a_debug_build_are_marked() {
    let mut load = load();
    load.provenance.debug_build = true;
    let page = report::page(&[load]);
    assert!(page.contains("built without optimisation"));
}

#[test]
fn wrong_files_are_named_in_one_line_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let results = write_samples(&folder.join("results"));
    let wrong = folder.join("wrong.json");
    let mut cases: Vec<(String, &str)> = vec![
        ("not JSON".to_owned(), "wrong.json is not JSON"),
        ("{\"format\": 2}".to_owned(), "wrong.json has format 2, but this version reads 1"),
        ("{}".to_owned(), "wrong.json is JSON, but no result"),
    ];
    let mut value = serde_json::to_value(load()).unwrap();
    value["result"]["ramp"]["wanted"] = "many".into();
    cases.push((value.to_string(), "wrong.json is a damaged result"));
    let refused = |arguments: &[&str], results: &[PathBuf]| {
        let output = run(folder, arguments, results);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.lines().count() == 1, "{error}");
        assert!(!folder.join("report.html").exists() && !folder.join("plot.svg").exists(), "{error}");
        error
    };
    for (text, expected) in cases {
        fs::write(&wrong, text).unwrap();
        let error = refused(&["--out", "report.html"], &[results[0].clone(), wrong.clone()]);
        assert!(error.contains(expected), "{error}");
    }
    let error = refused(&["--out", "report.html"], &[results[0].clone(), folder.join("none.json")]);
    assert!(error.contains("cannot read") && error.contains("none.json"), "{error}");
    let error = refused(&["--out", "report.html", "--plot", "none", "--svg", "plot.svg"], &results[..1]);
    assert!(error.contains("--plot is none, but the plots of these results are: cpu_per_gigabyte, "), "{error}");
    let error = refused(&["--out", results[1].to_str().unwrap()], &results[..1]);
    assert!(error.contains("its name must end in .html"), "{error}");
    assert!(!fs::read(&results[1]).unwrap().is_empty(), "a result was overwritten");
}
