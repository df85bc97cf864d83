//! Weights that are replaced while answers are under way: nobody notices.

use super::support::*;
use empathd_model::tiny;
use empathd_proto::engine::{EngineFailure, FromEngineBody, RopeSpec, ServingSpec, ToEngineBody};
use empathd_proto::generate::{CacheScope, GenerateSpec};

fn adapted(max_tokens: u32, seed: u64) -> GenerateSpec {
    GenerateSpec { adapter: Some(ADAPTER), ..endless(max_tokens, seed) }
}

#[test]
fn a_generation_is_replaced_and_no_answer_fails_or_mixes() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let generations = [engine.adapter(1), engine.adapter(2)];
    let alone = |daemon: &mut Daemon, seed| text(&daemon.generate(adapted(300, seed)).0);
    let mut expected = Vec::new();
    for bytes in &generations {
        assert!(matches!(daemon.put_adapter(bytes), FromEngineBody::AdapterReady));
        expected.push((0..6).map(|seed| alone(&mut daemon, seed)).collect::<Vec<_>>());
    }
    assert_ne!(expected[0], expected[1]);
    let mut asked = Vec::new();
    for round in 0..6 {
        let generation = round % 2;
        let tag = daemon.open(ToEngineBody::PutAdapter { adapter: ADAPTER, blob: head(&generations[generation]) });
        daemon.send_chunks(tag, &generations[generation]);
        for seed in 0..3 {
            let seed = seed + 3 * (round as u64 % 2);
            asked.push((daemon.open(ToEngineBody::Generate(adapted(300, seed))), generation, seed));
        }
    }
    daemon.open(ToEngineBody::DropAdapter { adapter: ADAPTER });
    let seen = daemon.settle(asked.iter().map(|(tag, ..)| *tag));
    for (tag, generation, seed) in asked {
        assert_eq!(seen[&tag].text, expected[generation][seed as usize], "generation {generation}, seed {seed}");
    }
    assert!(daemon.status().adapters.is_empty());
    let tag = daemon.open(ToEngineBody::Generate(adapted(3, 0)));
    assert_eq!(daemon.failure(tag), EngineFailure::UnknownAdapter(ADAPTER));
}

#[test]
fn another_base_model_lets_the_first_one_answer_to_the_end() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let other = engine.folder.path().join("other.gguf");
    tiny::write_gguf(&other, 2).expect("written");
    let alone: Vec<String> = (0..4).map(|seed| text(&daemon.generate(endless(400, seed)).0)).collect();
    let tags: Vec<u64> = (0..4).map(|seed| daemon.open(ToEngineBody::Generate(endless(400, seed)))).collect();
    let sha256 = digest(&other);
    let path = other.display().to_string();
    let load = daemon.open(ToEngineBody::LoadBase { path, sha256, serving: ServingSpec::default() });
    let after = daemon.open(ToEngineBody::Generate(endless(400, 0)));
    let seen = daemon.settle(tags.iter().copied().chain([load, after]));
    assert!(matches!(&seen[&load].end, Some(FromEngineBody::BaseLoaded(base)) if base.sha256 == sha256));
    assert!(tags.iter().zip(&alone).all(|(tag, alone)| seen[tag].text == *alone));
    assert!(seen[&after].tokens == 400 && seen[&after].text != alone[0]);
    let again = daemon.load(&engine.model(), ServingSpec::default());
    assert!(matches!(again, FromEngineBody::BaseLoaded(_)));
    assert_eq!(text(&daemon.generate(endless(400, 3)).0), alone[3]);
}

#[test]
fn the_context_ends_where_it_is_configured_and_longer_prompts_are_refused_with_count_and_limit() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let longer = |rope| ServingSpec { context: Some(1024), rope, ..ServingSpec::default() };
    let refused = daemon.load(&engine.model(), longer(None));
    assert!(matches!(refused, FromEngineBody::Failed(EngineFailure::BadModel(words)) if words.contains("stretched")));
    for rope in [RopeSpec::Linear { factor: 2.0 }, RopeSpec::Yarn { factor: 2.0, original_context: 512 }] {
        assert!(matches!(daemon.load(&engine.model(), longer(Some(rope))), FromEngineBody::BaseLoaded(_)));
        let words = |count| GenerateSpec { prompt: chat(&"z".repeat(count)), ..endless(9, 1) };
        let (tokens, finished) = daemon.generate(words(990));
        assert_eq!((tokens.len(), finished.completion_tokens), (9, 9), "{rope:?}");
        let tag = daemon.open(ToEngineBody::Generate(words(1100)));
        let failure = daemon.failure(tag);
        assert!(matches!(failure, EngineFailure::PromptTooLong { tokens: 1101.., limit: 1023 }), "{failure:?}");
        assert_eq!(daemon.generate(GenerateSpec { scope: CacheScope([3; 16]), ..words(990) }).0, tokens);
    }
}
