//! Attention over stores against its definition, and the same bits for every shape of work.

use super::*;
use half::f16;

const SHAPE: KvShape = KvShape { layers: 1, kv_heads: 2, head_dim: 24, tokens: 800 };
const HEADS: usize = 6;
const STRIDE: usize = (HEADS + 4) * 24;
const WIDTH: usize = HEADS * 24;
const KV: usize = 2 * 24;

fn rows(count: usize) -> Vec<f32> {
    (0..count * STRIDE).map(|i| (i as f32 * 0.37).sin() + (i as f32 * 0.011).cos()).collect()
}

/// Columns `from..from + width` of every row.
fn columns(rows: &[f32], from: usize, width: usize) -> Vec<f32> {
    rows.chunks(STRIDE).flat_map(|row| row[from..from + width].iter().copied()).collect()
}

fn turns() -> Turns {
    let table: Vec<Vec<(f32, f32)>> = (0..SHAPE.tokens)
        .map(|p| (0..12).map(|i| p as f32 * 0.9f32.powi(i)).map(|a| (a.cos(), a.sin())).collect())
        .collect();
    Turns::new(12, SHAPE.tokens, |position| &table[position])
}

/// Runs `count` rows of one conversation in pieces; every piece shares its pass with another conversation.
fn run(instructions: Instructions, threads: usize, pieces: &[usize], qkv: &[f32]) -> Vec<f32> {
    let count: usize = pieces.iter().sum();
    let mut pool = Pool::new(threads);
    let mut attention = Attention::new(HEADS, SHAPE, 1000, 4, threads);
    let mut stores = vec![KvStore::new(SHAPE).unwrap(), KvStore::new(SHAPE).unwrap()];
    let turns = turns();
    let mut all = Vec::new();
    let mut past = 0;
    for piece in pieces {
        let other = rows(7);
        let buffer = [&other, &qkv[past * STRIDE..(past + piece) * STRIDE]].concat();
        let (k, v) = (columns(&buffer, WIDTH, KV), columns(&buffer, WIDTH + KV, KV));
        let mut q = columns(&buffer, 0, WIDTH);
        let begin = KvSpan { slot: 0, first_row: 0, rows: 7, past: 0 };
        let span = KvSpan { slot: 1, first_row: 7, rows: *piece, past };
        attention.plan(&[begin, span], threads);
        attention.keep(&mut pool, instructions, 0, &mut stores, &turns, (&mut q, &k, &v));
        let mut out = vec![0f32; (7 + piece) * WIDTH];
        attention.attend(&mut pool, instructions, 0, &stores, &q, &mut out);
        all.extend_from_slice(&out[7 * WIDTH..]);
        past += piece;
    }
    assert_eq!(all.len(), count * WIDTH);
    all
}

/// What one row should be, from the definition in f64, keys and values rounded to f16 as the stores do.
fn definition(qkv: &[f32], row: usize, head: usize) -> Vec<f64> {
    let (dim, group) = (SHAPE.head_dim, HEADS / SHAPE.kv_heads);
    let turned = |row: usize, column: usize| -> Vec<f32> {
        let x = &qkv[row * STRIDE + column * dim..][..dim];
        let turn = |i: usize| {
            let angle = row as f32 * 0.9f32.powi((i % 12) as i32);
            let (cos, sin) = (angle.cos(), angle.sin());
            if i < 12 { x[i] * cos - x[i + 12] * sin } else { x[i] * cos + x[i - 12] * sin }
        };
        (0..dim).map(turn).collect()
    };
    let halved = |x: f32| f64::from(f16::from_f32(x).to_f32());
    let query = turned(row, head);
    let kv = HEADS + head / group;
    let score = |at: usize| {
        let key = turned(at, kv);
        query.iter().zip(key).map(|(q, k)| f64::from(*q) * halved(k)).sum::<f64>() / (dim as f64).sqrt()
    };
    let powers: Vec<f64> = (0..=row).map(|at| score(at).exp()).collect();
    let total: f64 = powers.iter().sum();
    let value = |at: usize, i: usize| halved(qkv[at * STRIDE + (kv + SHAPE.kv_heads) * dim + i]);
    (0..dim).map(|i| powers.iter().enumerate().map(|(at, p)| p * value(at, i)).sum::<f64>() / total).collect()
}

#[test]
fn rows_are_what_the_definition_says() {
    let qkv = rows(300);
    for instructions in Instructions::available() {
        let found = run(instructions, 2, &[300], &qkv);
        for (row, head) in [(0, 0), (1, 5), (17, 2), (255, 3), (256, 1), (299, 4)] {
            let found = &found[(row * HEADS + head) * SHAPE.head_dim..][..SHAPE.head_dim];
            for (found, expected) in found.iter().zip(definition(&qkv, row, head)) {
                assert!((f64::from(*found) - expected).abs() < 2e-5, "{instructions:?} row {row} head {head}");
            }
        }
    }
}

#[test]
fn neither_pieces_nor_threads_change_a_bit() {
    let qkv = rows(700);
    for instructions in Instructions::available() {
        let whole = run(instructions, 1, &[700], &qkv);
        let singles: Vec<usize> = [600].into_iter().chain(std::iter::repeat_n(1, 100)).collect();
        for (threads, pieces) in [(2, vec![700]), (2, vec![1, 255, 3, 441]), (2, singles.clone()), (1, singles)] {
            let found = run(instructions, threads, &pieces, &qkv);
            let same = found.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{instructions:?}, {threads} threads, {} pieces", pieces.len());
        }
    }
}
