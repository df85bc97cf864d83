//! Attention over the f16 stores of several conversations in one pass: turns queries and keys, keeps keys and values, and
//! mixes values, spread over threads. Knows rows, slots and positions; refuses to know tokens and weights.
//!
//! Shapes: queries and mixtures `[rows, heads·head_dim]`, keys and values `[rows, kv_heads·head_dim]`. Query heads of a group share one key head and are rows of the same tile, so that a key is
//! read and widened once for all of them.

mod rotate;
mod store;
mod tile;

pub use rotate::Turns;
pub use store::{KvShape, KvStore, MAX_HEAD_DIM};

use super::Instructions;
use super::pool::{PerThread, Pointer, Pool};
use rotate::{RowBuffer, rotate};
use tile::{ROWS, STRETCH, Tile, finish, merge, stretch};

/// Rows times keys below which one thread is faster than two.
const FORK_WORK: usize = 1024;
/// Whole tiles for each thread from which on stretches need not be spread.
const TILES_PER_THREAD: usize = 4;
/// Rows that one task turns.
const ROTATED_ROWS: usize = 16;

/// Rows of a pass that belong to one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSpan {
    /// Its store.
    pub slot: usize,
    /// The first row.
    pub first_row: usize,
    /// How many rows.
    pub rows: usize,
    /// Tokens in the store before the first row's own.
    pub past: usize,
}

/// Some rows of a span with the query heads of one key head.
#[derive(Clone, Copy)]
struct Task {
    slot: usize,
    first_row: usize,
    rows: usize,
    /// Position of the first row.
    position: usize,
    kv_head: usize,
    /// One stretch alone, and which row of `parts` its first row gets; all stretches when there is none.
    alone: Option<(usize, usize)>,
}

/// Working memory of attention.
pub struct Attention {
    heads: usize,
    shape: KvShape,
    scale: f32,
    tiles: PerThread<Tile>,
    tasks: Vec<Task>,
    /// Row of `parts` after the last one.
    parts_end: usize,
    tops: Vec<f32>,
    sums: Vec<f32>,
    mixtures: Vec<f32>,
    /// Slot and position of every row.
    places: Vec<(usize, usize)>,
    fork: bool,
}

impl Attention {
    /// Working memory for passes of up to `rows_max` rows in up to `spans_max` spans, on `threads` threads.
    ///
    /// # Panics
    /// The heads do not fit each other.
    #[must_use]
    pub fn new(heads: usize, shape: KvShape, rows_max: usize, spans_max: usize, threads: usize) -> Self {
        assert!(heads.is_multiple_of(shape.kv_heads) && shape.head_dim <= MAX_HEAD_DIM, "heads that fit");
        let tile_rows = ROWS.max(heads / shape.kv_heads);
        let whole = TILES_PER_THREAD * threads;
        let stretches = shape.tokens.div_ceil(STRETCH);
        let parts = whole * stretches * tile_rows;
        let tiles = rows_max.div_ceil(tile_rows / (heads / shape.kv_heads)) + spans_max;
        Self {
            heads,
            shape,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            tiles: PerThread::new(threads, || Tile::new(tile_rows, shape.head_dim)),
            tasks: Vec::with_capacity(tiles * shape.kv_heads + whole * stretches),
            parts_end: 0,
            tops: vec![0.0; parts],
            sums: vec![0.0; parts],
            mixtures: vec![0.0; parts * shape.width()],
            places: Vec::with_capacity(rows_max),
            fork: false,
        }
    }

    /// Width of all query heads together.
    const fn width(&self) -> usize {
        self.heads * self.shape.head_dim
    }

    const fn group(&self) -> usize {
        self.heads / self.shape.kv_heads
    }

    /// Prepares the layers of one pass.
    pub fn plan(&mut self, spans: &[KvSpan], threads: usize) {
        self.places.clear();
        for span in spans {
            self.places.extend((0..span.rows).map(|row| (span.slot, span.past + row)));
        }
        self.fork = spans.iter().map(|s| s.rows * self.heads * (s.past + s.rows)).sum::<usize>() > FORK_WORK;
        self.tasks.clear();
        self.parts_end = 0;
        let tile_queries = ROWS.max(self.group()) / self.group();
        let tiles: usize = spans.iter().map(|span| span.rows.div_ceil(tile_queries)).sum();
        let spread = threads > 1 && tiles * self.shape.kv_heads < TILES_PER_THREAD * threads;
        for span in spans {
            // The last rows see the most keys: they begin first.
            for from in (0..span.rows).step_by(tile_queries).rev() {
                let rows = tile_queries.min(span.rows - from);
                self.plan_tile(span, from, rows, spread);
            }
        }
    }

