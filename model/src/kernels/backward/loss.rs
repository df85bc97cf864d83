//! The loss over the vocabulary for a few rows of logits at a time: likelihood of the wanted id, distance to the plain
//! model, and both gradients in place of the logits. Refuses to know where the logits come from.

use super::kept::{Kept, Span, load, store, with_kept};
use crate::kernels::lanes::{LANES, Lanes, exp};
use crate::kernels::pool::{Pointer, Pool};
use crate::kernels::product::Instructions;

/// Sixteens whose largest is found before their exponentials are summed.
const BLOCK: usize = 16 * LANES;

/// What a row of logits should have said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aim {
    /// The wanted id.
    pub id: u32,
    /// Weight of its negative log likelihood in the gradient; 0 where only the distance to the plain model counts.
    pub weight: f32,
}

/// How a row of logits did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Negative log likelihood of the wanted id, unweighted.
    pub nll: f32,
    /// Whether the wanted id was the likeliest (the first of equals).
    pub hit: bool,
}

/// What one pass over a row of logits finds.
#[derive(Clone, Copy)]
struct Summary {
    top: f32,
    /// Logarithm of the sum of exponentials.
    lse: f32,
}

/// Largest and log-sum-exp of a row in one pass: blocks keep a running largest for each lane, and sums are scaled when
/// it rises (Milakov and Gimelshein 2018).
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn summary_row<V: Lanes>(row: &[f32], found: &mut Summary) {
    // SAFETY: `count` numbers from `at` on are within the row.
    unsafe {
        // Not infinite: a lane that no number falls into has a largest, too.
        let nothing = V::splat(f32::MIN);
        let (mut tops, mut sums) = (nothing, V::splat(0.0));
        for from in (0..row.len()).step_by(BLOCK) {
            let to = row.len().min(from + BLOCK);
            let mut higher = tops;
            for at in (from..to).step_by(LANES) {
                let x = load::<V, f32>(row.as_ptr().add(at), to - at).first(to - at, nothing);
                // The number that may be none comes second, so that it is kept.
                higher = higher.max(x);
            }
            sums = sums.mul(exp(tops.sub(higher)));
            for at in (from..to).step_by(LANES) {
                let x = load::<V, f32>(row.as_ptr().add(at), to - at).sub(higher);
                sums = sums.add(exp(x).first(to - at, V::splat(0.0)));
            }
            tops = higher;
        }
        let top = tops.top();
        let sum = sums.mul(exp(tops.sub(V::splat(top)))).sum();
        *found = Summary { top, lse: top + sum.ln() };
    }
}

with_kept! {
    /// # Safety
    /// None beyond the instructions.
    unsafe fn summary_of[](row: &[f32], found: &mut Summary) = summary_row;
}

fn summary(set: Instructions, row: &[f32]) -> Summary {
    let mut found = Summary { top: 0.0, lse: 0.0 };
    // SAFETY: any row will do.
    unsafe { summary_of(set, row, &mut found) };
    found
}

impl Summary {
    fn score(self, row: &[f32], id: u32) -> Score {
        let id = id as usize;
        let own = row[id];
        // The first of equals is the likeliest: whoever reaches the top before the wanted id takes it away.
        let hit = own >= self.top && !row[..id].iter().any(|x| *x >= own);
        Score { nll: self.lse - own, hit }
    }
}

/// The plain model's row beside the one that is learnt.
#[derive(Clone, Copy)]
struct Base<'a> {
    logits: &'a [f32],
    lse: f32,
    /// Weight of KL(base‖model).
    keep: f32,
}

/// One row whose gradient takes its place.
#[derive(Clone, Copy)]
struct Row<'a> {
    logits: *mut f32,
    len: usize,
    lse: f32,
    aim: Aim,
    base: Option<Base<'a>>,
}

/// `weight·(p − onehot)` in place of the logits.
///
/// # Safety
/// As [`Lanes`]; the logits are this task's.
#[inline(always)]
unsafe fn likelihood_row<V: Lanes, E: Kept>(row: Row<'_>) {
    let (out, id) = (row.logits.cast::<E>(), row.aim.id as usize);
    // SAFETY: `count` numbers from `at` on are within the row; none is written over before it was read, since numbers are
    // not wider than logits.
    unsafe {
        let own = row.aim.weight * (*row.logits.add(id) - row.lse).exp_m1();
        let (lse, weight) = (V::splat(row.lse), V::splat(row.aim.weight));
        for at in (0..row.len).step_by(LANES) {
            let x = load::<V, f32>(row.logits.add(at), row.len - at);
            store(exp(x.sub(lse)).mul(weight), out.add(at), row.len - at);
        }
        out.add(id).write(E::near(own));
    }
}

