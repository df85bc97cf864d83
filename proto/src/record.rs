//! What a clinic's conversation becomes: turns with speakers, spans of identifiers beside them, a domain, a purpose.
//! These are the shapes that ingestion makes, the store seals and training reads. How they are made is not known here.

use serde::{Deserialize, Serialize};

/// A closed list of words with a stable text form.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$item_doc])* #[serde(rename = $text)] $item,)* }

        impl $name {
            /// All of them, in their order.
            pub const ALL: &'static [$name] = &[$($name::$item,)*];

            /// The stable text form.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$item => $text,)* }
            }

            /// The one with this text form.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$item),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )*};
}
pub(crate) use words;

words! {
    /// Who speaks a turn.
    Speaker {
        /// The person who seeks help.
        Client = "client",
        /// The therapist, counsellor or doctor. Their turns are what the model learns to say.
        Clinician = "clinician",
        /// Instructions and context, spoken by nobody.
        System = "system",
    }

    /// What a record is about; each domain has its expert.
    Domain {
        /// Concepts, techniques, explanations.
        Psychoeducation = "psychoeducation",
        /// Conversation between client and therapist.
        TherapyDialogue = "therapy_dialogue",
        /// Instruments, screening, history taking.
        Assessment = "assessment",
        /// Risk to self or others, acute states.
        Crisis = "crisis",
        /// Bias, fairness, harmful or unprofessional replies.
        Bias = "bias",
        /// Notes and summaries.
        Documentation = "documentation",
    }

    /// What one record of a source is.
    Unit {
        /// A whole conversation of several turns.
        Conversation = "conversation",
        /// One prompt and one response.
        Pair = "pair",
    }

    /// How hard an edge case is.
    Difficulty {
        /// Within ordinary practice.
        Moderate = "moderate",
        /// Needs experience.
        High = "high",
        /// Life, law or reality at stake.
        VeryHigh = "very_high",
    }

    /// What a span of text identifies, after the Safe Harbor list (45 CFR 164.514(b)(2)).
    PhiKind {
        /// A person's name.
        Name = "name",
        /// Geography below state.
        Location = "location",
        /// Any date element finer than a year.
        Date = "date",
        /// Telephone or fax number.
        Phone = "phone",
        /// Mail address of the internet.
        Email = "email",
        /// Social security number.
        Ssn = "ssn",
        /// Medical record number.
        Mrn = "mrn",
        /// Health plan number.
        HealthPlan = "health_plan",
        /// Bank account, card or IBAN.
        Account = "account",
        /// Licence or certificate number, NPI and DEA among them.
        Licence = "licence",
        /// Vehicle identifier or plate.
        Vehicle = "vehicle",
        /// Device serial number.
        Device = "device",
        /// Web address.
        Url = "url",
        /// Internet protocol or hardware address.
        Ip = "ip",
        /// An age above 89.
        Age = "age",
        /// Any other unique number or code.
        OtherId = "other_id",
    }

    /// Why a record is never a training target.
    NegativeReason {
        /// Its response is labelled unsafe.
        LabelledUnsafe = "labelled_unsafe",
        /// Its session is labelled as low quality.
        LabelledLowQuality = "labelled_low_quality",
    }

    /// The 25 categories of edge cases.
    EdgeCategory {
        /// Suicidal thoughts, plans or acts.
        Suicidality = "suicidality",
        /// A client who threatens another person.
        HomicidalClient = "homicidal_client",
        /// Hallucinations, delusions, loss of reality.
        PsychoticEpisode = "psychotic_episode",
        /// A disclosure that the law makes reportable.
        ChildAbuseReporting = "child_abuse_reporting",
        /// Intoxication, withdrawal, overdose risk.
        SubstanceAbuseCrisis = "substance_abuse_crisis",
        /// Lost time, parts, unreality.
        SevereDissociation = "severe_dissociation",
        /// Elevated mood, little sleep, risk taking.
        ManicEpisode = "manic_episode",
        /// Re-experiencing in the session.
        TraumaFlashback = "trauma_flashback",
        /// Medical danger from restriction or purging.
        EatingDisorderMedical = "eating_disorder_medical",
        /// Abandonment, splitting, self-harm urges.
        BorderlineCrisis = "borderline_crisis",
        /// The therapist as persecutor.
        ParanoidAccusations = "paranoid_accusations",
        /// First telling of sexual violence.
        SexualTraumaDisclosure = "sexual_trauma_disclosure",
        /// An older person harmed or neglected.
        ElderAbuseConcerns = "elder_abuse_concerns",
        /// Violence at home that goes on.
        DomesticViolenceActive = "domestic_violence_active",
        /// Delusion in religious form.
        ReligiousDelusions = "religious_delusions",
        /// Grief with guilt or risk.
        GriefComplicated = "grief_complicated",
        /// Being followed or harassed.
        StalkingHarassment = "stalking_harassment",
        /// Refusal of needed medication.
        MedicationRefusal = "medication_refusal",
        /// Open conflict in the room.
        FamilyTherapyConflict = "family_therapy_conflict",
        /// A young person who will not talk.
        AdolescentDefiance = "adolescent_defiance",
        /// A betrayal between partners.
        CoupleTherapyBetrayal = "couple_therapy_betrayal",
        /// Values of family or faith against the client's wish.
        CulturalConflicts = "cultural_conflicts",
        /// Requests that cross the frame.
        TherapistBoundaries = "therapist_boundaries",
        /// Involuntary or hopeless about help.
        TherapyResistance = "therapy_resistance",
        /// Despair from pain without end.
        ChronicPainDespair = "chronic_pain_despair",
    }
}

