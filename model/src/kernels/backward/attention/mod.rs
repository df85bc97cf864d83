//! Causal attention with grouped heads over packed documents for training: forward with the log-sum-exp of every row kept,
//! backward with probabilities computed again, both in blocks of 64, so that memory grows with the longest document and
//! never with its square. Refuses to know positions: queries and keys come turned.
//!
//! A task is one head, or one group of heads, of one document; it copies its rows, padded with zeros, into room of its
//! own. So no document sees another, and bits depend on a document alone.

mod back;
mod block;
mod forward;
mod pack;
#[cfg(test)]
mod tests;

use self::block::{Engine, Ready, STEP};
use self::pack::{SIDE, Source};
use super::kept::{Kept, Span, SpanMut, each_row};
use crate::kernels::half::Unit;
use crate::kernels::pool::{PerThread, Pointer, Pool};
use crate::kernels::product::Instructions;
use half::bf16;

/// Columns of the widest head.
const DIM_MAX: usize = 128;
/// Tokens from which on the heads of a group go back one by one, each with a share of its own in the gradients of keys and
/// values, so that three groups do not leave one of two threads without work. Shares cost as much as that below. A rule
/// of the document alone, as are its bits; tests take a smaller number.
const LONG: usize = if cfg!(test) { 512 } else { 4096 };

/// Heads of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Columns of a head, 128 at most.
    pub head_dim: usize,
}

/// Memory of sixty-four bytes, where tiles and vectors begin.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Hands out pieces of room one after another, or measures them.
struct Carve {
    start: *mut u8,
    taken: usize,
    len: usize,
}

impl Carve {
    const fn measure() -> Self {
        Self { start: std::ptr::null_mut(), taken: 0, len: usize::MAX }
    }

    const fn of(room: &mut [Line]) -> Self {
        Self { start: room.as_mut_ptr().cast(), taken: 0, len: size_of_val(room) }
    }

    /// Room for `count` numbers, from a line's beginning on.
    fn take<T>(&mut self, count: usize) -> *mut T {
        let at = self.taken;
        self.taken += (count * size_of::<T>()).next_multiple_of(size_of::<Line>());
        assert!(self.taken <= self.len, "room for a document of this length");
        self.start.wrapping_add(at).cast()
    }

    const fn bytes(&self) -> usize {
        self.taken
    }
}

/// The shape of one task.
struct Task {
    set: Instructions,
    /// Tokens of the document.
    len: usize,
    /// Columns of a head.
    dim: usize,
    /// What scores are multiplied by.
    scale: f32,
    /// Query heads of a key head.
    group: usize,
}

impl Task {
    /// Columns of a head in blocks.
    const fn width(&self) -> usize {
        self.dim.next_multiple_of(STEP)
    }

    /// Tokens in whole blocks.
    const fn padded(&self) -> usize {
        self.len.next_multiple_of(SIDE)
    }

    /// Rows of the block from `at` on, in whole steps.
    fn rows(&self, at: usize) -> usize {
        SIDE.min((self.len - at).next_multiple_of(STEP))
    }

    /// The rows of a block.
    ///
    /// # Safety
    /// The source holds the document.
    unsafe fn part<E>(&self, source: Source<E>, at: usize) -> Source<E> {
        // SAFETY: by the caller.
        Source { start: unsafe { source.start.add(at * source.stride) }, count: SIDE.min(self.len - at), ..source }
    }

    /// The rows of a block of a further head.
    ///
    /// # Safety
    /// As [`Task::part`], with as many heads behind one another.
    unsafe fn head<E>(&self, source: Source<E>, at: usize, head: usize) -> Source<E> {
        // SAFETY: by the caller.
        unsafe {
            let part = self.part(source, at);
            Source { start: part.start.add(head * self.dim), ..part }
        }
    }
}

/// One document and where it begins.
#[derive(Clone, Copy)]
struct Document {
    start: usize,
    len: usize,
}

/// Attention of one shape of heads, with the room its threads work in.
pub struct Attention {
    heads: Heads,
    unit: Unit,
    room: PerThread<Vec<Line>>,
    /// Lines of each thread's room.
    lines: usize,
    documents: Vec<Document>,
    /// Shares of heads in the gradients of keys and of values, `[rows of long documents, heads·head_dim]`.
    shares: [Vec<f32>; 2],
}

impl Attention {
    /// Room for documents of up to `tokens_max` tokens in each of `threads`; a longer one makes it grow once.
    ///
    /// # Panics
    /// Heads do not fit one another, or are wider than 128 columns.
    #[must_use]
    pub fn new(heads: Heads, tokens_max: usize, threads: usize) -> Self {
        let Heads { heads: all, kv_heads, head_dim } = heads;
        assert!(
            kv_heads > 0 && all > 0 && all.is_multiple_of(kv_heads),
            "{kv_heads} key heads do not divide {all} heads"
        );
        assert!((1..=DIM_MAX).contains(&head_dim), "heads of {head_dim} columns where 1 to {DIM_MAX} can be");
        let mut made = Self {
            heads,
            unit: Unit::best(),
            room: PerThread::new(threads, Vec::new),
            lines: 0,
            documents: Vec::new(),
            shares: [const { Vec::new() }; 2],
        };
        made.make_room(tokens_max);
        made.make_shares(if tokens_max < LONG { 0 } else { tokens_max });
        made
    }

