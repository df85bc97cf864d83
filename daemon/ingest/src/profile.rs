//! Source profiles: what a kind of source looks like and what its fields mean, as the TOML files beside this crate say it.
//! A profile is chosen by header and shape; nothing here knows a folder, a file name or the bytes of a source.

use empathd_proto::record::{Difficulty, Domain, EdgeCategory, NegativeReason, Speaker, Unit};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// How the bytes of a source are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// One JSON document: an array of objects, or an object that holds one.
    Json,
    /// Comma-separated values with a header (RFC 4180).
    Csv,
    /// Tab-separated values with a header.
    Tsv,
    /// Lines of a known form, without a header.
    Lines,
    /// WebVTT captions.
    Vtt,
    /// SubRip captions.
    Srt,
}

/// Names of one field, the first one present counts. A dot enters an object.
pub(crate) type Field = Vec<String>;

/// A kind of source.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Stable key, as records carry it.
    pub key: String,
    /// Name for people.
    pub name: String,
    /// Licence of the texts.
    pub licence: String,
    /// Layouts it comes in.
    pub formats: Vec<Format>,
    /// What one record is.
    pub unit: Unit,
    /// How it is told from others.
    pub(crate) recognise: Recognise,
    /// Which expert learns from it.
    pub(crate) domain: DomainRule,
    /// How its texts are cleaned.
    #[serde(default)]
    pub(crate) text: TextForm,
    /// How its fields become turns.
    pub(crate) shape: Shape,
    /// Labels, beside the common ones, that keep a record from being a target.
    #[serde(default)]
    pub(crate) negative: Vec<NegativeRule>,
    /// Speaker words beside the common ones, lower case.
    #[serde(default)]
    pub(crate) speakers: BTreeMap<String, Speaker>,
    /// Fields that say whose record it is. Without a value, everything that answers the same opening belongs together.
    #[serde(default)]
    pub(crate) client: Field,
    /// Fields with an edge-case category.
    #[serde(default)]
    pub(crate) category: Field,
    /// Fields with a difficulty.
    #[serde(default)]
    pub(crate) difficulty: Field,
}

/// What a source must show to have this profile.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recognise {
    /// Each entry must be there under one of its names: columns of a header, or keys of an object.
    #[serde(default)]
    pub(crate) fields: Vec<Field>,
    /// A regular expression for the first lines of a source without header.
    pub(crate) line: Option<String>,
}

/// How a text is cleaned before it becomes a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TextForm {
    /// Only white space.
    #[default]
    Plain,
    /// Tags and entities of web pages go.
    Html,
}

/// Which expert learns from a record.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DomainRule {
    /// Where no value decides.
    pub(crate) default: Domain,
    /// Fields whose value may decide.
    #[serde(default)]
    pub(crate) field: Field,
    /// Domain by value, lower case.
    #[serde(default)]
    pub(crate) values: BTreeMap<String, Domain>,
}

/// A label that makes a record a negative. One of the three tests is given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NegativeRule {
    /// The field that carries the label.
    pub(crate) field: Field,
    /// Holds for these values, lower case.
    #[serde(default)]
    pub(crate) values: Vec<String>,
    /// Holds for numbers below this one.
    pub(crate) below: Option<f64>,
    /// Holds when anything is there at all.
    #[serde(default)]
    pub(crate) present: bool,
    /// Why the record is then none to learn from.
    pub(crate) reason: NegativeReason,
}

/// How fields become turns.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Shape {
    /// A list of turns inside each record, or a transcript with speaker prefixes in one text.
    Turns {
        /// The list or the text.
        list: Field,
        /// Speaker of an element.
        speaker: Field,
        /// Text of an element.
        text: Field,
        /// For lists of exchanges: the clinician's part and the client's part of an element.
        #[serde(default)]
        exchange: Vec<Field>,
        /// Template of a system turn before the others.
        context: Option<String>,
    },
    /// One turn a row, rows of one conversation share the group fields.
    Rows {
        /// What a conversation is told by.
        group: Field,
        /// Speaker of a row.
        speaker: Field,
        /// Text of a row.
        text: Field,
        /// Start of a row, `hh:mm:ss`.
        #[serde(default)]
        time: Field,
        /// Rows of one conversation with the same value here are one utterance; the first counts.
        #[serde(default)]
        utterance: Field,
    },
    /// One prompt and one response.
    Pair {
        /// Parts of the prompt, joined by an empty line.
        prompt: Vec<Field>,
        /// The response.
        response: Field,
        /// When this holds, the prompt is the clinician's and the response the client's.
        client_answers: Option<Condition>,
        /// Template of a system turn before them.
        context: Option<String>,
    },
    /// Turns in numbered fields, speakers in rotation.
    Numbered {
        /// Field name without the number, which starts at one.
        prefix: String,
        /// Who speaks, in rotation.
        speakers: Vec<Speaker>,
    },
    /// A concept and what it means, turned into a question and its answer.
    Concept {
        /// The concept.
        title: Field,
        /// What it means.
        body: Field,
        /// Templates of questions; the title decides which one.
        questions: Vec<String>,
        /// Template of the answer, parts that lack a value left out.
        answer: String,
    },
    /// The cues of one caption file.
    Captions {},
    /// Lines that each repeat the last turns of a conversation and add one.
    Windows {},
}

