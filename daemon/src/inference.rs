//! Answers: from a checked call to a stream of text. A crisis signal puts the clinic's own words before the model's, and
//! they are said also when no engine can say more. An engine that dies in mid-answer is waited for and asked again for the rest: the same request gives the same tokens.
//! How an answer is written to a connection is not known here.

use crate::action::ChatCall;
use crate::adapters;
use crate::app::{Answer, AnswerEvent, App};
use crate::engine::link::{Event, Lost, Work};
use crate::engine::{self, Ready};
use crate::problem::defect;
use empathd_clinic::crisis::Level;
use empathd_clinic::{crisis, scaffold};
use empathd_proto::chat::{AnswerNotes, ChatRole, FinishReason, Model, ModelList, Usage};
use empathd_proto::engine::{FromEngineBody, ToEngineBody};
use empathd_proto::generate::{CacheScope, CallerKey, Finished, GenerateSpec, Prompt, SamplingSpec, ServiceClass};
use empathd_proto::ids::RequestId;
use empathd_proto::problem::{ErrorCode, Problem};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Events of an answer that may wait for a slow connection.
const EVENTS_WAITING_MAX: usize = 64;
/// Times an answer is taken up again after the engine was lost.
const RESUMES_MAX: u32 = 3;
/// Name of the model before an engine has said its own.
const OWNER: &str = "empathd";