    fn plan_tile(&mut self, span: &KvSpan, from: usize, rows: usize, spread: bool) {
        let position = span.past + from;
        let stretches = (position + rows).div_ceil(STRETCH);
        for kv_head in 0..self.shape.kv_heads {
            let task = Task { slot: span.slot, first_row: span.first_row + from, rows, position, kv_head, alone: None };
            if !spread || stretches == 1 {
                self.tasks.push(task);
                continue;
            }
            for at in 0..stretches {
                self.tasks.push(Task { alone: Some((at, self.parts_end)), ..task });
                self.parts_end += rows * self.group();
            }
        }
    }

    /// Turns queries and keys by their positions, multiplies queries by the scale of scores, and writes keys and values into
    /// the stores.
    ///
    /// # Panics
    /// A buffer is not as long as the planned rows, or a position is beyond the stores or the table.
    pub fn keep(
        &self,
        pool: &mut Pool,
        instructions: Instructions,
        layer: usize,
        stores: &mut [KvStore],
        turns: &Turns,
        (q, k, v): (&mut [f32], &[f32], &[f32]),
    ) {
        let (width, kv, rows) = (self.width(), self.shape.kv_heads * self.shape.head_dim, self.places.len());
        assert!(q.len() == rows * width && k.len() == rows * kv && v.len() == k.len(), "rows of heads");
        assert!(self.places.iter().all(|(_, position)| *position < self.shape.tokens), "positions within the stores");
        let (q, stores) = (Pointer(q.as_mut_ptr()), &*stores);
        let row = |row: usize| {
            let (slot, position) = self.places[row];
            let store = &stores[slot];
            assert_eq!(store.shape(), &self.shape, "a store of this shape");
            // SAFETY: each row is one task's; its token is written by no other row, and the stores are exclusively borrowed.
            unsafe {
                let q = std::slice::from_raw_parts_mut(q.at(row * width), width);
                let row = RowBuffer { q, k: &k[row * kv..][..kv], v: &v[row * kv..][..kv], scale: self.scale };
                rotate(instructions, row, turns.at(position), store, layer, position);
            }
        };
        if rows <= ROTATED_ROWS {
            (0..rows).for_each(row);
            return;
        }
        pool.run(rows.div_ceil(ROTATED_ROWS), &|task, _| {
            (task * ROTATED_ROWS..rows.min((task + 1) * ROTATED_ROWS)).for_each(row);
        });
    }

    /// The mixtures of all planned rows into `out`, for the queries that [`Attention::keep`] turned.
    ///
    /// # Panics
    /// A buffer is not as long as the planned rows.
    pub fn attend(
        &mut self,
        pool: &mut Pool,
        instructions: Instructions,
        layer: usize,
        stores: &[KvStore],
        q: &[f32],
        out: &mut [f32],
    ) {
        let len = self.places.len() * self.width();
        assert!(out.len() == len && q.len() == len, "rows of heads");
        let parts = PartPointers {
            tops: Pointer(self.tops.as_mut_ptr()),
            sums: Pointer(self.sums.as_mut_ptr()),
            mixtures: Pointer(self.mixtures.as_mut_ptr()),
        };
        assert!(self.parts_end <= self.tops.len(), "room for every part");
        let to = Pointer(out.as_mut_ptr());
        let this = &*self;
        let work = |index: usize, thread: usize| {
            let task = this.tasks[index];
            // SAFETY: the pool gave this thread's number; no earlier borrow of the tile is left.
            let tile = unsafe { this.tiles.get(thread) };
            this.load(tile, &task, q);
            match task.alone {
                // SAFETY: tasks have rows and heads of their own in `out` and rows of their own in `parts`.
                None => unsafe { this.whole(tile, instructions, layer, stores, &task, to) },
                // SAFETY: as above.
                Some((at, row)) => unsafe {
                    this.one(tile, instructions, layer, stores, &task, at);
                    parts.put(tile, row, this.shape.width());
                },
            }
        };
        if this.fork {
            pool.run(this.tasks.len(), &work);
        } else {
            (0..this.tasks.len()).for_each(|task| work(task, 0));
        }
        if self.parts_end > 0 {
            self.merge_parts(instructions, out);
        }
    }

    /// The queries of a task as rows of the tile: query by query, head by head.
    fn load(&self, tile: &mut Tile, task: &Task, q: &[f32]) {
        let (dim, group) = (self.shape.head_dim, self.group());
        tile.begin();
        for row in task.first_row..task.first_row + task.rows {
            for head in task.kv_head * group..(task.kv_head + 1) * group {
                tile.push(&q[(row * self.heads + head) * dim..][..dim]);
            }
        }
    }

