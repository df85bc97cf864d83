//! The part of [`Compute`] that a scheduler uses, so that its tests can replace the mathematics. Refuses to know either.

use crate::infer::compute::{Compute, ComputeError, Loads, SlotId, Span};

/// Passes over slots of keys and values; each word means what it means in [`Compute`].
pub trait Computes {
    /// Tokens that have a logit each.
    fn vocab(&self) -> usize;
    /// Longest conversation of a slot.
    fn context(&self) -> usize;
    /// How many slots there are.
    fn slots(&self) -> usize;
    /// Tokens that all slots together may hold.
    fn kv_tokens_max(&self) -> usize;
    /// Most rows of one pass.
    fn rows_max(&self) -> usize;
    /// Most rows of one pass that get logits.
    fn logit_rows_max(&self) -> usize;
    /// Tokens in a slot.
    fn len(&self, slot: SlotId) -> usize;
    /// Whether a slot holds no token.
    fn is_empty(&self, slot: SlotId) -> bool {
        self.len(slot) == 0
    }
    /// Appends each span to its slot; the logits of the rows that get some.
    ///
    /// # Errors
    /// See [`ComputeError`].
    fn pass(&mut self, spans: &[Span<'_>], loads: Loads<'_>) -> Result<&[f32], ComputeError>;
    /// Forgets and overwrites the tokens of a slot behind the first `len`; the bytes overwritten.
    fn truncate(&mut self, slot: SlotId, len: usize) -> u64;
    /// Copies the first `len` tokens of a slot into an empty one.
    ///
    /// # Errors
    /// See [`Compute::copy_prefix`].
    fn copy_prefix(&mut self, from: SlotId, to: SlotId, len: usize) -> Result<(), ComputeError>;
    /// Overwrites and empties a slot; the bytes overwritten.
    fn wipe(&mut self, slot: SlotId) -> u64;
}

impl Computes for Compute {
    fn vocab(&self) -> usize {
        self.config().vocab
    }

    fn context(&self) -> usize {
        self.config().context
    }

    fn slots(&self) -> usize {
        Self::slots(self)
    }

    fn kv_tokens_max(&self) -> usize {
        Self::kv_tokens_max(self)
    }

    fn rows_max(&self) -> usize {
        Self::rows_max(self)
    }

    fn logit_rows_max(&self) -> usize {
        Self::logit_rows_max(self)
    }

    fn len(&self, slot: SlotId) -> usize {
        Self::len(self, slot)
    }

    fn pass(&mut self, spans: &[Span<'_>], loads: Loads<'_>) -> Result<&[f32], ComputeError> {
        Self::pass(self, spans, loads)
    }

    fn truncate(&mut self, slot: SlotId, len: usize) -> u64 {
        Self::truncate(self, slot, len)
    }

    fn copy_prefix(&mut self, from: SlotId, to: SlotId, len: usize) -> Result<(), ComputeError> {
        Self::copy_prefix(self, from, to, len)
    }

    fn wipe(&mut self, slot: SlotId) -> u64 {
        Self::wipe(self, slot)
    }
}
