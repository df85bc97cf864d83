//! From records to examples: identifiers replaced, speakers turned into roles, long conversations into windows. Pure; what
//! the engine does with an example is not known here.

use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{Example, Part};
use empathd_proto::generate::PlainMessage;
use empathd_proto::record::{Domain, Record, Speaker};
use std::collections::BTreeMap;

/// Bytes of text that one token stands for, taken low, so that a window is rarely longer than a sequence.
const BYTES_PER_TOKEN: usize = 3;

/// The examples of a record. A conversation longer than `seq_len` tokens, as far as its bytes tell, becomes several, each
/// of which begins with the client and ends with the clinician.
pub fn examples(record: &Record, part: Part, seq_len: u32) -> Vec<Example> {
    let window_bytes = seq_len as usize * BYTES_PER_TOKEN;
    let mut windows: Vec<Vec<PlainMessage>> = Vec::new();
    let mut bytes = 0;
    for exchange in exchanges(messages(record)) {
        let exchange_bytes: usize = exchange.iter().map(|message| message.text.len()).sum();
        match windows.last_mut().filter(|_| bytes + exchange_bytes <= window_bytes) {
            Some(window) => window.extend(exchange),
            None => {
                bytes = 0;
                windows.push(exchange);
            }
        }
        bytes += exchange_bytes;
    }
    windows.into_iter().map(|messages| Example { domain: record.domain, part, messages }).collect()
}

/// The turns as messages that alternate: identifiers are replaced, and turns of one side in a row are one message.
fn messages(record: &Record) -> Vec<PlainMessage> {
    let mut messages: Vec<PlainMessage> = Vec::new();
    for (index, turn) in record.turns.iter().enumerate() {
        let role = match turn.speaker {
            Speaker::Client | Speaker::System => ChatRole::User,
            Speaker::Clinician => ChatRole::Assistant,
        };
        let redacted = record.redacted_text(index);
        let text = redacted.trim();
        if text.is_empty() {
            continue;
        }
        match messages.last_mut().filter(|last| last.role == role) {
            Some(last) => {
                last.text.push('\n');
                last.text.push_str(text);
            }
            None => messages.push(PlainMessage { role, text: text.to_owned() }),
        }
    }
    messages
}

/// Pairs of what was said and what the clinician answered. An answer to nothing and words without an answer fall away.
fn exchanges(messages: Vec<PlainMessage>) -> impl Iterator<Item = Vec<PlainMessage>> {
    let mut messages = messages.into_iter().skip_while(|message| message.role == ChatRole::Assistant);
    std::iter::from_fn(move || Some(vec![messages.next()?, messages.next()?]))
}

/// At most `max` examples, taken from each domain in turn, in the order in which they come.
pub(crate) fn balanced(examples: Vec<Example>, max: usize) -> Vec<Example> {
    let mut by_domain: BTreeMap<Domain, std::vec::IntoIter<Example>> = BTreeMap::new();
    let mut sorted: BTreeMap<Domain, Vec<Example>> = BTreeMap::new();
    for example in examples {
        sorted.entry(example.domain).or_default().push(example);
    }
    by_domain.extend(sorted.into_iter().map(|(domain, examples)| (domain, examples.into_iter())));
    let mut chosen = Vec::new();
    loop {
        let before = chosen.len();
        for examples in by_domain.values_mut() {
            if chosen.len() < max {
                chosen.extend(examples.next());
            }
        }
        if chosen.len() == before {
            return chosen;
        }
    }
}

