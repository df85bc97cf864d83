//! Keys and values of one conversation in f16, in the order in which attention reads them. Memory is taken by the
//! page when tokens arrive and given back, overwritten, when they go. Refuses to know who talks.
//!
//! Per layer and key head lie the keys `[token / 16][head_dim][token % 16]`, so that one load has the same column of sixteen
//! keys, and then the values `[token][width]`, where `width` is `head_dim` filled up with zeros to a multiple of 16.

use crate::kernels::lanes::{LANES, Lanes, with_lanes};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::ptr::NonNull;

/// Widest head.
pub const MAX_HEAD_DIM: usize = 512;
/// Largest number of 16 bits; what is larger is kept as it, so that no product makes a number that is none.
const TOP: f32 = 65_504.0;
/// Smallest page of any system.
const PAGE_BYTES: usize = 4096;

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

    /// Numbers of the keys of one head.
    const fn key_len(&self) -> usize {
        self.tokens.next_multiple_of(LANES) * self.head_dim
    }

    /// Numbers of the keys and values of one head.
    const fn head_len(&self) -> usize {
        self.key_len() + self.tokens.next_multiple_of(LANES) * self.width()
    }

    const fn len(&self) -> usize {
        self.layers * self.kv_heads * self.head_len()
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

/// Keys and values of one head of one layer.
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
        let bytes = (shape.len() * size_of::<u16>()).next_multiple_of(PAGE_BYTES);
        // SAFETY: a fresh private mapping touches nothing else.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        // SAFETY: the mapping just made. Large pages would make memory of address space that no token uses; where
        // the system has no such advice there are none.
        let _ = unsafe { madvise(start, bytes, Advice::LinuxNoHugepage) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { shape, start, bytes })
    }

    /// Its shape.
    #[must_use]
    pub const fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// One head of one layer.
    pub(super) fn head(&self, layer: usize, head: usize) -> KvHead {
        assert!(layer < self.shape.layers && head < self.shape.kv_heads, "no such head");
        let at = (layer * self.shape.kv_heads + head) * self.shape.head_len();
        // SAFETY: within the mapping, whose length is that of all heads.
        let (keys, values) = unsafe {
            let keys = self.start.as_ptr().add(at);
            (keys, keys.add(self.shape.key_len()))
        };
        KvHead { keys, values, head_dim: self.shape.head_dim, width: self.shape.width() }
    }

    fn heads(&self) -> impl Iterator<Item = KvHead> {
        let shape = self.shape;
        (0..shape.layers).flat_map(move |layer| (0..shape.kv_heads).map(move |head| self.head(layer, head)))
    }

    /// Overwrites the tokens `from..to` with zeros; the bytes that they had. With `from` 0 the memory is given back as well.
    ///
    /// # Panics
    /// There are no such tokens.
    pub fn wipe(&mut self, from: usize, to: usize) -> u64 {
        assert!(from <= to && to <= self.shape.tokens, "no such tokens");
        for head in self.heads() {
            // SAFETY: the tokens are within the head, and `&mut self` keeps everybody else away.
            unsafe { head.zero(from, to) };
        }
        if from == 0 && to > 0 {
            // SAFETY: the own mapping; it reads as zeros afterwards, as it does now.
            let _ = unsafe { madvise(self.start.as_ptr().cast(), self.bytes, Advice::LinuxDontNeed) };
        }
        ((to - from) * self.shape.token_bytes()) as u64
    }

    /// Takes the first `tokens` tokens of another store of the same shape.
    ///
    /// # Panics
    /// The shapes differ, or there are no such tokens.
    pub fn copy_prefix(&mut self, other: &Self, tokens: usize) {
        assert!(self.shape == other.shape && tokens <= self.shape.tokens, "no such tokens");
        for (to, from) in self.heads().zip(other.heads()) {
            // SAFETY: two mappings of the same shape, `self` exclusively borrowed; the tokens are within both.
            unsafe { to.copy(&from, tokens) };
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
    unsafe fn zero(&self, from: usize, to: usize) {
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

    const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 2, head_dim: 20, tokens: 40 };

    fn read(store: &KvStore, token: usize) -> Vec<f32> {
        let heads = store.heads().flat_map(|head| {
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
            for (at, head) in store.heads().enumerate() {
                let key: Vec<f32> = (0..SHAPE.head_dim).map(|c| (token + 100 * at + c) as f32).collect();
                let value: Vec<f32> = key.iter().map(|x| -x * 1e9).collect();
                // SAFETY: within the store, and nobody else uses it.
                unsafe { write(instructions, &head, token, &key, &value) };
            }
        }
    }

    #[test]
    fn tokens_are_written_copied_and_overwritten() {
        for instructions in Instructions::available() {
            let mut store = KvStore::new(SHAPE).unwrap();
            fill(&mut store, instructions, 37);
            let row = read(&store, 17);
            assert_eq!(row[..3], [17.0, 18.0, 19.0]);
            assert_eq!(row[20..22], [-TOP, -TOP], "too large numbers stay numbers");
            assert!(row[40..52].iter().all(|x| *x == 0.0), "values are filled up with zeros");
            let mut other = KvStore::new(SHAPE).unwrap();
            other.copy_prefix(&store, 35);
            assert_eq!(read(&other, 34), read(&store, 34));
            assert!(read(&other, 35).iter().all(|x| *x == 0.0));
            assert_eq!(store.wipe(18, 37), (19 * SHAPE.token_bytes()) as u64);
            assert_eq!(read(&store, 17), row);
            assert!((18..40).all(|token| read(&store, token).iter().all(|x| *x == 0.0)));
            assert_eq!(store.wipe(0, 18), (18 * SHAPE.token_bytes()) as u64);
            assert!(read(&store, 17).iter().all(|x| *x == 0.0));
        }
    }
}
