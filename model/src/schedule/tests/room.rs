//! Slots and memory: who may share, what is given back, and when.

use super::*;
use std::time::Duration;

fn caching() -> ServingSpec {
    ServingSpec { drafting: false, ..ServingSpec::default() }
}

fn cached(seen: &Seen) -> u32 {
    seen.finished().cached_tokens
}

#[test]
fn beginnings_are_shared_within_a_salt_and_never_across() {
    let (mut stage, probe) = stage(&caching(), 1 << 20);
    let ask = |tag, number| Request { scope: scope(number), ..request(tag, prompt(1, 200), 4) };
    assert_eq!(cached(&stage.answer(ask(1, 1))), 0);
    assert_eq!(cached(&stage.answer(ask(2, 2))), 0, "another scope");
    probe.take_rows();
    assert_eq!(cached(&stage.answer(ask(3, 1))), 199);
    assert!(probe.take_rows() <= 1 + 4);
    let longer = [prompt(1, 120), prompt(2, 100)].concat();
    assert_eq!(cached(&stage.answer(Request { scope: scope(1), ..request(4, longer, 4) })), 120);
    assert_eq!(stage.status().prefix_tokens, (820, 319));
    assert!(stage.scheduler.forget_prefixes() > 0);
    assert_eq!(stage.status().kv_tokens.0, 0);
    assert_eq!(cached(&stage.answer(ask(5, 1))), 0, "everything was forgotten");
}

#[test]
fn several_answers_to_one_prompt_read_it_once() {
    let (mut stage, probe) = stage(&caching(), 1 << 20);
    for tag in 0..8 {
        let sampling = SamplingSpec { temperature: 1.0, seed: tag, ..SamplingSpec::greedy() };
        stage.submit(Request { sampling, ..request(tag, prompt(1, 300), 1) });
    }
    stage.run();
    assert_eq!(probe.take_rows(), 300 + 7);
    assert!((1..8).all(|tag| cached(&stage.seen[&tag]) == 299));
}

#[test]
fn what_is_kept_is_overwritten_with_time_and_for_those_who_need_room() {
    let (mut stage, probe) = stage(&caching(), 1024);
    let ask = |tag, kind| Request { ignore_end: true, ..request(tag, prompt(kind, 300), 10) };
    for tag in 0..6 {
        stage.answer(ask(tag, tag as u32));
        assert!(stage.status().kv_tokens.0 <= 1024);
    }
    assert_eq!(stage.status().kv_tokens.0, 3 * 309, "the last ones are kept");
    let expiry = stage.scheduler.next_expiry().expect("something is kept");
    probe.pass_time(expiry - stage.scheduler.now());
    stage.step();
    assert_eq!(stage.status().kv_tokens.0, 2 * 309);
    probe.pass_time(IDLE_TTL);
    stage.step();
    let status = stage.status();
    assert_eq!((status.kv_tokens, status.kv_wiped_bytes), ((0, 1024), 6 * 309));
    assert_eq!(stage.scheduler.next_expiry(), None);
}

#[test]
fn a_hundred_aborts_leave_nothing_behind() {
    let (mut stage, _) = stage(&ServingSpec::default(), 1 << 20);
    for tag in 0..100u64 {
        let cancel = Cancel::default();
        let long = Request { cancel: cancel.clone(), ignore_end: true, ..request(tag, prompt(tag as u32, 480), 30) };
        stage.submit(long);
        stage.submit(Request { ignore_end: true, ..request(1000 + tag, prompt(1, 30), 3) });
        // In the queue, in the middle of its prompt, or in the middle of its answer.
        stage.steps(tag % 9);
        cancel.set(stage.scheduler.steps());
        stage.step();
        let seen = &stage.seen[&tag];
        assert_eq!(seen.finished().reason, FinishReason::Cancelled, "{tag}: {seen:?}");
    }
    stage.run();
    let status = stage.status();
    assert_eq!((status.running, status.waiting, status.cancel_steps_max), (0, [0, 0, 0], 0));
    stage.scheduler.forget_prefixes();
    assert_eq!(stage.status().kv_tokens.0, 0);
    assert!((0..100).all(|tag| stage.seen[&(1000 + tag)].end.is_some()));
}

#[test]
fn a_panic_in_a_step_ends_the_answers_of_that_step_and_no_later_one() {
    let (mut stage, _) = stage(&caching(), 1 << 20);
    let healthy = stage.answer(request(1, prompt(2, 50), 5));
    stage.submit(request(2, prompt(2, 50), 5));
    stage.submit(request(3, vec![fake::POISON; 40], 5));
    stage.run();
    for tag in [2, 3] {
        assert!(matches!(stage.seen[&tag].failure(), EngineFailure::Internal(_)));
    }
    assert_eq!((stage.status().running, stage.status().kv_tokens.0), (0, 0));
    assert_eq!(stage.answer(request(4, prompt(2, 50), 5)).text, healthy.text);
}

#[test]
fn the_end_of_a_connection_ends_and_overwrites_everything() {
    let (mut stage, probe) = stage(&caching(), 1 << 20);
    (0..24).for_each(|tag| stage.submit(request(tag, prompt(tag as u32, 100), 50)));
    stage.steps(8);
    probe.pass_time(Duration::from_secs(1));
    stage.scheduler.clear();
    let status = stage.status();
    assert!(stage.scheduler.is_idle() && status.kv_wiped_bytes > 0);
    assert_eq!((status.running, status.waiting, status.kv_tokens.0), (0, [0, 0, 0], 0));
}
