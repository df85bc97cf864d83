//! What the session prior has summed up of each conversation, a few numbers a token beside its keys and values. They are
//! clinical content like these: overwritten when they are forgotten. Refuses to know what routers make of them.

use super::executor::Group;
use super::mixture::PackedMixture;
use crate::adapter::route::log_prior;
use crate::infer::compute::{ComputeError, Span};
use crate::kernels::{Instructions, dots};
use zeroize::Zeroize;

/// Sums of one slot, `[tokens, width]`: behind each token the sum of `P·norm(h)` over the tokens up to it.
#[derive(Default)]
pub(super) struct SessionSums {
    width: usize,
    sums: Vec<f32>,
}

impl SessionSums {
    /// Prepares for tokens of a mixture behind `past` tokens, in a context of `context`.
    ///
    /// # Errors
    /// The mixture has a session prior and has not heard the conversation from its beginning.
    pub(super) fn begin(&mut self, mixture: &PackedMixture, past: usize, context: usize) -> Result<(), ComputeError> {
        let width = mixture.session_width();
        if width > 0 && past == 0 {
            self.width = width;
            // Room for the whole context at once: growing would leave copies behind.
            self.sums.reserve_exact(context * width);
        }
        if width > 0 && (self.width != width || self.sums.len() != past * width) {
            return Err(ComputeError::Malformed("a session prior has not heard the conversation from its beginning"));
        }
        Ok(())
    }

    /// Takes the next token's `P·norm(h)` and gives the session's log-probabilities behind it.
    fn hear(&mut self, z: &mut [f32], out: &mut [f32]) {
        if let Some(before) = self.sums.len().checked_sub(self.width) {
            z.iter_mut().zip(&self.sums[before..]).for_each(|(z, sum)| *z += sum);
        }
        self.sums.extend_from_slice(z);
        log_prior(z, self.sums.len() / self.width, out);
    }

    /// Forgets what lies behind the first `tokens` tokens and overwrites it; the bytes overwritten.
    pub(super) fn truncate(&mut self, tokens: usize) -> u64 {
        let kept = self.sums.len().min(tokens * self.width);
        let gone = &mut self.sums[kept..];
        let bytes = size_of_val(gone) as u64;
        gone.zeroize();
        self.sums.truncate(kept);
        bytes
    }

    /// Takes the first `tokens` tokens of another slot, in a context of `context`; this one must be empty.
    pub(super) fn copy_prefix(&mut self, other: &Self, tokens: usize, context: usize) {
        self.width = other.width;
        self.sums.reserve_exact(context * self.width);
        self.sums.extend_from_slice(&other.sums[..other.sums.len().min(tokens * other.width)]);
    }
}

/// Reads the session of the rows of a group from the stream `x[rows, hidden]` of the pass into `priors[rows, experts]`.
pub(super) fn hear(
    instructions: Instructions,
    (mixture, head): (&PackedMixture, &[f32]),
    (group, spans): (&Group, &[Span<'_>]),
    (x, hidden, eps): (&[f32], usize, f32),
    sessions: &mut [SessionSums],
    priors: &mut [f32],
) {
    let mut said = [0f32; crate::adapter::MAX_EXPERTS];
    let said = &mut said[..mixture.experts];
    let mut rows = x[group.first_row * hidden..].chunks_exact(hidden).zip(priors.chunks_exact_mut(mixture.experts));
    for span in &spans[group.span..][..group.spans] {
        for (x, prior) in rows.by_ref().take(span.ids.len()) {
            dots(instructions, x, head, said);
            let mut square = [0f32];
            dots(instructions, x, x, &mut square);
            let inverse = 1.0 / (square[0] / hidden as f32 + eps).sqrt();
            said.iter_mut().for_each(|z| *z *= inverse);
            sessions[span.slot.0].hear(said, prior);
        }
    }
}
