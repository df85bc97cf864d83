//! One page of memory for keys: locked so that it is never swapped out, left out of core dumps, overwritten with zeros
//! when told and when dropped. What a slot holds is not known here. The only unsafe code of this crate is in this file.

use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::io;
use std::ptr::NonNull;
use zeroize::Zeroize;

/// Bytes of one key.
pub(crate) const KEY_BYTES: usize = 32;
/// Bytes of the mapping. The kernel rounds up where pages are larger.
const ARENA_BYTES: usize = 4096;
/// Keys that fit.
const SLOTS: usize = ARENA_BYTES / KEY_BYTES;

/// The page.
pub(crate) struct Arena {
    page: NonNull<[[u8; KEY_BYTES]; SLOTS]>,
    locked: bool,
}

// SAFETY: the mapping belongs to this value alone and is reached only through `&self` for reading and `&mut self` for
// writing, like any owned memory.
unsafe impl Send for Arena {}
// SAFETY: as above; `&self` gives no way to write.
unsafe impl Sync for Arena {}

impl Arena {
    /// A page of zeros. A kernel that will not lock it (`RLIMIT_MEMLOCK`) is tolerated; see [`Arena::is_locked`].
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                ARENA_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let page = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: address and length are those of the mapping made above.
        let locked = unsafe { rustix::mm::mlock(address, ARENA_BYTES) }.is_ok();
        // SAFETY: as above; the advice changes no contents. A kernel that refuses it only makes core dumps larger.
        let _ = unsafe { rustix::mm::madvise(address, ARENA_BYTES, Advice::LinuxDontDump) };
        Ok(Self { page, locked })
    }

    /// The keys.
    pub(crate) fn slots(&self) -> &[[u8; KEY_BYTES]; SLOTS] {
        // SAFETY: the mapping is readable, page-aligned, exactly this long, initialised with zeros, and lives as long
        // as `self`.
        unsafe { self.page.as_ref() }
    }

    /// The keys, to be written.
    pub(crate) fn slots_mut(&mut self) -> &mut [[u8; KEY_BYTES]; SLOTS] {
        // SAFETY: as for `slots`, writable, and `&mut self` makes this the only reference.
        unsafe { self.page.as_mut() }
    }

    /// Overwrites every key with zeros.
    pub(crate) fn wipe(&mut self) {
        self.slots_mut().zeroize();
    }

    /// Whether the kernel keeps the page out of swap.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: the mapping was made with this length in `new`, and nothing can refer to it any more. Unmapping
        // unlocks it.
        let _ = unsafe { rustix::mm::munmap(self.page.as_ptr().cast(), ARENA_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_until_they_are_wiped() {
        let mut arena = Arena::new().expect("one page");
        arena.slots_mut()[SLOTS - 1] = [7; KEY_BYTES];
        assert_eq!(arena.slots()[SLOTS - 1], [7; KEY_BYTES]);
        arena.wipe();
        assert!(arena.slots().iter().all(|key| *key == [0; KEY_BYTES]));
    }

    /// What the kernel says of the mapping: `dd` is left out of core dumps, `lo` is locked.
    #[test]
    fn the_kernel_keeps_the_page_out_of_core_dumps_and_swap() {
        let arena = Arena::new().expect("one page");
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("Linux");
        let address = arena.page.as_ptr().addr();
        let holds = |line: &str| {
            let (from, to) = line.split_whitespace().next()?.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(from)?..number(to)?).contains(&address))
        };
        let mut lines = maps.lines().skip_while(|line| holds(line) != Some(true));
        let Some(flags) = lines.find_map(|line| line.strip_prefix("VmFlags:")) else {
            // A kernel in user space, such as gVisor, tells no flags.
            return assert!(!maps.contains("VmFlags:"), "the page is not mapped");
        };
        let has = |flag: &str| flags.split_whitespace().any(|one| one == flag);
        assert!(has("dd"), "{flags}");
        assert_eq!(has("lo"), arena.is_locked(), "{flags}");
    }
}
