//! Every unit against products in f64 of the operands as they were rounded.

use super::*;
use crate::kernels::pool::Pool;
use ::half::bf16;

/// Numbers between -1 and 1, the same every time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }

    fn many(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next()).collect()
    }
}

/// Rows in both precisions, filled up with zeros to 32.
struct Rows {
    half: Vec<bf16>,
    single: Vec<f32>,
    stride: usize,
}

impl Rows {
    fn new(noise: &mut Noise, rows: usize, columns: usize) -> Self {
        let stride = columns.next_multiple_of(32) + 32;
        let mut single = vec![0f32; rows * stride];
        let mut half = vec![bf16::ZERO; rows * stride];
        for (single, half) in single.chunks_exact_mut(stride).zip(half.chunks_exact_mut(stride)) {
            single[..columns].copy_from_slice(&noise.many(columns));
            round_row(&single[..columns], &mut half[..columns]);
        }
        Self { half, single, stride }
    }

    fn left(&self, precision: Precision) -> Left<'_> {
        match precision {
            Precision::Half => Left::Half { data: &self.half, stride: self.stride },
            Precision::Single => Left::Single { data: &self.single, stride: self.stride },
        }
    }

    fn at(&self, precision: Precision, row: usize, column: usize) -> f64 {
        let at = row * self.stride + column;
        if precision == Precision::Half { self.half[at].to_f64() } else { f64::from(self.single[at]) }
    }
}

/// A weight and what it holds.
fn weight(noise: &mut Noise, precision: Precision, out: usize, inputs: usize) -> (Weight, Vec<f64>) {
    let numbers = noise.many(out * inputs);
    let mut weight = Weight::new(precision, out, inputs);
    numbers.chunks_exact(inputs).enumerate().for_each(|(row, numbers)| weight.put_row(row, numbers));
    let kept = |x: &f32| if precision == Precision::Half { bf16::from_f32(*x).to_f64() } else { f64::from(*x) };
    (weight, numbers.iter().map(kept).collect())
}

/// The units that a precision can be computed in.
fn ways() -> Vec<(Precision, Unit)> {
    let mut ways: Vec<_> = Unit::available().into_iter().map(|unit| (Precision::Half, unit)).collect();
    ways.push((Precision::Single, Unit::Portable));
    ways
}

/// How far a sum of `k` products of numbers up to 1 may be from the true one.
fn bound(k: usize) -> f64 {
    f64::from(f32::EPSILON) * k as f64
}

const SHAPES: [(usize, usize, usize); 10] = [
    (35, 4230, 40),
    (1, 32, 16),
    (2, 31, 17),
    (15, 64, 48),
    (16, 1, 1),
    (33, 96, 80),
    (47, 70, 33),
    (64, 200, 16),
    (70, 33, 144),
    (130, 576, 208),
];

#[test]
fn both_ways_through_a_matrix_are_the_product_of_what_is_kept() {
    let mut pool = Pool::new(2);
    for (precision, unit) in ways() {
        for (rows, inputs, out) in SHAPES {
            let mut noise = Noise(7 + (rows * inputs) as u64);
            let (weight, kept) = weight(&mut noise, precision, out, inputs);
            let (x, dy) = (Rows::new(&mut noise, rows, inputs), Rows::new(&mut noise, rows, out));
            let (mut y, mut dx) = (vec![7.5f32; rows * (out + 3)], vec![0.25f32; rows * inputs]);
            let mut multiplier = Multiplier::new(unit, 2, 0, 0);
            let forward = [Term { rows: x.left(precision), weight: weight.forward() }];
            let backward = [Term { rows: dy.left(precision), weight: weight.backward() }];
            multiplier.products(
                &mut pool,
                rows,
                &mut [
                    Product { terms: &forward, out: Out::Set(&mut y), stride: out + 3 },
                    Product { terms: &backward, out: Out::Add(&mut dx), stride: inputs },
                ],
            );
            for row in 0..rows {
                for o in 0..out {
                    let sum: f64 = (0..inputs).map(|i| x.at(precision, row, i) * kept[o * inputs + i]).sum();
                    let found = f64::from(y[row * (out + 3) + o]);
                    assert!(
                        (found - sum).abs() <= bound(inputs),
                        "{unit:?} {rows}x{inputs}x{out} at {row},{o}: {found} {sum}"
                    );
                }
                assert_eq!(y[row * (out + 3) + out..][..3], [7.5; 3], "numbers behind the columns are left alone");
                for i in 0..inputs {
                    let sum: f64 = (0..out).map(|o| dy.at(precision, row, o) * kept[o * inputs + i]).sum();
                    let found = f64::from(dx[row * inputs + i]) - 0.25;
                    assert!(
                        (found - sum).abs() <= bound(out) + 1e-6,
                        "{unit:?} back {rows}x{inputs}x{out} at {row},{i}"
                    );
                }
            }
        }
    }
}