/// `weight·(p − onehot) + keep·(p − p_base)` in place of the logits; gives KL(base‖model).
///
/// # Safety
/// As [`likelihood_row`]; the plain model's row is as long.
#[inline(always)]
unsafe fn distance_row<V: Lanes, E: Kept>(row: Row<'_>, base: Base<'_>) -> f32 {
    let (out, id) = (row.logits.cast::<E>(), row.aim.id as usize);
    // SAFETY: as in `likelihood_row`.
    unsafe {
        let (own, own_base) = (*row.logits.add(id) - row.lse, base.logits[id] - base.lse);
        let own = row.aim.weight * own.exp_m1() + base.keep * (own.exp() - own_base.exp());
        let (lse, base_lse) = (V::splat(row.lse), V::splat(base.lse));
        let (weight, keep) = (V::splat(row.aim.weight + base.keep), V::splat(base.keep));
        let mut apart = V::splat(0.0);
        for at in (0..row.len).step_by(LANES) {
            let count = row.len - at;
            let x = load::<V, f32>(row.logits.add(at), count).sub(lse);
            let b = load::<V, f32>(base.logits.as_ptr().add(at), count).sub(base_lse);
            let p = exp(b);
            apart = apart.add(p.mul(b.sub(x)).first(count, V::splat(0.0)));
            store(exp(x).mul(weight).sub(p.mul(keep)), out.add(at), count);
        }
        out.add(id).write(E::near(own));
        apart.sum()
    }
}

/// # Safety
/// As [`distance_row`].
#[inline(always)]
unsafe fn gradient_row<V: Lanes, E: Kept>(row: Row<'_>, kl: &mut f32) {
    // SAFETY: by the caller.
    unsafe {
        match row.base {
            None => likelihood_row::<V, E>(row),
            Some(base) => *kl = distance_row::<V, E>(row, base),
        }
    }
}

with_kept! {
    /// # Safety
    /// The logits are this task's; the plain model's row is as long.
    unsafe fn gradient_of[E](row: Row<'_>, kl: &mut f32) = gradient_row;
}

/// Width of the rows; panics unless they fit what they should say.
fn vocab(logits: &[f32], aims: &[Aim], scores: &[Score]) -> usize {
    let vocab = logits.len() / aims.len().max(1);
    assert!(vocab * aims.len() == logits.len(), "{} logits are no whole rows for {} aims", logits.len(), aims.len());
    assert!(scores.len() == aims.len(), "{} scores for {} aims", scores.len(), aims.len());
    assert!(aims.iter().all(|aim| (aim.id as usize) < vocab), "a wanted id outside a vocabulary of {vocab}");
    vocab
}

/// Scores of rows of logits `[aims, vocab]`, which stay as they are.
///
/// # Panics
/// The lengths do not fit, or an id is outside the vocabulary.
pub fn scores(pool: &mut Pool, set: Instructions, logits: &[f32], aims: &[Aim], scores: &mut [Score]) {
    let vocab = vocab(logits, aims, scores);
    pool.run_pieces(scores, 1, &|row, score| {
        let logits = &logits[row * vocab..][..vocab];
        score[0] = summary(set, logits).score(logits, aims[row].id);
    });
}

/// Scores of rows of logits `[aims, vocab]`, and their gradient `weight·(p − onehot)` in their place: row `i` of the
/// result begins where row `i` of the logits did.
///
/// # Panics
/// As [`scores`].
pub fn likelihood<'a, E: Kept>(
    pool: &mut Pool,
    set: Instructions,
    logits: &'a mut [f32],
    aims: &[Aim],
    scores: &mut [Score],
) -> Span<'a, E> {
    gradient(pool, set, logits, aims, None, scores, &mut [])
}

