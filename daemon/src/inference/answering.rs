//! An answer under way: its works run side by side, what is heard of them is brought into its form and told in one stream.
//! When the caller leaves, or the store is sealed, all of them end at once. What is asked is not known here.

use super::choice::{Choice, Heard, waiting_max};
use super::kept::KeptAnswer;
use super::shape::{Shaped, Shaper};
use super::{AnswerEvent, Danger};
use crate::answer_cache::{Key, Ticket};
use crate::app::App;
use crate::engine::Ready;
use crate::measure;
use crate::problem::defect;
use empathd_proto::chat::{AnswerNotes, CompletionTokens, FinishReason, PromptTokens, TimesMs, ToolCall, Usage};
use empathd_proto::generate::{Finished, GenerateSpec};
use empathd_proto::problem::{ErrorCode, Problem};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// An answer under way.
pub(super) struct Answering {
    pub(super) app: Arc<App>,
    /// What is asked of the engine: the choices of the first prompt, then those of the second.
    pub(super) specs: Vec<GenerateSpec>,
    /// Choices of each prompt.
    pub(super) choices: usize,
    pub(super) shapers: Vec<Shaper>,
    pub(super) danger: Danger,
    /// Whether the clinic's words alone are not an answer in the form that was asked for.
    pub(super) formal: bool,
    pub(super) events: mpsc::Sender<AnswerEvent>,
    pub(super) begun: Option<oneshot::Sender<Result<(), Problem>>>,
    pub(super) notes: AnswerNotes,
    /// Where the whole answer is kept, if it is.
    pub(super) keep: Option<(Key, Ticket, KeptAnswer)>,
    pub(super) sealing: CancellationToken,
    /// Room for all works; each takes its share along.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// The caller is gone.
struct Gone;

impl Answering {
    /// From the first word to the last.
    pub(super) async fn run(mut self, ready: Arc<Ready>) {
        let (events, sealing) = (self.events.clone(), self.sealing.clone());
        // Whichever comes first; the works are dropped, and with that cancelled, at the end of this block.
        tokio::select! {
            () = events.closed() => {}
            () = sealing.cancelled() => self.sealed(),
            _ = self.tell(ready) => {}
        }
    }

    async fn tell(&mut self, ready: Arc<Ready>) -> Result<(), Gone> {
        let (listener, mut heard) = mpsc::channel(self.specs.iter().map(waiting_max).sum());
        let mut works = JoinSet::new();
        for (place, spec) in self.specs.iter().enumerate() {
            let permit = self.permit.as_mut().and_then(|permit| permit.split(1));
            let (app, spec, listener) = (self.app.clone(), spec.clone(), listener.clone());
            works.spawn(Choice { app, place, spec, listener, permit }.run(ready.clone()));
        }
        drop(listener);
        let mut ended: Vec<Option<Finished>> = vec![None; self.specs.len()];
        while ended.iter().any(Option::is_none) {
            match heard.recv().await {
                Some((place, Heard::Token { text, logprobs })) => {
                    self.begin()?;
                    let shaped = self.shapers[place].token(text, logprobs);
                    self.say(place, shaped).await?;
                }
                Some((place, Heard::Finished(finished))) => {
                    self.begin()?;
                    measure::served(self.specs[place].class, &finished);
                    let (shaped, reason) = self.shapers[place].end(finished.reason);
                    self.say(place, shaped).await?;
                    self.send(AnswerEvent::Ended { choice: number(place), reason }).await?;
                    ended[place] = Some(finished);
                }
                Some((_, Heard::Failed(problem))) => return self.fail(problem).await,
                None => return self.fail(defect("An answer ended without a word.")).await,
            }
        }
        let ended: Vec<Finished> = ended.into_iter().flatten().collect();
        self.finish(&ended).await
    }

    /// Says that the answer has begun.
    fn begin(&mut self) -> Result<(), Gone> {
        self.begun.take().map_or(Ok(()), |begun| begun.send(Ok(())).map_err(|_| Gone))
    }

    async fn say(&mut self, place: usize, shaped: Vec<Shaped>) -> Result<(), Gone> {
        let choice = number(place);
        for shaped in shaped {
            let event = match shaped {
                Shaped::Said { text, logprobs } => AnswerEvent::Said { choice, text, logprobs },
                Shaped::Called(function) => {
                    let id = format!("call_{:024x}", u128::from_le_bytes(self.app.random()) >> 32);
                    AnswerEvent::Called { choice, call: ToolCall { id, kind: Default::default(), function } }
                }
            };
            self.send(event).await?;
        }
        Ok(())
    }

