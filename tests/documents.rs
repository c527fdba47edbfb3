//! What documents say of the tests holds.

use std::fs;
use std::path::Path;

/// The parts of `text` between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_field_case_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("docs/field-cases.md")).unwrap();
    let is_case = |row: &&str| row.starts_with("| ") && !row.starts_with("| nr ");
    let mut cases = 0;
    for row in table.lines().filter(is_case) {
        let tests = row.split(" | ").nth(2).unwrap_or_else(|| panic!("three columns: {row}"));
        let mut source = None;
        for name in quoted(tests) {
            if name.ends_with(".rs") {
                source = Some(fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")));
            } else if let Some(source) = &source {
                assert!(source.contains(&format!("fn {name}(")), "no test is named {name}: {row}");
            }
        }
        cases += 1;
    }
    assert!(cases > 40, "{cases} cases");
}