/// As [`likelihood`], with `keep[i]·KL(base‖model)` of row `i` beside it, unweighted into `kl[aims]`: adds
/// `keep·(p − p_base)` to the gradient. Rows with `keep` 0 do not look at `base[aims, vocab]` and have a `kl` of 0.
///
/// # Panics
/// As [`scores`].
pub fn distance<'a, E: Kept>(
    pool: &mut Pool,
    set: Instructions,
    logits: &'a mut [f32],
    aims: &[Aim],
    (base, keep): (&[f32], &[f32]),
    scores: &mut [Score],
    kl: &mut [f32],
) -> Span<'a, E> {
    assert!(base.len() == logits.len(), "{} logits of the plain model beside {}", base.len(), logits.len());
    assert!(
        keep.len() == aims.len() && kl.len() == aims.len(),
        "a weight and a distance for each of {} rows",
        aims.len()
    );
    gradient(pool, set, logits, aims, Some((base, keep)), scores, kl)
}

fn gradient<'a, E: Kept>(
    pool: &mut Pool,
    set: Instructions,
    logits: &'a mut [f32],
    aims: &[Aim],
    plain: Option<(&[f32], &[f32])>,
    scores: &mut [Score],
    kl: &mut [f32],
) -> Span<'a, E> {
    let vocab = vocab(logits, aims, scores);
    let (rows, scores, kl) = (Pointer(logits.as_mut_ptr()), Pointer(scores.as_mut_ptr()), Pointer(kl.as_mut_ptr()));
    pool.run(aims.len(), &|row, _| {
        let base = plain.filter(|(_, keep)| keep[row] != 0.0).map(|(base, keep)| {
            let logits = &base[row * vocab..][..vocab];
            Base { logits, lse: summary(set, logits).lse, keep: keep[row] }
        });
        let mut apart = 0.0;
        // SAFETY: each row, its score and its distance are one task's, within the checked lengths.
        unsafe {
            let at = rows.at(row * vocab);
            let found = {
                let logits = std::slice::from_raw_parts(at, vocab);
                let found = summary(set, logits);
                scores.at(row).write(found.score(logits, aims[row].id));
                found
            };
            gradient_of::<E>(set, Row { logits: at, len: vocab, lse: found.lse, aim: aims[row], base }, &mut apart);
            if plain.is_some() {
                kl.at(row).write(apart);
            }
            clear_behind::<E>(at, vocab);
        }
    });
    in_place(logits, vocab)
}

/// Zeros behind a row, up to a multiple of 32 columns where its place has them: products read left sides in steps.
///
/// # Safety
/// The row's place holds `vocab` logits.
unsafe fn clear_behind<E: Kept>(row: *mut f32, vocab: usize) {
    let place = vocab * (size_of::<f32>() / size_of::<E>());
    for at in vocab..place.min(vocab.next_multiple_of(32)) {
        // SAFETY: within the place of the logits.
        unsafe { row.cast::<E>().add(at).write(E::default()) };
    }
}

/// Numbers that were written over rows of logits.
fn in_place<E: Kept>(logits: &mut [f32], vocab: usize) -> Span<'_, E> {
    const { assert!(size_of::<f32>().is_multiple_of(size_of::<E>()) && align_of::<E>() <= align_of::<f32>()) };
    let times = size_of::<f32>() / size_of::<E>();
    // SAFETY: the same memory, borrowed as long; every pattern of bits is a number of either kind, and they are no stricter
    // aligned.
    let all = unsafe { std::slice::from_raw_parts(logits.as_ptr().cast::<E>(), logits.len() * times) };
    Span::new(all, vocab * times, vocab)
}

#[cfg(test)]
mod tests {
    use super::super::check::{dot, exact, near, random, slope};
    use super::*;
    use half::bf16;

    fn log_softmax(row: &[f64]) -> Vec<f64> {
        let top = row.iter().copied().fold(f64::MIN, f64::max);
        let lse = top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
        row.iter().map(|x| x - lse).collect()
    }

    /// Weighted loss of all rows.
    fn formula(logits: &[f64], base: &[f64], aims: &[Aim], keep: &[f32]) -> f64 {
        let vocab = logits.len() / aims.len();
        let rows = logits.chunks_exact(vocab).zip(base.chunks_exact(vocab)).zip(aims.iter().zip(keep));
        rows.map(|((row, base), (aim, keep))| {
            let (p, b) = (log_softmax(row), log_softmax(base));
            let apart: Vec<f64> = b.iter().zip(&p).map(|(b, p)| b - p).collect();
            let kl = dot(&b.iter().map(|b| b.exp()).collect::<Vec<_>>(), &apart);
            f64::from(*keep) * kl - f64::from(aim.weight) * p[aim.id as usize]
        })
        .sum()
    }

