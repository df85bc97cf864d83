//! The thread that makes tokens: one step of every answer under way, round and round. Refuses to know messages that
//! arrive and how adapters come into memory.

use super::state::State;
use super::works::{CancelFlag, Gone, Works};
use crate::infer::{Generation, InferError, Step};
use empathd_proto::chat::FinishReason;
use empathd_proto::engine::{EngineFailure, FromEngineBody};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;

/// An answer that is to be made.
pub(super) struct Order {
    pub(super) tag: u64,
    pub(super) generation: Generation,
    pub(super) cancel: CancelFlag,
}

/// Makes answers until no order can come any more. The receiver is bounded by the number of answers.
pub(super) fn run(orders: &Receiver<Order>, works: &Works, state: &State) {
    let mut active: Vec<Order> = Vec::new();
    loop {
        state.set_answering(!active.is_empty());
        if active.is_empty() {
            match orders.recv() {
                Ok(order) => active.push(order),
                Err(_) => return,
            }
            state.set_answering(true);
        }
        active.extend(orders.try_iter());
        active.retain_mut(|order| order.advance(works, state));
    }
}

impl Order {
    /// One step; whether there will be another.
    fn advance(&mut self, works: &Works, state: &State) -> bool {
        let goes_on = self.step(works).unwrap_or(false);
        if !goes_on {
            state.count_wiped(self.generation.wipe());
        }
        goes_on
    }

    fn step(&mut self, works: &Works) -> Result<bool, Gone> {
        if self.cancel.is_set() {
            return self.finish(works, FinishReason::Cancelled);
        }
        let Step { token, end } = match catch_unwind(AssertUnwindSafe(|| self.generation.step())) {
            Ok(Ok(step)) => step,
            Ok(Err(error)) => {
                works.fail(self.tag, failure(error));
                return Ok(false);
            }
            Err(_) => {
                works.fail(self.tag, EngineFailure::Internal("a step of an answer panicked".to_owned()));
                return Ok(false);
            }
        };
        if let Some(token) = token {
            works.say(self.tag, FromEngineBody::Token { index: token.index, text: token.text, logprobs: None })?;
        }
        match end {
            None => Ok(true),
            Some(reason) => self.finish(works, reason),
        }
    }

    fn finish(&self, works: &Works, reason: FinishReason) -> Result<bool, Gone> {
        works.say(self.tag, FromEngineBody::Finished(self.generation.finished(reason)))?;
        Ok(false)
    }
}

/// How the daemon is told why an answer failed.
pub(super) fn failure(error: InferError) -> EngineFailure {
    match error {
        InferError::PromptTooLong { tokens, limit } => EngineFailure::PromptTooLong { tokens, limit },
        InferError::EmptyPrompt => EngineFailure::Protocol(error.to_string()),
        InferError::NotFinite | InferError::Tensor(_) => EngineFailure::Internal(error.to_string()),
    }
}
