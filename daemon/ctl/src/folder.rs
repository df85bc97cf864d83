//! A folder that files of the daemon go into: empty before, its owner's alone, every file whole and on the disk. What the files
//! mean is not known here.

use crate::client::FilePart;
use crate::error::CtlError;
use empathd_proto::manifest::{MAX_FILES, is_inside};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Nobody but the owner.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// What came, or lies there, is not what was to be there.
pub(crate) fn broken(why: &str) -> CtlError {
    CtlError::Broken(why.to_owned())
}

/// The folder, made when it is missing, refused when something is in it.
pub(crate) fn make_empty(folder: &Path) -> Result<(), CtlError> {
    let failed = |source| CtlError::File { doing: "create", path: folder.to_owned(), source };
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
        Ok(()) => return Ok(()),
    }
    if fs::read_dir(folder).map_err(failed)?.next().is_some() {
        let detail = format!("{} is not empty; nothing was asked for", folder.display());
        return Err(CtlError::input(detail, "give a folder that is empty or does not exist"));
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(FOLDER_MODE);
    fs::set_permissions(folder, mode).map_err(failed)
}

/// Files on their way into the folder.
pub(crate) struct Writing<'a> {
    folder: &'a Path,
    open: Option<(File, PathBuf, u64)>,
    files: usize,
}

impl<'a> Writing<'a> {
    /// Nothing is written yet.
    pub(crate) const fn new(folder: &'a Path) -> Self {
        Self { folder, open: None, files: 0 }
    }

    /// Takes the next part.
    pub(crate) fn take(&mut self, part: FilePart) -> Result<(), CtlError> {
        match part {
            FilePart::Begin { path, bytes } => {
                self.finish()?;
                self.files += 1;
                if !is_inside(&path) || self.files > MAX_FILES {
                    return Err(broken("the daemon sent a file that does not belong into the folder"));
                }
                let path = self.folder.join(path);
                let failed = |source| CtlError::File { doing: "create", path: path.clone(), source };
                let parent = path.parent().unwrap_or(self.folder);
                DirBuilder::new().mode(FOLDER_MODE).recursive(true).create(parent).map_err(failed)?;
                let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path);
                self.open = Some((file.map_err(failed)?, path, bytes));
                Ok(())
            }
            FilePart::Chunk(chunk) => {
                let Some((file, path, left)) = &mut self.open else { return Err(CtlError::UnexpectedReply) };
                *left = left.checked_sub(chunk.len() as u64).ok_or(CtlError::UnexpectedReply)?;
                let failed = |source| CtlError::File { doing: "write", path: path.clone(), source };
                file.write_all(&chunk).map_err(failed)
            }
        }
    }

    /// The open file is whole and on the disk.
    pub(crate) fn finish(&mut self) -> Result<(), CtlError> {
        let Some((file, path, left)) = self.open.take() else { return Ok(()) };
        if left > 0 {
            return Err(broken(&format!("{} is not complete", path.display())));
        }
        file.sync_all().map_err(|source| CtlError::File { doing: "write", path, source })
    }
}
