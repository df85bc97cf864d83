//! Planted bad records: each is of one kind, so that every stage of ingestion has something to find. It knows what is
//! wrong with a record and not how it will be found.

use super::SourceFile;
use super::dialogues::messages;
use super::talk::{Desk, Talk, Voice, converse};
use super::text::everyday::THEMES;
use super::text::fairness::LABELLED;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Bad records of each kind in the damaged file.
const EACH: u64 = 3;
/// Larger than a field of a conversation may be.
const OVERSIZED_BYTES: usize = 384 * 1024;

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// The clinician says nothing.
    EmptyResponse,
    /// The line stops in the middle.
    BrokenJson,
    /// Bytes that are no text.
    InvalidUtf8,
    /// One field of hundreds of kilobytes.
    OversizedField,
    /// A template that was never filled in.
    TemplateLeftover,
    /// Nobody answers.
    NoClinicianTurn,
    /// One sentence again and again.
    Repetition,
    /// A speaker that is neither client nor clinician.
    UnknownRole,
    /// Placeholder text.
    FillerText,
    /// The same conversation a second time.
    Duplicate,
    /// A reply that its source labels as unsafe.
    UnsafeLabel,
    /// A session that its source labels as low quality.
    LowQualityLabel,
}

impl Flaw {
    /// A word for reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Flaw::EmptyResponse => "empty_response",
            Flaw::BrokenJson => "broken_json",
            Flaw::InvalidUtf8 => "invalid_utf8",
            Flaw::OversizedField => "oversized_field",
            Flaw::TemplateLeftover => "template_leftover",
            Flaw::NoClinicianTurn => "no_clinician_turn",
            Flaw::Repetition => "repetition",
            Flaw::UnknownRole => "unknown_role",
            Flaw::FillerText => "filler_text",
            Flaw::Duplicate => "duplicate",
            Flaw::UnsafeLabel => "unsafe_label",
            Flaw::LowQualityLabel => "low_quality_label",
        }
    }
}

/// Flaws that occur in the damaged file.
const IN_FILE: [Flaw; 10] = [
    Flaw::EmptyResponse,
    Flaw::BrokenJson,
    Flaw::InvalidUtf8,
    Flaw::OversizedField,
    Flaw::TemplateLeftover,
    Flaw::NoClinicianTurn,
    Flaw::Repetition,
    Flaw::UnknownRole,
    Flaw::FillerText,
    Flaw::Duplicate,
];

/// All files of this module, and what is wrong in them.
pub(super) fn files(desk: &mut Desk) -> (Vec<SourceFile>, BTreeMap<Flaw, u64>) {
    let mut flaws = BTreeMap::new();
    let mut bytes = Vec::new();
    let mut records = 0;
    for n in 0..EACH {
        for (k, flaw) in IN_FILE.into_iter().enumerate() {
            let theme = &THEMES[(n as usize + k) % THEMES.len()];
            let talk = desk.new_talk(|rng| converse(theme, 2, rng));
            let good = json!({ "messages": messages(&talk) }).to_string().into_bytes();
            if flaw == Flaw::Duplicate {
                push_line(&mut bytes, &good);
                records += 1;
            }
            if k == 0 {
                // Sound lines stand between the bad ones: one bad line must not take its neighbours with it.
                push_line(&mut bytes, &sound_line(desk, n as usize));
                records += 1;
            }
            push_line(&mut bytes, &damage(flaw, talk, good));
            records += 1;
            *flaws.entry(flaw).or_default() += 1;
        }
    }
    let unsafe_rows = LABELLED.iter().filter(|row| row[3] == "Unsafe").count() as u64;
    flaws.insert(Flaw::UnsafeLabel, unsafe_rows);
    (vec![SourceFile::new("damaged.jsonl", bytes, records), labelled()], flaws)
}

fn push_line(bytes: &mut Vec<u8>, line: &[u8]) {
    bytes.extend_from_slice(line);
    bytes.push(b'\n');
}

fn sound_line(desk: &mut Desk, n: usize) -> Vec<u8> {
    let talk = desk.new_talk(|rng| converse(&THEMES[n % THEMES.len()], 2, rng));
    json!({ "messages": messages(&talk) }).to_string().into_bytes()
}

/// The line of `talk` with one thing wrong; `good` is the line without it.
fn damage(flaw: Flaw, mut talk: Talk, good: Vec<u8>) -> Vec<u8> {
    let mut clinician_says = |text: &str| {
        talk.iter_mut().filter(|(voice, _)| *voice == Voice::Clinician).for_each(|(_, said)| *said = text.to_owned());
        json!({ "messages": messages(&talk) }).to_string().into_bytes()
    };
    match flaw {
        Flaw::EmptyResponse => clinician_says(""),
        Flaw::BrokenJson => good[..good.len() * 2 / 3].to_vec(),
        Flaw::InvalidUtf8 => {
            let mut bad = good;
            let middle = bad.len() / 2;
            bad.splice(middle..middle, [0xff, 0xfe, 0xc3]);
            bad
        }
        Flaw::OversizedField => clinician_says(&"and then it went on ".repeat(OVERSIZED_BYTES / 20)),
        Flaw::TemplateLeftover => clinician_says("Thank you, {{client_name}}. We spoke about {{topic}} the last time."),
        Flaw::NoClinicianTurn => {
            talk.retain(|(voice, _)| *voice == Voice::Client);
            json!({ "messages": messages(&talk) }).to_string().into_bytes()
        }
        Flaw::Repetition => clinician_says(&"I am here for you. ".repeat(40)),
        Flaw::UnknownRole => {
            let mut rows = messages(&talk);
            rows[0]["role"] = Value::from("narrator");
            json!({ "messages": rows }).to_string().into_bytes()
        }
        Flaw::FillerText => clinician_says(
            "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore.",
        ),
        Flaw::Duplicate | Flaw::UnsafeLabel | Flaw::LowQualityLabel => good,
    }
}

/// Replies with a safety label, as safety collections hold them.
fn labelled() -> SourceFile {
    let row = |[context, response, category, label]: &[&str; 4]| json!({ "context": context, "response": response, "category": category, "label": label });
    let rows: Vec<Value> = LABELLED.iter().map(row).collect();
    let records = rows.len() as u64;
    SourceFile::new("safety_labels.json", Value::from(rows).to_string().into_bytes(), records)
}