    async fn send(&mut self, event: AnswerEvent) -> Result<(), Gone> {
        if let Some((_, _, kept)) = &mut self.keep {
            kept.hear(&event);
        }
        self.events.send(event).await.map_err(|_| Gone)
    }

    async fn finish(&mut self, ended: &[Finished]) -> Result<(), Gone> {
        let usage = usage(ended, self.choices);
        let (expert_share, times_ms) = (expert_share(ended), times(ended));
        let notes = AnswerNotes { expert_share, times_ms, ..self.notes.clone() };
        self.send(AnswerEvent::Finished { usage, notes }).await?;
        if let Some((key, ticket, kept)) = self.keep.take()
            && let Some(bytes) = kept.encode()
        {
            self.app.inference.cache.put(key, &bytes, ticket, self.app.clock.uptime());
        }
        Ok(())
    }

    /// Before the answer has begun, a failure is the reply, unless somebody is in danger: then the clinic's words are.
    async fn fail(&mut self, problem: Problem) -> Result<(), Gone> {
        self.keep = None;
        if self.begun.is_some()
            && is_ours(&problem)
            && let Some(words) = self.danger.words.clone()
        {
            self.begin()?;
            for event in alone(&words, self.specs.len(), self.formal, self.notes.clone()) {
                self.send(event).await?;
            }
            return Ok(());
        }
        match self.begun.take() {
            Some(begun) => begun.send(Err(problem)).map_err(|_| Gone),
            None => self.send(AnswerEvent::Failed(problem)).await,
        }
    }

    fn sealed(&mut self) {
        let problem = Problem::new(ErrorCode::Sealed, "The store was sealed.", "Ask again when it is unsealed.");
        match self.begun.take() {
            Some(begun) => drop(begun.send(Err(problem))),
            // The connection is cut in the same moment; whether this is still heard does not matter.
            None => drop(self.events.try_send(AnswerEvent::Failed(problem))),
        }
    }
}

/// Whether the appliance failed, not the request.
pub(super) fn is_ours(problem: &Problem) -> bool {
    matches!(problem.code, ErrorCode::Busy) || problem.status >= 500
}

/// The clinic's words in place of every choice.
pub(super) fn alone(words: &str, choices: usize, formal: bool, notes: AnswerNotes) -> Vec<AnswerEvent> {
    let reason = if formal { FinishReason::ContentFilter } else { FinishReason::Stop };
    let mut events: Vec<AnswerEvent> = (0..choices)
        .flat_map(|place| {
            let choice = number(place);
            let said = AnswerEvent::Said { choice, text: words.to_owned(), logprobs: Vec::new() };
            [said, AnswerEvent::Ended { choice, reason }]
        })
        .collect();
    events.push(AnswerEvent::Finished { usage: Usage::default(), notes });
    events
}

fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// What all works together used. Each prompt counts once.
fn usage(ended: &[Finished], choices: usize) -> Usage {
    let sum = |works: &mut dyn Iterator<Item = u32>| works.fold(0_u32, u32::saturating_add);
    let firsts = || ended.iter().step_by(choices.max(1));
    let prompt_tokens = sum(&mut firsts().map(|work| work.prompt_tokens));
    let completion_tokens = sum(&mut ended.iter().map(|work| work.completion_tokens));
    let rejected = |work: &Finished| work.drafted_tokens.saturating_sub(work.accepted_tokens);
    Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens.saturating_add(completion_tokens),
        prompt_tokens_details: PromptTokens { cached_tokens: sum(&mut firsts().map(|work| work.cached_tokens)) },
        completion_tokens_details: CompletionTokens {
            accepted_prediction_tokens: sum(&mut ended.iter().map(|work| work.accepted_tokens)),
            rejected_prediction_tokens: sum(&mut ended.iter().map(rejected)),
        },
    }
}

/// Mean over the works, by their tokens.
fn expert_share(ended: &[Finished]) -> Vec<f32> {
    let experts = ended.iter().map(|work| work.expert_share.len()).max().unwrap_or(0);
    let weight = |work: &Finished| work.completion_tokens.max(1) as f32;
    let all: f32 = ended.iter().map(weight).sum();
    let share = |work: &Finished, expert| work.expert_share.get(expert).copied().unwrap_or(0.0) * weight(work);
    (0..experts).map(|expert| ended.iter().map(|work| share(work, expert)).sum::<f32>() / all).collect()
}

fn times(ended: &[Finished]) -> TimesMs {
    let longest = |part: fn(&Finished) -> u64| ended.iter().map(part).max().unwrap_or(0) as f64 / 1000.0;
    TimesMs {
        queued: longest(|work| work.times.queued_us),
        prefill: longest(|work| work.times.prefill_us),
        decode: longest(|work| work.times.decode_us),
    }
}
