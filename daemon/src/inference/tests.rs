//! Answers with an engine that the test plays.

use super::call::{Client, Turn};
use super::tools::{Demand, Offered, Tools};
use super::*;
use crate::action::Action;
use crate::app::Reply;
use crate::fixture::{Fixture, Played, ROOT, call, passphrase};
use empathd_proto::admin::{AdminReply, ApiRole};
use empathd_proto::engine::{EngineFailure, FromEngineBody};
use empathd_proto::generate::{AnswerTimes, Finished};
use tokio::task::JoinHandle;

fn ehr() -> Actor {
    Actor::Certificate { serial: "01".into(), number: 1, name: "ehr".into(), role: ApiRole::Ehr }
}

async fn begin(app: &Arc<App>, call: AnswerCall) -> Result<Answer, Problem> {
    answer(app, &ehr(), call).await
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
        cached_tokens: 1,
        completion_tokens: 5,
        drafted_tokens: 4,
        accepted_tokens: 3,
        expert_share: Vec::new(),
        times: AnswerTimes { queued_us: 1500, ..AnswerTimes::default() },
    };
    engine.say(tag, FromEngineBody::Finished(finished)).await;
}

/// Everything told of an answer: the text of each choice, the calls, and the last event.
struct Told {
    texts: Vec<String>,
    calls: Vec<(u32, ToolCall)>,
    reasons: Vec<FinishReason>,
    last: AnswerEvent,
}

impl Told {
    fn notes(&self) -> &AnswerNotes {
        let AnswerEvent::Finished { notes, .. } = &self.last else { panic!("not finished: {:?}", self.last) };
        notes
    }

    fn usage(&self) -> Usage {
        let AnswerEvent::Finished { usage, .. } = &self.last else { panic!("not finished: {:?}", self.last) };
        *usage
    }
}

async fn collect(mut answer: Answer) -> Told {
    let (mut texts, mut calls, mut reasons) = (vec![String::new(); answer.choices as usize], Vec::new(), Vec::new());
    loop {
        match answer.events.recv().await.expect("a last event") {
            AnswerEvent::Said { choice, text, .. } => texts[choice as usize].push_str(&text),
            AnswerEvent::Called { choice, call } => calls.push((choice, call)),
            AnswerEvent::Ended { reason, .. } => reasons.push(reason),
            last => return Told { texts, calls, reasons, last },
        }
    }
}

fn asking(fixture: &Fixture, call: AnswerCall) -> JoinHandle<Told> {
    let app = fixture.app.clone();
    tokio::spawn(async move { collect(begin(&app, call).await.expect("begun")).await })
}

/// One answer of two tokens.
async fn answered(fixture: &Fixture, engine: &mut Played, call: AnswerCall) -> (GenerateSpec, Told) {
    let answering = asking(fixture, call);
    let (tag, spec) = asked(engine).await;
    tokens(engine, tag, 0..2).await;
    finish(engine, tag).await;
    (spec, answering.await.expect("no panic"))
}

#[tokio::test]
async fn an_answer_survives_the_death_of_its_engine() {
    let mut fixture = Fixture::unsealed("").await;
    let mut first = fixture.connect().await;
    let answering = asking(&fixture, call("Hello"));
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
    let told = answering.await.expect("no panic");
    assert_eq!(told.texts, ["t0 t1 t2 t3 t4 "]);
    assert_eq!(told.usage().total_tokens, 8);
}