/// What each expert is for: one for each domain there is, and free ones up to `min`; never more than `max`.
pub(crate) fn experts(examples: &[Example], min: usize, max: usize) -> Vec<Option<Domain>> {
    let there =
        |domain: &&Domain| examples.iter().any(|example| example.part == Part::Learn && example.domain == **domain);
    let mut experts: Vec<_> = Domain::ALL.iter().filter(there).map(|domain| Some(*domain)).take(max).collect();
    experts.resize(experts.len().max(min), None);
    experts
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::record::{PhiKind, PhiSpan, Purpose, Scores, Turn, Unit};

    fn record(turns: &[(Speaker, &str)]) -> Record {
        let turns =
            turns.iter().map(|(speaker, text)| Turn { speaker: *speaker, text: (*text).into(), start_ms: None });
        Record {
            profile: "test".into(),
            licence: "none".into(),
            unit: Unit::Conversation,
            domain: Domain::TherapyDialogue,
            category: None,
            difficulty: None,
            turns: turns.collect(),
            phi: Vec::new(),
            scores: Scores::default(),
            purpose: Purpose::Target,
        }
    }

    fn shown(examples: &[Example]) -> Vec<String> {
        let line = |message: &PlainMessage| format!("{}:{}", message.role.as_str(), message.text.replace('\n', "|"));
        examples.iter().map(|example| example.messages.iter().map(line).collect::<Vec<_>>().join(" ")).collect()
    }

    use Speaker::{Client, Clinician, System};

    #[test]
    fn turns_become_alternating_messages_that_begin_with_the_user() {
        let record = record(&[
            (Clinician, "Hello"),
            (System, "Context"),
            (Client, "I"),
            (Client, " "),
            (Clinician, "a"),
            (Clinician, "b"),
            (Client, "bye"),
        ]);
        assert_eq!(shown(&examples(&record, Part::Learn, 256)), ["user:Context|I assistant:a|b"]);
    }

    #[test]
    fn nobody_to_learn_from_gives_no_example() {
        assert!(examples(&record(&[(Client, "Hello?")]), Part::Learn, 256).is_empty());
        assert!(examples(&record(&[(Clinician, "Hello.")]), Part::Learn, 256).is_empty());
    }

    #[test]
    fn an_example_never_shows_an_identifier() {
        let mut record = record(&[(Client, "I am Mary"), (Clinician, "Hello Mary")]);
        record.phi = vec![
            PhiSpan { turn: 0, start: 5, end: 9, kind: PhiKind::Name },
            PhiSpan { turn: 1, start: 6, end: 10, kind: PhiKind::Name },
        ];
        assert_eq!(shown(&examples(&record, Part::HeldOut, 256)), ["user:I am [NAME] assistant:Hello [NAME]"]);
    }

    #[test]
    fn long_conversations_become_windows_that_lose_no_exchange() {
        let turns: Vec<_> =
            (0..40).map(|i| if i % 2 == 0 { (Client, "question") } else { (Clinician, "answered") }).collect();
        let windows = examples(&record(&turns), Part::Learn, 16);
        assert!(windows.len() > 5);
        assert!(windows.iter().all(|window| window.messages[0].role == ChatRole::User));
        assert_eq!(windows.iter().map(|window| window.messages.len()).sum::<usize>(), 40);
    }

    #[test]
    fn validation_takes_from_each_domain_in_turn() {
        let of = |domain| Example { domain, part: Part::HeldOut, messages: Vec::new() };
        let mut all = vec![of(Domain::TherapyDialogue); 50];
        all.extend(vec![of(Domain::Crisis); 2]);
        let chosen = balanced(all, 10);
        assert_eq!(chosen.len(), 10);
        assert_eq!(chosen.iter().filter(|example| example.domain == Domain::Crisis).count(), 2);
    }

    #[test]
    fn experts_follow_the_domains_and_free_ones_fill_up() {
        let of = |domain, part| Example { domain, part, messages: Vec::new() };
        let two =
            [of(Domain::Crisis, Part::Learn), of(Domain::Assessment, Part::Learn), of(Domain::Bias, Part::HeldOut)];
        assert_eq!(experts(&two, 4, 8), [Some(Domain::Assessment), Some(Domain::Crisis), None, None]);
        let all: Vec<_> = Domain::ALL.iter().map(|domain| of(*domain, Part::Learn)).collect();
        assert_eq!(experts(&all, 4, 8).len(), 6);
        assert_eq!(experts(&all, 2, 3).len(), 3);
    }
}