    fn rows(vocab: usize, seed: u64) -> Vec<f32> {
        // A large step in the middle: the running largest has to rise.
        random(3 * vocab, seed)
            .iter()
            .enumerate()
            .map(|(i, x)| x * 4.0 + if i % vocab > vocab / 2 { 9.0 } else { 0.0 })
            .collect()
    }

    fn aims(vocab: usize) -> [Aim; 3] {
        [(0, 0.5), (vocab as u32 - 1, 1.0), (vocab as u32 / 2, 0.0)].map(|(id, weight)| Aim { id, weight })
    }

    #[test]
    fn scores_and_gradients_are_those_of_the_formula() {
        let mut pool = Pool::new(2);
        for (vocab, set) in
            [5, 64, 530, 777].into_iter().flat_map(|v| Instructions::available().into_iter().map(move |s| (v, s)))
        {
            let (logits, base, aims) = (rows(vocab, 1), rows(vocab, 2), aims(vocab));
            let (x, b) = (exact(&logits), exact(&base));
            let (mut found, mut again, mut kl) = ([Score::default(); 3], [Score::default(); 3], [9f32; 3]);
            scores(&mut pool, set, &logits, &aims, &mut found);
            for ((score, row), aim) in found.iter().zip(logits.chunks_exact(vocab)).zip(&aims) {
                let p = log_softmax(&exact(row));
                assert!((f64::from(score.nll) + p[aim.id as usize]).abs() < 2e-5, "{score:?}");
                let top = (0..vocab).fold(0, |top, i| if row[i] > row[top] { i } else { top });
                assert_eq!(score.hit, top == aim.id as usize);
            }
            let mut place = logits.clone();
            let d = likelihood::<f32>(&mut pool, set, &mut place, &aims, &mut again);
            assert_eq!(again, found);
            near(d.data(), &slope(&x, |x| formula(x, &b, &aims, &[0.0; 3])), 1e-5);
            let (mut place, keep) = (logits.clone(), [0.3, 0.0, 2.0]);
            let d = distance::<f32>(&mut pool, set, &mut place, &aims, (&base, &keep), &mut again, &mut kl);
            near(d.data(), &slope(&x, |x| formula(x, &b, &aims, &keep)), 1e-5);
            let only = |row: usize| {
                let mut keep = [0f32; 3];
                keep[row] = 1.0;
                formula(&x, &b, &aims.map(|aim| Aim { weight: 0.0, ..aim }), &keep)
            };
            near(&kl, &[only(0), 0.0, only(2)], 1e-5);
        }
    }

    #[test]
    fn gradients_of_bf16_lie_where_the_logits_lay() {
        let (mut pool, set, vocab) = (Pool::new(2), Instructions::best(), 77);
        let (mut whole, mut place, aims) = (rows(vocab, 1), rows(vocab, 1), aims(vocab));
        let mut found = [Score::default(); 3];
        let whole = likelihood::<f32>(&mut pool, set, &mut whole, &aims, &mut found);
        let half = likelihood::<bf16>(&mut pool, set, &mut place, &aims, &mut found);
        assert_eq!((half.rows(), half.stride()), (3, 2 * vocab));
        for row in 0..3 {
            assert!(half.row(row).iter().zip(whole.row(row)).all(|(half, whole)| *half == bf16::from_f32(*whole)));
            assert!(half.data()[row * 2 * vocab..][vocab..96].iter().all(|gap| *gap == bf16::ZERO));
        }
    }

    #[test]
    fn no_number_stays_none() {
        let mut logits = vec![1f32; 300];
        logits[200] = f32::NAN;
        let mut found = [Score::default()];
        scores(&mut Pool::new(1), Instructions::best(), &logits, &[Aim { id: 3, weight: 1.0 }], &mut found);
        assert!(found[0].nll.is_nan() && !found[0].hit);
    }

    #[test]
    #[should_panic(expected = "a wanted id outside a vocabulary of 4")]
    fn an_id_outside_the_vocabulary_is_refused() {
        let aims = [Aim { id: 4, weight: 1.0 }];
        scores(&mut Pool::new(1), Instructions::Portable, &[0.0; 4], &aims, &mut [Score::default()]);
    }
}
