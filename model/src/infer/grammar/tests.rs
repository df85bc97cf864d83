//! Grammars with the tiny tokenizer: whatever the logits say, the answer has the form; whatever the schema says, reading
//! and following it ends.

use super::*;
use crate::counter::{Counter, Site};
use crate::infer::{ChooseError, Chooser};
use crate::tiny;
use empathd_proto::generate::{MAX_GRAMMAR_BYTES, SamplingSpec};
use serde::de::IgnoredAny;
use serde_json::Value;
use std::sync::LazyLock;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| tiny::tokenizer().expect("built"));
static FACTORY: LazyLock<GrammarFactory> = LazyLock::new(|| GrammarFactory::new(&TOKENIZER).expect("built"));

/// Logits of a model that knows nothing, other ones at each position; lower ones for white space, so that answers end.
fn logits(seed: u64, index: u32) -> Vec<f32> {
    let number = |id: u64| 3.0 * Counter::new(seed).normal(Site::new("logit", index.into()), id) as f32;
    let blank = |id: u64| u32::try_from(id).is_ok_and(|id| TOKENIZER.bytes(id).trim_ascii().is_empty());
    (0..TOKENIZER.len() as u64).map(|id| if blank(id) { number(id) - 9.0 } else { number(id) }).collect()
}

/// At most `tokens_max` tokens of an answer, and whether it ended by itself.
fn answer(grammar: &Grammar, seed: u64, tokens_max: u32) -> Result<(String, bool), ChooseError> {
    let matcher = FACTORY.matcher(grammar)?;
    let mut chooser = Chooser::new(&SamplingSpec::greedy(), TOKENIZER.len(), Some(matcher)).expect("within ranges");
    let mut bytes = Vec::new();
    for index in 0..tokens_max {
        let id = chooser.choose(&logits(seed, index), index)?.id;
        chooser.took(id)?;
        bytes.extend_from_slice(TOKENIZER.bytes(id));
        if TOKENIZER.is_end(id) || chooser.is_complete() {
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), true));
        }
    }
    Ok((String::from_utf8_lossy(&bytes).into_owned(), false))
}

fn schema(text: impl Into<String>) -> Grammar {
    Grammar::JsonSchema(text.into())
}

fn refusal(text: impl Into<String>) -> Option<GrammarError> {
    FACTORY.matcher(&schema(text)).err()
}

/// Parts joined to a list.
fn list(count: usize, part: impl Fn(usize) -> String) -> String {
    (0..count).map(part).collect::<Vec<_>>().join(",")
}

#[test]
fn answers_are_json_of_the_schema_whatever_the_logits_say() {
    let note = schema(
        r##"{"type":"object","additionalProperties":false,"required":["risk","score","goals","date"],"properties":{
            "risk":{"enum":["none","low","high"]},"score":{"type":"integer","minimum":0,"maximum":27},
            "goals":{"type":"array","items":{"$ref":"#/$defs/goal"},"minItems":1,"maxItems":2},
            "date":{"type":"string","format":"date"}},"$defs":{"goal":{"type":"string","maxLength":12}}}"##,
    );
    let mut ended = 0;
    for seed in 0..12 {
        let (text, whole) = answer(&note, seed, 300).expect("followed");
        if !whole {
            continue;
        }
        ended += 1;
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert!(["none", "low", "high"].contains(&value["risk"].as_str().expect("text")), "{text}");
        assert!(value["score"].as_u64().is_some_and(|score| score <= 27), "{text}");
        let goals = value["goals"].as_array().expect("list");
        assert!(
            (1..=2).contains(&goals.len()) && value.as_object().is_some_and(|members| members.len() == 4),
            "{text}"
        );
        assert!(goals.iter().all(|goal| goal.as_str().is_some_and(|goal| goal.chars().count() <= 12)), "{text}");
        assert_eq!(value["date"].as_str().map(str::len), Some(10), "{text}");
    }
    assert!(ended >= 8, "{ended}");
}

