//! What the scheduler needs of whatever computes: passes over the model on behalf of several conversations, each in a
//! slot of keys and values of its own. Knows the two ways to compute; refuses to know who asks and how tokens are chosen.
//!
//! What a row becomes depends on its own conversation alone: neither the other rows of a pass nor the sizes of the
//! pieces in which a conversation was read may change a bit of it. The packed way and a card hold that to the bit; the
//! reference on a processor within rounding, because candle's sums depend on the number of rows.

mod reference;

pub use reference::ReferenceExecutor;

use crate::adapter::{ExpertLoad, Mixture};
use crate::config::BackboneConfig;
use crate::packed::{Executor, PackedMixture};
use std::sync::Arc;

/// Slots of an executor: conversations whose keys and values can be kept at once.
pub const SLOTS: usize = 32;
/// Most rows of one pass.
pub const ROWS_MAX: usize = 512;
/// Most rows of one pass that get logits.
pub const LOGIT_ROWS_MAX: usize = 128;

/// A place for the keys and values of one conversation; from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub usize);

/// Which rows of a span get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None: the middle of a prompt.
    None,
    /// The last one.
    Last,
    /// Every one: proposed tokens, or a text whose likelihood is measured.
    All,
}

impl LogitRows {
    /// How many rows of a span of `tokens` tokens get logits.
    #[must_use]
    pub const fn count(self, tokens: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => 1,
            Self::All => tokens,
        }
    }
}

/// Tokens that are appended to one conversation in a pass.
#[derive(Clone)]
pub struct Span<'a> {
    /// Whose keys and values; a slot stands at most once in a pass.
    pub slot: SlotId,
    /// The tokens, at least one.
    pub ids: &'a [u32],
    /// With which generation.
    pub adapter: Option<&'a Arc<ServingAdapter>>,
    /// Which rows get logits.
    pub logits: LogitRows,
}

/// An adapter generation as answers need it.
pub struct ServingAdapter {
    /// Its numbers as they were trained.
    pub mixture: Mixture,
    /// The same for packed weights, when that is how answers are computed.
    pub(crate) packed: Option<PackedMixture>,
}

impl ServingAdapter {
    /// A generation for the plain f32 way.
    #[must_use]
    pub const fn plain(mixture: Mixture) -> Self {
        Self { mixture, packed: None }
    }

    /// A generation for packed weights of this shape.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn packed(mixture: Mixture, config: &BackboneConfig) -> Result<Self, candle_core::Error> {
        let packed = Some(PackedMixture::new(&mixture, config)?);
        Ok(Self { mixture, packed })
    }
}

