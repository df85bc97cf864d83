//! One step after the other over all answers under way: who has been cancelled or is late leaves, who has a turn gets a
//! slot, then one pass computes rows of many answers and each takes its own. Refuses to know threads and sockets.

use super::admission::Ask;
use super::answer::{Answer, End, Request, Rules};
use super::computes::Computes;
use super::desk::Desk;
use super::plan::{self, Bounds, DRAFT_ROWS, Need, Part};
use super::queue::Queue;
use super::slots::{MIN_SHARED, Slots, shared};
use super::{Event, Place};
use crate::adapter::ExpertLoad;
use crate::infer::MAX_DRAFT;
use crate::infer::compute::{Compute, Loads, LogitRows, SlotId, Span};
use crate::template::ChatFormat;
use crate::tokenizer::Tokenizer;
use empathd_proto::chat::FinishReason;
use empathd_proto::engine::{EngineFailure, ServingSpec, ServingStatus};
use empathd_proto::generate::ServiceClass;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Most answers that run at once, those of [`ServiceClass::Crisis`] apart: beyond, each waits longer and nobody gains.
pub const RUNNING_MAX: usize = 16;
/// Slots that only answers of [`ServiceClass::Crisis`] may take.
pub const CRISIS_SLOTS: usize = 4;
/// Share of the memory for keys and values that only they may take: one over this.
const CRISIS_KV_SHARE: usize = 4;
/// Tokens served for one token of an answer, in those of a prompt (Sheng et al. 2024).
const ANSWER_TOKEN_COST: u64 = 2;
/// Tokens of the pass that warms up.
const WARM_UP_TOKENS: usize = 32;

/// Where events go.
type Say<'a> = &'a mut dyn FnMut(u64, Event);

/// Answers of one base model.
pub struct Scheduler<C = Compute> {
    computes: C,
    format: Arc<ChatFormat>,
    desk: Arc<Desk>,
    rules: Rules,
    prefix_cache: bool,
    queue: Queue<Answer>,
    running: Vec<Answer>,
    slots: Slots,
    begun: u64,
}

impl<C: Computes> Scheduler<C> {
    /// No answers yet.
    #[must_use]
    pub fn new(computes: C, format: Arc<ChatFormat>, spec: &ServingSpec, desk: Arc<Desk>) -> Self {
        let rules = Rules { vocab: format.tokenizer().len(), context: computes.context(), drafting: spec.drafting };
        let slots = Slots::new(&computes);
        desk.admission.set_running_max(RUNNING_MAX.min(slots.count().saturating_sub(CRISIS_SLOTS)));
        desk.count(|status| status.warm = false);
        let (queue, running) = (Queue::new(), Vec::new());
        Self { computes, format, desk, rules, prefix_cache: spec.prefix_cache, queue, running, slots, begun: 0 }
    }

    /// What the answers have in common.
    #[must_use]
    pub const fn rules(&self) -> Rules {
        self.rules
    }

    /// Takes one step with made-up tokens, so that the first answer finds everything in place.
    ///
    /// # Errors
    /// [`EngineFailure::Internal`].
    pub fn warm_up(&mut self) -> Result<(), EngineFailure> {
        let slot = SlotId(0);
        if !self.is_idle() || !self.computes.is_empty(slot) {
            return Ok(());
        }
        let tokens = WARM_UP_TOKENS.min(self.computes.context());
        let ids: Vec<u32> = (0u32..).cycle().take(tokens).map(|id| id % self.computes.vocab() as u32).collect();
        // The first pass meets cold memory and says nothing of the speed.
        for (ids, measured) in [(&ids[..], false), (&ids[..1], true), (&ids[..], true)] {
            let begun = self.desk.now();
            let span = Span { slot, ids, adapter: None, logits: LogitRows::Last };
            let passed = guarded(&mut self.computes, &[span], &mut []).map(drop);
            self.slots.free(&mut self.computes, slot);
            passed?;
            if measured {
                self.stepped(ids.len(), usize::from(ids.len() == 1), begun);
            }
        }
        self.desk.count(|status| status.warm = true);
        self.publish();
        Ok(())
    }

