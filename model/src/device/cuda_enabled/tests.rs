//! The launches on a card, a real one or the emulated one of packaging/cuda: against the processor's own forward passes,
//! and each row against itself alone. They are for the machine that says it has a card, and fail on one that has none.

use super::open;
use crate::config::tests::tiny;
use crate::ops::check::random;
use crate::ops::{self, RopeTable, Segment};
use candle_core::{Device, Result, Tensor};
use std::sync::Arc;

/// Rows of the inputs: more than a block takes at once, and no whole number of blocks.
const ROWS: usize = 11;

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|all| all.to_vec1()).unwrap()
}

/// Holds `f` on the card against `f` on the processor, and row `i` of what it makes of all rows of the first `by_row`
/// inputs against what it makes of their row `i` alone, bit for bit. `f` gets the first row's number.
fn holds(inputs: &[&Tensor], by_row: usize, f: impl Fn(&[Tensor], usize) -> Result<Tensor>) {
    let on = |device: &Device| inputs.iter().map(|t| t.to_device(device)).collect::<Result<Vec<_>>>().unwrap();
    let here = on(&open().unwrap());
    let found = f(&here, 0).unwrap();
    assert!(found.device().is_cuda(), "the result lies on the card");
    let expected = numbers(&f(&on(&Device::Cpu), 0).unwrap());
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
    assert!(numbers(&found).iter().zip(&expected).all(near), "the card and the processor differ");
    for row in 0..ROWS {
        let one = |(i, t): (usize, &Tensor)| if i < by_row { t.narrow(0, row, 1) } else { Ok(t.clone()) };
        let alone = here.iter().enumerate().map(one).collect::<Result<Vec<_>>>().unwrap();
        let [alone, among] = [f(&alone, row).unwrap(), found.narrow(0, row, 1).unwrap()].map(|row| numbers(&row));
        assert_eq!(alone, among, "row {row} depends on the others");
    }
}

#[test]
#[ignore = "needs a card; packaging/check-cuda.sh runs it"]
fn there_is_a_card() {
    assert!(open().unwrap().is_cuda());
    assert!(super::super::describe(&open().unwrap()).starts_with("cuda, "));
}

#[test]
#[ignore = "needs a card; packaging/check-cuda.sh runs it"]
fn products_hold() {
    let (x, w, a) = (random(&[ROWS, 77], 1), random(&[37, 77], 2), random(&[5, 77], 3));
    let b = random(&[37, 5], 4);
    holds(&[&x, &w], 1, |t, _| ops::frozen_linear(&t[0], &t[1]));
    holds(&[&x, &a], 1, |t, _| ops::down(&t[0], &t[1]));
    holds(&[&x, &w, &a, &b], 1, |t, _| ops::adapted_linear(&t[0], &t[1], &ops::down(&t[0], &t[2])?, &t[3]));
}

#[test]
#[ignore = "needs a card; packaging/check-cuda.sh runs it"]
fn rows_alone_hold() {
    let (x, up, w) = (random(&[ROWS, 300], 1), random(&[ROWS, 300], 2), random(&[300], 3));
    holds(&[&x, &w], 1, |t, _| ops::rms_norm(&t[0], &t[1], 1e-5));
    holds(&[&x, &up], 2, |t, _| ops::swiglu(&t[0], &t[1]));
    let table = RopeTable::new(&tiny());
    let heads = random(&[ROWS, tiny().head_dim * 3], 4);
    // Two runs of positions that count up, and single ones.
    let places = [3u32, 4, 5, 6, 0, 1, 2, 9, 9, 7, 40];
    holds(&[&heads], 1, |t, first| {
        let places: Arc<[u32]> = places[first..][..t[0].dims()[0]].into();
        ops::rope(&t[0], &table, &places)
    });
}

#[test]
#[ignore = "needs a card; packaging/check-cuda.sh runs it"]
fn experts_hold() {
    let (logits, u) = (random(&[ROWS, 5], 1), random(&[ROWS, 3 + 5 * 4], 2));
    let policy = crate::adapter::route::Policy { top_k: 2, crisis: None };
    holds(&[&logits, &u], 2, |t, _| {
        let choice = ops::choose(&t[0], |_, row, gates| (policy.decide(row, None, 0, gates).taken, 0))?;
        let gates = ops::gate(&t[0], &choice)?;
        ops::spread(&t[1], &gates, 3, 0.7)
    });
}

#[test]
#[ignore = "needs a card; packaging/check-cuda.sh runs it"]
fn attention_holds() {
    let past = 300;
    let (q, k, v) = (random(&[ROWS, 4 * 40], 1), random(&[past + ROWS, 2 * 40], 2), random(&[past + ROWS, 2 * 40], 3));
    holds(&[&q, &k, &v], 1, |t, first| {
        let seen = Segment { query_start: 0, queries: t[0].dims()[0], key_start: 0, past: past + first };
        ops::attention((&t[0], &t[1], &t[2]), 4, 2, &[seen].into())
    });
    let two: Arc<[Segment]> = Segment::packed(&[4, ROWS - 4]).into();
    let rows = |t: &Tensor| t.narrow(0, 0, ROWS).unwrap();
    let [k, v] = [rows(&k), rows(&v)];
    let on = |device: &Device| {
        let [q, k, v] = [&q, &k, &v].map(|t| t.to_device(device).unwrap());
        numbers(&ops::attention((&q, &k, &v), 4, 2, &two).unwrap())
    };
    let (card, processor) = (on(&open().unwrap()), on(&Device::Cpu));
    assert!(card.iter().zip(&processor).all(|(a, b)| (a - b).abs() < 1e-4), "segments differ");
}
