//! Gradients of narrow matrices: products whose inner side are the rows of a pass. The narrow side is turned over, the wide
//! side is put into pairs of rows a block at a time, so that nothing wide is ever transposed. Refuses to know adapters.

use super::Unit;
use super::operand::{Left, PANEL, STEP};
use super::piece::{Piece, Stretch, Target};
use super::portable::{Widened, multiply};
use super::products::{Multiplier, compute};
use crate::kernels::lines::Lines;
use crate::kernels::pool::{PerThread, Pointer, Pool};
use half::bf16;

/// Columns of the wide side of one task.
const WIDE: usize = 4 * PANEL;
/// Rows of a pass that are put into pairs at a time; with [`WIDE`] columns 32 KiB, which stay in the first cache.
const BLOCK: usize = 256;
/// Rows of a pass that one task turns over.
const TURNED: usize = 4 * STEP;

/// How a gradient lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// `[narrow, wide]`: a row for each column of the narrow side.
    Along,
    /// `[wide, narrow]`: a row for each column of the wide side.
    Across,
}

/// A narrow side, and the gradient of it with the wide side it stands beside: `out[i, j] += Σ_t rows[t, i]·wide[t, j]`, or
/// `out[j, i]`.
pub struct Narrow<'a> {
    /// `[tokens, columns]`, of the precision of the wide side. It is turned over.
    pub rows: Left<'a>,
    /// Its columns.
    pub columns: usize,
    /// What is added to.
    pub out: &'a mut [f32],
    /// How it lies.
    pub lie: Lie,
    /// Numbers from row to row of it.
    pub stride: usize,
}

/// Gradients that share their wide side: with inputs `x` and gradients `du`, `dA` is the wide `x` beside the narrow `du`,
/// [`Lie::Along`]; with `dy` and `h`, `dB` is the wide `dy` beside the narrow `h`, [`Lie::Across`].
pub struct Gradient<'a> {
    /// `[tokens, columns]`.
    pub wide: Left<'a>,
    /// Its columns.
    pub columns: usize,
    /// One or several narrow sides; the wide side is prepared once for all of them.
    pub narrow: &'a mut [Narrow<'a>],
}

/// Static buffers of gradients.
pub(super) struct Room {
    /// The narrow sides turned over.
    turned: Lines,
    threads: PerThread<Own>,
}

/// A pair of rows in one panel: for each column both numbers.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u32; PANEL]);

/// Buffers of one thread.
struct Own {
    /// A block of the wide side in panels.
    panels: Vec<Line>,
    /// The sums of a task; [`WIDE`] numbers from row to row.
    sums: Vec<f32>,
    widened: Widened,
}

/// Numbers from row to row of a side that was turned over; never a power of two, at which all rows would meet in a few lines of a
/// cache.
const fn turned_stride(tokens: usize) -> usize {
    tokens.next_multiple_of(2 * STEP) + STEP
}

impl Room {
    /// For up to `tokens` rows and narrow sides of together `narrow` columns.
    pub(super) fn new(threads: usize, tokens: usize, narrow: usize) -> Self {
        let own = || Own {
            panels: vec![Line([0; PANEL]); BLOCK / 2 * WIDE / PANEL],
            sums: vec![0.0; narrow * WIDE],
            widened: Widened::default(),
        };
        let turned = Lines::zeroed(narrow.next_multiple_of(PANEL) * turned_stride(tokens) * size_of::<bf16>());
        Self { turned, threads: PerThread::new(threads, own) }
    }
}

/// A narrow side that is under way.
#[derive(Clone, Copy)]
struct Side<'a> {
    rows: Left<'a>,
    columns: usize,
    out: Pointer<f32>,
    /// Numbers of the output from column to column of the narrow and of the wide side.
    strides: (usize, usize),
    /// The rows turned over; `turned_stride` numbers from column to column.
    turned: Pointer<bf16>,
}

/// Gradients that are under way.
struct Job<'a> {
    wide: Left<'a>,
    columns: usize,
    sides: Vec<Side<'a>>,
    tokens: usize,
}

