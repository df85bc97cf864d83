//! Recovery shares on their way to paper and back: shown once with what to do with them, written into a file that only its
//! owner reads, typed without echo. It refuses to know what they open.

use crate::error::CtlError;
use crate::passphrase;
use empathd_proto::Secret;
use empathd_proto::keys::{Papers, papers_in};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Shares that are needed.
const NEEDED: usize = 2;
/// Largest file with shares.
const MAX_BYTES: u64 = 16 * 1024;
/// What stands above them.
const HEAD: &str = "\
# RECOVERY SHARES. They are shown this once and kept nowhere.
# Write each one down or print it, on paper of its own, and give the papers to three people or places.
# Any two of them open the store when the passphrase is lost, and restore it with a backup and a key file;
# one alone says nothing.
";

/// The page that shows them.
pub(crate) fn page(papers: &Papers) -> Secret {
    let room = papers.0.iter().map(|paper| paper.expose().len() + 64).sum::<usize>() + HEAD.len();
    // Exact capacity: growing would leave a copy behind.
    let mut text = String::with_capacity(room);
    text.push_str(HEAD);
    for (at, paper) in papers.0.iter().enumerate() {
        text.push_str(&format!("\n# Share {} of {}\n", at + 1, papers.0.len()));
        text.push_str(paper.expose());
        text.push('\n');
    }
    Secret::new(text)
}

/// A new file for them, made before anything is asked: once they exist, there must be room.
pub(crate) struct Paper<'a> {
    file: File,
    path: &'a Path,
}

impl<'a> Paper<'a> {
    pub(crate) fn create(path: &'a Path) -> Result<Self, CtlError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let failed = |source| CtlError::File { doing: "create", path: path.to_owned(), source };
        Ok(Self { file: file.map_err(failed)?, path })
    }

    pub(crate) fn write(&mut self, papers: &Papers) -> Result<(), CtlError> {
        let written = self.file.write_all(page(papers).expose().as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(|source| CtlError::File { doing: "write", path: self.path.to_owned(), source })
    }
}

/// The shares of these files, or two that are typed.
pub(crate) fn given(files: &[PathBuf]) -> Result<Vec<Secret>, CtlError> {
    if files.is_empty() {
        return (1..=NEEDED).map(|number| passphrase::prompt(&format!("Recovery share {number}: "))).collect();
    }
    let mut shares = Vec::new();
    for path in files {
        let failed = |source| CtlError::File { doing: "read", path: path.clone(), source };
        let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES as usize));
        File::open(path).map_err(failed)?.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
        shares.extend(papers_in(&Secret::new(std::mem::take(&mut *text))));
    }
    if shares.len() < NEEDED {
        return Err(CtlError::input(
            "the files hold fewer than two recovery shares",
            "give another: --shares-file FILE",
        ));
    }
    Ok(shares)
}
