//! Commands of the harness in documents are such as it knows.

use self::pages::all;
use self::pages::commands::Checker;

// Tests of other packages use the rest of it.
#[allow(dead_code)]
#[path = "../../tests/pages/mod.rs"]
mod pages;

#[test]
fn every_command_of_the_harness_in_a_document_is_one_that_it_knows() {
    let root = pages::root(env!("CARGO_MANIFEST_DIR"), "..");
    let mut checker = Checker::of(&root, "tollgate-bench", env!("CARGO_BIN_EXE_tollgate-bench"));
    all(&root).iter().for_each(|page| checker.check(page));
    assert!(checker.checked > 5, "{} commands", checker.checked);
}
