//! Attention of up to a few dozen query rows over one stretch of keys: scores, their softmax within the stretch, and the
//! mixture of values. Stretches are merged in their order. Refuses to know conversations and threads.
//!
//! **Same bits.** A score is one chain of fused multiply-adds over the columns of the head, a mixture one chain over the tokens
//! of a stretch, and stretches begin at multiples of [`STRETCH`] tokens wherever a pass begins. So a row's result depends
//! on its own keys alone, not on how many rows are computed with it.

use crate::kernels::lanes::{LANES, Lanes, exp, fetch, with_lanes};

/// Keys of one stretch.
pub(super) const STRETCH: usize = 256;
/// Rows up to which memory is the limit, and what comes next is asked for.
const FETCH_ROWS: usize = 3;
/// How many tokens ahead values are asked for.
const FETCH_TOKENS: usize = 16;
/// Rows of a tile, unless a group of heads has more.
pub(super) const ROWS: usize = 24;

/// Working memory of one thread: what a tile computes over one stretch, and what was merged before.
pub(super) struct Tile {
    rows_max: usize,
    head_dim: usize,
    width: usize,
    /// Rows in use.
    pub(super) rows: usize,
    /// Keys of the stretch that a row sees.
    pub(super) seen: Vec<usize>,
    /// `[head_dim][rows_max]`, multiplied by the scale of scores.
    queries: Vec<f32>,
    /// `[rows_max][STRETCH]`: scores, then their exponentials.
    scores: Vec<f32>,
    pub(super) part: Parts,
    pub(super) total: Parts,
}

/// Unfinished attention of some rows: largest score, sum of exponentials, and mixture `[rows][width]`.
pub(super) struct Parts {
    pub(super) top: Vec<f32>,
    pub(super) sum: Vec<f32>,
    pub(super) mixed: Vec<f32>,
}

impl Parts {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        Self { top: vec![0.0; rows], sum: vec![0.0; rows], mixed: vec![0.0; rows * width] }
    }

    /// Nothing was seen yet.
    fn clear(&mut self) {
        self.top.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.mixed.fill(0.0);
    }
}

impl Tile {
    pub(super) fn new(rows_max: usize, head_dim: usize) -> Self {
        let width = head_dim.next_multiple_of(LANES);
        Self {
            rows_max,
            head_dim,
            width,
            rows: 0,
            seen: vec![0; rows_max],
            queries: vec![0.0; head_dim * rows_max],
            scores: vec![0.0; rows_max * STRETCH],
            part: Parts::new(rows_max, width),
            total: Parts::new(rows_max, width),
        }
    }

    /// Begins with other rows.
    pub(super) fn begin(&mut self) {
        self.rows = 0;
        self.total.clear();
    }

    /// Takes one more row.
    pub(super) fn push(&mut self, query: &[f32]) {
        let row = self.rows;
        assert!(row < self.rows_max && query.len() == self.head_dim, "one more row");
        for (at, value) in self.queries[row..].iter_mut().step_by(self.rows_max).zip(query) {
            *at = *value;
        }
        self.rows += 1;
    }

    /// Overwrites everything.
    pub(super) fn wipe(&mut self) {
        self.queries.fill(0.0);
        self.scores.fill(0.0);
        for parts in [&mut self.part, &mut self.total] {
            parts.clear();
        }
    }
}

