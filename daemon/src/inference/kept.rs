//! A whole answer as the cache keeps it, and how it is told again. Where it is kept is not known here.

use super::{AnswerEvent, EVENTS_WAITING_MAX};
use empathd_proto::chat::{AnswerNotes, CacheNote, FinishReason, ToolCall, Usage};
use empathd_proto::generate::TokenLogprobs;
use empathd_proto::ids::AdapterId;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use zeroize::{Zeroize, Zeroizing};

/// A whole answer.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct KeptAnswer {
    choices: Vec<KeptChoice>,
    usage: Usage,
    adapter: Option<AdapterId>,
    expert_share: Vec<f32>,
}

#[derive(Default, Serialize, Deserialize)]
struct KeptChoice {
    text: String,
    logprobs: Vec<TokenLogprobs>,
    calls: Vec<ToolCall>,
    reason: Option<FinishReason>,
}

impl Drop for KeptAnswer {
    fn drop(&mut self) {
        for choice in &mut self.choices {
            choice.text.zeroize();
            choice.calls.iter_mut().for_each(|call| call.function.arguments.zeroize());
        }
    }
}

impl KeptAnswer {
    /// An empty one of so many choices.
    pub(super) fn new(choices: usize) -> Self {
        let mut kept = Self::default();
        kept.choices.resize_with(choices, KeptChoice::default);
        kept
    }

    /// Takes over what is told.
    pub(super) fn hear(&mut self, event: &AnswerEvent) {
        match event {
            AnswerEvent::Said { choice, text, logprobs } => {
                if let Some(kept) = self.choices.get_mut(*choice as usize) {
                    kept.text.push_str(text);
                    kept.logprobs.extend_from_slice(logprobs);
                }
            }
            AnswerEvent::Called { choice, call } => {
                self.choices.get_mut(*choice as usize).into_iter().for_each(|kept| kept.calls.push(call.clone()));
            }
            AnswerEvent::Ended { choice, reason } => {
                self.choices.get_mut(*choice as usize).into_iter().for_each(|kept| kept.reason = Some(*reason));
            }
            AnswerEvent::Finished { usage, notes } => {
                self.usage = *usage;
                self.adapter = notes.adapter;
                self.expert_share.clone_from(&notes.expert_share);
            }
            AnswerEvent::Failed(_) => {}
        }
    }

    /// As bytes.
    pub(super) fn encode(&self) -> Option<Zeroizing<Vec<u8>>> {
        postcard::to_stdvec(self).ok().map(Zeroizing::new)
    }

    /// From bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    /// Tells it again.
    pub(super) fn told(mut self) -> mpsc::Receiver<AnswerEvent> {
        let mut events = Vec::new();
        for (place, kept) in self.choices.iter_mut().enumerate() {
            let choice = u32::try_from(place).unwrap_or(u32::MAX);
            let (text, logprobs) = (std::mem::take(&mut kept.text), std::mem::take(&mut kept.logprobs));
            if !text.is_empty() || !logprobs.is_empty() {
                events.push(AnswerEvent::Said { choice, text, logprobs });
            }
            events.extend(kept.calls.drain(..).map(|call| AnswerEvent::Called { choice, call }));
            events.push(AnswerEvent::Ended { choice, reason: kept.reason.unwrap_or(FinishReason::Stop) });
        }
        let mut usage = self.usage;
        usage.prompt_tokens_details.cached_tokens = usage.prompt_tokens;
        let notes = AnswerNotes {
            adapter: self.adapter,
            expert_share: std::mem::take(&mut self.expert_share),
            crisis_signal: false,
            crisis_words: None,
            cache: CacheNote::Response,
            times_ms: Default::default(),
        };
        events.push(AnswerEvent::Finished { usage, notes });
        let (sender, receiver) = mpsc::channel(events.len().max(EVENTS_WAITING_MAX));
        for event in events {
            // The channel has room for all of them.
            let _ = sender.try_send(event);
        }
        receiver
    }
}