#[test]
fn terms_are_one_sum_and_rounded_once() {
    let (rows, n) = (37, 83);
    let mut pool = Pool::new(2);
    for (precision, unit) in ways() {
        let mut noise = Noise(11);
        let (first, second) = (weight(&mut noise, precision, n, 90), weight(&mut noise, precision, n, 20));
        let (x, h) = (Rows::new(&mut noise, rows, 90), Rows::new(&mut noise, rows, 20));
        let terms = [
            Term { rows: x.left(precision), weight: first.0.forward() },
            Term { rows: h.left(precision), weight: second.0.forward() },
        ];
        let mut sums = vec![0f32; rows * n];
        let mut multiplier = Multiplier::new(unit, 2, 0, 0);
        multiplier.products(&mut pool, rows, &mut [Product { terms: &terms, out: Out::Set(&mut sums), stride: n }]);
        for (at, found) in sums.iter().enumerate() {
            let (row, o) = (at / n, at % n);
            let sum: f64 = (0..90).map(|i| x.at(precision, row, i) * first.1[o * 90 + i]).sum::<f64>()
                + (0..20).map(|i| h.at(precision, row, i) * second.1[o * 20 + i]).sum::<f64>();
            assert!((f64::from(*found) - sum).abs() <= bound(110), "{unit:?} at {row},{o}");
        }
        if precision == Precision::Half {
            let mut rounded = vec![bf16::ONE; rows * 96];
            multiplier.products(
                &mut pool,
                rows,
                &mut [Product { terms: &terms, out: Out::Half(&mut rounded), stride: 96 }],
            );
            for (rounded, sums) in rounded.chunks_exact(96).zip(sums.chunks_exact(n)) {
                let expected: Vec<bf16> = sums.iter().map(|sum| bf16::from_f32(*sum)).collect();
                assert_eq!(rounded[..n], expected);
                assert!(rounded[n..].iter().all(|x| *x == bf16::ONE), "numbers behind the columns are left alone");
            }
        }
    }
}

/// One gradient each way beside the same wide side.
fn gradients(way: (Precision, Unit), threads: usize, shape: (usize, usize, usize, usize)) -> [Vec<f32>; 2] {
    let (precision, unit) = way;
    let (tokens, m, r, n) = shape;
    let mut noise = Noise(tokens as u64);
    let (along, across) = (Rows::new(&mut noise, tokens, m), Rows::new(&mut noise, tokens, r));
    let wide = Rows::new(&mut noise, tokens, n);
    let (mut a, mut b) = (vec![1f32; m * (n + 1)], vec![2f32; n * (r + 2)]);
    let mut narrow = [
        Narrow { rows: along.left(precision), columns: m, out: &mut a, lie: Lie::Along, stride: n + 1 },
        Narrow { rows: across.left(precision), columns: r, out: &mut b, lie: Lie::Across, stride: r + 2 },
    ];
    let mut multiplier = Multiplier::new(unit, threads, 700, 200);
    let gradient = Gradient { wide: wide.left(precision), columns: n, narrow: &mut narrow };
    multiplier.gradients(&mut Pool::new(threads), tokens, &mut [gradient]);
    for j in 0..n {
        for i in 0..m {
            let sum: f64 = (0..tokens).map(|t| along.at(precision, t, i) * wide.at(precision, t, j)).sum();
            let found = f64::from(a[i * (n + 1) + j]) - 1.0;
            assert!((found - sum).abs() <= bound(tokens + 8), "{way:?} {shape:?} along at {i},{j}: {found} {sum}");
        }
        for i in 0..r {
            let sum: f64 = (0..tokens).map(|t| across.at(precision, t, i) * wide.at(precision, t, j)).sum();
            let found = f64::from(b[j * (r + 2) + i]) - 2.0;
            assert!((found - sum).abs() <= bound(tokens + 8), "{way:?} {shape:?} across at {i},{j}: {found} {sum}");
        }
    }
    assert!(
        (0..m).all(|i| a[i * (n + 1) + n] == 1.0) && (0..n).all(|j| b[j * (r + 2) + r] == 2.0),
        "gaps are left alone"
    );
    [a, b]
}

#[test]
fn gradients_are_sums_over_the_rows_of_a_pass() {
    for way in ways() {
        for shape in [(1, 16, 3, 20), (31, 5, 16, 64), (64, 16, 144, 70), (257, 48, 33, 130), (600, 144, 16, 192)] {
            gradients(way, 2, shape);
        }
    }
}