/// # Safety
/// `keys` and `values` begin a stretch that has as many tokens as any row sees, up to whole groups of sixteen.
#[inline(always)]
unsafe fn stretch_of<V: Lanes>(tile: &mut Tile, keys: *const u16, values: *const u16) {
    let most = tile.seen[..tile.rows].iter().copied().max().unwrap_or(0);
    assert!(most <= STRETCH, "a stretch at most");
    let groups = most.div_ceil(LANES);
    // SAFETY: by the caller; rows, groups and columns are within the tile.
    unsafe {
        let mut row = 0;
        while row < tile.rows {
            row += match (V::WIDE, tile.rows - row) {
                (true, 12..) => scores::<V, 12, 1>(tile, row, groups, keys),
                (true, 6..) => scores::<V, 6, 2>(tile, row, groups, keys),
                (false, 6..) => scores::<V, 6, 1>(tile, row, groups, keys),
                (true, 3..) => scores::<V, 3, 4>(tile, row, groups, keys),
                (false, 3..) => scores::<V, 3, 2>(tile, row, groups, keys),
                _ => scores::<V, 1, 4>(tile, row, groups, keys),
            };
        }
        for row in 0..tile.rows {
            soften::<V>(tile, row, groups);
        }
        let mut row = 0;
        while row < tile.rows {
            row += match (V::WIDE, tile.rows - row) {
                (true, 6..) => mix::<V, 6, 4>(tile, row, most, values),
                (true, 3..) => mix::<V, 3, 4>(tile, row, most, values),
                (false, 3..) => mix::<V, 3, 2>(tile, row, most, values),
                _ => mix::<V, 1, 4>(tile, row, most, values),
            };
        }
    }
}

with_lanes! {
    /// Attention of the rows of a tile over one stretch, into its part.
    ///
    /// # Safety
    /// `keys` and `values` begin a stretch that has as many tokens as any row sees, up to whole groups of sixteen.
    pub(super) unsafe fn stretch(tile: &mut Tile, keys: *const u16, values: *const u16) = stretch_of;
}

/// Scores of `R` rows with all groups, `G` at a time; gives `R`.
///
/// # Safety
/// As [`stretch_of`]; the rows are within the tile.
#[inline(always)]
unsafe fn scores<V: Lanes, const R: usize, const G: usize>(
    tile: &mut Tile,
    row: usize,
    groups: usize,
    keys: *const u16,
) -> usize {
    let mut group = 0;
    // SAFETY: by the caller.
    unsafe {
        while group + G <= groups {
            score_groups::<V, R, G>(tile, row, group, keys);
            group += G;
        }
        while group < groups {
            score_groups::<V, R, 1>(tile, row, group, keys);
            group += 1;
        }
    }
    R
}

