//! The repository as files: what is tracked, where the root is. For the tests that read the code instead of running it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One Rust file.
pub(crate) struct Source {
    /// Path from the root, with `/`.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
}

impl Source {
    /// The syntax tree.
    pub(crate) fn parse(&self) -> syn::File {
        syn::parse_file(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.path))
    }

    /// Lines outside `#[cfg(test)] mod tests { … }`, which by custom ends the file.
    pub(crate) fn lines_without_tests(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "));
        tests.unwrap_or(lines.len())
    }
}

/// Root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the root").to_path_buf()
}

/// Text of a file, by its path from the root.
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file that is tracked, or would be when added.
pub(crate) fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    let names = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let files: Vec<String> =
        names.split('\0').filter(|name| !name.is_empty() && root().join(name).exists()).map(str::to_owned).collect();
    assert!(files.len() > 20, "git listed only {} files", files.len());
    files
}

/// Every Rust file.
pub(crate) fn rust_sources() -> Vec<Source> {
    let rust = files().into_iter().filter(|file| file.ends_with(".rs"));
    rust.map(|path| Source { text: read(&path), path }).collect()
}

/// First components of all paths.
pub(crate) fn top_level() -> Vec<String> {
    let mut names: Vec<String> = files().iter().filter_map(|file| file.split('/').next().map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    names
}
