//! The seam between the database and the disk: what opens the database file. Tests put a failing disk here, the offline
//! check an overlay that keeps every write in memory. What is stored is not known here.

use crate::engine::Engine;
use crate::engine::redb::RedbEngine;
use crate::error::Fault;
use crate::files;
use crate::memory::KEY_BYTES;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Its name in the state folder.
pub(crate) const FILE: &str = "store.redb";
/// Bytes of one block of the overlay.
const BLOCK_BYTES: usize = 4096;

/// Opens the database file of a state folder, and puts small files into place. The seam at which a program that tortures the
/// store loses, tears and reorders writes; everything else uses [`RealDisk`].
pub trait Disk: Send + Sync {
    /// The storage. With `create`, a new file is made when there is none.
    ///
    /// # Errors
    /// Those of the operating system.
    fn storage(&self, path: &Path, create: bool) -> io::Result<Storage>;

    /// Puts a file into the place of another, whole and durable or not at all; afterwards the bytes of the one before are
    /// overwritten.
    ///
    /// # Errors
    /// Those of the operating system. It is not known then which of the two lies there.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        files::replace_and_wipe(path, bytes)
    }
}

/// Any storage, boxed, with its locks passed on.
#[derive(Debug)]
pub struct Storage(pub Box<dyn StorageBackend>);

/// The file itself.
pub struct RealDisk;

impl Disk for RealDisk {
    fn storage(&self, path: &Path, create: bool) -> io::Result<Storage> {
        let file = File::options().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)?;
        Ok(Storage(Box::new(FileBackend::new(file).map_err(io::Error::other)?)))
    }
}

/// The file as it lies there, never written: every write stays in memory.
pub(crate) struct OverlayDisk;

impl Disk for OverlayDisk {
    fn storage(&self, path: &Path, _create: bool) -> io::Result<Storage> {
        let file = files::open(path)?;
        let bytes = file.metadata()?.len();
        let written = Mutex::new(Written { bytes, visible: bytes, blocks: BTreeMap::new() });
        Ok(Storage(Box::new(Overlay { file, written })))
    }
}

/// Makes a new database on a disk.
pub(crate) fn create(disk: &dyn Disk, dir: &Path, page_key: &[u8; KEY_BYTES]) -> Result<Box<dyn Engine>, Fault> {
    Ok(Box::new(RedbEngine::open(disk.storage(&dir.join(FILE), true)?, page_key)?))
}

/// Opens the database on a disk. Every page is read and its checksum verified first.
pub(crate) fn open(disk: &dyn Disk, dir: &Path, page_key: &[u8; KEY_BYTES]) -> Result<Box<dyn Engine>, Fault> {
    let storage = match disk.storage(&dir.join(FILE), false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Fault::Damaged("the database file is missing"));
        }
        opened => opened?,
    };
    // The database would take an empty file for a new one.
    if storage.len()? == 0 {
        return Err(Fault::Damaged("the database file is empty"));
    }
    Ok(Box::new(RedbEngine::open(storage, page_key)?))
}

/// Removes the database file, for a creation that was cut short.
pub(crate) fn discard(dir: &Path) -> io::Result<()> {
    files::remove(&dir.join(FILE))
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

/// A file under a layer of blocks that were written since.
#[derive(Debug)]
struct Overlay {
    file: File,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    /// Length of the storage.
    bytes: u64,
    /// How much of the file still shows: cutting the storage hides what lay beyond for good.
    visible: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK_BYTES]>>,
}

impl Overlay {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Block `number` as it reads now.
    fn block(&self, written: &Written, number: u64) -> io::Result<Box<[u8; BLOCK_BYTES]>> {
        if let Some(block) = written.blocks.get(&number) {
            return Ok(block.clone());
        }
        let mut block = Box::new([0; BLOCK_BYTES]);
        let start = number * BLOCK_BYTES as u64;
        let shown = written.visible.saturating_sub(start).min(BLOCK_BYTES as u64) as usize;
        self.file.read_exact_at(&mut block[..shown], start)?;
        Ok(block)
    }
}

/// The parts of `offset..offset + bytes` block by block: number, first byte in the block, first byte in the range, length.
fn parts(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % BLOCK_BYTES as u64) as usize;
        let length = (BLOCK_BYTES - within).min(bytes - done);
        let part = (length > 0).then_some((at / BLOCK_BYTES as u64, within, done, length));
        done += length;
        part
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().bytes)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > written.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, within, at, length) in parts(offset, out.len()) {
            out[at..at + length].copy_from_slice(&self.block(&written, number)?[within..within + length]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.written();
        if len < written.bytes {
            written.visible = written.visible.min(len);
            let (last, within) = (len / BLOCK_BYTES as u64, (len % BLOCK_BYTES as u64) as usize);
            written.blocks.retain(|number, _| *number <= last);
            if let Some(block) = written.blocks.get_mut(&last) {
                block[within..].fill(0);
            }
        }
        written.bytes = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > written.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (number, within, at, length) in parts(offset, data.len()) {
            let mut block = self.block(&written, number)?;
            block[within..within + length].copy_from_slice(&data[at..at + length]);
            written.blocks.insert(number, block);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_reads_like_a_file_and_leaves_the_file_alone() {
        let dir = tempfile::tempdir().expect("scratch folder");
        let path = dir.path().join("file");
        let original: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        std::fs::write(&path, &original).expect("written");
        let overlay = OverlayDisk.storage(&path, false).expect("opened");
        let mut model = original.clone();
        let mut step = |offset: usize, data: &[u8]| {
            model[offset..offset + data.len()].copy_from_slice(data);
            overlay.write(offset as u64, data).expect("written");
            let mut all = vec![0; model.len()];
            overlay.read(0, &mut all).expect("read");
            assert_eq!(all, model);
        };
        step(4000, &[9; 200]);
        step(9990, &[8; 10]);
        overlay.set_len(5000).expect("cut");
        overlay.set_len(12_000).expect("grown");
        let mut all = vec![1; 12_000];
        overlay.read(0, &mut all).expect("read");
        model.truncate(5000);
        model.resize(12_000, 0);
        assert_eq!(all, model);
        assert!(overlay.read(11_999, &mut [0; 2]).is_err());
        assert!(overlay.write(u64::MAX, &[0; 2]).is_err());
        assert_eq!(std::fs::read(&path).expect("read"), original);
    }
}
