//! Taste that a machine can hold: file heads, lengths, leftovers, blobs, where `unsafe` and `cfg(feature)` may stand. It
//! knows nothing of what the code does.

use crate::tree::{self, Source};
use std::fmt::Write as _;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;
const BLOB_BYTES_MAX: u64 = 256 * 1024;

/// What may stand at the top of the repository.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "clippy.toml",
    "daemon",
    "deny.toml",
    "docs",
    "model",
    "packaging",
    "proto",
    "rustfmt.toml",
    "store",
    "tests",
];

/// Folders and files that may hold `unsafe`.
const UNSAFE_ROOMS: &[&str] = &["model/src/kernels/", "model/src/device/", "store/src/memory.rs"];

fn report(findings: &[String]) {
    let mut text = String::new();
    for finding in findings {
        let _ = writeln!(text, "  {finding}");
    }
    assert!(findings.is_empty(), "{} findings:\n{text}", findings.len());
}

fn check(look: impl Fn(&Source) -> Vec<String>) {
    report(&tree::rust_sources().iter().flat_map(look).collect::<Vec<_>>());
}

#[test]
fn every_file_says_what_it_deals_with() {
    check(|source| {
        let head = source.text.lines().next().unwrap_or("");
        let fine = head.strip_prefix("//! ").is_some_and(|words| words.split_whitespace().count() >= 3);
        if fine { vec![] } else { vec![format!("{}: the first line must be `//! ` and a sentence", source.path)] }
    });
}

#[test]
fn files_are_rooms_not_halls() {
    check(|source| {
        let lines = source.lines_without_tests();
        // A table is one uniform list; its head says so.
        let is_table = source.text.starts_with("//! Table:");
        if lines <= FILE_LINES_MAX || is_table {
            return vec![];
        }
        vec![format!("{}: {lines} lines without its tests, at most {FILE_LINES_MAX}", source.path)]
    });
}

struct Functions<'a> {
    path: &'a str,
    long: Vec<String>,
}

impl Functions<'_> {
    fn measure(&mut self, name: &syn::Ident, block: &syn::Block) {
        let lines = block.span().end().line.saturating_sub(name.span().start().line) + 1;
        if lines > FUNCTION_LINES_MAX {
            self.long.push(format!("{}: `{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}", self.path));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig.ident, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig.ident, &item.block);
        visit::visit_impl_item_fn(self, item);
    }
}

#[test]
fn functions_fit_on_a_screen() {
    check(|source| {
        let mut functions = Functions { path: &source.path, long: vec![] };
        functions.visit_file(&source.parse());
        functions.long
    });
}

#[test]
fn nothing_is_left_for_later_in_silence() {
    // Spelled apart, so that this file does not find itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    check(|source| {
        let lines = source.text.lines().enumerate();
        lines
            .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)))
            .map(|(number, _)| format!("{}:{}: left for later; do it or file it", source.path, number + 1))
            .collect()
    });
}

#[derive(Default)]
struct Unsafe(bool);

impl<'ast> Visit<'ast> for Unsafe {
    fn visit_expr_unsafe(&mut self, _: &'ast syn::ExprUnsafe) {
        self.0 = true;
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.0 |= signature.unsafety.is_some();
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.0 |= item.unsafety.is_some();
        visit::visit_item_impl(self, item);
    }
}

#[test]
fn unsafe_stays_in_its_rooms() {
    check(|source| {
        let mut found = Unsafe::default();
        found.visit_file(&source.parse());
        let allowed = UNSAFE_ROOMS.iter().any(|room| source.path.starts_with(room));
        if found.0 && !allowed { vec![format!("{}: `unsafe` outside {UNSAFE_ROOMS:?}", source.path)] } else { vec![] }
    });
}

#[test]
fn the_graphics_card_is_known_in_one_place() {
    let needle = concat!("feature = \"", "cuda\"");
    check(|source| {
        let fine = !source.text.contains(needle) || source.path.starts_with("model/src/device/");
        if fine { vec![] } else { vec![format!("{}: only model/src/device may ask for the feature cuda", source.path)] }
    });
}

#[test]
fn the_top_level_is_what_the_design_lists() {
    let entries = tree::top_level();
    let strangers = entries.iter().filter(|name| !TOP_LEVEL.contains(&name.as_str()));
    report(&strangers.map(|name| format!("{name}: not on the list of the top level")).collect::<Vec<_>>());
}

#[test]
fn no_blob_is_kept() {
    let large = tree::files().into_iter().filter_map(|file| {
        let bytes = std::fs::metadata(tree::root().join(&file)).map_or(0, |data| data.len());
        (bytes > BLOB_BYTES_MAX).then(|| format!("{file}: {bytes} bytes, at most {BLOB_BYTES_MAX}"))
    });
    report(&large.collect::<Vec<_>>());
}

#[test]
fn every_dependency_says_what_it_is_for() {
    let text = tree::read("Cargo.toml");
    let section = text.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).unwrap_or("");
    let silent = section
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with('#') && !line.contains("path = \""))
        .filter(|line| !line.contains(" # "))
        .map(|line| format!("Cargo.toml: `{line}` does not say what it is for"));
    report(&silent.collect::<Vec<_>>());
    assert!(section.contains("redb"), "the list of dependencies was not found");
}

#[test]
fn every_page_has_one_title() {
    let pages = tree::files().into_iter().filter(|file| file.ends_with(".md"));
    let wrong = pages.filter_map(|file| {
        let text = tree::read(&file);
        let prose = text.split("```").step_by(2).collect::<String>();
        let titles = prose.lines().filter(|line| line.starts_with("# ")).count();
        (titles != 1).then(|| format!("{file}: {titles} titles, one is right"))
    });
    report(&wrong.collect::<Vec<_>>());
}

#[test]
fn the_changelog_keeps_its_form() {
    let text = tree::read("CHANGELOG.md");
    assert!(text.starts_with("# Changelog\n"), "begins with its title");
    let releases: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert!(releases.first().is_some_and(|first| first.starts_with("[Unreleased]")), "newest first: {releases:?}");
}