/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn score_groups<V: Lanes, const R: usize, const G: usize>(
    tile: &mut Tile,
    row: usize,
    group: usize,
    keys: *const u16,
) {
    // SAFETY: by the caller.
    unsafe {
        let mut sums = [[V::splat(0.0); G]; R];
        let mut query = tile.queries.as_ptr().add(row);
        let mut key = keys.add(group * tile.head_dim * LANES);
        for _ in 0..tile.head_dim {
            let mut loaded = [V::splat(0.0); G];
            for (g, loaded) in loaded.iter_mut().enumerate() {
                *loaded = V::load_f16(key.add(g * tile.head_dim * LANES));
                if R <= FETCH_ROWS {
                    fetch(key.wrapping_add((G + g) * tile.head_dim * LANES));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let number = V::splat(*query.add(r));
                for (sum, key) in sums.iter_mut().zip(loaded) {
                    *sum = number.fma(key, *sum);
                }
            }
            query = query.add(tile.rows_max);
            key = key.add(LANES);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (g, sum) in sums.iter().enumerate() {
                sum.store(tile.scores.as_mut_ptr().add((row + r) * STRETCH + (group + g) * LANES));
            }
        }
    }
}

/// Turns the scores of a row into exponentials below the largest of those it sees; zero where it sees none.
///
/// # Safety
/// The row is within the tile.
#[inline(always)]
unsafe fn soften<V: Lanes>(tile: &mut Tile, row: usize, groups: usize) {
    let seen = tile.seen[row];
    let line = &mut tile.scores[row * STRETCH..][..groups * LANES];
    let own = seen.div_ceil(LANES);
    let (mine, rest) = line.as_chunks_mut::<LANES>().0.split_at_mut(own);
    rest.as_flattened_mut().fill(0.0);
    // SAFETY: whole chunks.
    unsafe {
        let nothing = V::splat(f32::NEG_INFINITY);
        let mut tops = nothing;
        for (i, chunk) in mine.iter().enumerate() {
            tops = tops.max(V::load(chunk.as_ptr()).first(seen - i * LANES, nothing));
        }
        let top = tops.top();
        let mut sums = V::splat(0.0);
        for (i, chunk) in mine.iter_mut().enumerate() {
            let power = exp(V::load(chunk.as_ptr()).sub(V::splat(top)));
            let power = power.first(seen - i * LANES, V::splat(0.0));
            sums = sums.add(power);
            power.store(chunk.as_mut_ptr());
        }
        (tile.part.top[row], tile.part.sum[row]) = (top, sums.sum());
    }
}

/// Mixtures of `R` rows, `C` sixteens of columns at a time; gives `R`.
///
/// # Safety
/// As [`stretch_of`]; the rows are within the tile.
#[inline(always)]
unsafe fn mix<V: Lanes, const R: usize, const C: usize>(
    tile: &mut Tile,
    row: usize,
    tokens: usize,
    values: *const u16,
) -> usize {
    let chunks = tile.width / LANES;
    let mut chunk = 0;
    // SAFETY: by the caller.
    unsafe {
        while chunk + C <= chunks {
            mix_columns::<V, R, C>(tile, row, chunk, tokens, values);
            chunk += C;
        }
        while chunk < chunks {
            mix_columns::<V, R, 1>(tile, row, chunk, tokens, values);
            chunk += 1;
        }
    }
    R
}

/// # Safety
/// As [`mix`].
#[inline(always)]
unsafe fn mix_columns<V: Lanes, const R: usize, const C: usize>(
    tile: &mut Tile,
    row: usize,
    chunk: usize,
    tokens: usize,
    values: *const u16,
) {
    // SAFETY: by the caller.
    unsafe {
        let mut sums = [[V::splat(0.0); C]; R];
        let mut value = values.add(chunk * LANES);
        let mut power = tile.scores.as_ptr().add(row * STRETCH);
        for _ in 0..tokens {
            let mut loaded = [V::splat(0.0); C];
            for (c, loaded) in loaded.iter_mut().enumerate() {
                *loaded = V::load_f16(value.add(c * LANES));
                if R <= FETCH_ROWS {
                    fetch(value.wrapping_add(FETCH_TOKENS * tile.width + c * LANES));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let weight = V::splat(*power.add(r * STRETCH));
                for (sum, value) in sums.iter_mut().zip(loaded) {
                    *sum = weight.fma(value, *sum);
                }
            }
            value = value.add(tile.width);
            power = power.add(1);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                sum.store(tile.part.mixed.as_mut_ptr().add((row + r) * tile.width + (chunk + c) * LANES));
            }
        }
    }
}

/// # Safety
/// `mixed` and `part` have as many numbers, a multiple of sixteen.
#[inline(always)]
unsafe fn merge_row<V: Lanes>(into: (&mut f32, &mut f32, &mut [f32]), part: (f32, f32, &[f32])) {
    let (top, sum, mixed) = into;
    let (part_top, part_sum, part) = part;
    let higher = if part_top > *top { part_top } else { *top };
    // SAFETY: by the caller.
    unsafe {
        let old = exp(V::splat(*top - higher));
        let new = exp(V::splat(part_top - higher));
        let sums = V::splat(*sum).mul(old).add(V::splat(part_sum).mul(new));
        (*top, *sum) = (higher, sums.array()[0]);
        for (mixed, part) in mixed.as_chunks_mut::<LANES>().0.iter_mut().zip(part.as_chunks::<LANES>().0) {
            let added = V::load(part.as_ptr()).mul(new);
            V::load(mixed.as_ptr()).fma(old, added).store(mixed.as_mut_ptr());
        }
    }
}

with_lanes! {
    /// Adds the part of a later stretch to what was merged of one row: largest score, sum of exponentials, mixture.
    ///
    /// # Safety
    /// Both mixtures have as many numbers, a multiple of sixteen.
    pub(super) unsafe fn merge(into: (&mut f32, &mut f32, &mut [f32]), part: (f32, f32, &[f32])) = merge_row;
}

/// Writes the finished attention of a row: its mixture over its sum. Zeros are positive.
pub(super) fn finish(sum: f32, mixed: &[f32], out: &mut [f32]) {
    let inverse = 1.0 / sum;
    out.iter_mut().zip(mixed).for_each(|(out, mixed)| *out = mixed * inverse + 0.0);
}
