//! What can be done to an appliance's files from outside: search them, copy them, damage them. It knows no format.

use aho_corasick::AhoCorasick;
use anyhow::Context;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// All regular files under `dir`, in the order of their paths. Sockets and links are passed over.
///
/// # Errors
/// When a folder cannot be listed.
pub fn regular_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Which of the texts occur in which of the files, as indices of both. The case of ASCII letters does not matter.
///
/// # Errors
/// When a file cannot be read.
pub fn occurrences(files: &[PathBuf], texts: &[String]) -> anyhow::Result<BTreeSet<(usize, usize)>> {
    let search = AhoCorasick::builder().ascii_case_insensitive(true).build(texts)?;
    let mut found = BTreeSet::new();
    for (index, file) in files.iter().enumerate() {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        found.extend(search.find_overlapping_iter(&bytes).map(|hit| (index, hit.pattern().as_usize())));
    }
    Ok(found)
}

/// Copies the regular files under `from` to the same places under `to`, which is emptied first.
///
/// # Errors
/// When something cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot empty {}", to.display()))?;
    }
    fs::create_dir_all(to)?;
    for file in regular_files(from)? {
        let target = to.join(file.strip_prefix(from)?);
        fs::create_dir_all(target.parent().unwrap_or(to))?;
        fs::copy(&file, &target).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(())
}

/// Inverts one bit in the byte at `share` (0 to 1) of the file's length.
///
/// # Errors
/// When the file is empty or cannot be changed.
pub fn flip_bit(file: &Path, share: f64) -> anyhow::Result<()> {
    let mut bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let at = ((bytes.len() as f64 * share) as usize).min(bytes.len().saturating_sub(1));
    *bytes.get_mut(at).with_context(|| format!("{} is empty", file.display()))? ^= 0x10;
    fs::write(file, bytes).with_context(|| format!("cannot change {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_copies_and_damages_what_is_there() {
        let dir = tempfile::tempdir().expect("scratch");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("deep")).expect("made");
        fs::write(from.join("deep/a"), "xx Odalys BRANKOVIC xx").expect("written");
        copy(&from, &to).expect("copied");
        let files = regular_files(&to).expect("listed");
        let texts = ["odalys brankovic".to_owned(), "nobody".to_owned()];
        assert_eq!(occurrences(&files, &texts).expect("read"), BTreeSet::from([(0, 0)]));
        flip_bit(&files[0], 0.5).expect("changed");
        assert!(occurrences(&files, &texts).expect("read").is_empty());
        assert_eq!(fs::read(&files[0]).expect("read").len(), 22);
    }
}