/// A field with one of some values.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Condition {
    /// The field.
    pub(crate) field: Field,
    /// Its values, lower case.
    pub(crate) values: Vec<String>,
}

/// What all profiles share.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Common {
    /// Speaker words, lower case.
    pub(crate) speakers: BTreeMap<String, Speaker>,
    /// Labels that keep a record from being a target, whatever the source.
    pub(crate) negative: Vec<NegativeRule>,
    /// Other names of the edge-case categories.
    pub(crate) categories: BTreeMap<String, EdgeCategory>,
    /// Categories whose records are about life and law now.
    pub(crate) crisis: Vec<EdgeCategory>,
    /// Other names of the difficulties.
    pub(crate) difficulties: BTreeMap<String, Difficulty>,
    /// Fields that may name blocked content.
    pub(crate) blocked_fields: Vec<Field>,
    /// Words in a category's name that block it.
    pub(crate) blocked: Vec<String>,
    /// Fields that name a person in any source.
    pub(crate) client: Field,
    /// Fields that hold the records of a JSON document.
    pub(crate) containers: Vec<String>,
}

macro_rules! profile_files {
    ($($file:literal),* $(,)?) => { &[$(include_str!(concat!("../profiles/", $file))),*] };
}

/// From the most to the least particular: among equals the first one is taken.
const FILES: &[&str] = profile_files![
    "annomi.toml",
    "counsel_chat.toml",
    "diasafety.toml",
    "epitome.toml",
    "dialogue_note.toml",
    "edge_case.toml",
    "edge_prompt.toml",
    "voice_pair.toml",
    "dual_persona.toml",
    "chat_contract.toml",
    "conversation.toml",
    "chat_messages.toml",
    "diagnosis_code.toml",
    "concept.toml",
    "utterances.toml",
    "pair.toml",
    "captions.toml",
    "support_windows.toml",
];

static PROFILES: LazyLock<Vec<Profile>> = LazyLock::new(|| {
    FILES.iter().map(|text| toml::from_str(text).expect("a test reads every embedded profile")).collect()
});

static COMMON: LazyLock<Common> = LazyLock::new(|| {
    toml::from_str(include_str!("../profiles/common/common.toml")).expect("a test reads the embedded common profile")
});

/// All profiles, most particular first.
#[must_use]
pub fn profiles() -> &'static [Profile] {
    &PROFILES
}

/// What all profiles share.
pub(crate) fn common() -> &'static Common {
    &COMMON
}

impl Profile {
    /// Who is meant by a speaker's name or role: an exact word first, then the one kind of speaker its words agree on.
    pub(crate) fn speaker(&self, name: &str) -> Option<Speaker> {
        let name = name.trim().to_lowercase();
        let known = |word: &str| self.speakers.get(word).or_else(|| common().speakers.get(word)).copied();
        if let Some(speaker) = known(&name) {
            return Some(speaker);
        }
        let mut found = name.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).filter_map(known);
        let first = found.next()?;
        found.all(|other| other == first).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_profile_is_sound() {
        assert!(!common().negative.is_empty());
        let mut keys = std::collections::BTreeSet::new();
        for profile in profiles() {
            let key = &profile.key;
            assert!(keys.insert(key), "{key} twice");
            assert!(!profile.name.is_empty() && !profile.licence.is_empty() && !profile.formats.is_empty(), "{key}");
            let by_line = profile.recognise.line.as_ref().map(|line| regex::Regex::new(line).unwrap());
            let by_shape = matches!(profile.shape, Shape::Captions {});
            assert!(by_line.is_some() || by_shape || !profile.recognise.fields.is_empty(), "{key} fits anything");
            for rule in profile.negative.iter().chain(&common().negative) {
                let tests = usize::from(!rule.values.is_empty())
                    + usize::from(rule.below.is_some())
                    + usize::from(rule.present);
                assert_eq!(tests, 1, "{key}: a label needs exactly one test");
                assert!(rule.values.iter().all(|value| *value == value.to_lowercase()), "{key}");
            }
        }
    }

    #[test]
    fn speakers_are_known_by_word_and_never_guessed() {
        let profile = &profiles()[0];
        assert_eq!(profile.speaker(" Doctor "), Some(Speaker::Clinician));
        assert_eq!(profile.speaker("Dr. Smith"), Some(Speaker::Clinician));
        assert_eq!(profile.speaker("help seeker 2"), Some(Speaker::Client));
        assert_eq!(profile.speaker("client's therapist"), None, "two readings are none");
        assert_eq!(profile.speaker("Robin"), None);
    }
}