#[tokio::test]
async fn choices_are_works_side_by_side_and_each_survives_on_its_own() {
    let mut fixture = Fixture::unsealed("").await;
    let mut first = fixture.connect().await;
    let answering = asking(&fixture, AnswerCall { choices: 3, ..call("Hello") });
    let mut tags = Vec::new();
    let mut specs = Vec::new();
    for _ in 0..3 {
        let (tag, spec) = asked(&mut first).await;
        tags.push(tag);
        specs.push(spec);
    }
    specs.sort_by_key(|spec| spec.sampling.seed != 5);
    assert_eq!(specs[0].sampling.seed, 5, "the first choice is what it would be alone");
    assert!(specs[1].sampling.seed != specs[2].sampling.seed && specs[1].scope == specs[2].scope);
    tokens(&mut first, tags[0], 0..1).await;
    tokens(&mut first, tags[1], 0..2).await;
    finish(&mut first, tags[1]).await;
    // Until these were told, the daemon may not have them.
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(first);
    let mut second = fixture.connect().await;
    for _ in 0..2 {
        let (tag, again) = asked(&mut second).await;
        tokens(&mut second, tag, again.skip_tokens..3).await;
        finish(&mut second, tag).await;
    }
    let told = answering.await.expect("no panic");
    let mut texts = told.texts.clone();
    texts.sort();
    assert_eq!(texts, ["t0 t1 ", "t0 t1 t2 ", "t0 t1 t2 "]);
    assert_eq!(told.reasons, [FinishReason::Stop; 3]);
    let usage = told.usage();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, 15), "the prompt counts once");
    assert_eq!(usage.prompt_tokens_details.cached_tokens, 1);
    assert_eq!(usage.completion_tokens_details.rejected_prediction_tokens, 3);
    assert_eq!(told.notes().times_ms.queued, 1.5);
}

#[tokio::test]
async fn a_caller_who_leaves_cancels_every_work() {
    let mut fixture = Fixture::unsealed("").await;
    let mut engine = fixture.connect().await;
    let app = fixture.app.clone();
    let answering = tokio::spawn(async move { begin(&app, AnswerCall { choices: 2, ..call("Hello") }).await });
    let mut tags = vec![asked(&mut engine).await.0, asked(&mut engine).await.0];
    tokens(&mut engine, tags[0], 0..1).await;
    drop(answering.await.expect("no panic").expect("begun"));
    for _ in 0..2 {
        let (tag, ()) = engine.hear_until(|body| matches!(body, ToEngineBody::Cancel).then_some(())).await;
        tags.retain(|known| *known != tag);
    }
    assert!(tags.is_empty());
}

#[tokio::test]
async fn a_caller_who_takes_in_nothing_keeps_nobody_out() {
    let mut fixture = Fixture::unsealed("[serving]\nanswers_max = 1").await;
    let mut engine = fixture.connect().await;
    let app = fixture.app.clone();
    let begun = tokio::spawn(async move { begin(&app, AnswerCall { max_tokens: Some(500), ..call("Hello") }).await });
    let (tag, _) = asked(&mut engine).await;
    tokens(&mut engine, tag, 0..500).await;
    let crawling = begun.await.expect("no panic").expect("begun");
    assert_eq!(begin(&fixture.app, call("x")).await.expect_err("full").code, ErrorCode::Busy);
    finish(&mut engine, tag).await;
    // The engine is done, and the daemon has heard of it.
    while begin_room(&fixture).is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(crawling.events.len(), EVENTS_WAITING_MAX, "nothing was taken in");
    let (_, told) = answered(&fixture, &mut engine, call("Me too")).await;
    assert_eq!(told.texts, ["t0 t1 "]);
    let whole = collect(crawling).await;
    assert_eq!(whole.texts[0].split_whitespace().count(), 500, "and nothing was lost");
}

/// Whether there is room for one more.
fn begin_room(fixture: &Fixture) -> Result<(), Problem> {
    fixture.app.inference.admission.enter(ServiceClass::Interactive, 1).map(drop)
}

#[tokio::test]
async fn a_crisis_puts_human_help_before_the_first_word_and_is_served_first() {
    let mut fixture = Fixture::unsealed("[help]\ncrisis_line = \"ring 0800 111\"\n[serving]\nanswers_max = 1").await;
    let mut engine = fixture.connect().await;
    let waiting = asking(&fixture, call("Hello"));
    let (first, plain) = asked(&mut engine).await;
    assert_eq!(plain.class, ServiceClass::Interactive);
    assert!(plain.first_token_within_ms.is_some());
    // There is no room any more, except for this.
    let (spec, told) = answered(&fixture, &mut engine, AnswerCall { choices: 1, ..call("I want to die") }).await;
    assert_eq!((spec.class, spec.first_token_within_ms), (ServiceClass::Crisis, None));
    assert!(told.texts[0].contains("ring 0800 111") && told.texts[0].ends_with("t0 t1 "), "{}", told.texts[0]);
    assert!(told.notes().crisis_signal && told.notes().cache == CacheNote::None);
    finish(&mut engine, first).await;
    waiting.await.expect("no panic");
    let json = AnswerCall { form: Form::Json(empathd_proto::generate::Grammar::JsonObject), ..call("I want to die") };
    let (_, told) = answered(&fixture, &mut engine, json).await;
    assert_eq!(told.texts, ["t0 t1 "], "JSON stays JSON");
    assert!(told.notes().crisis_words.as_deref().is_some_and(|words| words.contains("ring 0800 111")));
}

