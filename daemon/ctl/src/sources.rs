//! Which files an ingest run sends: those named, and those in named folders, in a stable order and within bounds. It
//! goes by names only; what a file holds is for the daemon to find out.

use crate::error::CtlError;
use empathd_proto::admin::MAX_SOURCE_BYTES;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Most files of one run.
pub const MAX_FILES: usize = 100_000;
/// Deepest folder below a named one.
pub const MAX_DEPTH: usize = 16;
/// Extensions of files in folders that are worth sending.
const DATA_EXTENSIONS: &[&str] = &["csv", "json", "jsonl", "ndjson", "srt", "tsv", "vtt"];

/// One file to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// Its size, bytes.
    pub bytes: u64,
    /// Whether it was named itself, not found in a folder.
    pub named: bool,
}

/// What a run will send, and what it passes over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// In order.
    pub files: Vec<Source>,
    /// Passed over, with the reason.
    pub skipped: Vec<(PathBuf, &'static str)>,
}

/// Finds the files. Links inside folders are not followed.
///
/// # Errors
/// [`CtlError::File`] for a path that cannot be read, [`CtlError::Input`] beyond a bound or without any file.
pub fn find(paths: &[PathBuf]) -> Result<Sources, CtlError> {
    let mut sources = Sources::default();
    for path in paths {
        let meta = fs::metadata(path).map_err(|error| unreadable(path, error))?;
        if meta.is_dir() {
            walk(path, 0, &mut sources)?;
        } else {
            sources.add(Source { path: path.clone(), bytes: meta.len(), named: true })?;
        }
    }
    if sources.files.is_empty() {
        return Err(CtlError::input(
            "there is no data file among these paths",
            format!("name files, or folders with files that end in {}", DATA_EXTENSIONS.join(", ")),
        ));
    }
    Ok(sources)
}

impl Sources {
    fn add(&mut self, source: Source) -> Result<(), CtlError> {
        if source.bytes > MAX_SOURCE_BYTES {
            return Err(CtlError::input(
                format!("{} is larger than {MAX_SOURCE_BYTES} bytes", source.path.display()),
                "split it into smaller files",
            ));
        }
        if self.files.len() == MAX_FILES {
            return Err(CtlError::input(
                format!("there are more than {MAX_FILES} files"),
                "name fewer folders at once",
            ));
        }
        self.files.push(source);
        Ok(())
    }
}

fn walk(folder: &Path, depth: usize, sources: &mut Sources) -> Result<(), CtlError> {
    if depth > MAX_DEPTH {
        sources.skipped.push((folder.to_owned(), "too deep"));
        return Ok(());
    }
    for path in listing(folder)? {
        let meta = fs::symlink_metadata(&path).map_err(|error| unreadable(&path, error))?;
        if meta.is_dir() {
            walk(&path, depth + 1, sources)?;
        } else if !meta.is_file() {
            sources.skipped.push((path, "not a plain file"));
        } else if !is_data(&path) {
            sources.skipped.push((path, "not a data file"));
        } else {
            sources.add(Source { path, bytes: meta.len(), named: false })?;
        }
    }
    Ok(())
}

fn listing(folder: &Path) -> Result<Vec<PathBuf>, CtlError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder)?.take(MAX_FILES + 1);
        entries.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = read().map_err(|error| unreadable(folder, error))?;
    if paths.len() > MAX_FILES {
        return Err(CtlError::input(
            format!("{} holds more than {MAX_FILES} entries", folder.display()),
            "name its files in several runs",
        ));
    }
    paths.sort();
    Ok(paths)
}

fn is_data(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| DATA_EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

fn unreadable(path: &Path, source: io::Error) -> CtlError {
    CtlError::File { doing: "read", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_give_their_data_files_in_order_and_name_the_rest() {
        let root = tempfile::tempdir().expect("folder");
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("b/deep")).expect("made");
        for (name, text) in [("b/deep/z.CSV", "12345"), ("a.jsonl", "{}"), ("LICENSE", "x"), ("b/x.vtt", "")] {
            fs::write(at(name), text).expect("written");
        }
        std::os::unix::fs::symlink(root.path(), at("b/loop")).expect("linked");
        let found = find(&[root.path().to_owned(), at("LICENSE")]).expect("found");
        let names: Vec<_> = found.files.iter().map(|file| (file.path.clone(), file.bytes, file.named)).collect();
        let expected = [("a.jsonl", 2, false), ("b/deep/z.CSV", 5, false), ("b/x.vtt", 0, false), ("LICENSE", 1, true)];
        assert_eq!(names, expected.map(|(name, bytes, named)| (at(name), bytes, named)));
        assert_eq!(found.skipped, [(at("LICENSE"), "not a data file"), (at("b/loop"), "not a plain file")]);
    }

    #[test]
    fn nothing_to_send_is_said() {
        let root = tempfile::tempdir().expect("folder");
        assert_eq!(find(&[root.path().to_owned()]).expect_err("empty").exit_code(), 2);
        assert!(matches!(find(&[root.path().join("none")]), Err(CtlError::File { .. })));
    }
}
