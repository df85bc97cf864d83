//! Keys and values of one conversation in f16, in the order in which attention reads them. Memory is taken by the
//! page when tokens arrive and given back, overwritten, when they go. Refuses to know who talks.
//!
//! One stretch of [`STRETCH`] tokens after another; in it per layer and key head the keys `[token / 16][head_dim][token % 16]`, so
//! that one load has the same column of sixteen keys, and then the values `[token][width]`, where `width` is `head_dim`
//! filled up with zeros to a multiple of 16. Stretches behind the first lie in huge pages where they are large enough: a
//! decoded token streams through all of them.

use super::tile::STRETCH;
use crate::kernels::lanes::{LANES, Lanes, with_lanes};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

/// Widest head.
pub const MAX_HEAD_DIM: usize = 512;
/// Largest number of 16 bits; what is larger is kept as it, so that no product makes a number that is none.
const TOP: f32 = 65_504.0;
/// Smallest page of any system.
const PAGE_BYTES: usize = 4096;
/// Bytes of a stretch from which on huge pages do not make memory of much that no token uses.
const HUGE_FROM_BYTES: usize = 2 << 20;

/// The shape of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Most tokens.
    pub tokens: usize,
}

impl KvShape {
    /// Width of a value row.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Numbers of the keys of one head in one stretch.
    const fn key_len(&self) -> usize {
        STRETCH * self.head_dim
    }

    /// Numbers of the keys and values of one head in one stretch.
    const fn head_len(&self) -> usize {
        STRETCH * (self.head_dim + self.width())
    }

    /// Numbers of one stretch, in whole pages.
    const fn stretch_len(&self) -> usize {
        (self.layers * self.kv_heads * self.head_len()).next_multiple_of(PAGE_BYTES / size_of::<u16>())
    }

    const fn stretches(&self) -> usize {
        self.tokens.div_ceil(STRETCH)
    }

    /// Bytes of one token.
    #[must_use]
    pub const fn token_bytes(&self) -> usize {
        self.layers * self.kv_heads * (self.head_dim + self.width()) * size_of::<u16>()
    }
}

/// Keys and values of one conversation.
pub struct KvStore {
    shape: KvShape,
    start: NonNull<u16>,
    bytes: usize,
}

// SAFETY: it owns its mapping; the pointer is to plain numbers and is used through `&self` only for reading and for
// `KvHead::write`, whose caller answers for the tokens it writes.
unsafe impl Send for KvStore {}
// SAFETY: as above.
unsafe impl Sync for KvStore {}

/// Keys and values of one head of one layer in one stretch.
#[derive(Clone, Copy)]
pub(super) struct KvHead {
    pub(super) keys: *mut u16,
    pub(super) values: *mut u16,
    head_dim: usize,
    width: usize,
}

impl KvStore {
    /// Address space for a store; no memory yet.
    ///
    /// # Errors
    /// The system gives no address space.
    pub fn new(shape: KvShape) -> io::Result<Self> {
        let stretch = shape.stretch_len() * size_of::<u16>();
        let bytes = stretch * shape.stretches();
        // SAFETY: a fresh private mapping touches nothing else.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let small = if stretch < HUGE_FROM_BYTES { bytes } else { stretch };
        // SAFETY: the mapping just made, of at least one stretch. Where the system does not take the advice, pages are small.
        unsafe {
            let _ = madvise(start, small, Advice::LinuxNoHugepage);
            let _ = madvise(start.cast::<u8>().add(small).cast(), bytes - small, Advice::LinuxHugepage);
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { shape, start, bytes })
    }

    /// Its shape.
    #[must_use]
    pub const fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// One head of one layer in one stretch.
    pub(super) fn head(&self, layer: usize, head: usize, stretch: usize) -> KvHead {
        let KvShape { layers, kv_heads, .. } = self.shape;
        assert!(layer < layers && head < kv_heads && stretch < self.shape.stretches(), "no such head");
        let at = stretch * self.shape.stretch_len() + (layer * kv_heads + head) * self.shape.head_len();
        // SAFETY: within the mapping, whose length is that of all stretches.
        let (keys, values) = unsafe {
            let keys = self.start.as_ptr().add(at);
            (keys, keys.add(self.shape.key_len()))
        };
        KvHead { keys, values, head_dim: self.shape.head_dim, width: self.shape.width() }
    }

