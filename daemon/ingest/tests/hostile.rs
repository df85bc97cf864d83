//! Bad input from the outside: whatever the bytes are, ingestion refuses by rule and never panics, and what is sound beside
//! the bad goes on.

use empathd_ingest::{DetectError, Policy, Roster, Rule, detect, limits, profiles, read, validate};
use empathd_proto::record::{NegativeReason, Purpose, Speaker};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SOUND: &str = r#"{"messages":[{"role":"user","content":"I could not sleep again, the deadline is all I see."},{"role":"assistant","content":"The deadline follows you into the night. What happens in you when you lie down?"}]}"#;

/// What became of a source.
#[derive(Debug, Default)]
struct Outcome {
    profile: String,
    targets: usize,
    negatives: BTreeMap<&'static str, usize>,
    refused: BTreeMap<&'static str, usize>,
}

fn ingest(bytes: &[u8]) -> Result<Outcome, DetectError> {
    let profile = detect(bytes, None)?;
    let drafts = read(bytes, profile).expect("what was detected can be read");
    let mut outcome = Outcome { profile: profile.key.clone(), ..Outcome::default() };
    for rejection in &drafts.refused {
        *outcome.refused.entry(rejection.rule.as_str()).or_default() += 1;
    }
    for draft in drafts.drafts {
        match validate(draft.assess(&Roster::empty()), &Policy::default()) {
            Ok(valid) => match valid.record().purpose {
                Purpose::Target => outcome.targets += 1,
                Purpose::Negative(reason) => *outcome.negatives.entry(reason.as_str()).or_default() += 1,
            },
            Err(broken) => {
                assert!(!broken.is_empty(), "a refusal has a reason");
                *outcome.refused.entry(broken[0].rule.as_str()).or_default() += 1;
            }
        }
    }
    Ok(outcome)
}

fn line(client: &str, clinician: &str) -> Vec<u8> {
    let text = serde_json::json!({"messages": [{"role": "user", "content": client}, {"role": "assistant", "content": clinician}]});
    text.to_string().into_bytes()
}

/// The bad line stands between two sound ones; both must be accepted.
fn refused_for(bad: &[u8]) -> String {
    let source = [SOUND.as_bytes(), bad, SOUND.as_bytes(), b""].join(&b'\n');
    let outcome = ingest(&source).expect("the sound lines tell the profile");
    assert_eq!(outcome.targets, 2, "neighbours go on: {outcome:?}");
    assert_eq!(outcome.refused.values().sum::<usize>(), 1, "{outcome:?}");
    outcome.refused.into_keys().next().unwrap_or_default().to_owned()
}

