//! One tree that has every guard, and what is left without it: where bodies of functions differ, the program chooses as it runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::{fs, mem, str};

use anyhow::{Context, Result, ensure};
use quote::ToTokens;
use syn::visit_mut::{self, VisitMut};
use syn::{Block, ImplItemFn, ItemFn, ReturnType, Signature, TraitItemFn, Type};

use super::patches::Guard;
use super::{command_git, git};

/// The variable that names the guard to do without.
pub const VARIABLE: &str = "TOLLGATE_GUARD_OUT";

/// For each body that some guards change, by its place among those of its file: their names, and it without them.
type Others = BTreeMap<usize, Vec<(String, String)>>;

/// Puts a switch for each of `guards` into the sources at `worktree`, which are as they were committed.
pub fn put_in(worktree: &Path, guards: &[Guard]) -> Result<()> {
    let mut switched: BTreeMap<String, Others> = BTreeMap::new();
    for guard in guards {
        let patched = git(worktree, &["apply", &guard.patch.to_string_lossy()]);
        patched.with_context(|| format!("{}: the patch does not fit the code any more: make it anew", guard.name))?;
        let changed = command_git(worktree).args(["diff", "--name-only"]).output().context("cannot run git")?;
        let texts = str::from_utf8(&changed.stdout)?.lines().map(|path| Ok((path, read(&worktree.join(path))?)));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        git(worktree, &["checkout", "--quiet", "."])?;
        for (path, without) in texts {
            let changed = differences(&read(&worktree.join(path))?, &without);
            let others = switched.entry(path.to_owned()).or_default();
            for (place, body) in changed.with_context(|| format!("{}: {path}", guard.name))? {
                others.entry(place).or_default().push((guard.name.clone(), body));
            }
        }
    }
    for (path, others) in switched {
        let path = worktree.join(path);
        let text = with_switches(&read(&path)?, &others)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The bodies of a file's functions that can choose, without their braces.
#[derive(Default)]
struct Bodies(Vec<Range<usize>>);

/// Where the bodies of `text` are, and everything else of it.
fn bodies(text: &str) -> Result<(Vec<Range<usize>>, String)> {
    let mut file = syn::parse_file(text).context("cannot read it as Rust")?;
    let mut bodies = Bodies::default();
    bodies.visit_file_mut(&mut file);
    Ok((bodies.0, file.to_token_stream().to_string()))
}

/// The bodies that differ, by their places.
fn differences(with: &str, without: &str) -> Result<Vec<(usize, String)>> {
    let ((bodies_with, rest_with), (bodies_without, rest_without)) = (bodies(with)?, bodies(without)?);
    ensure!(rest_with == rest_without, "the patch changes more than bodies of functions that are not constant");
    let pairs = bodies_with.into_iter().map(|body| &with[body]).zip(bodies_without.into_iter().map(|it| &without[it]));
    let differing = pairs.enumerate().filter(|(_, (with, without))| with != without);
    Ok(differing.map(|(place, (_, without))| (place, without.to_owned())).collect())
}

fn with_switches(text: &str, others: &Others) -> Result<String> {
    let (bodies, _) = bodies(text)?;
    let mut switched = text.to_owned();
    for (&place, others) in others.iter().rev() {
        let body = bodies[place].clone();
        let arms: String = others.iter().map(|(name, body)| format!("{name:?} => {{{body}}}\n")).collect();
        let chosen = format!(
            "match {{
                static OUT: ::std::sync::LazyLock<String> =
                    ::std::sync::LazyLock::new(|| ::std::env::var({VARIABLE:?}).unwrap_or_default());
                OUT.as_str()
            }} {{
                {arms}
                _ => {{{}}}
            }}",
            &text[body.clone()]
        );
        switched.replace_range(body, &chosen);
    }
    Ok(switched)
}

impl Bodies {
    /// Takes a body out of the file and notes where it was, unless it must be one expression of one type or known to the compiler.
    fn take(&mut self, signature: &Signature, block: &mut Block) {
        let is_opaque = match &signature.output {
            ReturnType::Type(_, of) => matches!(**of, Type::ImplTrait(_)),
            ReturnType::Default => false,
        };
        if signature.constness.is_none() && !is_opaque {
            let braces = block.brace_token.span;
            self.0.push(braces.open().byte_range().end..braces.close().byte_range().start);
            mem::take(&mut block.stmts);
        }
    }
}

impl VisitMut for Bodies {
    fn visit_item_fn_mut(&mut self, it: &mut ItemFn) {
        self.take(&it.sig, &mut it.block);
        visit_mut::visit_item_fn_mut(self, it);
    }

    fn visit_impl_item_fn_mut(&mut self, it: &mut ImplItemFn) {
        self.take(&it.sig, &mut it.block);
        visit_mut::visit_impl_item_fn_mut(self, it);
    }

    fn visit_trait_item_fn_mut(&mut self, it: &mut TraitItemFn) {
        if let Some(block) = &mut it.default {
            self.take(&it.sig, block);
        }
        visit_mut::visit_trait_item_fn_mut(self, it);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH: &str =
        "struct It;\nimpl It {\n    fn is(&self, n: u8) -> bool { n < 3 }\n}\nfn other() { It.is(1); }\n";

    #[test]
    fn each_body_chooses_among_what_the_patches_leave_of_it() {
        let mut others = Others::new();
        for (name, without) in [("one", "n < 9"), ("two", "{ true }")] {
            for (place, body) in differences(WITH, &WITH.replace("n < 3", without)).unwrap() {
                others.entry(place).or_default().push((name.to_owned(), body));
            }
        }
        assert_eq!(others.keys().collect::<Vec<_>>(), [&0]);
        let switched = with_switches(WITH, &others).unwrap();
        assert!(syn::parse_file(&switched).is_ok());
        let parts = ["\"one\" => { n < 9 }", "\"two\" => { { true } }", "_ => { n < 3 }", "fn other() { It.is(1); }"];
        assert!(parts.iter().all(|part| switched.contains(part)), "{switched}");
    }

    #[test]
    fn what_no_program_can_choose_as_it_runs_is_refused() {
        let refused = |with: &str, without: &str| differences(with, without).is_err();
        assert!(refused("const N: u8 = 1;", "const N: u8 = 2;") && refused("fn f() {}", "fn f(n: u8) {}"));
        assert!(refused("const fn f() -> u8 { 1 }", "const fn f() -> u8 { 2 }"));
        assert!(refused("fn f() -> impl Copy { 1 }", "fn f() -> impl Copy { 2u8 }"));
        assert!(!refused("fn f() -> u8 { 1 }", "fn f() -> u8 { 2 }"));
    }
}