    /// The heads of all layers in every stretch that has some of the tokens `from..to`, with which tokens of it those are.
    fn parts(&self, from: usize, to: usize) -> impl Iterator<Item = (KvHead, Range<usize>)> {
        assert!(from <= to && to <= self.shape.tokens, "no such tokens");
        (from / STRETCH..to.div_ceil(STRETCH)).flat_map(move |stretch| {
            let start = stretch * STRETCH;
            let tokens = from.max(start) - start..to.min(start + STRETCH) - start;
            let all = self.shape.layers * self.shape.kv_heads;
            (0..all)
                .map(move |at| (self.head(at / self.shape.kv_heads, at % self.shape.kv_heads, stretch), tokens.clone()))
        })
    }

    /// Overwrites the tokens `from..to` with zeros; the bytes that they had. The memory of stretches that
    /// begin behind `from` is given back as well: `to` is the end of what is in use.
    ///
    /// # Panics
    /// There are no such tokens.
    pub fn wipe(&mut self, from: usize, to: usize) -> u64 {
        for (head, tokens) in self.parts(from, to) {
            // SAFETY: the tokens are within the head, and `&mut self` keeps everybody else away.
            unsafe { head.zero(tokens) };
        }
        let kept = from.div_ceil(STRETCH) * self.shape.stretch_len() * size_of::<u16>();
        if from < to && kept < self.bytes {
            // SAFETY: the end of the own mapping; it reads as zeros afterwards, as it does now.
            let _ = unsafe {
                madvise(self.start.as_ptr().cast::<u8>().add(kept).cast(), self.bytes - kept, Advice::LinuxDontNeed)
            };
        }
        ((to - from) * self.shape.token_bytes()) as u64
    }

    /// Takes the first `tokens` tokens of another store of the same shape.
    ///
    /// # Panics
    /// The shapes differ, or there are no such tokens.
    pub fn copy_prefix(&mut self, other: &Self, tokens: usize) {
        assert!(self.shape == other.shape, "stores of one shape");
        for ((to, tokens), (from, _)) in self.parts(0, tokens).zip(other.parts(0, tokens)) {
            // SAFETY: two mappings of the same shape, `self` exclusively borrowed; the tokens are within both.
            unsafe { to.copy(&from, tokens.end) };
        }
    }
}

