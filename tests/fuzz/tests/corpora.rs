//! Every target takes every input of its corpus: what fuzzers have found once stays found.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tollgate_fuzz::{Body, TARGETS, corpus};

fn replay(target: &str, body: Body) -> usize {
    let mut inputs: Vec<_> = fs::read_dir(corpus(target))
        .unwrap_or_else(|error| panic!("{}: {error}", corpus(target).display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    for input in &inputs {
        let data = fs::read(input).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&data)));
        assert!(outcome.is_ok(), "{}: see above", input.display());
    }
    inputs.len()
}

#[test]
fn every_input_of_every_corpus_is_taken() {
    for (target, body) in TARGETS {
        assert!(replay(target, body) > 0, "{target} has no corpus");
        // What every input may be a part of.
        body(&[]);
    }
}
