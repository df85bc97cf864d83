//! Who is served when: classes, callers, deadlines, and prompts beside answers.

use super::*;
use std::time::Duration;

const INTERACTIVE: usize = ServiceClass::Interactive as usize;

fn endless(tag: u64, class: ServiceClass) -> Request {
    Request { class, ignore_end: true, ..request(tag, prompt(tag as u32 % 5, 24), 200) }
}

#[test]
fn a_crisis_is_answered_at_the_next_step_however_full_it_is() {
    for kv_tokens_max in [4 * 512, 1 << 20] {
        let (mut stage, _) = stage(&plain(), kv_tokens_max);
        for tag in 0..20 {
            stage.submit(endless(tag, ServiceClass::Interactive));
        }
        for tag in 20..36 {
            stage.submit(Request { caller: CallerKey(2), ..endless(tag, ServiceClass::Batch) });
        }
        stage.steps(5);
        for tag in 100..106 {
            stage.submit(Request { arrived: stage.scheduler.now(), ..endless(tag, ServiceClass::Crisis) });
        }
        stage.step();
        assert!((100..106).all(|tag| stage.tokens(tag) == 1), "with room for {kv_tokens_max}");
        stage.run();
        assert!(stage.seen.values().all(is_length));
    }
}

#[test]
fn callers_share_and_a_flood_of_one_does_not_hold_up_another() {
    let (mut stage, _) = stage(&plain(), 1 << 20);
    for tag in 0..24 {
        let max_tokens = 60 + 5 * tag as u32;
        stage.submit(Request { max_tokens, ..endless(tag, ServiceClass::Interactive) });
    }
    stage.steps(50);
    stage.submit(Request { caller: CallerKey(2), ..endless(50, ServiceClass::Interactive) });
    let ended = |stage: &Stage<_>| stage.seen.values().filter(|seen| seen.end.is_some()).count();
    while stage.tokens(50) == 0 {
        assert!(stage.step() && ended(&stage) <= 2, "it waited behind the whole flood");
    }
    assert!(stage.status().waiting[INTERACTIVE] > 4);
}

#[test]
fn who_would_be_answered_too_late_is_told_and_a_crisis_never_is() {
    let (mut stage, probe) = stage(&plain(), 1 << 20);
    stage.scheduler.warm_up().expect("warm");
    assert!(stage.status().warm && stage.status().steps > 0);
    let hurried = |tag, class, arrived| Request {
        class,
        arrived,
        first_token_within: Some(Duration::from_millis(300)),
        ..request(tag, prompt(1, 200), 5)
    };
    let now = stage.scheduler.now();
    assert!(is_length(&stage.answer(hurried(1, ServiceClass::Interactive, now))));
    let long = |arrived| Request { prompt: prompt(1, 400), ..hurried(5, ServiceClass::Interactive, arrived) };
    let now = stage.scheduler.now();
    assert!(is_length(&stage.answer(long(now))), "nobody is before it, and later it would take as long");
    let now = stage.scheduler.now();
    stage.submit(hurried(2, ServiceClass::Interactive, now));
    stage.submit(hurried(3, ServiceClass::Crisis, now));
    probe.pass_time(Duration::from_millis(150));
    stage.run();
    assert_eq!(*stage.seen[&2].failure(), EngineFailure::Late);
    assert!(is_length(&stage.seen[&3]));
    let times = stage.seen[&3].finished().times;
    assert_eq!((times.queued_us, times.prefill_us), (150_000, 200_000));
    assert!(stage.status().late == 1);
    let flood =
        |stage: &mut Stage<_>, tag| stage.scheduler.submit(hurried(tag, ServiceClass::Interactive, Duration::MAX / 2));
    assert_eq!(flood(&mut stage, 10), Ok(()));
    match flood(&mut stage, 11) {
        Err(EngineFailure::Busy { retry_after_ms }) => assert!(retry_after_ms >= 250, "{retry_after_ms}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn prompts_and_answers_go_on_beside_each_other() {
    let (mut stage, probe) = stage(&plain(), 1 << 20);
    stage.submit(endless(1, ServiceClass::Interactive));
    stage.step();
    for tag in 2..6 {
        stage.submit(Request { ignore_end: true, ..request(tag, prompt(3, 400), 20) });
    }
    let mut steps = 0;
    while stage.tokens(5) == 0 {
        probe.take_rows();
        let before = stage.tokens(1);
        stage.step();
        steps += 1;
        assert_eq!(stage.tokens(1), before + 1, "an answer waited for a prompt");
        assert!(probe.take_rows() as usize <= PREFILL_ROWS_BESIDE + 5);
    }
    assert_eq!(steps, (4 * 400usize).div_ceil(PREFILL_ROWS_BESIDE));
}
