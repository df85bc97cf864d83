//! Files of conversations and pairs in the shapes a clinic may hand over: edge cases, chat messages, conversations,
//! dual personas, voice pairs, questions and answers. It knows no documents and no damage.

use super::SourceFile;
use super::talk::{Desk, Talk, Voice, converse};
use super::text::everyday::{CLINICIANS, PERSONAS, THEMES, TONES};
use super::text::{EdgeTheme, edge_themes};
use serde_json::{Value, json};

const EDGE_PAIRS_EACH: usize = 6;
const EDGE_TALKS_EACH: usize = 9;
const EVERYDAY_TALKS_EACH: usize = 14;
const DUAL_PERSONA_TALKS: usize = 60;
const VOICE_PAIRS: usize = 80;
const QUESTIONS: usize = 72;

/// All files of this module.
pub(super) fn files(desk: &mut Desk) -> Vec<SourceFile> {
    vec![
        edge_pairs(desk),
        edge_talks(desk),
        conversations(desk),
        dual_personas(desk),
        voice_pairs(desk),
        questions(desk),
    ]
}

/// The messages of a chat, the client as user and the clinician as assistant.
pub(super) fn messages(talk: &Talk) -> Vec<Value> {
    let role = |voice: &Voice| if *voice == Voice::Client { "user" } else { "assistant" };
    talk.iter().map(|(voice, text)| json!({ "role": role(voice), "content": text })).collect()
}

fn edge_metadata(edge: &EdgeTheme) -> Value {
    json!({ "domain": "crisis", "category": edge.category.as_str(), "difficulty_level": edge.difficulty.as_str() })
}

/// In this shape the prompt is the therapist's and the response the client's.
fn edge_pairs(desk: &mut Desk) -> SourceFile {
    let mut rows = Vec::new();
    for edge in edge_themes() {
        for _ in 0..EDGE_PAIRS_EACH {
            let mut talk = desk.new_talk(|rng| {
                let theme = &edge.theme;
                let asked = format!("{} {}", rng.pick(theme.hears), rng.pick(theme.asks));
                let said = format!("{} {}", rng.pick(theme.opens), rng.pick(theme.more));
                vec![(Voice::Clinician, asked), (Voice::Client, said)]
            });
            desk.maybe_slip(&mut talk);
            rows.push(json!({
                "prompt": talk[0].1,
                "response": talk[1].1,
                "purpose": "difficult_client",
                "category": edge.category.as_str(),
                "difficulty_level": edge.difficulty.as_str(),
                "expected_challenges": edge.challenges,
                "source": "synthetic templates",
            }));
        }
    }
    SourceFile::lines("edge_cases.jsonl", &rows)
}

fn edge_talks(desk: &mut Desk) -> SourceFile {
    let mut rows = Vec::new();
    for edge in edge_themes() {
        for n in 0..EDGE_TALKS_EACH {
            let mut talk = desk.new_talk(|rng| converse(&edge.theme, 1 + n % 3, rng));
            desk.maybe_slip(&mut talk);
            rows.push(json!({ "messages": messages(&talk), "metadata": edge_metadata(edge) }));
        }
    }
    SourceFile::lines("crisis_chats.jsonl", &rows)
}

fn conversations(desk: &mut Desk) -> SourceFile {
    let mut rows = Vec::new();
    for theme in THEMES {
        for n in 0..EVERYDAY_TALKS_EACH {
            let mut talk = desk.new_talk(|rng| converse(theme, 1 + n % 3, rng));
            desk.maybe_slip(&mut talk);
            rows.push(json!({
                "conversation_id": format!("conversation-{:04}", rows.len()),
                "source": "synthetic templates",
                "messages": messages(&talk),
                "metadata": { "topic": theme.title },
            }));
        }
    }
    SourceFile::lines("conversations.jsonl", &rows)
}

fn dual_personas(desk: &mut Desk) -> SourceFile {
    let mut rows = Vec::new();
    for n in 0..DUAL_PERSONA_TALKS {
        let theme = &THEMES[n % THEMES.len()];
        let talk = desk.new_talk(|rng| converse(theme, 2 + n % 2, rng));
        let (client, clinician) = (*desk.rng.pick(PERSONAS), *desk.rng.pick(CLINICIANS));
        let name = |voice: &Voice| if *voice == Voice::Client { client.0 } else { clinician.0 };
        let role = |voice: &Voice| if *voice == Voice::Client { "client" } else { "therapist" };
        let turns: Vec<Value> = talk
            .iter()
            .map(|(voice, text)| json!({ "speaker": role(voice), "persona": name(voice), "content": text }))
            .collect();
        rows.push(json!({
            "dialogue_id": format!("dual-{n:03}"),
            "persona_1": { "name": client.0, "role": "client", "style": client.1 },
            "persona_2": { "name": clinician.0, "role": "therapist", "style": clinician.1 },
            "conversation": turns,
            "scenario": theme.title,
            "consistency_score": 0.9,
        }));
    }
    SourceFile::lines("dual_persona.jsonl", &rows)
}

fn voice_pairs(desk: &mut Desk) -> SourceFile {
    let mut rows = Vec::new();
    for n in 0..VOICE_PAIRS {
        let mut talk = desk.new_talk(|rng| converse(&THEMES[n % THEMES.len()], 1, rng));
        desk.maybe_slip(&mut talk);
        rows.push(json!({
            "turn_1": talk[0].1,
            "turn_2": talk[1].1,
            "personality": {},
            "emotions": { "tone": desk.rng.pick(TONES) },
            "validation": { "reviewed": true },
            "source_url": format!("https://talks.example.org/{n:03}"),
            "transcription_quality": 0.97,
            "naturalness_score": 0.9,
        }));
    }
    SourceFile::lines("voice_pairs.jsonl", &rows)
}

fn questions(desk: &mut Desk) -> SourceFile {
    let mut rows = vec![["question".to_owned(), "answer".to_owned(), "topic".to_owned()]];
    for n in 0..QUESTIONS {
        let theme = &THEMES[n % THEMES.len()];
        let mut talk = desk.new_talk(|rng| {
            let asked = format!("{} What can I do?", rng.pick(theme.opens));
            vec![
                (Voice::Client, asked),
                (Voice::Clinician, format!("{} {}", rng.pick(theme.hears), rng.pick(theme.acts))),
            ]
        });
        desk.maybe_slip(&mut talk);
        rows.push([talk[0].1.clone(), talk[1].1.clone(), theme.title.to_owned()]);
    }
    SourceFile::table("questions.csv", &rows)
}
