//! What lies above the last layer: the norm, the output head and the loss, a few rows of logits at a time. Refuses to know
//! layers.

use super::element::{Element, Rows, stride};
use super::frozen::Frozen;
use super::maps::Machine;
use crate::config::BackboneConfig;
use crate::kernels::backward::loss::{self, Aim, Score};
use crate::kernels::backward::{Span, SpanMut, norm};
use crate::kernels::half::{Out, Product, Term};
use crate::ops::Target;
use crate::train::gradient::goals::Keep;

/// Rows whose logits are held at a time.
const CHUNK: usize = 128;

/// Buffers above the last layer.
pub(super) struct Head<E> {
    hidden: usize,
    vocab: usize,
    normed: Rows<E>,
    inverse: Vec<f32>,
    d_normed: Vec<f32>,
    /// Rows of a chunk, and those of the base beside them.
    chunk: [Rows<E>; 2],
    logits: Vec<f32>,
    /// Logits of the base; there once rows are held to it.
    base_logits: Vec<f32>,
    d_rows: Vec<f32>,
    /// Normed rows of the base that the model is held to.
    base: Rows<E>,
}

/// A row with something to lose.
#[derive(Clone, Copy)]
struct Due {
    row: usize,
    aim: Aim,
    /// Weight of the distance to the base, and which of its kept rows.
    keep: Option<(f32, usize)>,
}

/// What the head lost.
#[derive(Default)]
pub(super) struct HeadLoss {
    pub(super) language: f64,
    pub(super) kept: f64,
}

impl<E: Element> Head<E> {
    pub(super) fn new(config: &BackboneConfig, rows: usize) -> Self {
        let (hidden, vocab) = (config.hidden, config.vocab);
        Self {
            hidden,
            vocab,
            normed: Rows::new(rows, hidden),
            inverse: vec![0.0; rows],
            d_normed: vec![0.0; rows * hidden],
            chunk: [Rows::new(CHUNK, hidden), Rows::new(CHUNK, hidden)],
            logits: vec![0.0; CHUNK * vocab],
            base_logits: Vec::new(),
            d_rows: vec![0.0; CHUNK * hidden],
            base: Rows::new(0, hidden),
        }
    }

    /// Bytes for each row of a pass, and for a pass.
    pub(super) const fn bytes(config: &BackboneConfig) -> (usize, usize) {
        let row = stride(config.hidden) * size_of::<E>() + (config.hidden + 1) * size_of::<f32>();
        (row, CHUNK * (config.vocab + 3 * config.hidden) * size_of::<f32>())
    }

