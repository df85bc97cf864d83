//! Answers of the reference model through the engine's own scheduler: in a given form, drafted from what was there
//! before, and at the end of its context.

use super::MODEL;
use empathd_model::infer::{GrammarFactory, Model};
use empathd_model::schedule::{Cancel, Continuation, Desk, Event, Request, Scheduler};
use empathd_proto::chat::{ChatRole, FinishReason};
use empathd_proto::engine::{EngineFailure, ServingSpec};
use empathd_proto::generate::{
    CacheScope, CallerKey, Finished, Grammar, PlainMessage, Prompt, SamplingSpec, ServiceClass,
};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

const NOTE: &str = "The client slept four hours a night since the separation in March. She wakes at three, thinks of the \
                    custody hearing and reads messages until the alarm. Appetite is reduced, she lost three kilograms. She \
                    denies thoughts of suicide. We agreed on a fixed time to rise, no telephone in the bedroom, and a sleep \
                    diary until the next session on Thursday.";

/// A wish for a greedy answer.
fn request(prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        tag: 1,
        prompt,
        adapter: None,
        class: ServiceClass::Interactive,
        caller: CallerKey(1),
        scope: CacheScope::default(),
        arrived: Duration::ZERO,
        first_token_within: None,
        max_tokens,
        skip_tokens: 0,
        sampling: SamplingSpec::greedy(),
        stop: Vec::new(),
        grammar: None,
        continuation: Continuation::Sampled,
        ignore_end: false,
        cancel: Cancel::default(),
    }
}

/// The answer of a scheduler of its own.
fn answer(model: &Model, drafting: bool, request: Request) -> Result<(String, Finished), EngineFailure> {
    let serving = ServingSpec { drafting, ..ServingSpec::default() };
    let desk = Arc::new(Desk::new(Arc::new(|| Duration::ZERO)));
    let compute = model.compute().expect("computes");
    let mut scheduler = Scheduler::new(compute, Arc::clone(&model.format), &serving, desk);
    scheduler.submit(request)?;
    let (mut text, mut end) = (String::new(), None);
    while end.is_none() {
        scheduler.step(&mut |_, event| match event {
            Event::Token { text: more, .. } => text.push_str(&more),
            Event::Finished(finished) => end = Some(Ok(finished)),
            Event::Failed(failure) => end = Some(Err(failure)),
        });
    }
    end.expect("there is one").map(|finished| (text, finished))
}

fn ids(model: &Model, prompt: Prompt) -> Vec<u32> {
    model.format.read(&prompt).expect("reads")
}

#[test]
fn answers_are_json_of_the_schema_that_was_asked_for() {
    let Some(model) = &*MODEL else { return };
    let factory = GrammarFactory::new(model.format.tokenizer()).expect("built");
    let schema = r#"{"type":"object","additionalProperties":false,"required":["summary","sleep_hours","risk","plan"],"properties":{
        "summary":{"type":"string","maxLength":80},"sleep_hours":{"type":"integer","minimum":0,"maximum":24},
        "risk":{"enum":["none","low","high"]},"plan":{"type":"array","items":{"type":"string","maxLength":40},"maxItems":3}}}"#;
    let text = format!("{NOTE}\n\nWrite this note as JSON with summary, sleep_hours, risk and plan.");
    let messages = vec![PlainMessage { role: ChatRole::User, text }];
    let prompt = ids(model, Prompt::Chat { messages, tools: Vec::new() });
    for (temperature, seed) in [(0.0, 0), (1.5, 7)] {
        let sampling = SamplingSpec { temperature, seed, ..SamplingSpec::greedy() };
        let grammar = factory.matcher(&Grammar::JsonSchema(schema.to_owned())).expect("usable");
        let asked = Request { sampling, grammar: Some(grammar), ..request(prompt.clone(), 400) };
        let (text, finished) = answer(model, true, asked).expect("answers");
        assert_eq!(finished.reason, FinishReason::Stop, "{text}");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert!(value["summary"].as_str().is_some_and(|summary| summary.chars().count() <= 80), "{text}");
        assert!(value["sleep_hours"].as_u64().is_some_and(|hours| hours <= 24), "{text}");
        assert!(value["risk"].as_str().is_some_and(|risk| ["none", "low", "high"].contains(&risk)), "{text}");
        assert!(value["plan"].as_array().is_some_and(|plan| plan.len() <= 3), "{text}");
    }
}

#[test]
fn a_note_that_is_repeated_is_drafted_and_stays_the_same() {
    let Some(model) = &*MODEL else { return };
    let prompt = ids(model, Prompt::Text(format!("{NOTE}\n\n{NOTE}\n\nThe client slept")));
    let (plain, without) = answer(model, false, request(prompt.clone(), 70)).expect("answers");
    let (text, with) = answer(model, true, request(prompt, 70)).expect("answers");
    assert_eq!(text, plain);
    assert_eq!((without.drafted_tokens, with.completion_tokens), (0, without.completion_tokens));
    eprintln!(
        "{} of {} tokens accepted, {} proposed",
        with.accepted_tokens, with.completion_tokens, with.drafted_tokens
    );
    assert!(NOTE.contains(text.trim()), "the model does not repeat: {text}");
    assert!(2 * with.accepted_tokens > with.completion_tokens, "{with:?}");
    assert!(4 * with.accepted_tokens > 3 * with.drafted_tokens, "{with:?}");
}

#[test]
fn the_whole_context_can_be_used_and_no_token_more() {
    let Some(model) = &*MODEL else { return };
    let mut prompt = ids(model, Prompt::Text(format!("{NOTE}\n\n").repeat(120)));
    assert!(prompt.len() > 8_300 && model.config().context == 8_192, "{}", prompt.len());
    let refused = answer(model, true, request(prompt[..8_300].to_vec(), 4)).expect_err("too long");
    assert_eq!(refused, EngineFailure::PromptTooLong { tokens: 8_300, limit: 8_191 });
    prompt.truncate(8_000);
    let asked = Request { ignore_end: true, ..request(prompt, 4) };
    let (_, finished) = answer(model, true, asked).expect("answers");
    assert_eq!((finished.prompt_tokens, finished.completion_tokens), (8_000, 4));
}
