//! Requests and files that cannot be meant well: each has a clear failure, and the engine lives.

use super::support::*;
use candle_core::quantized::gguf_file::Content;
use empathd_model::embed;
use empathd_proto::engine::{EngineFailure, FromEngineBody, ServingSpec, ToEngineBody};
use empathd_proto::generate::{GenerateSpec, Grammar, Prompt, SamplingSpec};
use std::fs::File;
use std::path::PathBuf;

fn refusal(daemon: &mut Daemon, spec: GenerateSpec) -> String {
    let tag = daemon.open(ToEngineBody::Generate(spec));
    match daemon.failure(tag) {
        EngineFailure::Refused(words) => words,
        other => panic!("{other:?}"),
    }
}

#[test]
fn absurd_wishes_are_refused_by_name() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let drawn = |change: fn(&mut SamplingSpec)| {
        let mut spec = spec(3);
        change(&mut spec.sampling);
        spec
    };
    for (wish, word) in [
        (drawn(|spec| spec.temperature = f32::INFINITY), "temperature"),
        (drawn(|spec| spec.temperature = -1.0), "temperature"),
        (drawn(|spec| spec.top_p = 0.0), "top_p"),
        (drawn(|spec| spec.top_p = f32::NAN), "top_p"),
        (drawn(|spec| spec.presence_penalty = 1e30), "presence_penalty"),
        (drawn(|spec| spec.frequency_penalty = f32::NEG_INFINITY), "frequency_penalty"),
        (drawn(|spec| spec.logit_bias = vec![(u32::MAX, 1.0)]), "logit_bias"),
        (drawn(|spec| spec.logit_bias = vec![(5, f32::NAN)]), "logit_bias"),
        (drawn(|spec| spec.logit_bias = vec![(5, 1.0); 100_000]), "logit_bias"),
        (drawn(|spec| spec.logprobs = Some(255)), "logprobs"),
        (GenerateSpec { stop: vec!["x".repeat(10_000)], ..spec(3) }, "stop"),
        (GenerateSpec { stop: vec!["x".to_owned(); 10_000], ..spec(3) }, "stop"),
        (GenerateSpec { prompt: Prompt::Tokens(vec![1, 1 << 30]), ..spec(3) }, "token"),
        (GenerateSpec { prompt: Prompt::Tokens(vec![]), ..spec(3) }, "prompt"),
    ] {
        let words = refusal(&mut daemon, wish);
        assert!(words.contains(word) && words.len() < 200, "{words}");
    }
    assert_eq!(daemon.status().serving.waiting, [0, 0, 0]);
    assert_eq!(daemon.generate(endless(3, 1)).1.completion_tokens, 3);
}

#[test]
fn schemas_that_cannot_be_met_are_refused_and_others_are_kept_to() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let formed = |schema: &str| GenerateSpec { grammar: Some(Grammar::JsonSchema(schema.to_owned())), ..spec(200) };
    let nested = "[".repeat(20_000);
    let contradiction = r#"{"type":"object","properties":{"a":false},"required":["a"]}"#;
    for schema in ["", "7", "{", &nested, contradiction, r#"{"type":"no such type"}"#] {
        let words = refusal(&mut daemon, formed(schema));
        assert!(words.contains("schema"), "{words}");
    }
    let choice = r#"{"type":"object","properties":{"mood":{"enum":["calm","sad"]}},"required":["mood"],
                     "additionalProperties":false}"#;
    let (tokens, finished) = daemon.generate(formed(choice));
    let value: serde_json::Value = serde_json::from_str(&text(&tokens)).expect("JSON");
    assert!(["calm", "sad"].contains(&value["mood"].as_str().expect("a word")));
    assert_eq!(finished.reason, empathd_proto::chat::FinishReason::Stop);
}

/// A copy of the engine's model whose last norm is no number.
fn with_nan(engine: &Engine) -> PathBuf {
    let mut bytes = std::fs::read(engine.model()).expect("read");
    let content = Content::read(&mut File::open(engine.model()).expect("opened")).expect("a model");
    let norm = &content.tensor_infos["output_norm.weight"];
    let begin = usize::try_from(content.tensor_data_offset + norm.offset).expect("small");
    bytes[begin..begin + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let file = engine.folder.path().join("nan.gguf");
    std::fs::write(&file, bytes).expect("written");
    file
}

#[test]
fn weights_that_are_no_numbers_fail_clearly() {
    let engine = Engine::start();
    let mut daemon = engine.connect();
    let nan = with_nan(&engine);
    match daemon.load(&nan, ServingSpec::default()) {
        FromEngineBody::Failed(EngineFailure::BadModel(words)) => assert!(!words.is_empty()),
        FromEngineBody::BaseLoaded(_) => {
            let tag = daemon.open(ToEngineBody::Generate(spec(3)));
            let failure = daemon.failure(tag);
            assert!(matches!(&failure, EngineFailure::Internal(words) if words.contains("numbers")), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(daemon.load(&engine.model(), ServingSpec::default()), FromEngineBody::BaseLoaded(_)));
    assert_eq!(daemon.generate(endless(3, 1)).1.completion_tokens, 3);
}

#[test]
fn embeddings_come_beside_answers_and_bad_texts_are_refused() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let embed = |daemon: &mut Daemon, texts: &[&str]| {
        let tag = daemon.open(ToEngineBody::Embed(texts.iter().map(|text| (*text).to_owned()).collect()));
        daemon.settle([tag]).remove(&tag).and_then(|seen| seen.end).expect("told")
    };
    let refused = embed(&mut daemon, &["sleepless"]);
    assert!(matches!(refused, FromEngineBody::Failed(EngineFailure::Refused(_))), "{refused:?}");
    for (name, bytes) in embed::tiny::files(3) {
        std::fs::write(engine.folder.path().join(name), bytes).expect("written");
    }
    let file = engine.folder.path().join(embed::tiny::WEIGHTS_FILE);
    let load = |sha256| ToEngineBody::LoadEmbedder { path: file.display().to_string(), sha256 };
    let tag = daemon.open(load([0; 32]));
    assert!(matches!(daemon.failure(tag), EngineFailure::BadModel(words) if words.contains("SHA-256")));
    let tag = daemon.open(load(digest(&file)));
    let FromEngineBody::EmbedderLoaded { width } = daemon.last(tag) else { panic!("not loaded") };
    assert!(daemon.status().embedder);
    let FromEngineBody::Embedded(both) = embed(&mut daemon, &["nights", "sleepless nights"]) else { panic!("none") };
    let FromEngineBody::Embedded(one) = embed(&mut daemon, &["sleepless nights"]) else { panic!("none") };
    assert_eq!((both.vectors[0].len(), &both.vectors[1]), (width as usize, &one.vectors[0]));
    assert!(both.tokens > one.tokens);
    daemon.open(ToEngineBody::Generate(endless(300, 1)));
    let long = embed(&mut daemon, &["i", &"night ".repeat(200)]);
    assert!(matches!(&long, FromEngineBody::Failed(EngineFailure::Refused(words)) if words.contains("input[1]")));
    daemon.rest();
}
