//! One answer's life: what is asked, the tokens it has, and what a row of logits makes of it. Whether tokens come one by
//! one or several proposed ones are judged together, in one piece or after having been pre-empted, the answer is the
//! same. Refuses to know slots, queues and other answers.

use super::Event;
use super::admission::Place;
use super::cancel::Cancel;
use super::plan::Part;
use super::slots::Salt;
use crate::adapter::ExpertLoad;
use crate::infer::compute::{ServingAdapter, SlotId, Span};
use crate::infer::{ChooseError, Chooser, Lookup, Matcher, Pushed, TextStream, spelled};
use crate::tokenizer::Tokenizer;
use empathd_proto::chat::FinishReason;
use empathd_proto::engine::EngineFailure;
use empathd_proto::generate::{AnswerTimes, CacheScope, CallerKey, Finished, SamplingSpec, ServiceClass};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// An adapter generation in memory.
#[derive(Clone)]
pub struct AdapterGeneration {
    /// Never given twice, from 1.
    pub number: u64,
    /// Its weights.
    pub serving: Arc<ServingAdapter>,
}

/// Where the tokens of an answer come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuation {
    /// From the model's logits.
    Sampled,
    /// They are given, and the model's logits are computed for each all the same: for benches.
    Given(Vec<u32>),
}

/// What is asked.
pub struct Request {
    /// Whose events these are.
    pub tag: u64,
    /// Tokens before the answer.
    pub prompt: Vec<u32>,
    /// With which generation; the plain base model when absent.
    pub adapter: Option<AdapterGeneration>,
    /// How urgent it is.
    pub class: ServiceClass,
    /// Who waits for it.
    pub caller: CallerKey,
    /// Who may share its keys and values.
    pub scope: CacheScope,
    /// When it arrived, by the desk's clock.
    pub arrived: Duration,
    /// The first token is of no use later than this after arrival.
    pub first_token_within: Option<Duration>,
    /// Most tokens of the answer; the context may allow fewer.
    pub max_tokens: u32,
    /// Tokens at the beginning of the answer that are made and not shown.
    pub skip_tokens: u32,
    /// How tokens are drawn.
    pub sampling: SamplingSpec,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub grammar: Option<Matcher>,
    /// Where its tokens come from.
    pub continuation: Continuation,
    /// Go on behind an end token.
    pub ignore_end: bool,
    /// Set when it is to end.
    pub cancel: Cancel,
}

/// What answers of one base model have in common.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Tokens the tokenizer knows.
    pub vocab: usize,
    /// Longest conversation, answer included.
    pub context: usize,
    /// Propose tokens by lookup.
    pub drafting: bool,
}

/// An answer that waits or is under way.
pub struct Answer {
    pub(super) tag: u64,
    pub(super) class: ServiceClass,
    pub(super) caller: CallerKey,
    pub(super) salt: Salt,
    pub(super) adapter: Option<AdapterGeneration>,
    pub(super) cancel: Cancel,
    pub(super) place: Place,
    /// Until when the first token must come, by the desk's clock.
    deadline: Option<Duration>,
    /// Where its keys and values are, while it runs.
    pub(super) slot: Option<SlotId>,
    /// When it began to run, counted; the order of those that run.
    pub(super) begun: u64,
    pub(super) load: ExpertLoad,
    /// Tokens whose routing is in `load`, or that were found in memory.
    routed: usize,
    /// Prompt, then the tokens made; proposals stand behind them during a step.
    tokens: Zeroizing<Vec<u32>>,
    drafted_now: usize,
    prompt_tokens: usize,
    allowed: usize,
    skip: usize,
    chooser: Chooser,
    text: TextStream,
    lookup: Option<Lookup>,
    continuation: Continuation,
    ignore_end: bool,
    cached: usize,
    /// Tokens that were in memory when it began to run this time.
    taken: usize,
    drafted: u32,
    accepted: u32,
    arrived: Duration,
    started: Option<Duration>,
    first_token: Option<Duration>,
    last_token: Option<Duration>,
}