#[tokio::test]
async fn a_crisis_gets_the_clinics_words_without_an_engine_too() {
    let mut fixture = Fixture::unsealed("").await;
    let told =
        collect(begin(&fixture.app, AnswerCall { choices: 2, ..call("I want to die") }).await.expect("begun")).await;
    assert!(told.texts.iter().all(|text| text.contains("988")), "{:?}", told.texts);
    assert!(told.notes().crisis_signal);

    let mut engine = fixture.connect().await;
    for failure in
        [EngineFailure::Internal("a test".to_owned()), EngineFailure::Busy { retry_after_ms: 1 }, EngineFailure::Late]
    {
        let answering = asking(&fixture, call("I want to die"));
        let (tag, _) = asked(&mut engine).await;
        engine.say(tag, FromEngineBody::Failed(failure)).await;
        let told = answering.await.expect("no panic");
        assert!(told.texts[0].contains("988") && told.notes().crisis_signal, "{:?}", told.texts);
    }
}

#[tokio::test]
async fn what_the_engine_refuses_is_told_before_the_answer_begins() {
    let mut fixture = Fixture::unsealed("[serving]\nanswers_max = 1").await;
    assert_eq!(begin(&fixture.app, call("x")).await.expect_err("down").code, ErrorCode::EngineUnavailable);
    let mut engine = fixture.connect().await;
    for (failure, code, retry_after_s, word) in [
        (EngineFailure::PromptTooLong { tokens: 600, limit: 512 }, ErrorCode::PromptTooLong, None, "600"),
        (EngineFailure::Busy { retry_after_ms: 2001 }, ErrorCode::Busy, Some(3), "waiting"),
        (EngineFailure::Late, ErrorCode::Late, None, "late"),
        (EngineFailure::Refused("`logit_bias` names no token".into()), ErrorCode::BadRequest, None, "`logit_bias`"),
    ] {
        let app = fixture.app.clone();
        let answering = tokio::spawn(async move { begin(&app, call("Hello")).await });
        let (tag, _) = asked(&mut engine).await;
        assert_eq!(begin(&fixture.app, call("x")).await.expect_err("full").code, ErrorCode::Busy);
        engine.say(tag, FromEngineBody::Failed(failure)).await;
        let problem = answering.await.expect("no panic").expect_err("refused");
        assert_eq!((problem.code, problem.retry_after_s), (code, retry_after_s));
        assert!(problem.detail.contains(word), "{}", problem.detail);
        // The room is free again as soon as the task has ended.
        tokio::task::yield_now().await;
        while !fixture.app.inference.under_way.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn callers_clients_and_urgency_reach_the_engine() {
    let mut fixture = Fixture::unsealed("").await;
    let mut engine = fixture.connect().await;
    let client = Client { user: Some("a".into()), ..Client::default() };
    let (one, _) = answered(&fixture, &mut engine, call("1")).await;
    let other = AnswerCall { client, nobody_waits: true, ..call("2") };
    let (two, _) = answered(&fixture, &mut engine, other).await;
    assert!(one.scope != two.scope && one.caller != two.caller);
    assert_eq!((two.class, two.first_token_within_ms), (ServiceClass::Batch, None));
}

#[tokio::test]
async fn tools_are_told_demanded_and_read_back() {
    let mut fixture = Fixture::unsealed("").await;
    let mut engine = fixture.connect().await;
    let offered =
        vec![Offered { name: "look".into(), described: "{\"look\":1}".into(), parameters: None, strict: false }];
    let tools = |demand, parallel| Form::Tools(Tools { offered: offered.clone(), demand, parallel });
    let free = asking(&fixture, AnswerCall { form: tools(Demand::Free, false), ..call("Look") });
    let (tag, spec) = asked(&mut engine).await;
    let Prompt::Chat { messages, tools: none } = &spec.prompt else { panic!("a chat") };
    assert!(messages[0].text.contains("{\"look\":1}") && none.is_empty());
    assert_eq!((spec.stop.as_slice(), &spec.grammar), (["</tool_call>".to_owned()].as_slice(), &None));
    let texts = ["See. <tool", "_call>{\"name\":\"look\",", "\"arguments\":{\"q\":1}}"];
    for (index, text) in (0..).zip(texts) {
        engine.say(tag, FromEngineBody::Token { index, text: text.to_owned(), logprobs: None }).await;
    }
    finish(&mut engine, tag).await;
    let told = free.await.expect("no panic");
    assert_eq!((told.texts[0].as_str(), told.reasons.as_slice()), ("See.", [FinishReason::ToolCalls].as_slice()));
    let (_, call_made) = &told.calls[0];
    assert_eq!((call_made.function.name.as_str(), call_made.function.arguments.as_str()), ("look", "{\"q\":1}"));
    assert!(call_made.id.starts_with("call_") && call_made.id.len() == 29);

    let forced = asking(&fixture, AnswerCall { form: tools(Demand::Any, true), ..call("Look") });
    let (tag, spec) = asked(&mut engine).await;
    assert!(spec.grammar.is_some() && spec.stop.is_empty());
    engine.say(tag, FromEngineBody::Token { index: 0, text: "{}".into(), logprobs: None }).await;
    finish(&mut engine, tag).await;
    let told = forced.await.expect("no panic");
    assert_eq!((told.texts[0].as_str(), told.calls.len(), told.reasons[0]), ("", 1, FinishReason::ToolCalls));
}

#[tokio::test]
async fn the_same_request_gets_the_same_answer_again_and_nobody_else_does() {
    let mut fixture = Fixture::unsealed("").await;
    let mut engine = fixture.connect().await;
    let (_, first) = answered(&fixture, &mut engine, call("Hello")).await;
    assert_eq!(first.notes().cache, CacheNote::Miss);
    let again = collect(begin(&fixture.app, call("Hello")).await.expect("kept")).await;
    assert_eq!((again.texts.clone(), again.reasons.clone()), (first.texts.clone(), first.reasons.clone()));
    assert_eq!(again.notes().cache, CacheNote::Response);
    let mut usage = first.usage();
    usage.prompt_tokens_details.cached_tokens = usage.prompt_tokens;
    assert_eq!(again.usage(), usage);

    let client = Client { user: Some("another".into()), ..Client::default() };
    let deterministic = [
        AnswerCall { client, ..call("Hello") },
        AnswerCall { seed: Some(6), ..call("Hello") },
        AnswerCall { temperature: 0.5, ..call("Hello") },
        AnswerCall { max_tokens: Some(9), ..call("Hello") },
        AnswerCall { stop: vec!["x".into()], ..call("Hello") },
        AnswerCall { logprobs: Some(0), ..call("Hello") },
        call("hello"),
        AnswerCall { question: Question::Conversation(vec![Turn::System("Hello".into())]), ..call("") },
    ];
    for other in deterministic {
        let (_, told) = answered(&fixture, &mut engine, other).await;
        assert_eq!(told.notes().cache, CacheNote::Miss);
    }
    for _ in 0..2 {
        let drawn = AnswerCall { seed: None, temperature: 0.5, ..call("Hello") };
        let (_, told) = answered(&fixture, &mut engine, drawn).await;
        assert_eq!(told.notes().cache, CacheNote::None, "an answer that may differ is not kept");
        let (_, told) = answered(&fixture, &mut engine, call("I wish I had never been born")).await;
        assert_eq!(told.notes().cache, CacheNote::None, "nor one in danger");
    }
    let stranger = Actor::Certificate { serial: "02".into(), number: 2, name: "ehr".into(), role: ApiRole::Ehr };
    let app = fixture.app.clone();
    let asking =
        tokio::spawn(async move { collect(answer(&app, &stranger, call("Hello")).await.expect("begun")).await });
    let (tag, _) = asked(&mut engine).await;
    finish(&mut engine, tag).await;
    assert_eq!(asking.await.expect("no panic").notes().cache, CacheNote::Miss);
}

/// Answers [`ToEngineBody::ForgetPrefixes`] for as long as the engine is asked.
async fn forgets(mut engine: Played) -> Played {
    let (tag, ()) = engine.hear_until(|body| matches!(body, ToEngineBody::ForgetPrefixes).then_some(())).await;
    engine.say(tag, FromEngineBody::PrefixesForgotten { wiped_bytes: 1 }).await;
    engine
}

#[tokio::test]
async fn revocation_and_seal_wipe_what_is_kept_and_end_what_is_under_way() {
    let mut fixture = Fixture::unsealed("").await;
    let enroll = Action::CertEnroll { name: "ehr".into(), role: ApiRole::Ehr, valid_days: 1 };
    let Ok(Reply::Admin(reply)) = fixture.app.perform(&ROOT, enroll).await else { panic!("a reply") };
    let AdminReply::Enrolled(cert) = *reply else { panic!("enrolled") };
    let mut engine = fixture.connect().await;
    answered(&fixture, &mut engine, call("Hello")).await;

    let forgetting = tokio::spawn(forgets(engine));
    let revoke = Action::CertRevoke { serial: cert.summary.serial.clone() };
    fixture.app.perform(&ROOT, revoke).await.expect("revoked");
    let mut engine = forgetting.await.expect("asked to forget");
    let (before, told) = answered(&fixture, &mut engine, call("Hello")).await;
    assert_eq!(told.notes().cache, CacheNote::Miss, "wiped");

    let answering = asking(&fixture, call("Something else"));
    let (tag, _) = asked(&mut engine).await;
    tokens(&mut engine, tag, 0..1).await;
    let forgetting = tokio::spawn(async move {
        let (cancelled, ()) = engine.hear_until(|body| matches!(body, ToEngineBody::Cancel).then_some(())).await;
        (cancelled, forgets(engine).await)
    });
    fixture.app.perform(&ROOT, Action::Seal).await.expect("sealed");
    let (cancelled, mut engine) = forgetting.await.expect("cancelled, then asked to forget");
    assert_eq!(cancelled, tag);
    assert!(matches!(answering.await.expect("no panic").last, AnswerEvent::Failed(_)));

    fixture.app.perform(&ROOT, Action::Unseal { passphrase: passphrase() }).await.expect("unsealed");
    let (after, told) = answered(&fixture, &mut engine, call("Hello")).await;
    assert_eq!(told.notes().cache, CacheNote::Miss);
    assert_ne!(after.scope, before.scope, "nothing fits the new key");
}

#[tokio::test]
async fn embeddings_need_their_model_and_say_what_to_do() {
    let mut fixture = Fixture::unsealed("").await;
    let mut engine = fixture.connect().await;
    let wanted = |model: &str| call::EmbedCall { model: model.into(), texts: vec!["a".into()], dimensions: Some(2) };
    let problem = embed::embed(&fixture.app, wanted("minilm")).await.expect_err("none");
    assert!(problem.code == ErrorCode::NotFound && problem.next.contains("engine.embedder"), "{}", problem.next);
    assert_eq!(embed::embed(&fixture.app, wanted("gpt")).await.expect_err("unknown").code, ErrorCode::NotFound);
    let ready = fixture.app.engine.ready().expect("ready");
    ready.set_embedder(crate::engine::Embedder::Ready { width: 2 });
    let app = fixture.app.clone();
    let asking = tokio::spawn(async move { embed::embed(&app, wanted("all-minilm-l6-v2")).await });
    let (tag, texts) =
        engine.hear_until(|body| if let ToEngineBody::Embed(texts) = body { Some(texts.clone()) } else { None }).await;
    assert_eq!(texts, ["a"]);
    let embedded = empathd_proto::generate::Embedded { vectors: vec![vec![1.0, 0.0]], tokens: 3 };
    engine.say(tag, FromEngineBody::Embedded(embedded)).await;
    assert_eq!(asking.await.expect("no panic").expect("embedded").tokens, 3);
    let narrow = call::EmbedCall { dimensions: Some(3), ..wanted("minilm") };
    assert_eq!(embed::embed(&fixture.app, narrow).await.expect_err("narrow").code, ErrorCode::BadRequest);
    assert_eq!(models(&fixture.app).expect("models").data.len(), 3);
}