    /// The same, with another unit for rows of bf16.
    ///
    /// # Panics
    /// The processor does not have it.
    #[must_use]
    pub fn with(self, unit: Unit) -> Self {
        assert!(unit.is_available(), "the processor has no {unit:?}");
        Self { unit, ..self }
    }

    /// Bytes of the room of one thread for documents of up to so many tokens.
    #[must_use]
    pub fn room_bytes(heads: Heads, tokens_max: usize) -> usize {
        let (padded, width) = (tokens_max.next_multiple_of(SIDE), heads.head_dim.next_multiple_of(STEP));
        // f32 is the wider of what blocks are kept in.
        forward::room_bytes::<f32>(padded, width).max(back::room_bytes::<f32>(padded, width))
    }

    fn make_room(&mut self, tokens_max: usize) {
        let lines = Self::room_bytes(self.heads, tokens_max).div_ceil(size_of::<Line>());
        if lines > self.lines {
            self.lines = lines;
            self.room.each(|room| room.resize(lines, Line([0; 64])));
        }
    }

    fn make_shares(&mut self, rows: usize) {
        let numbers = rows * self.heads.heads * self.heads.head_dim;
        for shares in self.shares.iter_mut().filter(|shares| shares.len() < numbers) {
            shares.resize(numbers, 0.0);
        }
    }

    /// Takes the documents of a pass, the longest first so that no thread is left with one at the end.
    fn begin(&mut self, lengths: &[usize], rows: usize, threads: usize) {
        assert!(lengths.iter().sum::<usize>() == rows, "documents of {lengths:?} tokens are not {rows} rows");
        assert!(self.room.count() >= threads, "room for {} threads, not {threads}", self.room.count());
        self.make_room(lengths.iter().copied().max().unwrap_or(0));
        self.documents.clear();
        let mut start = 0;
        for len in lengths {
            self.documents.push(Document { start, len: *len });
            start += len;
        }
        self.documents.retain(|document| document.len > 0);
        self.documents.sort_unstable_by_key(|document| (usize::MAX - document.len, document.start));
    }

    fn task(&self, set: Instructions, document: Document) -> Task {
        let dim = self.heads.head_dim;
        let (scale, group) = (1.0 / (dim as f32).sqrt(), self.heads.heads / self.heads.kv_heads);
        Task { set, len: document.len, dim, scale, group }
    }

    /// `softmax(q·kᵀ/√head_dim)·v` by head, each row over those up to its own of its document: `q[rows, heads·dim]`,
    /// `k, v[rows, kv_heads·dim]`, turned already, into `out` like `q`; the logarithm of the sum of exponentials goes
    /// into `lse[rows, heads]`.
    ///
    /// # Panics
    /// Shapes do not fit, or documents are not the rows.
    pub fn forward<E: Kept>(
        &mut self,
        pool: &mut Pool,
        set: Instructions,
        [q, k, v]: [Span<'_, E>; 3],
        documents: &[usize],
        out: SpanMut<'_, E>,
        lse: &mut [f32],
    ) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let rows = q.rows();
        q.expect(rows, heads * head_dim);
        k.expect(rows, kv_heads * head_dim);
        v.expect(rows, kv_heads * head_dim);
        out.expect(rows, heads * head_dim);
        assert!(lse.len() == rows * heads, "{} sums for {rows} rows of {heads} heads", lse.len());
        self.begin(documents, rows, pool.threads());
        let (engine, lse) = (Engine::of::<E>(self.unit, set), Pointer(lse.as_mut_ptr()));
        let this = &*self;
        pool.run(this.documents.len() * heads, &|index, thread| {
            let (document, head) = (this.documents[index / heads], index % heads);
            let task = this.task(set, document);
            let kv = head / task.group;
            // SAFETY: each task writes its own rows and columns, within the checked shapes, in its thread's room.
            unsafe {
                let work = forward::Forward {
                    q: source(q, document, head, head_dim),
                    k: source(k, document, kv, head_dim),
                    v: source(v, document, kv, head_dim),
                    out: out.at(document.start, head * head_dim),
                    lse: (lse.at(document.start * heads + head), heads),
                };
                let (ready, mut carve) = (engine.begin(), Carve::of(this.room.get(thread)));
                match engine {
                    Engine::Single(_) => forward::forward::<E, f32>(&task, &ready, &work, &mut carve),
                    #[cfg(target_arch = "x86_64")]
                    _ => forward::forward::<E, bf16>(&task, &ready, &work, &mut carve),
                }
            }
        });
    }

