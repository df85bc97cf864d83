//! What the scheduler needs of whatever computes: passes over the model on behalf of several conversations, each in a
//! slot of keys and values of its own. Knows the two ways to compute; refuses to know who asks and how tokens are chosen.
//!
//! What a row becomes depends on its own conversation alone: neither the other rows of a pass nor the sizes of the
//! pieces in which a conversation was read may change a bit of it.

use crate::adapter::{ExpertLoad, Mixture};
use std::sync::Arc;

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

/// Where the routing of each span of a pass is counted, in the order of the spans; may be empty when nobody asks.
pub type Loads<'a> = &'a mut [ExpertLoad];