/// Why an answer does not go on after a step.
pub(super) enum End {
    Reason(FinishReason),
    Failure(EngineFailure),
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

fn refused(error: impl std::fmt::Display) -> EngineFailure {
    EngineFailure::Refused(error.to_string())
}

impl Answer {
    /// Checks what is asked and prepares everything that is needed beside the model.
    ///
    /// # Errors
    /// [`EngineFailure::PromptTooLong`] or [`EngineFailure::Refused`].
    pub fn new(request: Request, mut place: Place, rules: Rules) -> Result<Self, EngineFailure> {
        let Request { prompt, sampling, stop, grammar, continuation, .. } = request;
        let room = rules.context.saturating_sub(prompt.len());
        if prompt.is_empty() {
            return Err(refused("the prompt has no tokens; send at least one message"));
        }
        if room == 0 {
            let (tokens, limit) = (count(prompt.len()), count(rules.context.saturating_sub(1)));
            return Err(EngineFailure::PromptTooLong { tokens, limit });
        }
        let mut allowed = (request.max_tokens as usize).min(room);
        if let Continuation::Given(tokens) = &continuation {
            allowed = allowed.min(tokens.len());
        }
        let lookup = (rules.drafting && continuation == Continuation::Sampled).then(|| {
            let mut lookup = Lookup::new(prompt.len() + allowed);
            lookup.read(&prompt);
            lookup
        });
        place.owes(prompt.len());
        let generation = request.adapter.as_ref().map_or(0, |adapter| adapter.number);
        Ok(Self {
            tag: request.tag,
            class: request.class,
            caller: request.caller,
            salt: Salt { scope: request.scope, generation },
            adapter: request.adapter,
            cancel: request.cancel,
            place,
            deadline: request.first_token_within.map(|within| request.arrived + within),
            slot: None,
            begun: 0,
            load: ExpertLoad::default(),
            routed: 0,
            prompt_tokens: prompt.len(),
            tokens: Zeroizing::new(prompt),
            drafted_now: 0,
            allowed,
            skip: request.skip_tokens as usize,
            chooser: Chooser::new(&sampling, rules.vocab, grammar).map_err(refused)?,
            text: TextStream::new(stop).map_err(refused)?,
            lookup,
            continuation,
            ignore_end: request.ignore_end,
            cached: 0,
            taken: 0,
            drafted: 0,
            accepted: 0,
            arrived: request.arrived,
            started: None,
            first_token: None,
            last_token: None,
        })
    }

    /// Whose events its are.
    #[must_use]
    pub const fn tag(&self) -> u64 {
        self.tag
    }

    /// Prompt and the tokens made.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - self.drafted_now]
    }

    pub(super) fn drafted_now(&self) -> usize {
        self.drafted_now
    }

    /// Tokens of prompt and whole answer at most.
    pub(super) fn promise(&self) -> usize {
        self.prompt_tokens + self.allowed
    }

    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    pub(super) fn made(&self) -> usize {
        self.tokens().len() - self.prompt_tokens
    }

    /// Whether there is nothing to be made at all.
    pub(super) fn is_empty(&self) -> bool {
        self.allowed == 0
    }

    /// Whether the first token would come after its deadline even if the prompt, which takes `reading`, were read from
    /// `now` on. A prompt that can never be read in time has its deadline for waiting alone.
    pub(super) fn is_late(&self, now: Duration, reading: Duration) -> bool {
        self.deadline.is_some_and(|deadline| {
            let hopeless = self.arrived + reading > deadline;
            now + if hopeless { Duration::ZERO } else { reading } > deadline
        })
    }

    /// What can be taken over from others: everything but the last token, whose row must be computed.
    pub(super) fn sharable(&self) -> &[u32] {
        &self.tokens()[..self.tokens().len() - 1]
    }

    /// It runs from now on, with `cached` tokens in memory already. How many of them count, when it runs for the first
    /// time.
    pub(super) fn start(&mut self, now: Duration, cached: usize) -> Option<usize> {
        self.place.set_running(true);
        let first = self.started.is_none();
        self.started.get_or_insert(now);
        let found = self.took_over(cached);
        first.then_some(found)
    }

    /// `cached` tokens were found in memory; how many of them count: those that it did not compute or find before.
    pub(super) fn took_over(&mut self, cached: usize) -> usize {
        self.taken = cached;
        if self.made() > 0 || self.routed > self.cached || cached <= self.cached {
            return 0;
        }
        let found = cached - self.cached;
        (self.cached, self.routed) = (cached, cached);
        self.place.owes(self.prompt_tokens - cached);
        found
    }

    /// Whether nothing was computed for it since it began to run, given that its slot holds `read` tokens.
    pub(super) fn is_untouched(&self, read: usize) -> bool {
        read == self.taken
    }

