//! Many at once: who is shed and who is not, who comes too late, and what is left of those who leave.

use super::support::*;
use empathd_proto::chat::FinishReason;
use empathd_proto::engine::{EngineFailure, ToEngineBody};
use empathd_proto::generate::{CacheScope, CallerKey, GenerateSpec, ServiceClass};
use std::time::Instant;

/// Most answers of one caller.
const OF_A_CALLER: u64 = 24;
/// Answers that run at once.
const RUNNING: u64 = 16;

fn ask(daemon: &mut Daemon, spec: GenerateSpec) -> u64 {
    daemon.open(ToEngineBody::Generate(spec))
}

fn of_caller(caller: u64, spec: GenerateSpec) -> GenerateSpec {
    GenerateSpec { caller: CallerKey(caller), ..spec }
}

#[test]
fn a_hundred_aborts_leave_nothing_behind() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    for wave in 0..5 {
        let tags: Vec<u64> = (0..20).map(|seed| ask(&mut daemon, endless(400, 20 * wave + seed))).collect();
        // Some run, some wait; some have made tokens, some not.
        if wave > 0 {
            daemon.token_of(tags[wave as usize - 1]);
        }
        tags.iter().for_each(|tag| daemon.send(*tag, ToEngineBody::Cancel));
        let seen = daemon.settle(tags);
        assert!(seen.values().all(|seen| seen.reason() == FinishReason::Cancelled && seen.tokens < 400));
    }
    let status = daemon.status();
    assert_eq!((status.generating, status.serving.running, status.serving.waiting), (0, 0, [0, 0, 0]));
    assert_eq!(status.serving.kv_tokens.0, 0, "what a cancelled answer left was not overwritten");
    assert!(status.serving.kv_wiped_bytes > 0);
    assert!(status.serving.cancel_steps_max <= 1, "{}", status.serving.cancel_steps_max);
    assert_eq!(daemon.generate(endless(5, 1)).1.completion_tokens, 5);
}

#[test]
fn who_is_one_too_many_is_told_when_to_come_and_a_crisis_is_answered_all_the_same() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let mut full: Vec<u64> = (0..OF_A_CALLER).map(|seed| ask(&mut daemon, of_caller(1, endless(450, seed)))).collect();
    let greedy = ask(&mut daemon, of_caller(1, endless(3, 0)));
    full.extend((0..OF_A_CALLER).map(|seed| ask(&mut daemon, of_caller(2, endless(450, seed)))));
    let batch = |seed| GenerateSpec { class: ServiceClass::Batch, ..of_caller(3, endless(450, seed)) };
    full.extend((0..16).map(|seed| ask(&mut daemon, batch(seed))));
    let late = ask(&mut daemon, of_caller(4, endless(3, 0)));
    let crisis = GenerateSpec { class: ServiceClass::Crisis, first_token_within_ms: Some(0), ..endless(5, 0) };
    let crises: Vec<u64> = (0..8).map(|caller| ask(&mut daemon, of_caller(caller, crisis.clone()))).collect();
    let seen = daemon.settle([greedy, late].into_iter().chain(crises.iter().copied()));
    for tag in [greedy, late] {
        let busy = seen[&tag].failure();
        assert!(matches!(busy, EngineFailure::Busy { retry_after_ms: 250..=60_000 }), "{busy:?}");
    }
    assert!(crises.iter().all(|tag| seen[tag].reason() == FinishReason::Length && seen[tag].tokens == 5));
    let status = daemon.status().serving;
    assert!(status.waiting[1] + status.waiting[2] > 0, "a crisis waited until others had ended: {status:?}");
    assert_eq!(status.refused, [0, 2, 0]);
    full.iter().for_each(|tag| daemon.send(*tag, ToEngineBody::Cancel));
    daemon.rest();
    assert_eq!(daemon.generate(of_caller(1, endless(3, 0))).1.completion_tokens, 3);
}

#[test]
fn an_answer_that_would_come_too_late_is_not_begun() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let begun = Instant::now();
    daemon.generate(endless(450, 1));
    let patience = u32::try_from(begun.elapsed().as_millis()).expect("short") / 3;
    // Answers seem to be short now, so that the next one is let in.
    for seed in 0..80 {
        daemon.generate(endless(1, seed));
    }
    let full: Vec<u64> = (0..RUNNING).map(|seed| ask(&mut daemon, endless(450, seed))).collect();
    let hurried = of_caller(2, GenerateSpec { first_token_within_ms: Some(patience.max(1)), ..endless(3, 0) });
    let late = ask(&mut daemon, GenerateSpec { scope: CacheScope([9; 16]), ..hurried });
    let seen = daemon.settle(full.iter().copied().chain([late]));
    assert_eq!(*seen[&late].failure(), EngineFailure::Late);
    assert!(full.iter().all(|tag| seen[tag].tokens == 450));
    assert_eq!(daemon.status().serving.late, 1);
}

#[test]
fn a_status_tells_how_answers_are_served() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let before = daemon.status().serving;
    assert!(before.warm && before.steps > 0, "{before:?}");
    let tags: Vec<u64> = (0..RUNNING + 2).map(|seed| ask(&mut daemon, endless(450, seed))).collect();
    daemon.token_of(tags[0]);
    let status = daemon.status();
    assert_eq!(u64::from(status.generating), RUNNING + 2);
    assert_eq!(u64::from(status.serving.running + status.serving.waiting[1]), RUNNING + 2);
    assert!(status.serving.steps > before.steps && status.serving.kv_tokens.0 > 0);
}
