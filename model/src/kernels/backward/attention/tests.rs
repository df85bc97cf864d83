//! Attention against its formula in f64, its gradients against central differences, and documents against their
//! neighbours.

use super::*;
use crate::kernels::backward::check::{dot, exact, near, random, slope};

/// Heads of one document, `[q, k, v]` in f64, into an output like q.
fn formula(heads: Heads, [q, k, v]: [&[f64]; 3], documents: &[usize]) -> Vec<f64> {
    let Heads { heads: all, kv_heads, head_dim: dim } = heads;
    let (wide, narrow) = (all * dim, kv_heads * dim);
    let (mut out, mut start) = (vec![0.0; q.len()], 0);
    for len in documents {
        for (row, head) in (start..start + len).flat_map(|row| (0..all).map(move |head| (row, head))) {
            let q = &q[row * wide + head * dim..][..dim];
            let at = |rows: usize| rows * narrow + head / (all / kv_heads) * dim;
            let powers: Vec<f64> =
                (start..=row).map(|key| (dot(q, &k[at(key)..][..dim]) / (dim as f64).sqrt()).exp()).collect();
            let sum: f64 = powers.iter().sum();
            for (key, power) in (start..=row).zip(&powers) {
                let to = &mut out[row * wide + head * dim..][..dim];
                to.iter_mut().zip(&v[at(key)..][..dim]).for_each(|(to, v)| *to += power / sum * v);
            }
        }
        start += len;
    }
    out
}

/// Output, log-sum-exp and the three gradients.
struct Found<E> {
    out: Vec<E>,
    lse: Vec<f32>,
    gradients: [Vec<f32>; 3],
}

fn run<E: Kept>(
    heads: Heads,
    unit: Unit,
    set: Instructions,
    [q, k, v]: [&[E]; 3],
    d_out: &[f32],
    documents: &[usize],
) -> Found<E> {
    let (wide, narrow) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let rows = q.len() / wide;
    let mut pool = Pool::new(2);
    let mut attention = Attention::new(heads, 1, 2).with(unit);
    let mut found = Found {
        out: vec![E::default(); rows * wide],
        lse: vec![0.0; rows * heads.heads],
        gradients: [wide, narrow, narrow].map(|width| vec![0.0; rows * width]),
    };
    let spans = [Span::packed(q, wide), Span::packed(k, narrow), Span::packed(v, narrow)];
    let out = SpanMut::packed(&mut found.out, wide);
    attention.forward(&mut pool, set, spans, documents, out, &mut found.lse);
    let out = Span::packed(&found.out, wide);
    let [dq, dk, dv] = &mut found.gradients;
    let to = [SpanMut::packed(dq, wide), SpanMut::packed(dk, narrow), SpanMut::packed(dv, narrow)];
    let spans = [spans[0], spans[1], spans[2], out];
    attention.backward(&mut pool, set, spans, &found.lse, Span::packed(d_out, wide), documents, to);
    found
}

fn random_rows(heads: Heads, rows: usize, size: f32) -> [Vec<f32>; 4] {
    let (wide, narrow) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    [(wide, 1), (narrow, 2), (narrow, 3), (wide, 4)]
        .map(|(width, seed)| random(rows * width, seed).iter().map(|x| x * size).collect())
}

/// All that can multiply rows of `E`.
fn engines<E: Kept>() -> Vec<(Unit, Instructions)> {
    let best = Instructions::best();
    let single = Instructions::available().into_iter().map(|set| (Unit::Portable, set));
    let units = Unit::available().into_iter().filter(|unit| E::PAIR == 2 && *unit != Unit::Portable);
    single.chain(units.map(|unit| (unit, best))).collect()
}