/// One utterance.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Who speaks.
    pub speaker: Speaker,
    /// What is said. Clinical text: it never reaches a log.
    pub text: String,
    /// Start within the recording, milliseconds, when the source has times.
    pub start_ms: Option<u64>,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Turn({}, {} bytes)", self.speaker, self.text.len())
    }
}

/// Where an identifier stands: bytes `start..end` of the text of turn `turn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhiSpan {
    /// Index of the turn.
    pub turn: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
    /// What it identifies.
    pub kind: PhiKind,
}

/// What a record may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Its clinician turns may be learnt.
    Target,
    /// Kept for evaluation only.
    Negative(NegativeReason),
}

/// Measured attributes, each in 0..=1 unless said otherwise. They are kept beside the text; thresholds may change later.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// Distinct word pairs over all word pairs of the clinician's turns.
    pub distinct_bigrams: f32,
    /// Share of clinician turns that are a stock phrase.
    pub generic_share: f32,
    /// Share of content words of the response that the context has too.
    pub relevance: f32,
    /// Share of characters that are letters.
    pub letter_share: f32,
    /// Words of the clinician's turns, a count.
    pub clinician_words: u32,
}

/// A reviewed record as the store seals it. Version 1 of the shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Key of the source profile, such as `chat_messages`.
    pub profile: String,
    /// The source's licence as its profile states it.
    pub licence: String,
    /// Conversation or pair.
    pub unit: Unit,
    /// Which expert learns from it.
    pub domain: Domain,
    /// Edge-case category, when the source gives one.
    pub category: Option<EdgeCategory>,
    /// Difficulty, when the source gives one.
    pub difficulty: Option<Difficulty>,
    /// The conversation, as it was said.
    pub turns: Vec<Turn>,
    /// Identifiers in it, ordered by turn and start, not overlapping.
    pub phi: Vec<PhiSpan>,
    /// Measured attributes.
    pub scores: Scores,
    /// What it may be used for.
    pub purpose: Purpose,
}

impl Record {
    /// The text of turn `index` with every identifier replaced by its kind in brackets, as training sees it.
    ///
    /// Spans that do not fall on character boundaries hide the whole turn: a wrong span must never show an identifier.
    #[must_use]
    pub fn redacted_text(&self, index: usize) -> String {
        let Some(turn) = self.turns.get(index) else { return String::new() };
        let mut out = String::with_capacity(turn.text.len());
        let mut from = 0usize;
        for span in self.phi.iter().filter(|span| span.turn as usize == index) {
            let (start, end) = (span.start as usize, span.end as usize);
            let Some(before) = turn.text.get(from..start) else { return "[REDACTED]".to_owned() };
            if turn.text.get(start..end).is_none() {
                return "[REDACTED]".to_owned();
            }
            out.push_str(before);
            out.push('[');
            out.push_str(&span.kind.as_str().to_ascii_uppercase());
            out.push(']');
            from = end;
        }
        out.push_str(&turn.text[from..]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str, phi: Vec<PhiSpan>) -> Record {
        Record {
            profile: "test".into(),
            licence: "none".into(),
            unit: Unit::Pair,
            domain: Domain::TherapyDialogue,
            category: None,
            difficulty: None,
            turns: vec![Turn { speaker: Speaker::Client, text: text.into(), start_ms: None }],
            phi,
            scores: Scores::default(),
            purpose: Purpose::Target,
        }
    }

    fn span(start: u32, end: u32, kind: PhiKind) -> PhiSpan {
        PhiSpan { turn: 0, start, end, kind }
    }

    #[test]
    fn identifiers_are_replaced_by_their_kind() {
        let spans = vec![span(5, 9, PhiKind::Name), span(15, 25, PhiKind::Date)];
        let text = record("I am Mary since 2024-01-02.", spans).redacted_text(0);
        assert_eq!(text, "I am [NAME] since[DATE]2.");
    }

    #[test]
    fn a_wrong_span_hides_the_whole_turn() {
        assert_eq!(record("né Mary", vec![span(2, 4, PhiKind::Name)]).redacted_text(0), "[REDACTED]");
        assert_eq!(record("Mary", vec![span(0, 9, PhiKind::Name)]).redacted_text(0), "[REDACTED]");
        assert_eq!(
            record("Mary Ann", vec![span(0, 6, PhiKind::Name), span(2, 8, PhiKind::Name)]).redacted_text(0),
            "[REDACTED]"
        );
    }

    #[test]
    fn words_are_all_distinct() {
        assert_eq!(EdgeCategory::ALL.len(), 25);
        for category in EdgeCategory::ALL {
            assert_eq!(EdgeCategory::parse(category.as_str()), Some(*category));
        }
    }
}
