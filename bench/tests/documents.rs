//! Commands of the harness in documents are such as it knows.

use tollgate_test_support::pages::commands::Checker;
use tollgate_test_support::pages::{all, root};

#[test]
fn every_command_of_the_harness_in_a_document_is_one_that_it_knows() {
    let root = root();
    let mut checker = Checker::of(&root, "tollgate-bench", env!("CARGO_BIN_EXE_tollgate-bench"));
    all(&root).iter().for_each(|page| checker.check(page));
    assert!(checker.checked > 5, "{} commands", checker.checked);
}