#[test]
fn both_ways_are_those_of_the_formula() {
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 6 };
    let documents = [5, 1, 9];
    let [q, k, v, d] = random_rows(heads, 15, 2.0);
    let wide = [exact(&q), exact(&k), exact(&v)];
    let loss = |which: usize, x: &[f64]| {
        let mut all = [&wide[0][..], &wide[1], &wide[2]];
        all[which] = x;
        dot(&formula(heads, all, &documents), &exact(&d))
    };
    let slopes: Vec<Vec<f64>> = (0..3).map(|which| slope(&wide[which], |x| loss(which, x))).collect();
    for (unit, set) in engines::<f32>() {
        let found = run(heads, unit, set, [&q, &k, &v], &d, &documents);
        near(&found.out, &formula(heads, [&wide[0], &wide[1], &wide[2]], &documents), 1e-5);
        for (found, expected) in found.gradients.iter().zip(&slopes) {
            near(found, expected, 1e-5);
        }
    }
}

#[test]
fn blocks_and_stretches_meet_without_a_seam() {
    let heads = Heads { heads: 3, kv_heads: 1, head_dim: 20 };
    for documents in [&[64usize, 65][..], &[33, 290, 2], &[530, 7, 515]] {
        let rows = documents.iter().sum();
        let [q, k, v, d] = random_rows(heads, rows, 3.0);
        let expected = formula(heads, [&exact(&q), &exact(&k), &exact(&v)], documents);
        let whole = run(heads, Unit::Portable, Instructions::best(), [&q, &k, &v], &d, documents);
        near(&whole.out, &expected, 1e-5);
        let halves = [&q, &k, &v].map(|x| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>());
        for (unit, set) in engines::<bf16>() {
            let found = run(heads, unit, set, [&halves[0], &halves[1], &halves[2]], &d, documents);
            let out: Vec<f32> = found.out.iter().map(|x| x.wide()).collect();
            near(&out, &expected, 2e-2);
            near(&found.lse, &exact(&whole.lse), 1e-2);
            for (found, whole) in found.gradients.iter().zip(&whole.gradients) {
                near(found, &exact(whole), 3e-2);
            }
        }
    }
}

#[test]
fn no_document_sees_its_neighbours() {
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 16 };
    let documents = [70, 45, 80];
    for (unit, set) in engines::<bf16>() {
        let rows = random_rows(heads, 195, 1.0);
        let mut other = rows.clone();
        // The first and the last document change, to numbers that are none at their ends.
        for (numbers, width) in other.iter_mut().zip([32, 16, 16, 32]) {
            for (at, x) in numbers.iter_mut().enumerate().filter(|(at, _)| !(70..115).contains(&(at / width))) {
                *x = if at / width % 114 == 69 / 2 { f32::NAN } else { *x * -2.0 };
            }
        }
        let found = [rows, other].map(|[q, k, v, d]| {
            let halves = [q, k, v].map(|x| x.into_iter().map(bf16::from_f32).collect::<Vec<_>>());
            run(heads, unit, set, [&halves[0], &halves[1], &halves[2]], &d, &documents)
        });
        let [a, b] = &found;
        let bits = |x: &[f32], width: usize| x[70 * width..115 * width].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(a.out[70 * 32..115 * 32] == b.out[70 * 32..115 * 32]);
        assert_eq!(bits(&a.lse, 2), bits(&b.lse, 2));
        for ((a, b), width) in a.gradients.iter().zip(&b.gradients).zip([32, 16, 16]) {
            assert_eq!(bits(a, width), bits(b, width));
        }
    }
}

#[test]
fn room_grows_with_the_length_alone() {
    let heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
    let (short, long) = (Attention::room_bytes(heads, 4096), Attention::room_bytes(heads, 8192));
    assert!(long < 2 * short + 1024 && long < 64 << 20, "{short}, {long}");
}

#[test]
#[should_panic(expected = "documents of [2, 2] tokens are not 5 rows")]
fn documents_that_are_not_the_rows_are_refused() {
    let heads = Heads { heads: 1, kv_heads: 1, head_dim: 4 };
    let x = [0f32; 20];
    run(heads, Unit::Portable, Instructions::Portable, [&x, &x, &x], &x, &[2, 2]);
}

#[test]
#[should_panic(expected = "2 key heads do not divide 3 heads")]
fn heads_that_do_not_divide_are_refused() {
    drop(Attention::new(Heads { heads: 3, kv_heads: 2, head_dim: 4 }, 8, 1));
}
