//! Memory that begins at a cache line, and arenas of it in huge pages: a product streams through all weights of a model, and with
//! pages of 4 KiB a fifth of its time goes into finding them. Knows bytes; refuses to know what they mean.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes of a huge page; smaller pieces of memory do not ask for one.
const HUGE_PAGE: usize = 2 << 20;

/// One allocation, zeroed at first; cut into [`Lines`] that do not overlap.
struct Chunk {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a chunk is plain memory; who reads and writes which part of it is the business of `Lines`.
unsafe impl Send for Chunk {}
// SAFETY: as for `Send`.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn zeroed(bytes: usize) -> Self {
        let align = if bytes < HUGE_PAGE { LINE } else { HUGE_PAGE };
        let size = bytes.max(1).next_multiple_of(align);
        let layout = Layout::from_size_align(size, align).expect("sides of matrices are bounded");
        // SAFETY: the size is not 0.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if align == HUGE_PAGE {
            // SAFETY: the memory was just allocated and is whole pages. It is advice; when refused, pages stay small.
            let _ = unsafe { rustix::mm::madvise(start.as_ptr().cast(), size, rustix::mm::Advice::LinuxHugepage) };
        }
        // SAFETY: `size` bytes were allocated. Only now, so that the pages are huge when they are first touched.
        unsafe { start.as_ptr().write_bytes(0, size) };
        Self { start, layout }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and no `Lines` holds it any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// Room for the matrices of one model, one after another. Lives as long as any of them.
pub struct Arena {
    chunk: Arc<Chunk>,
    used: usize,
}

impl Arena {
    /// Room for `bytes` bytes, as the sum of what [`PackedMatrix::bytes_for`](super::PackedMatrix::bytes_for) says.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { chunk: Arc::new(Chunk::zeroed(bytes)), used: 0 }
    }

    /// What nobody has taken yet: zeros, for whoever measures how fast memory is read.
    #[must_use]
    pub fn free(&self) -> &[u64] {
        let words = (self.chunk.layout.size() - self.used) / size_of::<u64>();
        // SAFETY: inside the chunk, which was zeroed; it begins at a cache line, and no `Lines` has that part as long as
        // `take`, which needs `self` exclusively, does not give it.
        unsafe { std::slice::from_raw_parts(self.chunk.start.as_ptr().add(self.used).cast(), words) }
    }

    /// The next `bytes` zeros; from elsewhere when there is no room.
    pub(super) fn take(&mut self, bytes: usize) -> Lines {
        let len = bytes.next_multiple_of(LINE);
        if len > self.chunk.layout.size() - self.used {
            return Lines::zeroed(bytes);
        }
        let at = self.used;
        self.used += len;
        Lines { chunk: Arc::clone(&self.chunk), at, len }
    }
}

/// Bytes in whole cache lines, zero at first.
pub(super) struct Lines {
    chunk: Arc<Chunk>,
    at: usize,
    len: usize,
}

impl Lines {
    /// `bytes` zeros, rounded up to whole lines.
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self { chunk: Arc::new(Chunk::zeroed(bytes)), at: 0, len: bytes.next_multiple_of(LINE) }
    }

    /// How many bytes.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// All bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the part lies inside the chunk and was zeroed; only `bytes_mut` of this value writes to it.
        unsafe { std::slice::from_raw_parts(self.chunk.start.as_ptr().add(self.at), self.len) }
    }

    /// All bytes, to be written.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; parts of a chunk do not overlap, and `self` is exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.as_ptr().add(self.at), self.len) }
    }
}
