//! The built-in probes: texts written for the suites, as examples. They are not taken from any data set, so no data that is
//! learnt from can hold them. What is concluded from them is not known here.

use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{Example, Part};
use empathd_proto::generate::PlainMessage;
use empathd_proto::record::Domain;
use serde::Deserialize;

/// Version of the texts below; raised whenever one of them changes.
pub(crate) const SUITE: u32 = 1;

const CRISIS: &str = include_str!("probes/crisis.txt");
const SAFETY: &str = include_str!("probes/safety.txt");
const FAIRNESS: &str = include_str!("probes/fairness.toml");
const GENERAL: &str = include_str!("probes/general.txt");
const REPLAY: &str = include_str!("probes/replay.txt");

/// The texts are part of the program; the test below reads all of them.
const OWN: &str = "the built-in probes are well formed";

/// Words, a safe answer to them and an unsafe one.
#[derive(Clone, Copy)]
struct Choice {
    said: &'static str,
    safe: &'static str,
    r#unsafe: &'static str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fairness {
    people: Vec<[String; 2]>,
    talk: Vec<Talk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Talk {
    said: String,
    answer: String,
}

/// The lines of a text that are no remarks, each split at its bars.
fn rows<const N: usize>(text: &'static str) -> impl Iterator<Item = [&'static str; N]> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split('|').collect::<Vec<_>>().try_into().expect(OWN))
}

fn choices(text: &'static str) -> impl Iterator<Item = Choice> {
    rows(text).map(|[said, safe, r#unsafe]| Choice { said, safe, r#unsafe })
}

/// Two examples that are compared with each other.
pub(super) type Pair = [Example; 2];

/// A question and its answer, as an example that belongs to no clinical domain more than to another.
pub(super) fn example(part: Part, domain: Domain, said: &str, answer: &str) -> Example {
    let message = |role, text: &str| PlainMessage { role, text: text.to_owned() };
    Example { domain, part, messages: vec![message(ChatRole::User, said), message(ChatRole::Assistant, answer)] }
}

/// General text that is measured and never learnt.
pub(crate) fn general() -> Vec<Example> {
    passages(GENERAL, Part::General)
}

/// General and safe talk on which a mixture shall say what its base model says.
pub(crate) fn replay() -> Vec<Example> {
    passages(REPLAY, Part::Replay)
}

/// The safe answers in crises, measured while training as a guard and never learnt.
pub(crate) fn crisis_items() -> Vec<Example> {
    crisis().into_iter().map(|[safe, _]| safe).collect()
}

/// Crises with their safe and their unsafe answer, in this order.
pub(super) fn crisis() -> Vec<Pair> {
    choices(CRISIS).map(|choice| pair(choice, Domain::Crisis)).collect()
}

/// Requests with their careful and their careless answer, in this order.
pub(super) fn safety() -> Vec<Pair> {
    choices(SAFETY).map(|choice| pair(choice, Domain::Assessment)).collect()
}

fn pair(choice: Choice, domain: Domain) -> Pair {
    [choice.safe, choice.r#unsafe].map(|answer| example(Part::CrisisItem, domain, choice.said, answer))
}

/// Conversations that differ only in a group that somebody belongs to.
pub(super) fn fairness() -> Vec<Pair> {
    let Fairness { people, talk } = toml::from_str(FAIRNESS).expect(OWN);
    let filled = |talk: &Talk, people: &[String; 2]| {
        people.each_ref().map(|who| {
            let said = talk.said.replace("{who}", who);
            example(Part::General, Domain::Bias, &said, &talk.answer)
        })
    };
    talk.iter().flat_map(|talk| people.iter().map(move |people| filled(talk, people))).collect()
}

fn passages(text: &'static str, part: Part) -> Vec<Example> {
    rows(text).map(|[ask, answer]| example(part, Domain::Psychoeducation, ask, answer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn answer(example: &Example) -> &str {
        &example.messages[1].text
    }

    #[test]
    fn there_are_enough_probes_and_no_two_are_alike() {
        assert!(crisis().len() + safety().len() >= 40 && fairness().len() >= 60);
        assert!(general().len() >= 40 && replay().len() >= 20);
        assert_eq!(crisis_items().len(), crisis().len());
        let pairs = crisis().into_iter().chain(safety()).flatten();
        let all: Vec<Example> = pairs.chain(general()).chain(replay()).collect();
        let distinct: HashSet<&str> = all.iter().map(answer).collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().flat_map(|example| &example.messages).all(|message| message.text.len() > 10));
    }

    #[test]
    fn answers_that_are_compared_are_of_like_length() {
        for [safe, r#unsafe] in crisis().iter().chain(&safety()) {
            let (safe, r#unsafe) = (answer(safe).len() as f64, answer(r#unsafe).len() as f64);
            assert!((0.6..1.7).contains(&(safe / r#unsafe)), "{safe} and {}", r#unsafe);
        }
    }

    #[test]
    fn counterfactuals_differ_in_the_question_alone_and_name_no_group_in_the_answer() {
        let Fairness { people, .. } = toml::from_str(FAIRNESS).expect(OWN);
        for [one, other] in fairness() {
            assert_eq!(answer(&one), answer(&other));
            assert_ne!(one.messages[0].text, other.messages[0].text);
            assert!(!one.messages[0].text.contains('{'));
            let names = people.iter().flatten().any(|who| answer(&one).contains(who.as_str()));
            assert!(!names, "{}", answer(&one));
        }
    }
}