impl Drop for KvStore {
    fn drop(&mut self) {
        // SAFETY: the own mapping, of which no borrow is left. What cannot be unmapped stays until the process ends.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

impl KvHead {
    /// # Safety
    /// The tokens are within the head and nobody else uses it.
    unsafe fn zero(&self, tokens: Range<usize>) {
        let Range { start: from, end: to } = tokens;
        // SAFETY: by the caller.
        unsafe {
            self.values.add(from * self.width).write_bytes(0, (to - from) * self.width);
            let mut token = from;
            while token < to {
                if token.is_multiple_of(LANES) && token + LANES <= to {
                    let group = self.keys.add(token * self.head_dim);
                    group.write_bytes(0, LANES * self.head_dim);
                    token += LANES;
                } else {
                    (0..self.head_dim).for_each(|column| self.key(token, column).write(0));
                    token += 1;
                }
            }
        }
    }

    /// # Safety
    /// The tokens are within both heads, which are apart; nobody else uses this one.
    unsafe fn copy(&self, from: &Self, tokens: usize) {
        let whole = tokens / LANES * LANES;
        // SAFETY: by the caller.
        unsafe {
            self.values.copy_from_nonoverlapping(from.values, tokens * self.width);
            self.keys.copy_from_nonoverlapping(from.keys, whole * self.head_dim);
            for token in whole..tokens {
                (0..self.head_dim).for_each(|column| self.key(token, column).write(from.key(token, column).read()));
            }
        }
    }

    /// # Safety
    /// The token and the column are within the head.
    unsafe fn key(&self, token: usize, column: usize) -> *mut u16 {
        // SAFETY: by the caller.
        unsafe { self.keys.add((token / LANES * self.head_dim + column) * LANES + token % LANES) }
    }
}

/// Writes key and value of one token, `head_dim` numbers each.
///
/// # Safety
/// The token is within the head, and nobody else uses it now.
#[inline(always)]
unsafe fn write_token<V: Lanes>(head: &KvHead, token: usize, key: &[f32], value: &[f32]) {
    let mut halves = [0u16; MAX_HEAD_DIM];
    let (dim, width) = (head.head_dim, head.width);
    assert!(dim <= MAX_HEAD_DIM && key.len() == dim && value.len() == dim, "numbers of one head");
    // SAFETY: `halves` has room for `width`; the token is the caller's.
    unsafe {
        halve::<V>(key, halves.as_mut_ptr());
        for (column, half) in halves[..dim].iter().enumerate() {
            head.key(token, column).write(*half);
        }
        halve::<V>(value, halves.as_mut_ptr());
        head.values.add(token * width).copy_from_nonoverlapping(halves.as_ptr(), width);
    }
}

with_lanes! {
    /// Writes key and value of one token, `head_dim` numbers each.
    ///
    /// # Safety
    /// The token is within the head, and nobody else uses it now.
    pub(super) unsafe fn write(head: &KvHead, token: usize, key: &[f32], value: &[f32]) = write_token;
}

/// Sixteen numbers as f16, none of them infinite.
///
/// # Safety
/// There is room for sixteen.
#[inline(always)]
unsafe fn halve_some<V: Lanes>(numbers: V, to: *mut u16) {
    // SAFETY: by the caller.
    unsafe { V::splat(TOP).min(V::splat(-TOP).max(numbers)).store_f16(to) };
}

/// Numbers as f16, the last sixteen filled up with zeros.
///
/// # Safety
/// There is room for a multiple of sixteen.
#[inline(always)]
unsafe fn halve<V: Lanes>(numbers: &[f32], to: *mut u16) {
    // SAFETY: by the caller.
    unsafe {
        let (whole, rest) = numbers.as_chunks::<LANES>();
        for (i, chunk) in whole.iter().enumerate() {
            halve_some(V::load(chunk.as_ptr()), to.add(i * LANES));
        }
        if !rest.is_empty() {
            let mut chunk = [0f32; LANES];
            chunk[..rest.len()].copy_from_slice(rest);
            halve_some(V::load(chunk.as_ptr()), to.add(whole.len() * LANES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Instructions;
    use half::f16;

    const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 2, head_dim: 20, tokens: 600 };

    fn read(store: &KvStore, token: usize) -> Vec<f32> {
        let heads = store.parts(token, token + 1).flat_map(|(head, tokens)| {
            let token = tokens.start;
            // SAFETY: tokens of the tests are within the store.
            let keys = (0..SHAPE.head_dim).map(move |c| unsafe { head.key(token, c).read() });
            // SAFETY: as above.
            let values = (0..head.width).map(move |c| unsafe { head.values.add(token * head.width + c).read() });
            keys.chain(values)
        });
        heads.map(|bits| f16::from_bits(bits).to_f32()).collect()
    }

    fn fill(store: &mut KvStore, instructions: Instructions, tokens: usize) {
        for token in 0..tokens {
            for (at, (head, tokens)) in store.parts(token, token + 1).enumerate() {
                let key: Vec<f32> = (0..SHAPE.head_dim).map(|c| (token + 100 * at + c) as f32).collect();
                let value: Vec<f32> = key.iter().map(|x| -x * 1e9).collect();
                // SAFETY: within the store, and nobody else uses it.
                unsafe { write(instructions, &head, tokens.start, &key, &value) };
            }
        }
    }

    #[test]
    fn tokens_are_written_copied_and_overwritten() {
        for instructions in Instructions::available() {
            let mut store = KvStore::new(SHAPE).unwrap();
            fill(&mut store, instructions, 537);
            let row = read(&store, 17);
            assert_eq!(row[..3], [17.0, 18.0, 19.0]);
            assert_eq!(row[20..22], [-TOP, -TOP], "too large numbers stay numbers");
            assert!(row[40..52].iter().all(|x| *x == 0.0), "values are filled up with zeros");
            let mut other = KvStore::new(SHAPE).unwrap();
            other.copy_prefix(&store, 530);
            assert!((0..530).all(|token| read(&other, token) == read(&store, token)));
            assert!(read(&other, 530).iter().all(|x| *x == 0.0));
            assert_eq!(store.wipe(18, 537), (519 * SHAPE.token_bytes()) as u64);
            assert_eq!(read(&store, 17), row);
            assert!((18..600).all(|token| read(&store, token).iter().all(|x| *x == 0.0)));
            assert_eq!(store.wipe(0, 18), (18 * SHAPE.token_bytes()) as u64);
            assert!(read(&store, 17).iter().all(|x| *x == 0.0));
        }
    }
}