    /// What a pass adds to a slot that holds `read` tokens of it.
    pub(super) fn span(&self, read: usize, part: &Part) -> Option<Span<'_>> {
        let ids = self.tokens.get(read..read + part.rows)?;
        let adapter = self.adapter.as_ref().map(|adapter| &adapter.serving);
        Some(Span { slot: self.slot?, ids, adapter, logits: part.logits })
    }

    /// Where the routing of tokens from `read` on is to be counted: what was counted before it was pre-empted is not
    /// counted twice.
    pub(super) fn routing(&mut self, read: usize) -> ExpertLoad {
        if read >= self.routed { std::mem::take(&mut self.load) } else { ExpertLoad::default() }
    }

    /// The routing of `rows` tokens from `read` on was counted.
    pub(super) fn routed(&mut self, load: ExpertLoad, read: usize, rows: usize) {
        if read >= self.routed {
            self.load = load;
            self.routed = read + rows - self.drafted_now;
        }
    }

    /// Proposes at most `max` tokens for the coming step; how many.
    pub(super) fn draft(&mut self, max: usize) -> usize {
        let max = max.min(self.allowed.saturating_sub(self.made() + 1));
        if let Some(lookup) = &self.lookup
            && self.made() > 0
        {
            let proposed = lookup.propose(&self.tokens, max).to_vec();
            self.drafted_now = proposed.len();
            self.drafted += count(proposed.len());
            self.tokens.extend(proposed);
        }
        self.drafted_now
    }

    /// Forgets the proposals of this step without having judged them.
    pub(super) fn undraft(&mut self) {
        let len = self.tokens().len();
        self.drafted -= count(std::mem::take(&mut self.drafted_now));
        self.tokens.truncate(len);
    }

    /// Takes rows of logits: one for the last token and one for each proposal behind it. Tells of the tokens they make.
    pub(super) fn judge(
        &mut self,
        rows: &[f32],
        vocab: usize,
        tokenizer: &Tokenizer,
        now: Duration,
        say: &mut dyn FnMut(u64, Event),
    ) -> Result<(), End> {
        let len = self.tokens().len();
        let proposed: Vec<u32> = self.tokens.drain(len..).collect();
        self.drafted_now = 0;
        let mut right = 0;
        let mut outcome = Ok(());
        for (row, place) in rows.chunks_exact(vocab).zip(0..) {
            match self.take_row(row, tokenizer, now, say) {
                Ok(id) if proposed.get(place) == Some(&id) => right += 1,
                Ok(_) => break,
                Err(end) => {
                    // A token that ended the answer may have been proposed, too.
                    right += usize::from(self.tokens.get(len + place) == proposed.get(place) && place < proposed.len());
                    outcome = Err(end);
                    break;
                }
            }
        }
        self.accepted += count(right);
        if let Some(lookup) = &mut self.lookup {
            lookup.read(&self.tokens);
            lookup.judged(proposed.len(), right);
        }
        outcome
    }

    /// One more token from one row of logits.
    fn take_row(
        &mut self,
        row: &[f32],
        tokenizer: &Tokenizer,
        now: Duration,
        say: &mut dyn FnMut(u64, Event),
    ) -> Result<u32, End> {
        let index = self.made();
        let (id, logprobs) = match &self.continuation {
            Continuation::Given(tokens) => (tokens[index], None),
            Continuation::Sampled => {
                let chosen = self.chooser.choose(row, count(index)).map_err(failed)?;
                self.chooser.took(chosen.id).map_err(failed)?;
                (chosen.id, chosen.logprobs)
            }
        };
        self.tokens.push(id);
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.place.owes(0);
        let (text, end) = self.text_of(id, tokenizer);
        if index >= self.skip {
            let logprobs = logprobs.map(|logprobs| Box::new(spelled(&logprobs, tokenizer)));
            say(self.tag, Event::Token { index: count(index), text, logprobs });
        }
        end.map_or(Ok(id), |reason| Err(End::Reason(reason)))
    }

    /// What a new token means for the text and the end.
    fn text_of(&mut self, id: u32, tokenizer: &Tokenizer) -> (String, Option<FinishReason>) {
        if tokenizer.is_end(id) && !self.ignore_end {
            return (self.text.finish(), Some(FinishReason::Stop));
        }
        match self.text.push(tokenizer.bytes(id)) {
            Pushed::Stopped(text) => (text, Some(FinishReason::Stop)),
            Pushed::Text(text) if self.chooser.is_complete() => (text + &self.text.finish(), Some(FinishReason::Stop)),
            Pushed::Text(text) if self.made() >= self.allowed => {
                (text + &self.text.finish(), Some(FinishReason::Length))
            }
            Pushed::Text(text) => (text, None),
        }
    }

    /// What the one who asked is told at the end.
    pub(super) fn finished(&self, reason: FinishReason) -> Finished {
        let micros = |from: Option<Duration>, to: Option<Duration>| match (from, to) {
            (Some(from), Some(to)) => u64::try_from(to.saturating_sub(from).as_micros()).unwrap_or(u64::MAX),
            _ => 0,
        };
        Finished {
            reason,
            prompt_tokens: count(self.prompt_tokens),
            cached_tokens: count(self.cached),
            completion_tokens: count(self.made()),
            drafted_tokens: self.drafted,
            accepted_tokens: self.accepted,
            expert_share: self.load.shares(),
            times: AnswerTimes {
                queued_us: micros(Some(self.arrived), self.started),
                prefill_us: micros(self.started, self.first_token),
                decode_us: micros(self.first_token, self.last_token),
            },
        }
    }

    pub(super) fn drafts(&self) -> (u32, u32) {
        (self.drafted, self.accepted)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.text.wipe();
    }
}

fn failed(error: ChooseError) -> End {
    End::Failure(match error {
        ChooseError::NotFinite => EngineFailure::Internal(error.to_string()),
        ChooseError::Grammar(_) => refused(error),
    })
}