    fn stream<'a>(&self, stream: &'a [f32], rows: usize) -> Span<'a, f32> {
        Span::new(&stream[..rows * self.hidden], self.hidden, self.hidden)
    }

    /// Norms the stream behind the last layer.
    pub(super) fn norm(&mut self, machine: &mut Machine, frozen: &Frozen<E>, eps: f32, stream: &[f32], rows: usize) {
        let (x, inverse) = (self.stream(stream, rows), &mut self.inverse[..rows]);
        norm::forward(&mut machine.pool, machine.set, x, (&frozen.norm, eps), self.normed.span_mut(rows), inverse);
    }

    /// Keeps normed rows as those of the base, one after the other.
    pub(super) fn keep_base(&mut self, rows: impl ExactSizeIterator<Item = usize>) {
        if self.base.rows() < rows.len() {
            self.base = Rows::new(rows.len().next_multiple_of(CHUNK), self.hidden);
        }
        for (at, row) in rows.enumerate() {
            self.base.row_mut(at).copy_from_slice(self.normed.row(row));
        }
    }

    /// Loss of normed rows and the gradient `d` of the stream behind the last layer, which is overwritten.
    pub(super) fn lose(
        &mut self,
        machine: &mut Machine,
        frozen: &Frozen<E>,
        (targets, weights, kept): (&[Target], &[f32], &[Keep]),
        (stream, d): (&[f32], &mut [f32]),
        rows: usize,
    ) -> HeadLoss {
        let mut found = HeadLoss::default();
        self.d_normed[..rows * self.hidden].fill(0.0);
        let (apart, plain) = due(targets, weights, kept);
        for chunk in apart.chunks(CHUNK).chain(plain.chunks(CHUNK)) {
            self.lose_chunk(machine, frozen, chunk, &mut found);
        }
        let d = &mut d[..rows * self.hidden];
        d.fill(0.0);
        let (x, dy) = (self.stream(stream, rows), self.stream(&self.d_normed, rows));
        let dx = SpanMut::new(d, self.hidden, self.hidden);
        norm::backward(&mut machine.pool, machine.set, x, (&frozen.norm, &self.inverse[..rows]), dy, dx);
        found
    }

    fn lose_chunk(&mut self, machine: &mut Machine, frozen: &Frozen<E>, due: &[Due], found: &mut HeadLoss) {
        let (count, vocab, hidden) = (due.len(), self.vocab, self.hidden);
        self.logits_of(machine, frozen, due.iter().map(|due| due.row));
        let aims: Vec<Aim> = due.iter().map(|due| due.aim).collect();
        let mut scores = vec![Score::default(); count];
        let keep: Vec<f32> = due.iter().map(|due| due.keep.map_or(0.0, |(weight, _)| weight)).collect();
        let mut kl = vec![0f32; count];
        let is_kept = due.iter().any(|due| due.keep.is_some());
        if is_kept {
            self.logits_of_base(machine, frozen, due);
        }
        let logits = &mut self.logits[..count * vocab];
        let (pool, set) = (&mut machine.pool, machine.set);
        let d_logits: Span<'_, E> = if is_kept {
            let base = (&self.base_logits[..count * vocab], &keep[..]);
            loss::distance(pool, set, logits, &aims, base, &mut scores, &mut kl)
        } else {
            loss::likelihood(pool, set, logits, &aims, &mut scores)
        };
        let rows = E::left(d_logits.data(), d_logits.stride());
        let terms = [Term { rows, weight: frozen.head.backward() }];
        let product = Product { terms: &terms, out: Out::Set(&mut self.d_rows), stride: hidden };
        machine.multiplier.products(pool, count, &mut [product]);
        for ((due, d_row), (score, kl)) in due.iter().zip(self.d_rows.chunks_exact(hidden)).zip(scores.iter().zip(&kl))
        {
            let sum = &mut self.d_normed[due.row * hidden..][..hidden];
            sum.iter_mut().zip(d_row).for_each(|(sum, d)| *sum += d);
            if due.aim.weight != 0.0 {
                found.language += f64::from(due.aim.weight) * f64::from(score.nll);
            }
            found.kept += due.keep.map_or(0.0, |(weight, _)| f64::from(weight) * f64::from(*kl));
        }
    }

    /// Puts the logits of some normed rows into the buffer.
    fn logits_of(&mut self, machine: &mut Machine, frozen: &Frozen<E>, rows: impl ExactSizeIterator<Item = usize>) {
        let count = rows.len();
        for (at, row) in rows.enumerate() {
            self.chunk[0].row_mut(at).copy_from_slice(self.normed.row(row));
        }
        let terms = [Term { rows: self.chunk[0].left(), weight: frozen.head.forward() }];
        let product = Product { terms: &terms, out: Out::Set(&mut self.logits), stride: self.vocab };
        machine.multiplier.products(&mut machine.pool, count, &mut [product]);
    }

    fn logits_of_base(&mut self, machine: &mut Machine, frozen: &Frozen<E>, due: &[Due]) {
        self.base_logits.resize(self.logits.len(), 0.0);
        for (at, (_, row)) in due.iter().enumerate().filter_map(|(at, due)| Some((at, due.keep?))) {
            self.chunk[1].row_mut(at).copy_from_slice(self.base.row(row));
        }
        let terms = [Term { rows: self.chunk[1].left(), weight: frozen.head.forward() }];
        let product = Product { terms: &terms, out: Out::Set(&mut self.base_logits), stride: self.vocab };
        machine.multiplier.products(&mut machine.pool, due.len(), &mut [product]);
    }

    /// Loss and hit of each target.
    pub(super) fn scores(&mut self, machine: &mut Machine, frozen: &Frozen<E>, targets: &[Target]) -> Vec<Score> {
        let mut all = Vec::with_capacity(targets.len());
        for targets in targets.chunks(CHUNK) {
            self.logits_of(machine, frozen, targets.iter().map(|target| target.row as usize));
            let aims: Vec<Aim> = targets.iter().map(|target| Aim { id: target.id, weight: 0.0 }).collect();
            let mut scores = vec![Score::default(); targets.len()];
            let logits = &self.logits[..targets.len() * self.vocab];
            loss::scores(&mut machine.pool, machine.set, logits, &aims, &mut scores);
            all.extend(scores);
        }
        all
    }
}

/// Rows that are held to the base, and rows that have only to predict. A row may be both: then it is among the former.
fn due(targets: &[Target], weights: &[f32], kept: &[Keep]) -> (Vec<Due>, Vec<Due>) {
    let plain = |(target, weight): (&Target, &f32)| {
        let aim = Aim { id: target.id, weight: *weight };
        Due { row: target.row as usize, aim, keep: None }
    };
    let mut plain: Vec<Due> = targets.iter().zip(weights).filter(|(_, weight)| **weight != 0.0).map(plain).collect();
    let mut apart: Vec<Due> = Vec::with_capacity(kept.len());
    for (at, keep) in kept.iter().enumerate() {
        let aim = Aim { id: 0, weight: 0.0 };
        apart.push(Due { row: keep.row as usize, aim, keep: Some((keep.weight, at)) });
    }
    plain.sort_by_key(|due| due.row);
    (apart, plain)
}
