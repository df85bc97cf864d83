//! Answers: what they are, how they end, and what becomes of them beside others.

use super::support::*;
use empathd_proto::chat::FinishReason;
use empathd_proto::engine::{FromEngine, FromEngineBody, ToEngineBody};
use empathd_proto::generate::{CacheScope, Finished, GenerateSpec};

#[test]
fn an_answer_is_a_function_of_its_request_and_can_be_taken_up_again() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let (first, finished) = daemon.generate(spec(40));
    assert_eq!(first.iter().map(|(index, _)| *index).collect::<Vec<_>>(), (0..first.len() as u32).collect::<Vec<_>>());
    assert_eq!(finished.completion_tokens as usize, first.len());
    assert!(finished.prompt_tokens > 5 && finished.expert_share.is_empty());
    let same = |(tokens, again): (Vec<(u32, String)>, Finished), from: usize| {
        assert_eq!((tokens.as_slice(), again.reason), (&first[from..], finished.reason));
        assert_eq!(
            (again.prompt_tokens, again.completion_tokens),
            (finished.prompt_tokens, finished.completion_tokens)
        );
        again
    };
    let again = same(daemon.generate(spec(40)), 0);
    assert!(finished.cached_tokens == 0 && again.cached_tokens > 0, "{again:?}");
    assert_eq!(same(daemon.generate(GenerateSpec { scope: CacheScope([1; 16]), ..spec(40) }), 0).cached_tokens, 0);
    assert_ne!(text(&daemon.generate(GenerateSpec { sampling: sampled(12), ..spec(40) }).0), text(&first));
    same(daemon.generate(GenerateSpec { skip_tokens: 6, ..spec(40) }), 6);
    assert!(daemon.forget_prefixes() > 0);
    let status = daemon.status();
    assert!(status.serving.kv_wiped_bytes > 0 && status.generating == 0, "{status:?}");
    assert_eq!(status.serving.kv_tokens.0, 0);
    assert_eq!(same(daemon.generate(spec(40)), 0).cached_tokens, 0);
}

#[test]
fn a_stop_string_ends_an_answer_and_is_not_part_of_it() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let whole = text(&daemon.generate(spec(60)).0);
    let middle = whole.char_indices().nth(whole.chars().count() / 2).expect("long").0;
    let stop: String = whole[middle..].chars().take(3).collect();
    let (tokens, finished) = daemon.generate(GenerateSpec { stop: vec![stop.clone()], ..spec(60) });
    assert_eq!(finished.reason, FinishReason::Stop);
    assert_eq!(Some(text(&tokens).as_str()), whole.split(&stop).next());
}

#[test]
fn answers_run_side_by_side_and_end_when_cancelled() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let alone = text(&daemon.generate(spec(30)).0);
    let long = daemon.open(ToEngineBody::Generate(GenerateSpec { sampling: sampled(3), ..spec(450) }));
    let short = daemon.open(ToEngineBody::Generate(spec(30)));
    let (mut beside, mut ended) = (String::new(), Vec::new());
    while ended.len() < 2 {
        let FromEngine { tag, body } = daemon.read();
        match body {
            FromEngineBody::Token { text, .. } if tag == short => beside.push_str(&text),
            FromEngineBody::Token { .. } => {}
            FromEngineBody::Finished(finished) => {
                ended.push((tag, finished.reason));
                daemon.send(long, ToEngineBody::Cancel);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(beside, alone);
    assert_eq!(ended[0].0, short);
    assert_eq!(ended[1], (long, FinishReason::Cancelled));
}