    /// The way back through [`Attention::forward`]: from `[q, k, v, out]`, `lse` and the gradient of `out` to those of
    /// the turned queries and keys, and of the values.
    ///
    /// # Panics
    /// As [`Attention::forward`].
    #[expect(clippy::too_many_arguments, reason = "what forward read, what it wrote, and as many gradients")]
    pub fn backward<E: Kept, D: Kept, F: Kept>(
        &mut self,
        pool: &mut Pool,
        set: Instructions,
        [q, k, v, out]: [Span<'_, E>; 4],
        lse: &[f32],
        d_out: Span<'_, D>,
        documents: &[usize],
        [dq, dk, dv]: [SpanMut<'_, F>; 3],
    ) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let (rows, wide, narrow) = (q.rows(), heads * head_dim, kv_heads * head_dim);
        [q, out].iter().for_each(|span| span.expect(rows, wide));
        [k, v].iter().for_each(|span| span.expect(rows, narrow));
        d_out.expect(rows, wide);
        dq.expect(rows, wide);
        [&dk, &dv].iter().for_each(|span| span.expect(rows, narrow));
        assert!(lse.len() == rows * heads, "{} sums for {rows} rows of {heads} heads", lse.len());
        self.begin(documents, rows, pool.threads());
        let engine = Engine::of::<E>(self.unit, set);
        // The longest come first.
        let long = self.documents.iter().take_while(|document| document.len >= LONG).count();
        self.make_shares(self.documents[..long].iter().map(|document| document.len).sum());
        let shares = self.shares.each_mut().map(|shares| Pointer(shares.as_mut_ptr()));
        let this = &*self;
        let (group, singles) = (heads / kv_heads, long * heads);
        pool.run(singles + (this.documents.len() - long) * kv_heads, &|index, thread| {
            let single = index < singles;
            let (document, head, group) = match index.checked_sub(singles) {
                None => (this.documents[index / heads], index % heads, 1),
                Some(index) => (this.documents[long + index / kv_heads], index % kv_heads * group, group),
            };
            let (task, kv) = (Task { group, ..this.task(set, document) }, head * kv_heads / heads);
            // SAFETY: each task writes its own rows and columns, within the checked shapes, in its thread's room.
            unsafe {
                let of = |span, head| source::<E>(span, document, head, head_dim);
                let work = back::Back {
                    q: of(q, head),
                    k: of(k, kv),
                    v: of(v, kv),
                    out: of(out, head),
                    d_out: source(d_out, document, head, head_dim),
                    lse: (lse.as_ptr().add(document.start * heads + head), heads),
                    dq: dq.at(document.start, head * head_dim),
                    dk: dk.at(document.start, kv * head_dim),
                    dv: dv.at(document.start, kv * head_dim),
                };
                let (ready, mut carve) = (engine.begin(), Carve::of(this.room.get(thread)));
                if single {
                    let at = this.first_share(index / heads) * wide + head * head_dim;
                    let [dk, dv] = shares.map(|shares| (shares.at(at), wide));
                    run_back(engine, &task, &ready, &work.onto(dk, dv), &mut carve);
                } else {
                    run_back(engine, &task, &ready, &work, &mut carve);
                }
            }
        });
        for (place, document) in this.documents[..long].iter().enumerate() {
            for (to, shares) in [&dk, &dv].into_iter().zip(shares) {
                // SAFETY: the long documents' shares were written, within the checked shapes.
                unsafe { gather(pool, set, this.heads, *document, shares.at(this.first_share(place) * wide), to) };
            }
        }
    }

    /// The first row of the shares of a long document.
    fn first_share(&self, place: usize) -> usize {
        self.documents[..place].iter().map(|document| document.len).sum()
    }
}

/// Sums what the heads of each group give to the rows of a document.
///
/// # Safety
/// `shares` has a row of all heads for each row of the document, and `to` has those rows.
unsafe fn gather<F: Kept>(
    pool: &mut Pool,
    set: Instructions,
    heads: Heads,
    document: Document,
    shares: *mut f32,
    to: &SpanMut<'_, F>,
) {
    let (shares, dim, group) = (Pointer(shares), heads.head_dim, heads.heads / heads.kv_heads);
    each_row(pool, document.len, &|row| {
        for kv in 0..heads.kv_heads {
            // SAFETY: each row is one task's; the rest is the caller's.
            unsafe {
                let from = shares.at((row * heads.heads + kv * group) * dim);
                back::gather(set, from, group, dim, to.at(document.start + row, kv * dim).0);
            }
        }
    });
}

/// One task of the way back, on what the engine multiplies.
///
/// # Safety
/// As [`back::back`].
unsafe fn run_back<E: Kept, D: Kept, F: Kept, G: Kept>(
    engine: Engine,
    task: &Task,
    ready: &Ready,
    work: &back::Back<E, D, F, G>,
    carve: &mut Carve,
) {
    // SAFETY: by the caller.
    unsafe {
        match engine {
            Engine::Single(_) => back::back::<E, D, F, G, f32>(task, ready, work, carve),
            #[cfg(target_arch = "x86_64")]
            _ => back::back::<E, D, F, G, bf16>(task, ready, work, carve),
        }
    }
}

/// The rows of a document and one head.
fn source<E: Kept>(span: Span<'_, E>, document: Document, head: usize, dim: usize) -> Source<E> {
    let start = span.row(document.start)[head * dim..].as_ptr();
    Source { start, stride: span.stride(), count: document.len, dim }
}
