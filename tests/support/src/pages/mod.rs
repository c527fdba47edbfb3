//! The repository's documents, as tests see them: fenced blocks of commands with their marks, links, quoted words.

use std::fs;
use std::path::{Path, PathBuf};

pub mod commands;

/// A document of the repository.
#[derive(Debug)]
pub struct Page {
    /// Its path below the root of the repository.
    pub path: PathBuf,
    /// Its whole text.
    pub text: String,
}

/// A fenced block of shell commands.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// Where it begins, for messages: the first line's number.
    pub line: usize,
    /// What `<!-- run: ... -->` in the line above it says.
    pub mark: Option<&'a str>,
    /// The commands.
    pub text: &'a str,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// Every document, in the order of paths.
pub fn all(root: &Path) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if path.is_file() && name.ends_with(".md") {
                let text = fs::read_to_string(&path).unwrap();
                pages.push(Page { path: path.strip_prefix(root).unwrap().to_owned(), text });
            }
        }
    }
    pages.sort_by(|one, other| one.path.cmp(&other.path));
    pages
}

/// One document.
pub fn page(root: &Path, path: &str) -> Page {
    let text = fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    Page { path: path.into(), text }
}

impl Page {
    /// Its blocks of shell commands.
    pub fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks = Vec::new();
        let (mut line, mut start, mut mark) = (0, None, None);
        let mut offset = 0;
        for text in self.text.split_inclusive('\n') {
            line += 1;
            let after = offset + text.len();
            match text.trim_end() {
                "```sh" if start.is_none() => start = Some((line + 1, after)),
                "```" if let Some((line, from)) = start.take() => {
                    blocks.push(Block { line, mark: mark.take(), text: &self.text[from..offset] });
                }
                other if start.is_none() => {
                    mark = other.strip_prefix("<!-- run: ").and_then(|rest| rest.strip_suffix(" -->"));
                }
                _ => {}
            }
            offset = after;
        }
        assert!(start.is_none(), "{}: the last block has no end", self.path.display());
        blocks
    }

    /// The block with this mark that comes first.
    pub fn block(&self, mark: &str) -> Block<'_> {
        let found = self.blocks().into_iter().find(|block| block.mark == Some(mark));
        found.unwrap_or_else(|| panic!("{}: no block is marked {mark:?}", self.path.display()))
    }

    /// What stands between backticks, outside fenced blocks.
    pub fn quoted(&self) -> Vec<&str> {
        self.prose().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
    }

    /// The targets of its links.
    pub fn links(&self) -> Vec<&str> {
        self.prose()
            .flat_map(|line| line.split("](").skip(1))
            .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
            .collect()
    }

    /// The anchors of its headings, as GitHub makes them.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose().filter(|line| line.starts_with('#'));
        headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
    }

    /// Its lines outside fenced blocks.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let mut is_inside = false;
        self.text.lines().filter(move |line| {
            let is_fence = line.starts_with("```");
            is_inside ^= is_fence;
            !is_inside && !is_fence
        })
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}