    /// Takes in a request at once, or says why not.
    ///
    /// # Errors
    /// [`EngineFailure::Busy`], [`EngineFailure::PromptTooLong`] or [`EngineFailure::Refused`].
    pub fn submit(&mut self, request: Request) -> Result<(), EngineFailure> {
        let Request { class, caller, first_token_within, .. } = request;
        let prompt_tokens = request.prompt.len();
        let place: Place = self.desk.reserve(Ask { class, caller, prompt_tokens, first_token_within })?;
        let answer = Answer::new(request, place, self.rules)?;
        self.enqueue(answer);
        Ok(())
    }

    /// Takes in an answer that has its place.
    pub fn enqueue(&mut self, answer: Answer) {
        self.queue.push(answer.class, answer.caller, answer);
    }

    /// Wishes that an answer end; it does at the next step.
    pub fn cancel(&mut self, tag: u64) {
        let steps = self.desk.steps();
        self.running.iter().filter(|answer| answer.tag == tag).for_each(|answer| answer.cancel.set(steps));
        let _ = self.queue.take(|answer| {
            if answer.tag == tag {
                answer.cancel.set(steps);
            }
            false
        });
    }

    /// Whether no answer waits or runs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    /// When, by the desk's clock, a step is of use even though no answer is there: something kept will be too old.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.slots.next_expiry()
    }

    /// Steps taken since the start.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.desk.steps()
    }

    /// The time by which requests arrive and deadlines are measured.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.desk.now()
    }

    /// How answers are served.
    #[must_use]
    pub fn status(&self) -> ServingStatus {
        self.desk.status()
    }

    /// Overwrites the keys and values of all ended answers; the bytes overwritten.
    pub fn forget_prefixes(&mut self) -> u64 {
        self.slots.forget(&mut self.computes);
        self.publish()
    }

    /// Overwrites the keys and values that ended answers of an adapter generation left.
    pub fn forget_generation(&mut self, number: u64) {
        self.slots.forget_generation(&mut self.computes, number);
        self.publish();
    }

    /// Ends all answers without a word and overwrites everything.
    pub fn clear(&mut self) {
        drop(self.queue.take(|_| true));
        for answer in std::mem::take(&mut self.running) {
            self.queue.end(answer.class, answer.caller);
            if let Some(slot) = answer.slot {
                self.slots.free(&mut self.computes, slot);
            }
        }
        self.forget_prefixes();
    }

    /// One step. Each answer is told of by its events; whether anything is left to do.
    pub fn step(&mut self, say: Say<'_>) -> bool {
        self.end_cancelled(say);
        self.end_late(say);
        self.slots.expire(&mut self.computes, self.desk.now());
        self.admit(say);
        self.publish();
        let parts = self.plan();
        if !parts.is_empty() {
            self.compute(&parts, say);
        }
        self.publish();
        !self.is_idle()
    }

    fn end_cancelled(&mut self, say: Say<'_>) {
        let steps = self.desk.steps();
        let mut longest = 0;
        let mut ended = self.queue.take(|answer| answer.cancel.is_set());
        for index in (0..self.running.len()).rev() {
            if let Some(since) = self.running[index].cancel.since() {
                longest = longest.max(u32::try_from(steps.saturating_sub(since)).unwrap_or(u32::MAX));
                ended.push(self.stop(index, false));
            }
        }
        self.desk.count(|status| status.cancel_steps_max = status.cancel_steps_max.max(longest));
        // Before anybody hears of an end, the status knows of it.
        self.publish();
        for answer in ended {
            say(answer.tag, Event::Finished(answer.finished(FinishReason::Cancelled)));
        }
    }

    /// Drops who waits and whose first token would come too late even if its turn came now.
    fn end_late(&mut self, say: Say<'_>) {
        let (now, admission) = (self.desk.now(), &self.desk.admission);
        let late = |answer: &Answer| {
            let reading = admission.reading(answer.prompt_tokens());
            answer.class != ServiceClass::Crisis && answer.made() == 0 && answer.is_late(now, reading)
        };
        let late = self.queue.take(late);
        self.desk.count(|status| status.late += late.len() as u64);
        for answer in late {
            say(answer.tag, Event::Failed(EngineFailure::Late));
        }
    }

    /// Gives slots to those who have a turn, as long as there is room.
    fn admit(&mut self, say: Say<'_>) {
        while let Some(next) = self.queue.peek() {
            let (class, promise, nothing) = (next.class, next.promise(), next.is_empty());
            if !nothing && !self.make_room(class, promise) {
                return;
            }
            let Some(answer) = self.queue.begin() else { return };
            if nothing {
                self.queue.end(answer.class, answer.caller);
                say(answer.tag, Event::Finished(answer.finished(FinishReason::Length)));
            } else {
                self.start(answer);
            }
        }
    }

    fn start(&mut self, mut answer: Answer) {
        let (salt, promise) = (answer.salt, answer.promise());
        let Some(slot) = self.slots.take(&mut self.computes, salt, answer.sharable(), promise) else {
            return self.queue.put_back(answer.class, answer.caller, answer);
        };
        let cached = self.computes.len(slot);
        self.begun += 1;
        (answer.slot, answer.begun) = (Some(slot), self.begun);
        if let Some(found) = answer.start(self.desk.now(), cached) {
            let prompt = answer.prompt_tokens() as u64;
            self.desk.count(|status| {
                status.prefix_tokens.0 += prompt;
                status.prefix_tokens.1 += found as u64;
            });
        }
        self.running.push(answer);
    }

    /// Makes room for an answer, if need be by pre-empting less urgent ones, newest first; whether there is room now.
    fn make_room(&mut self, class: ServiceClass, promise: usize) -> bool {
        while !self.has_room(class, promise, self.slots.busy(), self.slots.promised()) {
            let victims = || self.running.iter().enumerate().filter(|(_, answer)| answer.class > class);
            let freed: usize = victims().map(|(_, answer)| answer.promise()).sum();
            let (busy, promised) = (self.slots.busy() - victims().count(), self.slots.promised() - freed);
            let newest = victims().max_by_key(|(_, answer)| (answer.class, answer.begun)).map(|(index, _)| index);
            let Some(index) = newest.filter(|_| self.has_room(class, promise, busy, promised)) else { return false };
            let mut answer = self.running.remove(index);
            if let Some(slot) = answer.slot.take() {
                self.slots.free(&mut self.computes, slot);
            }
            answer.place.set_running(false);
            answer.place.owes(answer.tokens().len());
            self.queue.put_back(answer.class, answer.caller, answer);
        }
        true
    }

    /// Whether an answer fits beside `busy` others that were promised so many tokens.
    fn has_room(&self, class: ServiceClass, promise: usize, busy: usize, promised: usize) -> bool {
        let (slots, tokens) = (self.slots.count(), self.slots.kv_tokens_max());
        if class == ServiceClass::Crisis {
            return busy < slots && promised + promise <= tokens;
        }
        let reserved = self.computes.context().min(tokens / CRISIS_KV_SHARE);
        let alone = busy == 0 && promise <= tokens;
        alone || busy < RUNNING_MAX.min(slots.saturating_sub(CRISIS_SLOTS)) && promised + promise + reserved <= tokens
    }

    /// What the coming step computes. Proposals are made only while they cost little.
    fn plan(&mut self) -> Vec<Part> {
        self.share();
        let mut needs: Vec<Need> = Vec::with_capacity(self.running.len());
        for answer in &self.running {
            let read = answer.slot.map_or(0, |slot| self.computes.len(slot));
            let pending = answer.tokens().len() - read;
            let urgency = (answer.class, answer.begun);
            needs.push(Need { urgency, pending, drafted: 0, waits: self.waits(answer, read) });
        }
        let deciding = needs.iter().filter(|need| need.pending == 1).count();
        let mut spare = DRAFT_ROWS.saturating_sub(deciding);
        for (answer, need) in self.running.iter_mut().zip(&mut needs) {
            if need.pending == 1 && spare > 0 {
                need.drafted = answer.draft(spare.min(MAX_DRAFT));
                spare -= need.drafted;
            }
        }
        let bounds = Bounds { rows: self.computes.rows_max(), logit_rows: self.computes.logit_rows_max() };
        let parts = plan::plan(&needs, bounds);
        for (index, answer) in self.running.iter_mut().enumerate() {
            if answer.drafted_now() > 0 && !parts.iter().any(|part| part.index == index) {
                answer.undraft();
            }
        }
        parts
    }

    /// Whether an answer that holds `read` tokens leaves it to another of its salt to read what both begin with: an
    /// earlier one, no less urgent, that is still at it. No two can wait for each other.
    fn waits(&self, answer: &Answer, read: usize) -> bool {
        answer.class != ServiceClass::Crisis
            && self.twin(answer).is_some_and(|(twin, common)| {
                let held = twin.slot.map_or(0, |slot| self.computes.len(slot));
                held < common && common >= read + MIN_SHARED
            })
    }

    /// The earlier running answer of the same salt that has most tokens in common with an answer that has not begun to
    /// read on its own.
    fn twin(&self, answer: &Answer) -> Option<(&Answer, usize)> {
        if !self.prefix_cache || answer.slot.is_none_or(|slot| !answer.is_untouched(self.computes.len(slot))) {
            return None;
        }
        let wanted = answer.sharable();
        let earlier = self
            .running
            .iter()
            .filter(|other| other.salt == answer.salt && other.begun < answer.begun && other.class <= answer.class);
        let common = earlier.map(|other| (other, shared(other.tokens(), wanted)));
        common.max_by_key(|(_, common)| *common).filter(|(_, common)| *common >= MIN_SHARED)
    }

    /// Where an answer that has not begun to read on its own finds more than it has: with another under way that has
    /// read what both begin with, or in what has ended since.
    fn better(&self, answer: &Answer, has: usize) -> Option<(SlotId, usize)> {
        let under_way = self.twin(answer).and_then(|(twin, common)| {
            let held = twin.slot.map_or(0, |slot| self.computes.len(slot)).min(common);
            let is_read = held == common || answer.class == ServiceClass::Crisis;
            twin.slot.filter(|_| is_read).map(|slot| (slot, held))
        });
        let ended = self.slots.donor(answer.salt, answer.sharable());
        let found = under_way.into_iter().chain(ended).max_by_key(|(_, held)| *held);
        found.filter(|(_, held)| *held >= has + MIN_SHARED)
    }

    /// Copies what answers can take over of others.
    fn share(&mut self) {
        for index in 0..self.running.len() {
            let answer = &self.running[index];
            let Some(to) = answer.slot.filter(|_| self.prefix_cache) else { continue };
            let has = self.computes.len(to);
            if !answer.is_untouched(has) {
                continue;
            }
            let Some((from, held)) = self.better(answer, has) else { continue };
            self.slots.truncate(&mut self.computes, to, 0);
            if self.computes.copy_prefix(from, to, held).is_ok() {
                let found = self.running[index].took_over(held);
                self.desk.count(|status| status.prefix_tokens.1 += found as u64);
            }
        }
    }

    /// One pass, and what each answer makes of its rows. A failure ends the answers of the pass and no others.
    fn compute(&mut self, parts: &[Part], say: Say<'_>) {
        let begun = self.desk.now();
        let Self { computes, running, .. } = self;
        let read = |answer: &Answer| answer.slot.map_or(0, |slot| computes.len(slot));
        let reads: Vec<usize> = parts.iter().map(|part| read(&running[part.index])).collect();
        let routes = parts.iter().zip(&reads).map(|(part, read)| running[part.index].routing(*read));
        let mut loads: Vec<ExpertLoad> = routes.collect();
        let spans = parts.iter().zip(&reads).filter_map(|(part, read)| running[part.index].span(*read, part));
        let spans: Vec<Span<'_>> = spans.collect();
        let passed = guarded(computes, &spans, &mut loads);
        drop(spans);
        let now = self.desk.now();
        let outcome = passed.map(|logits| {
            for ((part, read), load) in parts.iter().zip(&reads).zip(loads) {
                running[part.index].routed(load, *read, part.rows);
            }
            judge(running, parts, logits, self.format.tokenizer(), now, say)
        });
        let reading = parts.iter().filter(|part| part.logits != LogitRows::All && part.rows > 1);
        let prompt_rows = reading.map(|part| part.rows).sum();
        match outcome {
            Ok(Judged { made, ends }) => {
                self.settle(parts, &made);
                self.stepped(prompt_rows, made.iter().sum(), begun);
                self.finish(ends, say);
            }
            Err(failure) => {
                self.stepped(prompt_rows, 0, begun);
                self.finish(parts.iter().map(|part| (part.index, End::Failure(failure.clone()))).collect(), say);
            }
        }
    }

    /// Forgets the keys and values of proposals that were wrong, and counts what was served.
    fn settle(&mut self, parts: &[Part], made: &[usize]) {
        for (part, made) in parts.iter().zip(made) {
            let answer = &mut self.running[part.index];
            let Some(slot) = answer.slot else { continue };
            let known = answer.tokens().len() - usize::from(*made > 0);
            if self.computes.len(slot) > known {
                self.slots.truncate(&mut self.computes, slot, known);
            }
            let reading = if *made == 0 { part.rows as u64 } else { 0 };
            if *made == 0 {
                answer.place.owes(known - self.computes.len(slot));
            }
            let cost = reading + ANSWER_TOKEN_COST * *made as u64;
            self.queue.charge(answer.class, answer.caller, cost);
        }
    }

    /// Takes answers that ended out of their slots and tells of them.
    fn finish(&mut self, mut ends: Vec<(usize, End)>, say: Say<'_>) {
        ends.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, end) in ends {
            let answer = self.stop(index, matches!(end, End::Reason(_)));
            let event = match end {
                End::Reason(reason) => {
                    self.desk.admission.ended(u32::try_from(answer.made()).unwrap_or(u32::MAX));
                    Event::Finished(answer.finished(reason))
                }
                End::Failure(failure) => Event::Failed(failure),
            };
            self.publish();
            let tag = answer.tag;
            drop(answer);
            say(tag, event);
        }
    }

    /// Takes a running answer out for good; its keys and values are kept for the next one, or overwritten.
    fn stop(&mut self, index: usize, keep: bool) -> Answer {
        let mut answer = self.running.remove(index);
        self.queue.end(answer.class, answer.caller);
        if let Some(slot) = answer.slot.take() {
            if keep && self.prefix_cache {
                self.slots.keep(&mut self.computes, slot, answer.salt, answer.tokens(), self.desk.now());
            } else {
                self.slots.free(&mut self.computes, slot);
            }
        }
        let (drafted, accepted) = answer.drafts();
        self.desk.count(|status| {
            status.draft_tokens.0 += u64::from(drafted);
            status.draft_tokens.1 += u64::from(accepted);
            let chosen = &answer.load.chosen;
            status.expert_chosen.resize(status.expert_chosen.len().max(chosen.len()), 0);
            status.expert_chosen.iter_mut().zip(chosen).for_each(|(sum, count)| *sum += count);
        });
        answer
    }

    fn stepped(&self, prompt_rows: usize, made: usize, begun: Duration) {
        self.desk.admission.stepped(prompt_rows, made, self.desk.now().saturating_sub(begun));
        self.desk.stepped();
    }

    /// Tells the desk how things are; the bytes overwritten since the last time.
    fn publish(&mut self) -> u64 {
        let wiped = self.slots.take_wiped();
        let kv_tokens = (self.slots.held(&self.computes) as u64, self.slots.kv_tokens_max() as u64);
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        self.desk.count(|status| {
            status.kv_wiped_bytes += wiped;
            (status.running, status.kv_tokens) = (running, kv_tokens);
        });
        wiped
    }
}

