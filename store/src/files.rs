//! Files of the state folder: bounded reads, and writes that are whole and durable or absent. What is in them is not
//! known here.

use rustix::fs::OFlags;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest file that is overwritten after it was replaced.
const MAX_WIPED_BYTES: u64 = 1024 * 1024;
/// Ending of a file that is being written.
pub(crate) const TEMPORARY: &str = "tmp";

/// Opens a regular file for reading. A pipe or a device in its place is refused instead of waited for.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// All of a file that has at most `max_bytes`.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// A folder that only this user enters; made when it is missing.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A new file that only this user reads and writes; an older one of that name is replaced.
pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes a file; it may be absent.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file beside its place, makes it durable, and moves it there.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary(path);
    let written = private_file(&temporary).and_then(|mut file| {
        write(&mut file)?;
        file.flush()?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(path.parent().unwrap_or(Path::new(".")))
    });
    if written.is_err() {
        // Best effort: the next start sweeps what is left.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// As [`replace`]; then overwrites what the file before held, as far as the disk overwrites anything in place.
pub(crate) fn replace_and_wipe(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let before = OpenOptions::new().write(true).open(path);
    replace(path, |file| file.write_all(bytes))?;
    match before {
        Ok(mut before) => {
            let length = before.metadata()?.len().min(MAX_WIPED_BYTES);
            io::copy(&mut io::repeat(0).take(length), &mut before)?;
            before.sync_all()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where a file is written before it is moved into its place.
fn temporary(path: &Path) -> PathBuf {
    path.with_added_extension(TEMPORARY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().expect("scratch folder");
        let path = dir.path().join("file");
        replace(&path, |file| file.write_all(b"old")).expect("written");
        let failed = replace(&path, |file| {
            file.write_all(b"ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err());
        assert_eq!(read_bounded(&path, 3).expect("read"), b"old");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        assert_eq!(read_bounded(&path, 2).map_err(|error| error.kind()), Err(io::ErrorKind::FileTooLarge));
    }
}