    /// One stretch into the tile's part.
    ///
    /// # Safety
    /// The task's tokens are in the store, and nobody writes it.
    unsafe fn one(
        &self,
        tile: &mut Tile,
        instructions: Instructions,
        layer: usize,
        stores: &[KvStore],
        task: &Task,
        at: usize,
    ) {
        let store = &stores[task.slot];
        assert_eq!(store.shape(), &self.shape, "a store of this shape");
        assert!(task.position + task.rows <= self.shape.tokens, "tokens within the store");
        let head = store.head(layer, task.kv_head, at);
        let start = at * STRETCH;
        for (row, seen) in tile.seen[..tile.rows].iter_mut().enumerate() {
            let keys = task.position + row / self.group() + 1;
            *seen = keys.saturating_sub(start).min(STRETCH);
        }
        // SAFETY: the head has a whole stretch of tokens, those that were written and zeros.
        unsafe { stretch(instructions, tile, head.keys, head.values) };
    }

    /// All stretches, merged and finished.
    ///
    /// # Safety
    /// As for [`Attention::one`]; nobody else writes the task's rows and heads of `out`.
    unsafe fn whole(
        &self,
        tile: &mut Tile,
        instructions: Instructions,
        layer: usize,
        stores: &[KvStore],
        task: &Task,
        out: Pointer<f32>,
    ) {
        let width = self.shape.width();
        for at in 0..(task.position + task.rows).div_ceil(STRETCH) {
            // SAFETY: by the caller.
            unsafe { self.one(tile, instructions, layer, stores, task, at) };
            let Tile { rows, part, total, .. } = tile;
            for row in 0..*rows {
                let into = (&mut total.top[row], &mut total.sum[row], &mut total.mixed[row * width..][..width]);
                // SAFETY: both mixtures have `width` numbers.
                unsafe {
                    merge(instructions, into, (part.top[row], part.sum[row], &part.mixed[row * width..][..width]))
                };
            }
        }
        for row in 0..tile.rows {
            let at = self.place(task, row);
            // SAFETY: within `out`, as `attend` asserted; by the caller nobody else writes here.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(at), self.shape.head_dim) };
            finish(tile.total.sum[row], &tile.total.mixed[row * width..][..width], out);
        }
    }

    /// Where a tile row lies in the output.
    const fn place(&self, task: &Task, row: usize) -> usize {
        let (dim, group) = (self.shape.head_dim, self.group());
        (task.first_row + row / group) * self.heads * dim + (task.kv_head * group + row % group) * dim
    }

    /// Merges what stretches left in `parts`, in their order.
    fn merge_parts(&mut self, instructions: Instructions, out: &mut [f32]) {
        let (width, group, dim) = (self.shape.width(), self.group(), self.shape.head_dim);
        for index in 0..self.tasks.len() {
            let task = self.tasks[index];
            let Some((0, first)) = task.alone else { continue };
            let (rows, stretches) = (task.rows * group, (task.position + task.rows).div_ceil(STRETCH));
            let place = self.place(&task, 0);
            for row in 0..rows {
                let (done, later) = self.mixtures.split_at_mut((first + rows) * width);
                let mixed = &mut done[(first + row) * width..][..width];
                let (mut top, mut sum) = (self.tops[first + row], self.sums[first + row]);
                // A merge into nothing would leave the first as it is.
                for at in 1..stretches {
                    let from = (at - 1) * rows + row;
                    let part = (self.tops[first + rows + from], self.sums[first + rows + from]);
                    let part = (part.0, part.1, &later[from * width..][..width]);
                    // SAFETY: both mixtures have `width` numbers.
                    unsafe { merge(instructions, (&mut top, &mut sum, mixed), part) };
                }
                finish(sum, mixed, &mut out[place + (row / group * self.heads + row % group) * dim..][..dim]);
            }
        }
    }

    /// Overwrites what passes left behind.
    pub fn wipe(&mut self) {
        self.tops.fill(0.0);
        self.sums.fill(0.0);
        self.mixtures.fill(0.0);
        self.tiles.each(Tile::wipe);
    }
}

/// Where tasks leave the parts of their stretches.
#[derive(Clone, Copy)]
struct PartPointers {
    tops: Pointer<f32>,
    sums: Pointer<f32>,
    mixtures: Pointer<f32>,
}

impl PartPointers {
    /// Puts the part of a tile at `row`.
    ///
    /// # Safety
    /// There is room, and nobody else writes these rows.
    unsafe fn put(self, tile: &Tile, row: usize, width: usize) {
        // SAFETY: by the caller.
        unsafe {
            self.tops.at(row).copy_from_nonoverlapping(tile.part.top.as_ptr(), tile.rows);
            self.sums.at(row).copy_from_nonoverlapping(tile.part.sum.as_ptr(), tile.rows);
            self.mixtures.at(row * width).copy_from_nonoverlapping(tile.part.mixed.as_ptr(), tile.rows * width);
        }
    }
}

#[cfg(test)]
mod tests;
