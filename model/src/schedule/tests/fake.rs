//! A model without mathematics: each row's logits are numbers drawn from everything its slot holds, so that a foreign,
//! missing or reordered token shows. Its time passes with the rows it computes. Refuses to know who asks.

use crate::counter::{Counter, Site};
use crate::infer::compute::{ComputeError, Loads, SlotId, Span};
use crate::schedule::{Clock, Computes};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(super) const CONTEXT: usize = 512;
/// What a row costs.
pub(super) const ROW: Duration = Duration::from_millis(1);
/// A token on which a pass panics.
pub(super) const POISON: u32 = 250;
/// How much likelier the token is that usually follows.
const HABIT: f32 = 0.85;

/// What a test sees of it.
#[derive(Default)]
pub(super) struct Probe {
    micros: AtomicU64,
    rows: AtomicU64,
}

impl Probe {
    pub(super) fn clock(self: &Arc<Self>) -> Clock {
        let probe = Arc::clone(self);
        Arc::new(move || Duration::from_micros(probe.micros.load(Ordering::Relaxed)))
    }

    pub(super) fn pass_time(&self, time: Duration) {
        self.micros.fetch_add(u64::try_from(time.as_micros()).expect("short"), Ordering::Relaxed);
    }

    /// Rows computed since the last call.
    pub(super) fn take_rows(&self) -> u64 {
        self.rows.swap(0, Ordering::Relaxed)
    }
}

pub(super) struct Fake {
    pub(super) probe: Arc<Probe>,
    vocab: usize,
    kv_tokens_max: usize,
    slots: Vec<Vec<u32>>,
    logits: Vec<f32>,
}

impl Fake {
    pub(super) fn new(vocab: usize, kv_tokens_max: usize) -> Self {
        Self { probe: Arc::default(), vocab, kv_tokens_max, slots: vec![Vec::new(); 32], logits: Vec::new() }
    }

    fn row(&mut self, held: &[u32]) {
        let history = held.iter().fold(1u64, |hash, id| (hash ^ u64::from(*id)).wrapping_mul(0x100_0000_01b3));
        let usual = held.last().map_or(0, |last| (*last as usize * 5 + 11) % self.vocab);
        let counter = Counter::new(history);
        let noise = |id: usize| counter.uniform(Site::new("fake", 0), id as u64) as f32;
        let logit =
            |id: usize| if id == POISON as usize { -10.0 } else { noise(id) + if id == usual { HABIT } else { 0.0 } };
        self.logits.extend((0..self.vocab).map(logit));
    }
}

impl Computes for Fake {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn context(&self) -> usize {
        CONTEXT
    }

    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn kv_tokens_max(&self) -> usize {
        self.kv_tokens_max
    }

    fn rows_max(&self) -> usize {
        512
    }

    fn logit_rows_max(&self) -> usize {
        128
    }

    fn len(&self, slot: SlotId) -> usize {
        self.slots[slot.0].len()
    }

    fn pass(&mut self, spans: &[Span<'_>], _: Loads<'_>) -> Result<&[f32], ComputeError> {
        self.logits.clear();
        let rows: usize = spans.iter().map(|span| span.ids.len()).sum();
        let asked: usize = spans.iter().map(|span| span.logits.count(span.ids.len())).sum();
        assert!(rows <= self.rows_max() && asked <= self.logit_rows_max(), "a pass is too large");
        for (place, span) in spans.iter().enumerate() {
            assert!(!span.ids.is_empty() && spans[..place].iter().all(|other| other.slot != span.slot));
            assert!(!span.ids.contains(&POISON), "poison");
            for (place, id) in span.ids.iter().enumerate() {
                self.slots[span.slot.0].push(*id);
                assert!(self.len(span.slot) <= CONTEXT);
                if span.ids.len() - place <= span.logits.count(span.ids.len()) {
                    let held = self.slots[span.slot.0].clone();
                    self.row(&held);
                }
            }
        }
        let held: usize = self.slots.iter().map(Vec::len).sum();
        assert!(held <= self.kv_tokens_max, "more is held than there is room for");
        self.probe.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.probe.pass_time(ROW * u32::try_from(rows).expect("few"));
        Ok(&self.logits)
    }

    fn truncate(&mut self, slot: SlotId, len: usize) -> u64 {
        let gone = self.slots[slot.0].len().saturating_sub(len);
        self.slots[slot.0].truncate(len);
        gone as u64
    }

    fn copy_prefix(&mut self, from: SlotId, to: SlotId, len: usize) -> Result<(), ComputeError> {
        assert!(from != to && self.is_empty(to) && self.len(from) >= len);
        self.slots[to.0] = self.slots[from.0][..len].to_vec();
        Ok(())
    }

    fn wipe(&mut self, slot: SlotId) -> u64 {
        std::mem::take(&mut self.slots[slot.0]).len() as u64
    }
}
