//! Who is answered when: admission at arrival, fair queues, slots of keys and values, and step after step over all
//! answers under way. An answer is a function of its request, the weights and the mixture; how it is interleaved with
//! others cannot change it. Refuses to know sockets, threads and how things are computed.
//!
//! Reading order: [`Request`] (what is asked), [`Desk`] (what any thread may ask of a scheduler), `queue` (whose turn it
//! is), `slots` (keys and values, shared prefixes), `plan` (what one step computes), `answer` (one answer's life), then
//! [`Scheduler`], which joins them.

mod admission;
mod answer;
mod cancel;
mod computes;
mod desk;
mod plan;
mod queue;
mod scheduler;
mod slots;
#[cfg(test)]
mod tests;

pub use admission::{Ask, MAX_PLACES, MAX_PLACES_PER_CALLER, MAX_UNREAD_TOKENS, Place};
pub use answer::{AdapterGeneration, Answer, Continuation, Request, Rules};
pub use cancel::Cancel;
pub use computes::Computes;
pub use desk::{Clock, Desk};
pub use plan::{DRAFT_ROWS, PREFILL_ROWS_ALONE, PREFILL_ROWS_BESIDE};
pub use scheduler::{CRISIS_SLOTS, RUNNING_MAX, Scheduler};
pub use slots::{IDLE_TTL, MIN_SHARED};

use empathd_proto::engine::EngineFailure;
use empathd_proto::generate::{Finished, TokenLogprobs};

/// What became of an answer in a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One more token that is to be shown.
    Token {
        /// Position in the answer, from 0.
        index: u32,
        /// Text that became certain with it.
        text: String,
        /// Probabilities, when they were asked for.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// The answer is complete. Its last event.
    Finished(Finished),
    /// The answer ended without a result. Its last event.
    Failed(EngineFailure),
}
