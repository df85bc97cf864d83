//! Files of knowledge and paper: psychology concepts, explanations, notes, screening interviews, fairness. It knows no
//! dialogues and no damage.

use super::SourceFile;
use super::dialogues::messages;
use super::rng::Rng;
use super::talk::{Desk, Talk, Voice};
use super::text::concepts::{CONCEPTS, QUESTIONS};
use super::text::documents::{ANSWERS, GAD_ITEMS, NOTE_HEADS, NOTE_POINTS, NOTE_REQUESTS, PHQ_ITEMS, THANKS};
use super::text::fairness::{GROUPS, REASONS, REMARKS};
use serde_json::json;

const EXPLANATIONS_EACH: usize = 2;
const NOTES_EACH: usize = 6;
const INTERVIEWS: usize = 60;
const INTERVIEW_ITEMS: usize = 4;

/// All files of this module.
pub(super) fn files(desk: &mut Desk) -> Vec<SourceFile> {
    vec![concepts(), explanations(desk), notes(desk), interviews(desk), fairness(desk)]
}

fn chat_file(name: &str, domain: &str, talks: &[Talk]) -> SourceFile {
    let row = |talk| json!({ "messages": messages(talk), "metadata": { "domain": domain } });
    SourceFile::lines(name, &talks.iter().map(row).collect::<Vec<_>>())
}

fn concepts() -> SourceFile {
    let rows: Vec<_> = CONCEPTS
        .iter()
        .enumerate()
        .map(|(n, concept)| {
            json!({
                "concept_id": format!("concept-{n:03}"),
                "name": concept.name,
                "definition": format!("{} {}", concept.definition, concept.plain),
                "category": concept.category,
                "related_concepts": [CONCEPTS[(n + 1) % CONCEPTS.len()].name],
                "therapeutic_approaches": [concept.approach],
                "source": "written for this corpus",
            })
        })
        .collect();
    let records = rows.len() as u64;
    SourceFile::new("concepts.json", json!({ "concepts": rows }).to_string().into_bytes(), records)
}

fn explanations(desk: &mut Desk) -> SourceFile {
    let mut talks = Vec::new();
    for concept in CONCEPTS {
        for n in 0..EXPLANATIONS_EACH {
            talks.push(desk.new_talk(|rng| {
                let asked = rng.pick(QUESTIONS).replace("{}", &concept.name.to_lowercase());
                let detail = if n == 0 { concept.plain } else { concept.definition };
                vec![(Voice::Client, asked), (Voice::Clinician, format!("{detail} {}", concept.approach))]
            }));
        }
    }
    chat_file("explanations.jsonl", "psychoeducation", &talks)
}

fn notes(desk: &mut Desk) -> SourceFile {
    let mut talks = Vec::new();
    for [keywords, subjective, objective, assessment, plan] in NOTE_POINTS {
        for _ in 0..NOTES_EACH {
            let who = desk.people.note_head(&mut desk.rng);
            talks.push(desk.new_talk(|rng| {
                let asked = format!("{} {who} Points: {keywords}.", rng.pick(NOTE_REQUESTS));
                let head = rng.pick(NOTE_HEADS);
                let note = format!(
                    "{head} {who}\nSubjective: {subjective}\nObjective: {objective}\nAssessment: {assessment}\nPlan: {plan}"
                );
                vec![(Voice::Client, asked), (Voice::Clinician, note)]
            }));
        }
    }
    chat_file("notes.jsonl", "documentation", &talks)
}

fn interviews(desk: &mut Desk) -> SourceFile {
    let mut talks = Vec::new();
    for n in 0..INTERVIEWS {
        let (items, name) = if n % 2 == 0 { (PHQ_ITEMS, "mood") } else { (GAD_ITEMS, "worry") };
        let mut talk = desk.new_talk(|rng| interview(items, name, rng));
        desk.maybe_slip(&mut talk);
        talks.push(talk);
    }
    chat_file("screening.jsonl", "assessment", &talks)
}

/// Consecutive items of one instrument, then what follows from the answers.
fn interview(items: &[&str], name: &str, rng: &mut Rng) -> Talk {
    let first = rng.below(items.len() - INTERVIEW_ITEMS + 1);
    let asked = &items[first..first + INTERVIEW_ITEMS];
    let mut talk = vec![(Voice::Client, format!("You said there would be some questions about my {name}."))];
    let mut points = 0;
    let mut alert = false;
    let mut before: &str = "Yes, a few short ones.";
    for item in asked {
        talk.push((Voice::Clinician, format!("{before} {item}")));
        let level = rng.below(ANSWERS.len());
        points += level;
        alert |= level > 0 && item.contains("better off dead");
        talk.push((Voice::Client, (*rng.pick(ANSWERS[level])).to_owned()));
        before = *rng.pick::<&str>(THANKS);
    }
    let after = if alert {
        "You said that thoughts of being better off dead were there. Are you safe now, and do you have a plan to act on them?"
    } else {
        "These four answers are only a part, so let us finish the form and compare it with the last one."
    };
    talk.push((Voice::Clinician, format!("{before} That makes {points} of 12 points for these four. {after}")));
    talk
}

fn fairness(desk: &mut Desk) -> SourceFile {
    let mut talks = Vec::new();
    for [remark, reply] in REMARKS {
        for group in GROUPS {
            talks.push(desk.new_talk(|rng| {
                let answer = format!("{} {}", reply.replace("{}", group), rng.pick(REASONS));
                vec![(Voice::Client, remark.replace("{}", group)), (Voice::Clinician, answer)]
            }));
        }
    }
    chat_file("fairness.jsonl", "bias", &talks)
}