impl<'a> Side<'a> {
    /// # Panics
    /// It is too short, has another precision than the wide side, or the output is too short.
    fn new(
        narrow: &'a mut Narrow<'_>,
        (wide, columns): (Left<'_>, usize),
        tokens: usize,
        turned: Pointer<bf16>,
    ) -> Self {
        assert_eq!(narrow.rows.is_half(), wide.is_half(), "both sides of a gradient have the same precision");
        assert!(narrow.rows.has(tokens, narrow.columns), "a narrow side is too short");
        let (down, across, strides) = match narrow.lie {
            Lie::Along => (narrow.columns, columns, (narrow.stride, 1)),
            Lie::Across => (columns, narrow.columns, (1, narrow.stride)),
        };
        let fits = down == 0
            || (down == 1 || across <= narrow.stride) && (down - 1) * narrow.stride + across <= narrow.out.len();
        assert!(fits, "{down} rows of {across} do not fit the gradient");
        Self { rows: narrow.rows, columns: narrow.columns, out: Pointer(narrow.out.as_mut_ptr()), strides, turned }
    }

    /// Turns the rows of one task over.
    fn turn(&self, task: usize, tokens: usize, unit: Unit) {
        let Left::Half { data, stride } = self.rows else { return };
        let end = (task + 1) * TURNED;
        for token in (task * TURNED..end.min(tokens)).step_by(STEP) {
            for column in (0..self.columns).step_by(PANEL) {
                let columns = PANEL.min(self.columns - column);
                let mut lines = [Line([0; PANEL]); PANEL];
                pair_rows(data, stride, (token, tokens), (column, columns), &mut lines);
                transpose(unit, &mut lines);
                for (i, line) in lines[..columns].iter().enumerate() {
                    // SAFETY: the room has this line of the row; every task has other tokens.
                    unsafe {
                        let to = self.turned.at((column + i) * turned_stride(tokens) + token);
                        to.cast::<[u32; PANEL]>().write_unaligned(line.0);
                    }
                }
            }
        }
    }

    /// Adds the sums of some columns of the wide side to the output.
    ///
    /// # Safety
    /// Nobody else touches these columns.
    unsafe fn add(&self, sums: &[f32], (column, columns): (usize, usize)) {
        let (down, across) = self.strides;
        // SAFETY: `new` saw that the output is long enough.
        unsafe {
            if across == 1 {
                for (i, sums) in sums.chunks_exact(WIDE).take(self.columns).enumerate() {
                    let out = std::slice::from_raw_parts_mut(self.out.at(i * down + column), columns);
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            } else {
                for j in 0..columns {
                    let out = std::slice::from_raw_parts_mut(self.out.at((column + j) * across), self.columns);
                    out.iter_mut().enumerate().for_each(|(i, out)| *out += sums[i * WIDE + j]);
                }
            }
        }
    }
}

impl<'a> Job<'a> {
    /// Takes room for its narrow sides from `at` on, which moves.
    ///
    /// # Panics
    /// A side or an output is too short.
    ///
    /// # Safety
    /// There is room at `at` for all of them.
    unsafe fn new(gradient: &'a mut Gradient<'_>, tokens: usize, at: &mut Pointer<bf16>) -> Self {
        let (wide, columns) = (gradient.wide, gradient.columns);
        assert!(wide.has(tokens, columns), "the wide side is too short");
        let side = |narrow: &'a mut Narrow<'_>| {
            let turned = *at;
            // SAFETY: by the caller.
            *at = Pointer(unsafe { at.at(narrow.columns * turned_stride(tokens)) });
            Side::new(narrow, (wide, columns), tokens, turned)
        };
        Self { wide, columns, sides: gradient.narrow.iter_mut().map(side).collect(), tokens }
    }

    /// Tasks that turn one narrow side over.
    fn turns_per_side(&self) -> usize {
        if self.wide.is_half() { self.tokens.div_ceil(TURNED) } else { 0 }
    }

    /// Tasks that turn the narrow sides over.
    fn turns(&self) -> usize {
        self.sides.len() * self.turns_per_side()
    }

    /// Tasks that multiply.
    fn parts(&self) -> usize {
        if self.tokens == 0 { 0 } else { self.columns.div_ceil(WIDE) }
    }

    /// Computes some columns of the wide side.
    fn part(&self, task: usize, unit: Unit, own: &mut Own) {
        let column = task * WIDE;
        let columns = WIDE.min(self.columns - column);
        match self.wide {
            Left::Half { data, stride } => self.half_part((data, stride), (column, columns), unit, own),
            Left::Single { data, stride } => self.single_part((data, stride), (column, columns)),
        }
    }

    fn single_part(&self, (wide, n): (&[f32], usize), (column, columns): (usize, usize)) {
        for side in &self.sides {
            let Left::Single { data, stride } = side.rows else { continue };
            // SAFETY: `new` saw that both sides and the output are long enough; tasks have different columns.
            unsafe {
                let (down, across) = side.strides;
                let (a, b) = ((data.as_ptr(), 1, stride), (wide.as_ptr().add(column), n, 1));
                multiply(
                    (side.out.at(column * across), down, across),
                    a,
                    b,
                    (side.columns, self.tokens, columns),
                    true,
                );
            }
        }
    }

    /// Sums some columns of the wide side over all rows of the pass, for each narrow side.
    fn half_part(&self, wide: (&[bf16], usize), (column, columns): (usize, usize), unit: Unit, own: &mut Own) {
        let Own { panels, sums, widened } = own;
        for token in (0..self.tokens).step_by(BLOCK) {
            let k = BLOCK.min(self.tokens - token);
            pair_block(unit, wide, (token, self.tokens), (column, columns), panels);
            let mut sums = sums.as_mut_slice();
            for side in &self.sides {
                let (own, rest) = std::mem::take(&mut sums).split_at_mut(side.columns * WIDE);
                sums = rest;
                let target = if token == 0 { Target::Set } else { Target::Add };
                // SAFETY: the turned side has these rows up to a whole step; the block was put into panels just now, filled
                // up to a whole step; there is room for the sums.
                unsafe {
                    let left = (side.turned.at(token).cast_const(), turned_stride(self.tokens));
                    let stretch = Stretch::new(left, (panels.as_ptr().cast(), BLOCK * PANEL), k);
                    let shape = (side.columns, columns);
                    let piece = Piece::new(std::iter::once(stretch), shape, target(own.as_mut_ptr()), WIDE);
                    compute(unit, &piece, widened);
                }
            }
        }
        let mut sums = sums.as_slice();
        for side in &self.sides {
            // SAFETY: tasks have different columns.
            unsafe { side.add(sums, (column, columns)) };
            sums = &sums[side.columns * WIDE..];
        }
    }
}

/// Puts the pairs of up to 32 rows from `token` on into lines of a number for each column; zeros where there is none.
#[inline(always)]
fn pair_rows(
    data: &[bf16],
    stride: usize,
    (token, tokens): (usize, usize),
    (column, columns): (usize, usize),
    lines: &mut [Line],
) {
    let row = |token: usize| if token < tokens { &data[token * stride + column..][..columns] } else { &[] };
    for (pair, line) in lines.iter_mut().enumerate() {
        let (first, second) = (row(token + 2 * pair), row(token + 2 * pair + 1));
        match (first.as_array::<PANEL>(), second.as_array::<PANEL>()) {
            (Some(first), Some(second)) => {
                for (word, (first, second)) in line.0.iter_mut().zip(first.iter().zip(second)) {
                    *word = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
                }
            }
            _ => {
                let bits = |row: &[bf16], i: usize| row.get(i).map_or(0, |number| u32::from(number.to_bits()));
                line.0.iter_mut().enumerate().for_each(|(i, word)| *word = bits(first, i) | bits(second, i) << 16);
            }
        }
    }
}

#[inline(always)]
fn pair_panels(
    (data, stride): (&[bf16], usize),
    (token, tokens): (usize, usize),
    (column, columns): (usize, usize),
    lines: &mut [Line],
) {
    let end = tokens.min(token + BLOCK);
    let pairs = (end - token).next_multiple_of(STEP) / 2;
    for (panel, lines) in lines.chunks_exact_mut(BLOCK / 2).enumerate() {
        let at = panel * PANEL;
        if at < columns {
            let part = (column + at, PANEL.min(columns - at));
            pair_rows(data, stride, (token, end), part, &mut lines[..pairs]);
        }
    }
}

/// Puts a block of rows into panels.
fn pair_block(unit: Unit, wide: (&[bf16], usize), rows: (usize, usize), columns: (usize, usize), lines: &mut [Line]) {
    #[cfg(target_arch = "x86_64")]
    if unit != Unit::Portable {
        let (token, end) = (rows.0, rows.1.min(rows.0 + BLOCK));
        if columns.1 == WIDE && end.is_multiple_of(STEP) && end > token {
            assert!(lines.len() == BLOCK / 2 * WIDE / PANEL && (end - 1) * wide.1 + columns.0 + WIDE <= wide.0.len());
            // SAFETY: the other units are made of these instructions; the rows and the lines are there.
            unsafe {
                let first = wide.0.as_ptr().add(token * wide.1 + columns.0);
                return super::avx512::pair_rows::<{ BLOCK / 2 }>(
                    (first, wide.1),
                    (end - token) / 2,
                    lines.as_mut_ptr().cast(),
                );
            }
        }
    }
    pair_panels(wide, rows, columns, lines);
}

/// Exchanges rows and columns.
fn transpose(unit: Unit, lines: &mut [Line; PANEL]) {
    #[cfg(target_arch = "x86_64")]
    if unit != Unit::Portable {
        // SAFETY: the other units are made of these instructions.
        return unsafe { super::avx512::transpose(lines.as_mut_ptr().cast()) };
    }
    for i in 0..PANEL {
        for j in 0..i {
            (lines[i].0[j], lines[j].0[i]) = (lines[j].0[i], lines[i].0[j]);
        }
    }
}

impl Multiplier {
    /// Adds gradients over `tokens` rows, in two parallel sections for all of them.
    ///
    /// # Panics
    /// The shapes of a gradient do not fit, or together they do not fit what the multiplier was made for.
    pub fn gradients(&mut self, pool: &mut Pool, tokens: usize, gradients: &mut [Gradient<'_>]) {
        let unit = self.unit;
        let Room { turned, threads } = &mut self.gradient;
        let row = turned_stride(tokens);
        let columns = |gradient: &Gradient<'_>| gradient.narrow.iter().map(|narrow| narrow.columns).sum::<usize>();
        let (all, most) =
            (gradients.iter().map(columns).sum::<usize>(), gradients.iter().map(columns).max().unwrap_or(0));
        assert!(all * row * size_of::<bf16>() <= turned.len(), "more rows than the multiplier was made for");
        threads.each(|own| assert!(most * WIDE <= own.sums.len(), "wider sides than the multiplier was made for"));
        let mut at = Pointer(turned.bytes_mut().as_mut_ptr().cast::<bf16>());
        // SAFETY: all together fit, as asserted.
        let job = |gradient| unsafe { Job::new(gradient, tokens, &mut at) };
        let jobs: Vec<Job<'_>> = gradients.iter_mut().map(job).collect();
        pool.run(jobs.iter().map(Job::turns).sum(), &|index, _| {
            if let Some((job, task)) = find(&jobs, index, Job::turns) {
                job.sides[task / job.turns_per_side()].turn(task % job.turns_per_side(), tokens, unit);
            }
        });
        pool.run(jobs.iter().map(Job::parts).sum(), &|index, thread| {
            if let Some((job, task)) = find(&jobs, index, Job::parts) {
                // SAFETY: the number of this thread, and no earlier borrow lives on.
                job.part(task, unit, unsafe { threads.get(thread) });
            }
        });
    }
}

/// The job that a task belongs to, and the number of the task in it.
fn find<'a, 'b>(jobs: &'a [Job<'b>], mut index: usize, tasks: fn(&Job<'b>) -> usize) -> Option<(&'a Job<'b>, usize)> {
    for job in jobs {
        if index < tasks(job) {
            return Some((job, index));
        }
        index -= tasks(job);
    }
    None
}
