//! An answer is a function of its request, however it was scheduled.

use super::*;

/// Requests of mixed lengths, seeds and bounds; some begin alike.
fn mixed(number: u64) -> Request {
    let length = 20 + (number as usize * 37) % 260;
    let temperature = if number.is_multiple_of(2) { 0.0 } else { 0.7 };
    Request {
        scope: scope(number as u8 % 2),
        caller: CallerKey(number % 3),
        ignore_end: true,
        sampling: SamplingSpec { temperature, seed: number, ..SamplingSpec::greedy() },
        ..request(number, prompt(number as u32 % 3, length), 40 + number as u32 % 9)
    }
}

fn alone(number: u64) -> Seen {
    stage(&plain(), 1 << 20).0.answer(mixed(number))
}

/// What a client sees, without what depends on when it was computed.
pub(super) fn same(a: &Seen, b: &Seen) -> bool {
    let reason = |seen: &Seen| (seen.finished().reason, seen.finished().completion_tokens);
    (&a.text, &a.logprobs, a.tokens, reason(a)) == (&b.text, &b.logprobs, b.tokens, reason(b))
}

#[test]
fn an_answer_is_the_same_alone_and_in_a_full_batch() {
    for (drafting, prefix_cache) in [(false, false), (true, false), (false, true), (true, true)] {
        let spec = ServingSpec { drafting, prefix_cache, ..ServingSpec::default() };
        let (mut stage, _) = stage(&spec, 1 << 20);
        for number in 0..20 {
            stage.submit(mixed(number));
            if number % 4 == 0 {
                stage.step();
            }
        }
        stage.run();
        for number in 0..20 {
            assert!(same(&stage.seen[&number], &alone(number)), "{number} with {drafting} {prefix_cache}");
        }
        let (drafted, cached) = (stage.status().draft_tokens, stage.status().prefix_tokens);
        assert_eq!(drafted.1 > 0, drafting, "{drafted:?}");
        assert!(drafted.0 >= drafted.1);
        assert_eq!(cached.1 > 0, prefix_cache, "{cached:?}");
    }
}

#[test]
fn an_answer_that_was_pre_empted_is_the_same() {
    let (mut stage, _) = stage(&ServingSpec::default(), 1024);
    for number in 0..3 {
        stage.submit(Request { class: ServiceClass::Batch, ..mixed(number) });
    }
    stage.steps(6);
    assert!(stage.tokens(0) > 0 && stage.status().running == 3);
    for number in 10..13 {
        let class = if number == 10 { ServiceClass::Crisis } else { ServiceClass::Interactive };
        stage.submit(Request { class, ..mixed(number) });
        stage.step();
    }
    assert!(stage.status().waiting[ServiceClass::Batch as usize] > 0, "{:?}", stage.status());
    stage.run();
    for number in [0, 1, 2, 10, 11, 12] {
        assert!(same(&stage.seen[&number], &alone(number)), "{number}");
    }
    assert_eq!((stage.status().running, stage.status().waiting), (0, [0, 0, 0]));
}

#[test]
fn the_beginning_of_an_answer_can_be_left_out_and_a_given_one_is_followed() {
    let whole = alone(3);
    let mut stage = stage(&ServingSpec::default(), 1 << 20).0;
    stage.submit(Request { skip_tokens: 5, ..mixed(3) });
    let mut tail = Vec::new();
    while stage.scheduler.step(&mut |_, event| {
        if let Event::Token { index, text, .. } = event {
            tail.push((index, text));
        }
    }) {}
    assert_eq!(tail.first().map(|(index, _)| *index), Some(5));
    let tail: String = tail.into_iter().map(|(_, text)| text).collect();
    assert!(whole.text.ends_with(&tail) && tail.len() < whole.text.len());
    let given = Continuation::Given(prompt(1, 30));
    let seen = stage.answer(Request { continuation: given, ..mixed(4) });
    assert_eq!(seen.finished().completion_tokens, 30);
    let (format, mut bytes) = (format(), Vec::new());
    prompt(1, 30).iter().for_each(|id| bytes.extend(format.tokenizer().bytes(*id)));
    assert_eq!(seen.text, String::from_utf8_lossy(&bytes));
}

#[test]
fn stop_strings_ends_and_absurd_wishes_are_taken_care_of() {
    let mut stage = stage(&ServingSpec::default(), 1 << 20).0;
    let whole = alone(2).text;
    let middle = whole.char_indices().nth(whole.chars().count() / 2).expect("long").0;
    let stop: String = whole[middle..].chars().take(2).collect();
    let seen = stage.answer(Request { stop: vec![stop.clone()], ..mixed(2) });
    assert_eq!(seen.finished().reason, FinishReason::Stop);
    assert_eq!(Some(seen.text.as_str()), whole.split(&stop).next());
    assert!(is_length(&stage.answer(Request { max_tokens: 0, ..mixed(5) })));
    let long = stage.scheduler.submit(request(90, prompt(1, fake::CONTEXT), 3));
    assert_eq!(long, Err(EngineFailure::PromptTooLong { tokens: 512, limit: 511 }));
    let whole_context = stage.answer(Request { ignore_end: true, ..request(91, prompt(1, 500), 3000) });
    assert_eq!(whole_context.finished().completion_tokens, 12);
    let absurd = |change: fn(&mut Request)| {
        let mut wish = mixed(6);
        change(&mut wish);
        wish
    };
    for (wish, word) in [
        (absurd(|wish| wish.prompt.clear()), "prompt"),
        (absurd(|wish| wish.sampling.temperature = f32::NAN), "temperature"),
        (absurd(|wish| wish.sampling.logit_bias = vec![(1 << 30, 1.0)]), "logit_bias"),
        (absurd(|wish| wish.stop = vec!["x".repeat(10_000)]), "stop"),
    ] {
        match stage.scheduler.submit(wish) {
            Err(EngineFailure::Refused(words)) => assert!(words.contains(word), "{words}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(stage.status().waiting, [0, 0, 0], "a refused wish leaves no place behind");
}