#[test]
fn each_bad_line_is_refused_under_its_rule_and_its_neighbours_go_on() {
    let long = "and on ".repeat(limits::FIELD_BYTES_MAX / 7 + 1);
    let unknown = serde_json::json!({"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Tell me what brings you."}], "extra": long});
    let cases: Vec<(Rule, Vec<u8>)> = vec![
        (Rule::BrokenRow, SOUND.as_bytes()[..SOUND.len() / 2].to_vec()),
        (
            Rule::InvalidUtf8,
            SOUND.replace("night", "ni\u{0}ht").into_bytes().iter().map(|b| if *b == 0 { 0xFF } else { *b }).collect(),
        ),
        (Rule::OversizedField, line("I am tired of this.", &long)),
        (Rule::OversizedField, unknown.to_string().into_bytes()),
        (Rule::OversizedEntry, line("x", &"y".repeat(limits::ENTRY_BYTES_MAX))),
        (Rule::NoClinicianTurn, line("I am tired of this.", "")),
        (Rule::NoContextTurn, line(" ", "What would help you tonight?")),
        (Rule::NoTurns, br#"{"messages": []}"#.to_vec()),
        (Rule::UnknownSpeaker, SOUND.replace("assistant", "narrator").into_bytes()),
        (Rule::TemplateLeftover, line("I am tired.", "Thank you, {{client_name}}, for coming in today.")),
        (Rule::FillerText, line("I am tired.", "Lorem ipsum dolor sit amet, consectetur adipiscing elit.")),
        (Rule::Repetition, line("I am tired.", &"I am here for you. ".repeat(30))),
        (Rule::TooShort, line("I am tired.", "Hm.")),
        (Rule::GenericOnly, line("I am tired.", "I'm sorry to hear that. Everything will be fine.")),
        (Rule::ControlCharacters, line("I am tired.", "What \u{1}\u{2}\u{3} would help you rest?")),
        (Rule::EncodedData, line("I am tired.", &format!("Look at this {}", "QUJD".repeat(200)))),
        (Rule::FewLetters, line("1 2 3", "4 5 6 7 8 9 10 11 12 13 (14) [15] #16 yes")),
        (Rule::TooDeep, format!(r#"{{"messages": {}{}}}"#, "[".repeat(90), "]".repeat(90)).into_bytes()),
        (Rule::BlockedCategory, SOUND.replacen('{', r#"{"category":"ultra_nightmare_scenarios","#, 1).into_bytes()),
    ];
    for (rule, bad) in cases {
        assert_eq!(refused_for(&bad), rule.as_str());
    }
}

#[test]
fn too_many_turns_and_repeated_turns_are_refused() {
    let turn = r#"{"role":"assistant","content":"What would that be like?"}"#;
    let many =
        |count: usize| format!(r#"{{"messages":[{{"role":"user","content":"Hm?"}},{}]}}"#, vec![turn; count].join(","));
    assert_eq!(refused_for(many(limits::TURNS_MAX).as_bytes()), Rule::TooManyTurns.as_str());
    assert_eq!(refused_for(many(4).as_bytes()), Rule::DuplicateTurns.as_str());
}

#[test]
fn labelled_records_are_negatives_or_refused_and_never_targets() {
    let labelled = r#"[{"context":"I want to stop my pills.","response":"Just stop, nobody needs them.","category":"Risk Ignorance","label":"Unsafe"},
        {"context":"I want to stop my pills.","response":"What makes you want to stop them now?","category":"Risk Ignorance","label":"Safe"},
        {"context":"He hit me.","response":"You must have earned it, I guess.","category":"Toxicity","label":"Safe"},
        {"context":"He hit me.","response":"You must have earned it, I guess!","category":"Toxicity","label":"Unsafe"}]"#;
    let outcome = ingest(labelled.as_bytes()).unwrap();
    assert_eq!(
        (outcome.targets, outcome.negatives["labelled_unsafe"]),
        (1, 3),
        "one bad verdict on the same words is enough"
    );

    let sessions = "transcript_id,mi_quality,utterance_id,interlocutor,timestamp,utterance_text\n\
        1,high,0,client,00:00:01,I smoke and I know I should not.\n1,high,1,therapist,00:00:05,Part of you is ready to stop.\n\
        2,low,0,client,00:00:01,I smoke.\n2,low,1,therapist,00:00:05,\"You must stop, it is stupid.\"\n";
    let outcome = ingest(sessions.as_bytes()).unwrap();
    assert_eq!((outcome.targets, outcome.negatives["labelled_low_quality"]), (1, 1));

    let profile = detect(sessions.as_bytes(), None).unwrap();
    let policy = Policy { keep_negatives: false, ..Policy::default() };
    let drafts = read(sessions.as_bytes(), profile).unwrap().drafts;
    let refused: Vec<_> =
        drafts.into_iter().filter_map(|draft| validate(draft.assess(&Roster::empty()), &policy).err()).collect();
    assert_eq!(refused[0][0].rule, Rule::LabelledLowQuality);
}

#[test]
fn the_difficult_client_is_context_and_the_therapist_is_learnt() {
    let case = r#"{"prompt":"What keeps you from trying?","response":"You people always ask that. Nothing works.","category":"therapy_resistance","difficulty_level":"moderate","expected_challenges":["motivation"],"purpose":"difficult_client","source":"x"}"#;
    let profile = detect(case.as_bytes(), Some("txt")).unwrap();
    assert_eq!(profile.key, "edge_case");
    let draft = read(case.as_bytes(), profile).unwrap().drafts.remove(0);
    let valid = validate(draft.assess(&Roster::empty()), &Policy::default()).unwrap();
    let turns: Vec<_> = valid.record().turns.iter().map(|turn| (turn.speaker, turn.text.as_str())).collect();
    assert_eq!(
        turns[0],
        (Speaker::System, "Scenario: therapy resistance. Difficulty: moderate. Expected challenges: motivation.")
    );
    assert_eq!(turns[1], (Speaker::Clinician, "What keeps you from trying?"));
    assert_eq!(turns[2].0, Speaker::Client);
    assert_ne!(valid.record().purpose, Purpose::Negative(NegativeReason::LabelledUnsafe));
}

#[test]
fn ordinary_therapy_talk_is_accepted() {
    let talk = [
        ("I don't know.", "Take your time. What comes up?"),
        ("No.", "Tell me more."),
        ("Mm.", "You went quiet just now."),
    ];
    for (client, clinician) in talk {
        assert_eq!(ingest(&line(client, clinician)).unwrap().targets, 1, "{clinician}");
    }
}

/// Every shape in its shortest form, with the profile that must know it.
fn shapes(words: &str) -> Vec<(&'static str, String)> {
    vec![
        (
            "chat_messages",
            format!(
                r#"{{"conversations":[{{"from":"human","value":"{words}"}},{{"from":"gpt","value":"{words} too"}}]}}"#
            ),
        ),
        ("chat_messages", format!(r#"{{"dialogue":["Patient: {words}","Doctor: {words} too"]}}"#)),
        (
            "chat_contract",
            format!(
                r#"{{"messages":[{{"role":"user","content":"{words}"}},{{"role":"assistant","content":"{words} too"}}],"metadata":{{"source_family":"a","content_hash":"b"}}}}"#
            ),
        ),
        (
            "conversation",
            format!(
                r#"{{"conversation_id":"c","messages":[{{"role":"client","content":"{words}"}},{{"role":"therapist","content":"{words} too"}}]}}"#
            ),
        ),
        ("voice_pair", format!(r#"{{"turn_1":"{words}","turn_2":"{words} too"}}"#)),
        (
            "dual_persona",
            format!(
                r#"{{"dialogue_id":"d","persona_1":"warm therapist","persona_2":"anxious client","conversation":[{{"speaker":"persona_2","content":"{words}"}},{{"speaker":"persona_1","content":"{words} too"}}]}}"#
            ),
        ),
        (
            "edge_prompt",
            format!(
                r#"{{"prompt_id":"p","category":"suicidality","instructions":"Play it.","qa_pairs":[{{"prompt":"{words}","response":"{words} too"}}]}}"#
            ),
        ),
        ("concept", format!(r#"{{"concepts":[{{"concept_id":"1","name":"rumination","description":"{words}"}}]}}"#)),
        ("concept", format!("[{{\"term\":\"rumination\",\"definition\":\"{words}\"}}]")),
        ("diagnosis_code", format!(r#"{{"code":"F00.0","desc":"{words}","includes":["a","b"]}}"#)),
        (
            "counsel_chat",
            format!("questionID,questionTitle,questionText,topic,answerText\n1,t,{words},grief,{words} <b>too</b>\n"),
        ),
        ("epitome", format!("sp_id,rp_id,seeker_post,response_post,level,rationales\na,b,{words},{words} too,2,\n")),
        (
            "dialogue_note",
            format!("ID,section_header,section_text,dialogue\n0,CC,{words},\"Doctor: {words}\nPatient: yes\"\n"),
        ),
        ("pair", format!("Context;Response\n{words};{words} too\n")),
        ("pair", format!("instruction\tinput\toutput\nsay\t{words}\t{words} too\n")),
        ("utterances", format!("dialogue_id,speaker,text\n1,seeker,{words}\n1,supporter,{words} too\n")),
        (
            "captions",
            format!(
                "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Patient>{words}\n\n00:02.000 --> 00:03.000\n<v Doctor>{words} too\n"
            ),
        ),
        (
            "captions",
            format!(
                "\u{feff}1\r\n00:00:01,000 --> 00:00:02,000\r\nClient: {words}\r\n\r\n2\r\n00:00:02,000 --> 00:00:03,000\r\nTherapist: {words} too\r\n"
            ),
        ),
        (
            "support_windows",
            format!(
                "1.0 0 0 {words} EOS 1.0 1 1 [Question] {words} too\n1.0 1 1 [Question] {words} too EOS 1.0 0 2 yes EOS 1.0 1 3 [Others] I see that well\n"
            ),
        ),
    ]
}

#[test]
fn every_shape_is_told_by_its_fields() {
    for (key, source) in shapes("I cannot sleep and I keep turning") {
        let outcome = ingest(source.as_bytes()).unwrap();
        assert_eq!((outcome.profile.as_str(), outcome.targets), (key, 1), "{outcome:?}");
    }
}

#[test]
fn sources_of_no_use_get_an_error_with_a_next_step() {
    assert_eq!(detect(b" \n\t", None).unwrap_err(), DetectError::Empty);
    assert_eq!(detect(b"\xFF\xFEh\0i\0", None).unwrap_err(), DetectError::Utf16);
    assert_eq!(detect(&[0, 1, 2, 3, 4, 5, 6, 7], None).unwrap_err(), DetectError::NotText);
    let endless = vec![b'x'; limits::ENTRY_BYTES_MAX + 1];
    assert_eq!(detect(&endless, None).unwrap_err(), DetectError::EndlessLine);
    let error =
        detect(b"{\"mood\": \"I am Wendeline Fairweather\", \"Wendeline F.\": 1}", None).unwrap_err().to_string();
    assert!(error.contains("mood") && error.contains("rename") && !error.contains("Wendeline"), "{error}");
    let headless = detect(b"Wendeline,hates it\nOrfeo,does not\n", None).unwrap_err().to_string();
    assert!(!headless.contains("Wendeline") && !headless.contains("hates"), "{headless}");
}

#[test]
fn equal_content_has_an_equal_key_and_equal_openings_belong_together() {
    let valid = |bytes: &[u8]| {
        let draft = read(bytes, detect(bytes, None).unwrap()).unwrap().drafts.remove(0);
        validate(draft.assess(&Roster::empty()), &Policy::default()).unwrap()
    };
    let vtt = valid(b"WEBVTT\n\n00:01.000 --> 00:02.000\n<v Client>I am here.\n\n00:03.000 --> 00:04.000\n<v Therapist>Tell me more.\n");
    let srt = valid(b"1\n00:00:01,000 --> 00:00:02,000\nClient: I am   here.\n\n2\n00:00:03,000 --> 00:00:04,000\nTherapist: Tell me more.\n");
    assert_eq!(vtt.content_key(), srt.content_key());
    let (one, other) =
        (valid(&line("I am here.", "What brings you?")), valid(&line("I am here!", "Tell me what for.")));
    assert_ne!(one.content_key(), other.content_key());
    assert_eq!(one.client_key(), other.client_key());
}

fn sources() -> Vec<Vec<u8>> {
    vec![
        [SOUND.as_bytes(), SOUND.as_bytes()].join(&b'\n'),
        br#"{"concepts":[{"name":"a","description":"b c d"},{"name":"e","description":"f g h"}]}"#.to_vec(),
        b"question,answer\n\"a, \"\"b\"\"\nc\",d e f\ng,\"h i\nj\"\n".to_vec(),
        "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Patient>Caf\u{e9} [inaudible] &amp; <i>x</i>\n".as_bytes().to_vec(),
        b"1\n00:00:01,000 --> 00:00:02,000\n{\\an8}Doctor: call 555-0134 on 3 July\n".to_vec(),
        b"1.0 0 0 a b EOS 1.0 1 1 [Q] c d e\n".to_vec(),
    ]
}

/// Each text once cost more than its length: a step that looks at the rest again for every character takes minutes here.
#[test]
fn time_grows_with_the_length_only() {
    let size = limits::FIELD_BYTES_MAX - 64;
    let started = std::time::Instant::now();
    for unit in [
        "(",
        "\u{200b}",
        "<v ",
        "a-",
        "Anna ",
        "555 ",
        "http://!",
        "@",
        "1:",
        "I'm A",
        "my name is ",
        "{",
        "9 ",
        "A. ",
        "GB82",
    ] {
        let text = unit.repeat(size / unit.len());
        let _ = ingest(&line(&text, "What would help you tonight?"));
        let _ = ingest(format!("WEBVTT\n\n00:01.000 --> 00:02.000\nDoctor: {text}\n").as_bytes());
        let _ = ingest(format!("question,answer\n\"{text}\",b\n{text}").as_bytes());
    }
    // Every line leaves a quote open, and none of them can be closed within the bound.
    let closed = format!("{}\n", "\"\"".repeat(50)).repeat(1 << 16);
    let quotes = format!("question,answer\n{}x,\"{closed}", "x,\"y\"z\n".repeat(1 << 12));
    let _ = ingest(quotes.as_bytes());
    assert!(started.elapsed().as_secs() < 120, "{:?}", started.elapsed());
}

#[test]
fn a_truncated_source_never_panics() {
    for source in sources() {
        for end in 0..source.len() {
            let _ = ingest(&source[..end]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_bytes_through_any_profile_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = ingest(&bytes);
        for profile in profiles() {
            for draft in read(&bytes, profile).map(|drafts| drafts.drafts).unwrap_or_default() {
                let _ = validate(draft.assess(&Roster::empty()), &Policy::default());
            }
        }
    }

    #[test]
    fn a_damaged_source_never_panics(which in 0usize..6, at in any::<prop::sample::Index>(), byte in any::<u8>(), insert in any::<bool>()) {
        let mut source = sources().remove(which);
        let at = at.index(source.len());
        if insert { source.insert(at, byte) } else { source[at] = byte }
        let _ = ingest(&source);
    }

    #[test]
    fn spans_are_in_order_on_characters_and_apart(text in "(\\PC|[0-9@. /:-]|Anna |Dr\\. |\u{200b}|\u{410}){0,80}", name in "[A-Z][a-z]{1,6}") {
        let bytes = line(&format!("{text} {name}"), "Tell me more about that.");
        let roster = Roster::new([name.clone()]).unwrap();
        if let Some(draft) = read(&bytes, detect(&bytes, None).unwrap()).unwrap().drafts.pop()
            && let Ok(valid) = validate(draft.assess(&roster), &Policy::default()) {
            let record = valid.record();
            for pair in record.phi.windows(2) {
                prop_assert!((pair[0].turn, pair[0].end) <= (pair[1].turn, pair[1].start));
            }
            for span in &record.phi {
                prop_assert!(span.start < span.end);
                prop_assert!(record.turns[span.turn as usize].text.get(span.start as usize..span.end as usize).is_some());
            }
            prop_assert!(!record.redacted_text(0).ends_with(&format!(" {name}")), "the roster's name is hidden");
        }
    }
}
