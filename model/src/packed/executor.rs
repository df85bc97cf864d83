//! Slots and static buffers over packed weights: everything that a pass needs is there before the first token. Refuses to
//! know the way through a layer.

use super::mixture::Site;
use super::pass::Pass;
use super::session::SessionSums;
use super::weights::PackedWeights;
use crate::adapter::Linear;
use crate::config::BackboneConfig;
use crate::infer::compute::{ComputeError, LOGIT_ROWS_MAX, Loads, ROWS_MAX, SLOTS, SlotId, Span, check, kv_tokens};
use crate::kernels::{Activations, Attention, Instructions, Keep, KvShape, KvSpan, KvStore, Pool, Run};
use std::io;
use std::sync::Arc;

/// Packed weights, slots of keys and values, threads, and room for one pass.
pub struct Executor {
    pub(super) weights: Arc<PackedWeights>,
    pub(super) instructions: Instructions,
    pub(super) pool: Pool,
    pub(super) stores: Vec<KvStore>,
    /// What the session prior of each slot has heard.
    pub(super) sessions: Vec<SessionSums>,
    lens: Vec<usize>,
    kv_tokens_max: usize,
    pub(super) attention: Attention,
    pub(super) buffers: Buffers,
}

/// Rows of one pass. Lengths are those of the largest pass; each pass uses the beginning.
pub(super) struct Buffers {
    /// The residual stream `[rows, hidden]`.
    pub(super) x: Vec<f32>,
    /// The stream as the next linear maps see it `[rows, hidden]`.
    pub(super) seen: Vec<f32>,
    /// The same for the kernels.
    pub(super) input: Activations,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// Mixtures of values `[rows, heads·head_dim]`.
    pub(super) mixed: Vec<f32>,
    pub(super) mixed_input: Activations,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) inner: Activations,
    /// Rows that get logits `[rows, hidden]`.
    pub(super) last: Vec<f32>,
    pub(super) last_input: Activations,
    pub(super) logits: Vec<f32>,
    pub(super) spans: Vec<KvSpan>,
    pub(super) adapted: Adapted,
}

/// What adapters need in a pass.
#[derive(Default)]
pub(super) struct Adapted {
    /// Neighbouring rows with the same generation.
    pub(super) groups: Vec<Group>,
    /// The narrow middle of the site at hand, group after group.
    pub(super) h: Vec<f32>,
    /// The columns that each row takes of each part, all or none: `[parts, rows]`, group after group.
    pub(super) uses: Vec<Run>,
    /// What the columns of a part are multiplied by, `[rows, parts]`, group after group.
    pub(super) factors: Vec<f32>,
    /// The session's log-probabilities, `[rows, experts]` from where each group begins in `factors`.
    pub(super) priors: Vec<f32>,
    /// Tiles of the stacks of the site at hand that some row needs: group and tile.
    pub(super) tiles: Vec<(usize, usize)>,
}

/// Neighbouring rows with the same generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// The span whose adapter it is; the group has whole spans.
    pub(super) span: usize,
    pub(super) spans: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Where it begins in `uses`, in `factors` and in `priors`.
    pub(super) parts_at: usize,
    /// Where its rows begin in `h`.
    pub(super) h_at: usize,
    /// Experts that some row chose in the layer at hand, a bit each.
    pub(super) chosen: u64,
}

impl Group {
    /// The parts that some of its rows take at a site, in ascending order: the shared one, then experts.
    pub(super) fn parts(&self, site: Site) -> impl Iterator<Item = usize> + use<> {
        let mut left = if site.is_routed() { self.chosen } else { 0 };
        let experts = std::iter::from_fn(move || {
            let next = (left != 0).then_some(left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(1 + next)
        });
        std::iter::once(0).chain(experts)
    }
}

impl Buffers {
    fn new(weights: &PackedWeights) -> Self {
        let config = &weights.config;
        let keep = |linears: &[Linear]| if weights.reads_floats(linears) { Keep::Both } else { Keep::Quantised };
        let rows = |width: usize| vec![0f32; ROWS_MAX * width];
        let site = |width: usize, linears: &[Linear]| Activations::new(ROWS_MAX, width, keep(linears));
        let first = [Linear::Query, Linear::Key, Linear::Value, Linear::Gate, Linear::Up];
        let head = if weights.head().kind().is_quantised() { Keep::Quantised } else { Keep::Both };
        Self {
            x: rows(config.hidden),
            seen: rows(config.hidden),
            input: site(config.hidden, &first),
            q: rows(config.query_width()),
            k: rows(config.kv_width()),
            v: rows(config.kv_width()),
            mixed: rows(config.query_width()),
            mixed_input: site(config.query_width(), &[Linear::Output]),
            gate: rows(config.ffn),
            up: rows(config.ffn),
            inner: site(config.ffn, &[Linear::Down]),
            last: vec![0.0; LOGIT_ROWS_MAX * config.hidden],
            last_input: Activations::new(LOGIT_ROWS_MAX, config.hidden, head),
            logits: vec![0.0; LOGIT_ROWS_MAX * config.vocab],
            spans: Vec::with_capacity(SLOTS),
            adapted: Adapted::default(),
        }
    }
}

impl Executor {
    /// Empty slots that may hold `kv_mib` MiB of keys and values together, computing with `threads` threads.
    ///
    /// # Errors
    /// The system gives no address space for the slots.
    pub fn new(weights: Arc<PackedWeights>, kv_mib: u32, threads: usize) -> io::Result<Self> {
        Self::with_instructions(weights, kv_mib, threads, Instructions::best())
    }