/// What became of a pass: tokens made by each part, and the answers that ended, by their place.
struct Judged {
    made: Vec<usize>,
    ends: Vec<(usize, End)>,
}

/// Each answer takes its rows of the logits.
fn judge(
    running: &mut [Answer],
    parts: &[Part],
    logits: &[f32],
    tokenizer: &Tokenizer,
    now: Duration,
    say: Say<'_>,
) -> Judged {
    let rows: usize = parts.iter().map(|part| part.logits.count(part.rows)).sum();
    let vocab = logits.len() / rows.max(1);
    let mut judged = Judged { made: Vec::with_capacity(parts.len()), ends: Vec::new() };
    let mut rest = logits;
    for part in parts {
        let (rows, behind) = rest.split_at(part.logits.count(part.rows) * vocab);
        rest = behind;
        let answer = &mut running[part.index];
        let before = answer.made();
        let outcome = if rows.is_empty() {
            Ok(())
        } else {
            let judge = || answer.judge(rows, vocab, tokenizer, now, say);
            catch_unwind(AssertUnwindSafe(judge)).unwrap_or_else(|_| Err(End::Failure(panicked())))
        };
        judged.made.push(running[part.index].made() - before);
        judged.ends.extend(outcome.err().map(|end| (part.index, end)));
    }
    judged
}

/// A pass whose panic is a failure of its answers only.
fn guarded<'a, C: Computes>(
    computes: &'a mut C,
    spans: &[Span<'_>],
    loads: Loads<'_>,
) -> Result<&'a [f32], EngineFailure> {
    let pass = move || {
        let computes = computes;
        computes.pass(spans, loads)
    };
    catch_unwind(AssertUnwindSafe(pass))
        .map_err(|_| panicked())?
        .map_err(|error| EngineFailure::Internal(error.to_string()))
}

fn panicked() -> EngineFailure {
    EngineFailure::Internal("a step of an answer panicked".to_owned())
}