/// Begins an answer; it has begun when the first token or the end is there.
pub(crate) async fn answer(app: &Arc<App>, call: ChatCall) -> Result<Answer, Problem> {
    let busy =
        || Problem::new(ErrorCode::Busy, "As many answers as can be are under way.", "Try again in a few seconds.");
    let permit = app.answers.clone().try_acquire_owned().map_err(|_| busy())?;
    let (guard, crisis_signal) = guard(app, &call);
    let ready = match (app.engine.ready(), &guard) {
        (Ok(ready), _) => ready,
        (Err(_), Some(words)) => return Ok(words_alone(app, call.model, words.clone())),
        (Err(problem), None) => return Err(problem),
    };
    let model = served(&ready, &call.model)?;
    let spec = spec(app, call);
    let (events, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    let (begun, first) = oneshot::channel();
    let notes = AnswerNotes { adapter: spec.adapter, expert_share: Vec::new(), crisis_signal };
    let under_way = UnderWay { app: app.clone(), spec, events, begun: Some(begun), guard, notes, _permit: permit };
    tokio::spawn(under_way.run(ready));
    first.await.unwrap_or_else(|_| Err(defect("An answer ended without a word.")))?;
    let id = RequestId::from_bytes(app.random());
    Ok(Answer { id, model, created_s: app.clock.now_ms() / 1000, events: receiver })
}

/// An answer of the clinic's own words only, when there is no engine: a person in danger is not sent away.
fn words_alone(app: &App, model: String, words: String) -> Answer {
    let (events, receiver) = mpsc::channel(2);
    let notes = AnswerNotes { adapter: None, expert_share: Vec::new(), crisis_signal: true };
    let finished = AnswerEvent::Finished { reason: FinishReason::Stop, usage: Usage::default(), notes };
    for event in [AnswerEvent::Text(words), finished] {
        // The channel has room for both.
        let _ = events.try_send(event);
    }
    let id = RequestId::from_bytes(app.random());
    Answer { id, model, created_s: app.clock.now_ms() / 1000, events: receiver }
}

/// The models that answer: the base model under its own name.
pub(crate) fn models(app: &App) -> Result<ModelList, Problem> {
    let ready = app.engine.ready()?;
    let created = app.clock.now_ms().saturating_sub(u64::try_from(app.clock.uptime().as_millis()).unwrap_or(0)) / 1000;
    let model = |id: &str| Model { id: id.to_owned(), object: "model".into(), created, owned_by: OWNER.into() };
    Ok(ModelList { object: "list".into(), data: vec![model(OWNER), model(&ready.base.name)] })
}

fn served(ready: &Ready, name: &str) -> Result<String, Problem> {
    if name == OWNER || name == ready.base.name {
        return Ok(name.to_owned());
    }
    let next = format!("Ask for \"{OWNER}\"; GET /v1/models lists all.");
    Err(Problem::new(ErrorCode::NotFound, "No model of that name answers here.", next))
}

/// The words that must stand before the answer, and whether the conversation shows any sign of danger.
fn guard(app: &App, call: &ChatCall) -> (Option<String>, bool) {
    let said: Vec<&str> = call
        .messages
        .iter()
        .filter(|message| message.role == ChatRole::User)
        .map(|message| message.text.as_str())
        .collect();
    let assessment = crisis::assess(&said);
    (scaffold::guard(&assessment, &app.config.help), assessment.level > Level::None)
}

fn spec(app: &App, call: ChatCall) -> GenerateSpec {
    let serving = &app.config.serving;
    GenerateSpec {
        adapter: app.adapters.active(),
        prompt: Prompt::Chat { messages: call.messages, tools: Vec::new() },
        class: ServiceClass::Interactive,
        caller: CallerKey::default(),
        scope: CacheScope(app.random()),
        first_token_within_ms: None,
        max_tokens: call.max_tokens.unwrap_or(serving.answer_tokens).min(serving.answer_tokens_max),
        sampling: SamplingSpec {
            temperature: call.temperature,
            top_p: call.top_p,
            seed: call.seed.unwrap_or_else(|| u64::from_le_bytes(app.random())),
            ..SamplingSpec::greedy()
        },
        stop: call.stop,
        grammar: None,
        skip_tokens: 0,
    }
}

/// An answer under way.
struct UnderWay {
    app: Arc<App>,
    /// What is asked of the engine; `skip_tokens` counts those that were delivered.
    spec: GenerateSpec,
    events: mpsc::Sender<AnswerEvent>,
    begun: Option<oneshot::Sender<Result<(), Problem>>>,
    guard: Option<String>,
    notes: AnswerNotes,
    _permit: OwnedSemaphorePermit,
}

/// Why a stretch of an answer ended before the answer did.
enum Cut {
    /// The engine is gone.
    Lost,
    /// The caller is gone.
    Unwanted,
    /// It cannot be answered.
    Problem(Problem),
}

impl From<Lost> for Cut {
    fn from(_: Lost) -> Self {
        Cut::Lost
    }
}

impl UnderWay {
    async fn run(mut self, mut ready: Arc<Ready>) {
        let mut resumes = 0;
        let ended = loop {
            match self.stretch(&ready).await {
                Ok(finished) => break Ok(finished),
                Err(Cut::Unwanted) => return,
                Err(Cut::Problem(problem)) => break Err(problem),
                Err(Cut::Lost) if resumes == RESUMES_MAX => break Err(engine::lost()),
                Err(Cut::Lost) => {}
            }
            resumes += 1;
            tracing::info!(count = self.spec.skip_tokens, "engine lost in mid-answer, waiting for it");
            let again = tokio::select! {
                () = self.events.closed() => return,
                again = self.app.engine.wait_ready(self.app.config.serving.reconnect) => again,
            };
            match again {
                Ok(again) => ready = again,
                Err(problem) => break Err(problem),
            }
        };
        match ended {
            Ok(finished) => self.finish(finished).await,
            Err(problem) => self.fail(problem).await,
        }
    }

    /// One engine's part of the answer.
    async fn stretch(&mut self, ready: &Ready) -> Result<Finished, Cut> {
        if let Some(adapter) = self.spec.adapter {
            let loaded = adapters::ensure(&self.app, ready, adapter).await;
            loaded.map_err(|problem| if ready.link.is_closed() { Cut::Lost } else { Cut::Problem(problem) })?;
        }
        // Room for the whole answer: a slow connection never holds up the other works of the engine.
        let waiting_max = self.spec.max_tokens as usize + 8;
        let mut work: Work = ready.link.begin(ToEngineBody::Generate(self.spec.clone()), waiting_max).await?;
        loop {
            let event = tokio::select! {
                () = self.events.closed() => return Err(Cut::Unwanted),
                event = work.next() => event?,
            };
            match event {
                Event::Said(FromEngineBody::Token { index, text, .. }) if index >= self.spec.skip_tokens => {
                    self.spec.skip_tokens = index + 1;
                    self.deliver(text).await?;
                }
                Event::Said(FromEngineBody::Finished(finished)) => return Ok(finished),
                Event::Said(FromEngineBody::Failed(failure)) => return Err(Cut::Problem(engine::failed(&failure))),
                _ => {}
            }
        }
    }

    /// Says that the answer has begun, with the guard's words first.
    async fn begin(&mut self) -> Result<(), Cut> {
        let Some(begun) = self.begun.take() else { return Ok(()) };
        begun.send(Ok(())).map_err(|_| Cut::Unwanted)?;
        match self.guard.take() {
            Some(guard) => self.send(AnswerEvent::Text(guard)).await,
            None => Ok(()),
        }
    }

    async fn deliver(&mut self, text: String) -> Result<(), Cut> {
        self.begin().await?;
        if text.is_empty() { Ok(()) } else { self.send(AnswerEvent::Text(text)).await }
    }

    async fn send(&self, event: AnswerEvent) -> Result<(), Cut> {
        self.events.send(event).await.map_err(|_| Cut::Unwanted)
    }

    async fn finish(mut self, finished: Finished) {
        if self.begin().await.is_err() {
            return;
        }
        let Finished { reason, prompt_tokens, completion_tokens, expert_share, .. } = finished;
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        let usage = Usage { prompt_tokens, completion_tokens, total_tokens };
        let notes = AnswerNotes { expert_share, ..self.notes.clone() };
        let _ = self.send(AnswerEvent::Finished { reason, usage, notes }).await;
    }

    async fn fail(mut self, problem: Problem) {
        let engine_failed = matches!(problem.code, ErrorCode::EngineUnavailable | ErrorCode::EngineFailed);
        if engine_failed && self.begun.is_some() && self.guard.is_some() && self.begin().await.is_ok() {
            let (reason, usage) = (FinishReason::Stop, Usage::default());
            drop(self.send(AnswerEvent::Finished { reason, usage, notes: self.notes.clone() }).await);
            return;
        }
        match self.begun.take() {
            Some(begun) => drop(begun.send(Err(problem))),
            None => drop(self.send(AnswerEvent::Failed(problem)).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, Played};
    use empathd_proto::generate::{AnswerTimes, PlainMessage};

    fn call(text: &str) -> ChatCall {
        ChatCall {
            model: OWNER.to_owned(),
            messages: vec![PlainMessage { role: ChatRole::User, text: text.to_owned() }],
            max_tokens: Some(8),
            temperature: 0.0,
            top_p: 1.0,
            seed: Some(5),
            stop: Vec::new(),
        }
    }

    async fn asked(engine: &mut Played) -> (u64, GenerateSpec) {
        let generate = |body: &ToEngineBody| match body {
            ToEngineBody::Generate(spec) => Some(spec.clone()),
            _ => None,
        };
        engine.hear_until(generate).await
    }

    async fn tokens(engine: &mut Played, tag: u64, range: std::ops::Range<u32>) {
        for index in range {
            engine.say(tag, FromEngineBody::Token { index, text: format!("t{index} "), logprobs: None }).await;
        }
    }

    async fn finish(engine: &mut Played, tag: u64) {
        let finished = Finished {
            reason: FinishReason::Stop,
            prompt_tokens: 3,
            cached_tokens: 0,
            completion_tokens: 5,
            drafted_tokens: 0,
            accepted_tokens: 0,
            expert_share: Vec::new(),
            times: AnswerTimes::default(),
        };
        engine.say(tag, FromEngineBody::Finished(finished)).await;
    }

    async fn collect(mut answer: Answer) -> (String, AnswerEvent) {
        let mut text = String::new();
        loop {
            match answer.events.recv().await.expect("a last event") {
                AnswerEvent::Text(more) => text.push_str(&more),
                last => return (text, last),
            }
        }
    }

    #[tokio::test]
    async fn an_answer_survives_the_death_of_its_engine() {
        let mut fixture = Fixture::unsealed("").await;
        let mut first = fixture.connect().await;
        let app = fixture.app.clone();
        let answering = tokio::spawn(async move { collect(answer(&app, call("Hello")).await.expect("begun")).await });
        let (tag, spec) = asked(&mut first).await;
        tokens(&mut first, tag, 0..2).await;
        drop(first);
        let mut second = fixture.connect().await;
        let (tag, again) = asked(&mut second).await;
        assert_eq!(again.skip_tokens, 2);
        assert_eq!(GenerateSpec { skip_tokens: 0, ..again }, spec);
        // An engine that repeats what was delivered does no harm.
        tokens(&mut second, tag, 1..5).await;
        finish(&mut second, tag).await;
        let (text, last) = answering.await.expect("no panic");
        assert_eq!(text, "t0 t1 t2 t3 t4 ");
        assert!(matches!(last, AnswerEvent::Finished { usage: Usage { total_tokens: 8, .. }, .. }));
    }

    #[tokio::test]
    async fn a_crisis_puts_human_help_before_the_first_word() {
        let mut fixture = Fixture::unsealed("[help]\ncrisis_line = \"ring 0800 111\"").await;
        let mut engine = fixture.connect().await;
        let app = fixture.app.clone();
        let answering =
            tokio::spawn(async move { collect(answer(&app, call("I want to die")).await.expect("begun")).await });
        let (tag, _) = asked(&mut engine).await;
        tokens(&mut engine, tag, 0..1).await;
        finish(&mut engine, tag).await;
        let (text, last) = answering.await.expect("no panic");
        assert!(text.contains("ring 0800 111") && text.ends_with("t0 "), "{text}");
        assert!(matches!(last, AnswerEvent::Finished { notes: AnswerNotes { crisis_signal: true, .. }, .. }));
    }

    #[tokio::test]
    async fn a_crisis_gets_the_clinics_words_without_an_engine_too() {
        let mut fixture = Fixture::unsealed("").await;
        let (text, last) = collect(answer(&fixture.app, call("I want to die")).await.expect("begun")).await;
        assert!(text.contains("988"), "{text}");
        assert!(matches!(last, AnswerEvent::Finished { notes: AnswerNotes { crisis_signal: true, .. }, .. }));

        let mut engine = fixture.connect().await;
        let app = fixture.app.clone();
        let answering =
            tokio::spawn(async move { collect(answer(&app, call("I want to die")).await.expect("begun")).await });
        let (tag, _) = asked(&mut engine).await;
        let failure = empathd_proto::engine::EngineFailure::Internal("a test".to_owned());
        engine.say(tag, FromEngineBody::Failed(failure)).await;
        let (text, last) = answering.await.expect("no panic");
        assert!(text.contains("988") && matches!(last, AnswerEvent::Finished { .. }), "{text}");
    }

    #[tokio::test]
    async fn what_the_engine_refuses_is_told_before_the_answer_begins() {
        let mut fixture = Fixture::unsealed("[serving]\nanswers_max = 1").await;
        assert_eq!(answer(&fixture.app, call("x")).await.expect_err("down").code, ErrorCode::EngineUnavailable);
        let mut engine = fixture.connect().await;
        let app = fixture.app.clone();
        let answering = tokio::spawn(async move { answer(&app, call("Hello")).await });
        let (tag, _) = asked(&mut engine).await;
        assert_eq!(answer(&fixture.app, call("x")).await.expect_err("full").code, ErrorCode::Busy);
        let failure = empathd_proto::engine::EngineFailure::PromptTooLong { tokens: 600, limit: 512 };
        engine.say(tag, FromEngineBody::Failed(failure)).await;
        let problem = answering.await.expect("no panic").expect_err("refused");
        assert_eq!(problem.code, ErrorCode::PromptTooLong);
        assert!(problem.detail.contains("600"));
    }

    #[tokio::test]
    async fn a_caller_who_leaves_cancels_the_generation() {
        let mut fixture = Fixture::unsealed("").await;
        let mut engine = fixture.connect().await;
        let app = fixture.app.clone();
        let answering = tokio::spawn(async move { answer(&app, call("Hello")).await });
        let (tag, _) = asked(&mut engine).await;
        tokens(&mut engine, tag, 0..1).await;
        drop(answering.await.expect("no panic").expect("begun"));
        let (cancelled, ()) = engine.hear_until(|body| matches!(body, ToEngineBody::Cancel).then_some(())).await;
        assert_eq!(cancelled, tag);
    }
}