/// Why a pass failed. The slots of the pass hold nothing usable afterwards and must be wiped.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// The slot would hold more tokens than the context.
    #[error("{needed} tokens exceed the context of {limit}")]
    Context {
        /// Tokens there would be.
        needed: usize,
        /// Tokens there may be.
        limit: usize,
    },
    /// A token outside the vocabulary, an empty span, or a slot named twice.
    #[error("a pass is malformed: {0}")]
    Malformed(&'static str),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// What computes.
pub enum Compute {
    /// Packed weights and own kernels, on the processor.
    Packed(Box<Executor>),
    /// Plain f32 tensors.
    Reference(Box<ReferenceExecutor>),
}

impl Compute {
    /// The shape of the model.
    #[must_use]
    pub fn config(&self) -> &BackboneConfig {
        match self {
            Self::Packed(executor) => executor.config(),
            Self::Reference(executor) => executor.config(),
        }
    }

    /// How many slots there are.
    #[must_use]
    pub const fn slots(&self) -> usize {
        SLOTS
    }

    /// Tokens that all slots together may hold; kept by the caller.
    #[must_use]
    pub fn kv_tokens_max(&self) -> usize {
        match self {
            Self::Packed(executor) => executor.kv_tokens_max(),
            Self::Reference(executor) => executor.kv_tokens_max(),
        }
    }

    /// Most rows of one pass.
    #[must_use]
    pub const fn rows_max(&self) -> usize {
        ROWS_MAX
    }

    /// Most rows of one pass that get logits.
    #[must_use]
    pub const fn logit_rows_max(&self) -> usize {
        LOGIT_ROWS_MAX
    }

    /// Bytes of weights that one decoded token reads, where they are packed.
    #[must_use]
    pub fn token_bytes(&self) -> Option<usize> {
        match self {
            Self::Packed(executor) => Some(executor.token_bytes()),
            Self::Reference(_) => None,
        }
    }

    /// Tokens in a slot.
    ///
    /// # Panics
    /// There is no such slot.
    #[must_use]
    pub fn len(&self, slot: SlotId) -> usize {
        match self {
            Self::Packed(executor) => executor.len(slot),
            Self::Reference(executor) => executor.len(slot),
        }
    }

    /// Whether a slot holds no token.
    #[must_use]
    pub fn is_empty(&self, slot: SlotId) -> bool {
        self.len(slot) == 0
    }

    /// Appends each span to its slot; the logits `[rows, vocab]` of the rows that get some, in the order of the spans.
    /// Routing is counted into `loads`.
    ///
    /// # Errors
    /// See [`ComputeError`]. A malformed pass changes nothing; after another error its slots must be wiped.
    pub fn pass(&mut self, spans: &[Span<'_>], loads: Loads<'_>) -> Result<&[f32], ComputeError> {
        match self {
            Self::Packed(executor) => executor.pass(spans, loads),
            Self::Reference(executor) => executor.pass(spans, loads),
        }
    }

    /// Forgets the tokens of a slot behind the first `len` and overwrites them; the bytes overwritten.
    pub fn truncate(&mut self, slot: SlotId, len: usize) -> u64 {
        match self {
            Self::Packed(executor) => executor.truncate(slot, len),
            Self::Reference(executor) => executor.truncate(slot, len),
        }
    }

    /// Copies the first `len` tokens of a slot into an empty one.
    ///
    /// # Errors
    /// The slots are the same, `to` is not empty, or `from` is shorter.
    pub fn copy_prefix(&mut self, from: SlotId, to: SlotId, len: usize) -> Result<(), ComputeError> {
        match self {
            Self::Packed(executor) => executor.copy_prefix(from, to, len),
            Self::Reference(executor) => executor.copy_prefix(from, to, len),
        }
    }

    /// Overwrites and empties a slot; the bytes overwritten.
    pub fn wipe(&mut self, slot: SlotId) -> u64 {
        match self {
            Self::Packed(executor) => executor.wipe(slot),
            Self::Reference(executor) => executor.wipe(slot),
        }
    }
}

/// Tokens that `mib` MiB of keys and values hold, at least one whole context.
pub(crate) fn kv_tokens(mib: u32, token_bytes: usize, context: usize) -> usize {
    ((mib as usize) << 20).div_euclid(token_bytes).max(context)
}

/// Refuses a malformed pass before anything is touched. `len` tells how long a slot is, when there is one.
pub(crate) fn check(
    spans: &[Span<'_>],
    config: &BackboneConfig,
    len: impl Fn(SlotId) -> Option<usize>,
) -> Result<(), ComputeError> {
    let (mut rows, mut logit_rows) = (0, 0);
    for (i, span) in spans.iter().enumerate() {
        let Some(len) = len(span.slot) else { return Err(ComputeError::Malformed("there is no such slot")) };
        let needed = len + span.ids.len();
        if span.ids.is_empty() || span.ids.iter().any(|id| *id as usize >= config.vocab) {
            return Err(ComputeError::Malformed("there is no token, or one outside the vocabulary"));
        }
        if spans[..i].iter().any(|other| other.slot == span.slot) {
            return Err(ComputeError::Malformed("a slot is named twice"));
        }
        if needed > config.context {
            return Err(ComputeError::Context { needed, limit: config.context });
        }
        rows += span.ids.len();
        logit_rows += span.logits.count(span.ids.len());
    }
    if rows > ROWS_MAX || logit_rows > LOGIT_ROWS_MAX {
        return Err(ComputeError::Malformed("there are too many rows"));
    }
    Ok(())
}

/// Where the routing of each span of a pass is counted, in the order of the spans; may be empty when nobody asks.
pub type Loads<'a> = &'a mut [ExpertLoad];