#[test]
fn the_same_bits_on_one_thread_and_on_three_and_in_any_company() {
    let (rows, k, n) = (200, 300, 500);
    for (precision, unit) in ways() {
        let mut noise = Noise(3);
        let (weight, _) = weight(&mut noise, precision, n, k);
        let x = Rows::new(&mut noise, rows, k);
        let run = |threads: usize, first: usize, rows: usize, columns: std::ops::Range<usize>| {
            let data = match x.left(precision) {
                Left::Half { data, stride } => Left::Half { data: &data[first * stride..], stride },
                Left::Single { data, stride } => Left::Single { data: &data[first * stride..], stride },
            };
            let (count, mut y) = (columns.len(), vec![0f32; rows * columns.len()]);
            let terms = [Term { rows: data, weight: weight.forward().columns(columns) }];
            let products = &mut [Product { terms: &terms, out: Out::Set(&mut y), stride: count }];
            Multiplier::new(unit, threads, 0, 0).products(&mut Pool::new(threads), rows, products);
            y
        };
        let whole = run(1, 0, rows, 0..n);
        assert!(whole == run(3, 0, rows, 0..n), "{unit:?}: threads change nothing");
        // The crate behind the portable unit takes other ways for few rows.
        let parts = if unit == Unit::Portable { &[][..] } else { &[(0, 1, 0..n), (17, 40, 16..90), (190, 10, 480..n)] };
        for (first, count, columns) in parts.iter().cloned() {
            let part = run(2, first, count, columns.clone());
            for row in 0..count {
                let expected = &whole[(first + row) * n..][columns.clone()];
                assert!(part[row * columns.len()..][..columns.len()] == *expected, "{unit:?}: company changes nothing");
            }
        }
        let shape = (300, 20, 40, 100);
        assert!(
            gradients((precision, unit), 1, shape) == gradients((precision, unit), 3, shape),
            "{unit:?}: gradients"
        );
    }
}

#[test]
fn parts_of_a_matrix_are_those_of_the_whole() {
    let (rows, k, n) = (20, 96, 64);
    for (precision, unit) in ways() {
        let mut noise = Noise(5);
        let (mut weight, _) = weight(&mut noise, precision, n, k);
        let numbers = noise.many(n * k);
        let row = |row: usize, to: &mut [f32]| to.copy_from_slice(&numbers[row * k..][..k]);
        weight.fill(&mut Pool::new(2), &row);
        let x = Rows::new(&mut noise, rows, k);
        let mut multiplier = Multiplier::new(unit, 1, 0, 0);
        let mut run = |terms: &[Term<'_>]| {
            let (columns, mut y) = (terms[0].weight.n(), vec![0f32; rows * terms[0].weight.n()]);
            multiplier.products(
                &mut Pool::new(1),
                rows,
                &mut [Product { terms, out: Out::Set(&mut y), stride: columns }],
            );
            y
        };
        let term = |first: usize, weight| match x.left(precision) {
            Left::Half { data, stride } => Term { rows: Left::Half { data: &data[first..], stride }, weight },
            Left::Single { data, stride } => Term { rows: Left::Single { data: &data[first..], stride }, weight },
        };
        let whole = run(&[term(0, weight.forward())]);
        let cut = [term(0, weight.forward().depth(0..32)), term(32, weight.forward().depth(32..k))];
        let parts = run(&cut);
        assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-4), "{unit:?}");
        assert!(unit == Unit::Portable || whole == parts, "{unit:?}: terms go on where the last ended");
        let mut kept = vec![0f32; k];
        for (o, expected) in numbers.chunks_exact(k).enumerate() {
            weight.row(o, &mut kept);
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 256.0;
            assert!(kept.iter().zip(expected).all(near), "{unit:?}: row {o}");
        }
    }
}

#[test]
#[should_panic(expected = "the rows are too short")]
fn rows_that_cannot_be_read_to_the_end_of_a_step_are_refused() {
    let weight = Weight::new(Precision::Half, 16, 20);
    let terms = [Term { rows: Left::Half { data: &[bf16::ZERO; 20], stride: 20 }, weight: weight.forward() }];
    let products = &mut [Product { terms: &terms, out: Out::Set(&mut [0.0; 16]), stride: 16 }];
    Multiplier::new(Unit::Portable, 1, 0, 0).products(&mut Pool::new(1), 1, products);
}

#[test]
fn rounding_is_to_nearest_even_and_no_number_stays_none() {
    let from = [
        1.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        -2.5,
        f32::NAN,
        f32::INFINITY,
        f32::MAX,
        f32::from_bits(0x7f80_0001),
    ];
    let mut to = [bf16::ZERO; 8];
    round_row(&from, &mut to);
    for (from, to) in from.iter().zip(to) {
        assert!(to.to_bits() == bf16::from_f32(*from).to_bits() || from.is_nan() && to.is_nan(), "{from} became {to}");
    }
}