    pub(super) fn with_instructions(
        weights: Arc<PackedWeights>,
        kv_mib: u32,
        threads: usize,
        instructions: Instructions,
    ) -> io::Result<Self> {
        let config = &weights.config;
        let shape = KvShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            tokens: config.context,
        };
        let stores = (0..SLOTS).map(|_| KvStore::new(shape)).collect::<io::Result<_>>()?;
        let pool = Pool::new(threads);
        let attention = Attention::new(config.heads, shape, ROWS_MAX, SLOTS, pool.threads());
        Ok(Self {
            kv_tokens_max: kv_tokens(kv_mib, shape.token_bytes(), config.context),
            buffers: Buffers::new(&weights),
            instructions,
            pool,
            stores,
            sessions: (0..SLOTS).map(|_| SessionSums::default()).collect(),
            lens: vec![0; SLOTS],
            attention,
            weights,
        })
    }

    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &BackboneConfig {
        &self.weights.config
    }

    /// Tokens that all slots together may hold.
    #[must_use]
    pub const fn kv_tokens_max(&self) -> usize {
        self.kv_tokens_max
    }

    /// Bytes of weights that one decoded token reads.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        self.weights.token_bytes()
    }

    /// Tokens in a slot.
    ///
    /// # Panics
    /// There is no such slot.
    #[must_use]
    pub fn len(&self, slot: SlotId) -> usize {
        self.lens[slot.0]
    }

    /// Appends each span to its slot; the logits of the rows that get some. See [`crate::infer::compute::Compute::pass`].
    ///
    /// # Errors
    /// [`ComputeError::Malformed`] or [`ComputeError::Context`].
    pub fn pass(&mut self, spans: &[Span<'_>], loads: Loads<'_>) -> Result<&[f32], ComputeError> {
        check(spans, &self.weights.config, |slot| self.lens.get(slot.0).copied())?;
        self.buffers.spans.clear();
        let mut first_row = 0;
        for span in spans {
            let rows = span.ids.len();
            self.buffers.spans.push(KvSpan { slot: span.slot.0, first_row, rows, past: self.lens[span.slot.0] });
            first_row += rows;
        }
        let rows = Pass::new(self, spans, first_row)?.run(loads);
        for span in spans {
            self.lens[span.slot.0] += span.ids.len();
        }
        Ok(&self.buffers.logits[..rows * self.weights.config.vocab])
    }

    /// Forgets the tokens of a slot behind the first `len` and overwrites them; the bytes overwritten.
    pub fn truncate(&mut self, slot: SlotId, len: usize) -> u64 {
        let had = self.lens[slot.0];
        if len >= had {
            return 0;
        }
        self.lens[slot.0] = len;
        self.stores[slot.0].wipe(len, had) + self.sessions[slot.0].truncate(len)
    }

    /// Copies the first `len` tokens of a slot into an empty one.
    ///
    /// # Errors
    /// The slots are the same, `to` is not empty, or `from` is shorter.
    pub fn copy_prefix(&mut self, from: SlotId, to: SlotId, len: usize) -> Result<(), ComputeError> {
        let Ok([source, target]) = self.stores.get_disjoint_mut([from.0, to.0]) else {
            return Err(ComputeError::Malformed("a slot is copied onto itself"));
        };
        if self.lens[to.0] > 0 || len > self.lens[from.0] {
            return Err(ComputeError::Malformed("a copy needs an empty slot and a source as long"));
        }
        target.copy_prefix(source, len);
        if let Ok([source, target]) = self.sessions.get_disjoint_mut([from.0, to.0]) {
            target.copy_prefix(source, len, self.weights.config.context);
        }
        self.lens[to.0] = len;
        Ok(())
    }

    /// Overwrites and empties a slot; the bytes overwritten.
    pub fn wipe(&mut self, slot: SlotId) -> u64 {
        let had = std::mem::take(&mut self.lens[slot.0]);
        self.stores[slot.0].wipe(0, had) + self.sessions[slot.0].truncate(0)
    }
}