#[test]
fn any_object_is_an_object_and_nothing_follows_it() {
    for seed in 0..8 {
        let (text, whole) = answer(&Grammar::JsonObject, seed, 200).expect("followed");
        assert!(text.trim_start().starts_with('{'), "{text}");
        // Not as a `Value`: a number may be larger than any that it can hold.
        assert!(!whole || serde_json::from_str::<IgnoredAny>(&text).is_ok() && text.ends_with('}'), "{text}");
    }
    let (text, whole) = answer(&schema(r#"{"const":{"a":[1,null]}}"#), 1, 100).expect("followed");
    assert_eq!((text.replace([' ', '\n', '\t'], ""), whole), (r#"{"a":[1,null]}"#.to_owned(), true));
}

#[test]
fn a_token_that_may_not_follow_is_told_from_a_bound() {
    let mut matcher = FACTORY.matcher(&Grammar::JsonObject).expect("read");
    let letter = TOKENIZER.encode("x").expect("encodes")[0].id;
    assert_eq!(matcher.took(letter), Err(GrammarError::Token));
}

#[test]
fn what_no_value_can_meet_is_refused_at_once() {
    let impossible = [
        r#"{"type":"integer","minimum":5,"maximum":3}"#,
        r#"{"enum":[]}"#,
        r#"{"allOf":[{"type":"string"},{"type":"integer"}]}"#,
        r#"{"type":"string","pattern":"^a{10}$","maxLength":3}"#,
        r#"{"type":"array","minItems":5,"maxItems":3}"#,
        r#"{"type":"object","properties":{"a":false},"required":["a"]}"#,
    ];
    for text in impossible {
        assert_eq!(refusal(text), Some(GrammarError::Unsatisfiable), "{text}");
    }
}

#[test]
fn what_is_unreadable_or_beyond_a_bound_is_refused_by_what_it_is() {
    let nested = |levels: usize| format!("{}{{}}{}", r#"{"items":"#.repeat(levels), "}".repeat(levels));
    let named = |count| list(count, |number| format!(r#""p{number}":{{"type":"string"}}"#));
    let both = |count| list(count, |number| format!(r#"{{"pattern":"a.{{{number}}}b"}}"#));
    let refused = [
        ("[]".to_owned(), "not a JSON object"),
        ("{".to_owned(), "not a JSON object"),
        (nested(5000), "not a JSON object"),
        (nested(60), "nesting"),
        (format!(r#"{{"const":"{}"}}"#, "a".repeat(MAX_GRAMMAR_BYTES)), "bytes"),
        (format!(r#"{{"enum":[{}]}}"#, list(9000, |number| number.to_string())), "values"),
        (r#"{"type":"string","minLength":5000}"#.to_owned(), "a count"),
        (format!(r#"{{"properties":{{{}}}}}"#, named(513)), "named properties"),
        (format!(r#"{{"patternProperties":{{{}}}}}"#, named(9)), "patterns of names"),
        (format!(r#"{{"allOf":[{}]}}"#, both(30)), "patterns that may have to hold together"),
        (r#"{"not":{"type":"string"}}"#.to_owned(), "a keyword that cannot be held to"),
        (r#"{"$ref":"http://example.com/x"}"#.to_owned(), "not supported"),
    ];
    for (text, words) in refused {
        let error = refusal(text).expect(words).to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains("schema in response_format"), "{error}");
    }
}

/// Schemas that once took minutes, or whose every part is as large as it may be. That this test ends is what it shows.
#[test]
fn hostile_schemas_end_soon_whether_they_are_read_or_refused() {
    let option = |number| format!(r#"{{"type":"object","properties":{{"k{number}":{{"type":"integer"}}}}}}"#);
    let alternatives = format!(r#"{{"anyOf":[{}]}}"#, list(12, option));
    let double = |number| {
        let next = number + 1;
        format!(r##""d{number}":{{"allOf":[{{"$ref":"#/$defs/d{next}"}},{{"$ref":"#/$defs/d{next}"}}]}}"##)
    };
    let branches = list(40, |number| format!("[a{number}].{{{number}}}x")).replace(',', "|");
    let hostile = [
        r##"{"$ref":"#"}"##.to_owned(),
        r##"{"type":"object","required":["a"],"properties":{"a":{"$ref":"#"}}}"##.to_owned(),
        format!(r##"{{"$ref":"#/$defs/d0","$defs":{{{},"d60":{{"type":"object"}}}}}}"##, list(60, double)),
        format!(r#"{{"allOf":[{}]}}"#, list(12, |_| alternatives.clone())),
        r#"{"type":"string","pattern":"^(((a{1,100}){1,100}){1,100}){1,100}$"}"#.to_owned(),
        r#"{"type":"string","pattern":"^([^a]*a.{12}){20}$"}"#.to_owned(),
        r#"{"type":"string","pattern":"^(\\p{L}|\\w|\\W){500}$"}"#.to_owned(),
        format!(r#"{{"type":"string","pattern":"{}"}}"#, "(a|b)*c".repeat(6000)),
        format!(r#"{{"type":"string","pattern":"{branches}","minLength":9,"maxLength":4000}}"#),
        format!(r#"{{"anyOf":[{}]}}"#, list(900, |number| format!(r#"{{"type":"string","pattern":"a.{{{number}}}b"}}"#))),
        r#"{"type":"number","multipleOf":0.000001,"allOf":[{"multipleOf":7919},{"multipleOf":104729}]}"#.to_owned(),
        r#"{"type":"integer","multipleOf":999983,"minimum":1,"maximum":99999999999}"#.to_owned(),
        r#"{"type":"object","minProperties":4096,"maxProperties":4096}"#.to_owned(),
        r#"{"type":"array","minItems":4096,"items":{"type":"array","minItems":4096,"items":{"type":"string","minLength":4000}}}"#
            .to_owned(),
        format!(r#"{{"type":"object","properties":{{{}}}}}"#, list(500, |number| format!(r#""p{number}":{{"minItems":4000}}"#))),
    ];
    for text in hostile {
        match answer(&schema(text.clone()), 5, 40) {
            Ok(_) | Err(ChooseError::Grammar(GrammarError::TooCostly | GrammarError::Unusable(_))) => {}
            Err(error) => panic!("{error}: {}", &text[..text.len().min(200)]),
        }
    }
}

#[test]
fn a_wide_object_of_optional_members_can_be_followed() {
    let members = list(300, |number| format!(r#""p{number}":{{"type":"boolean"}}"#));
    let wide = schema(format!(r#"{{"type":"object","properties":{{{members}}},"required":["p7"]}}"#));
    let (text, _) = answer(&wide, 3, 60).expect("followed");
    assert!(text.starts_with('{'), "{text}");
}

/// Whether every token of the text may stand where it does, and whether the answer may end behind it.
fn follows(grammar: &Grammar, text: &str) -> Option<bool> {
    let mut matcher = FACTORY.matcher(grammar).expect("readable");
    for piece in TOKENIZER.encode(text).expect("encodes") {
        matcher.took(piece.id).ok()?;
    }
    let mut logits = vec![0.0; TOKENIZER.len()];
    matcher.restrict(&mut logits).ok()?;
    Some(TOKENIZER.ends().iter().any(|end| logits[*end as usize] == 0.0))
}

#[test]
fn between_marks_stands_json_of_the_schema_and_elsewhere_any_text() {
    let schema = r#"{"type":"object","properties":{"a":{"enum":["x"]}},"required":["a"],"additionalProperties":false}"#;
    let grammar = Grammar::Marked { open: "<call>".into(), close: "</call>".into(), schema: schema.into() };
    for (text, may_end) in [
        ("", Some(true)),
        ("Words, 1 < 2 <ca", Some(true)),
        ("Words. <call>", Some(false)),
        ("<call>\n{\"a\": \"x\"}\n", Some(false)),
        ("<call>{\"a\":\"x\"}</call>", Some(true)),
        ("See <call>{\"a\":\"x\"}</call>\n<call>{\"a\":\"x\"}</call> and more", Some(true)),
        ("<call>{\"b\"", None),
        ("<call>words", None),
        ("<call>{\"a\":\"x\"}</call> <call>{}", None),
    ] {
        assert_eq!(follows(&grammar, text), may_end, "{text}");
    }
    let odd = Grammar::Marked { open: "/.*/".into(), close: "x".into(), schema: schema.into() };
    assert!(matches!(FACTORY.matcher(&odd), Err(GrammarError::Unusable(_))));
}
