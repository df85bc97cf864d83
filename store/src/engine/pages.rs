//! The pages of the database file as this process read them when it opened the file, or wrote them since: a keyed tag of each
//! in memory. redb checks no page that it reads later; a page that was changed, moved or put back to an older state on the
//! disk meanwhile does not fit its tag and is handed to redb as zeros, which no page of its trees is: what needed it fails,
//! everything else goes on. What is in a page is not known here.

use super::NOTE_BYTES;
use crate::backend::Storage;
use crate::memory::KEY_BYTES;
use redb::{BackendError, StorageBackend};
use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Bytes of a page. redb reads and writes whole pages, save for its header in the first one.
const PAGE_BYTES: usize = 4096;
/// Where the note lies: in the first page, behind redb's header of 320 bytes, in a sector of its own.
const NOTE_AT: u64 = 512;
/// The tag of a page of which nothing is known.
const UNKNOWN: u64 = 0;

/// What is known of each page. Tags never leave memory and their key is drawn at every opening, so 64 bits are enough: who
/// changes the file can try, and every try is an error that shows.
pub(crate) struct Pages {
    storage: Storage,
    key: [u8; KEY_BYTES],
    tags: RwLock<Vec<AtomicU64>>,
    /// While redb checks the file against its own checksums, pages are taken as they are.
    opening: AtomicBool,
    /// The storage answered with an error.
    failed: AtomicBool,
}

/// A storage that hands out nothing but pages that fit.
#[derive(Debug)]
pub(crate) struct Guarded(pub(crate) Arc<Pages>);

impl Pages {
    /// Nothing is known yet.
    pub(crate) fn new(storage: Storage, key: [u8; KEY_BYTES]) -> io::Result<Self> {
        let (opening, failed) = (AtomicBool::new(true), AtomicBool::new(false));
        let pages = Self { storage, key, tags: RwLock::default(), opening, failed };
        pages.resize(pages.storage.len()?);
        Ok(pages)
    }

    /// The file is open: from now on a page of which nothing is known is not one of redb's.
    pub(crate) fn settle(&self) {
        self.opening.store(false, Ordering::Release);
    }

    /// Whether the storage ever answered with an error.
    pub(crate) fn have_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn noted<T>(&self, answer: io::Result<T>) -> io::Result<T> {
        self.failed.fetch_or(answer.is_err(), Ordering::AcqRel);
        answer
    }

    /// The note that was left last.
    pub(crate) fn note(&self) -> io::Result<[u8; NOTE_BYTES]> {
        let mut note = [0; NOTE_BYTES];
        self.storage.read(NOTE_AT, &mut note)?;
        Ok(note)
    }

    /// Leaves a note.
    pub(crate) fn leave_note(&self, note: &[u8; NOTE_BYTES]) -> io::Result<()> {
        self.storage.write(NOTE_AT, note)
    }

    fn tag(&self, page: &[u8]) -> u64 {
        let digest = blake3::keyed_hash(&self.key, page);
        let (first, _) = digest.as_bytes().split_first_chunk().expect("32 bytes have 8");
        u64::from_le_bytes(*first).max(UNKNOWN + 1)
    }

    fn resize(&self, bytes: u64) {
        let pages = bytes.div_ceil(PAGE_BYTES as u64) as usize;
        self.tags.write().unwrap_or_else(PoisonError::into_inner).resize_with(pages, || AtomicU64::new(UNKNOWN));
    }

    /// Whether the pages from `offset` on are as they should be.
    fn fit(&self, offset: u64, bytes: &[u8]) -> bool {
        if !offset.is_multiple_of(PAGE_BYTES as u64) || !bytes.len().is_multiple_of(PAGE_BYTES) {
            return false;
        }
        let first = (offset / PAGE_BYTES as u64) as usize;
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        bytes.chunks_exact(PAGE_BYTES).zip(first..).all(|(page, number)| {
            let Some(known) = tags.get(number) else { return false };
            let tag = self.tag(page);
            match known.load(Ordering::Acquire) {
                UNKNOWN if self.opening.load(Ordering::Acquire) => {
                    known.store(tag, Ordering::Release);
                    true
                }
                known => known == tag,
            }
        })
    }

    /// Takes what was written; with `whole` false, forgets what was there.
    fn take(&self, offset: u64, bytes: &[u8], whole: bool) {
        let first = (offset / PAGE_BYTES as u64) as usize;
        let tags = self.tags.read().unwrap_or_else(PoisonError::into_inner);
        for (page, number) in bytes.chunks(PAGE_BYTES).zip(first..) {
            let tag = if whole && page.len() == PAGE_BYTES { self.tag(page) } else { UNKNOWN };
            if let Some(known) = tags.get(number) {
                known.store(tag, Ordering::Release);
            }
        }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages over {:?}", self.storage)
    }
}

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.0.noted(self.0.storage.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.noted(self.0.storage.read(offset, out))?;
        // The header is read at the opening alone, and its parts have checksums of their own.
        if offset >= PAGE_BYTES as u64 && !self.0.fit(offset, out) {
            out.fill(0);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.noted(self.0.storage.set_len(len))?;
        self.0.resize(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.noted(self.0.storage.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let written = self.0.noted(self.0.storage.write(offset, data));
        if offset >= PAGE_BYTES as u64 {
            self.0.take(offset, data, written.is_ok() && offset.is_multiple_of(PAGE_BYTES as u64));
        }
        written
    }

    fn close(&self) -> io::Result<()> {
        self.0.storage.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.storage.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.storage.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.storage.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::MemoryDisk;

    #[test]
    fn a_page_that_is_not_as_it_was_reads_as_zeros() {
        let disk = MemoryDisk::holding(&[7; 4 * PAGE_BYTES]);
        let guard = Guarded(Arc::new(Pages::new(Storage(Box::new(disk.clone())), [1; KEY_BYTES]).expect("made")));
        let read = |page: u64| {
            let mut out = [9; PAGE_BYTES];
            guard.read(page * PAGE_BYTES as u64, &mut out).expect("read");
            out[0]
        };
        assert_eq!((read(1), read(2)), (7, 7));
        guard.0.settle();
        assert_eq!(read(3), 0, "nothing is known of it");
        guard.write(3 * PAGE_BYTES as u64, &[5; PAGE_BYTES]).expect("written");
        assert_eq!((read(1), read(2), read(3)), (7, 7, 5));
        // Past the guard: what a hand on the disk does.
        disk.write(PAGE_BYTES as u64 + 100, &[6]).expect("written");
        disk.write(2 * PAGE_BYTES as u64, &[5; PAGE_BYTES]).expect("written");
        assert_eq!((read(1), read(2), read(3)), (0, 0, 5));
        // Put back to an older state that was right once.
        disk.write(3 * PAGE_BYTES as u64, &[7; PAGE_BYTES]).expect("written");
        assert_eq!(read(3), 0);
    }
}
