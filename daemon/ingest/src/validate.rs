//! The only way to a reviewed record. Every rule is looked at, every broken one is reported with what was measured and the
//! bound, and a record that breaks none becomes a [`ValidRecord`], which nothing else can make.

use crate::draft::{Assessed, Draft};
use crate::rule::{Rejection, Rule};
use crate::text;
use empathd_proto::record::{NegativeReason, Purpose, Record, Scores, Speaker};
use regex::Regex;
use std::sync::LazyLock;

/// The bounds of acceptance. They are set for talk: short turns, encouragers and "I don't know" are ordinary, so bounds hold
/// for a record as a whole and not for one turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Fewest words of the clinician. "Tell me more." has three.
    pub clinician_words_min: u32,
    /// Most words of a record: seven hours of talk.
    pub words_max: usize,
    /// Largest share of control and replacement characters.
    pub control_share_max: f64,
    /// Longest unbroken run of ASCII letters and digits, characters. Words and links are shorter, encoded data is not.
    pub unbroken_chars_max: usize,
    /// Smallest share of letters among visible characters.
    pub letter_share_min: f64,
    /// Smallest share of distinct word pairs of the clinician.
    pub distinct_bigrams_min: f64,
    /// Words of the clinician from which on the share of word pairs means something.
    pub repetition_words_min: u32,
    /// Largest share of the clinician's longer turns that were said before.
    pub duplicate_share_max: f64,
    /// From this share on, the clinician said nothing but stock phrases. Encouragers are no stock phrases.
    pub generic_share_max: f64,
    /// Whether records labelled unsafe or of low quality are kept as negatives for evaluation; else they are refused.
    pub keep_negatives: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            clinician_words_min: 3,
            words_max: 60_000,
            control_share_max: 0.01,
            unbroken_chars_max: 512,
            letter_share_min: 0.5,
            distinct_bigrams_min: 0.25,
            repetition_words_min: 20,
            duplicate_share_max: 0.5,
            generic_share_max: 1.0,
            keep_negatives: true,
        }
    }
}

/// A record that broke no rule.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidRecord {
    record: Record,
    client_key: String,
    content_key: [u8; 32],
}

impl ValidRecord {
    /// The record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// External key of the person it is from, scoped by the kind of source. Records whose source names nobody but that answer
    /// the same opening share a key, so that a split by person never has them on both sides.
    #[must_use]
    pub fn client_key(&self) -> &str {
        &self.client_key
    }

    /// BLAKE3 of the profile and the turns, white space aside. The same conversation has the same key.
    #[must_use]
    pub fn content_key(&self) -> [u8; 32] {
        self.content_key
    }
}

/// Makes the record, or says every rule it breaks.
///
/// # Errors
/// One [`Rejection`] for each broken rule, never none.
pub fn validate(assessed: Assessed, policy: &Policy) -> Result<ValidRecord, Vec<Rejection>> {
    let mut check = Check { ordinal: assessed.draft.ordinal, broken: Vec::new() };
    check.origin(&assessed.draft, policy);
    check.conversation(&assessed.draft);
    check.text(&assessed.draft, policy);
    if check.broken.is_empty() {
        check.quality(&assessed, policy);
    }
    if check.broken.is_empty() { Ok(made(assessed)) } else { Err(check.broken) }
}

fn made(assessed: Assessed) -> ValidRecord {
    let Assessed { draft, phi, scores } = assessed;
    let content_key = content_key(&draft);
    let client_key = client_key(&draft);
    let Draft { profile, turns, domain, category, difficulty, purpose, .. } = draft;
    let (key, licence, unit) = (profile.key.clone(), profile.licence.clone(), profile.unit);
    let record = Record { profile: key, licence, unit, domain, category, difficulty, turns, phi, scores, purpose };
    ValidRecord { record, client_key, content_key }
}

fn content_key(draft: &Draft) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part(&draft.profile.key);
    for turn in &draft.turns {
        part(turn.speaker.as_str());
        part(&text::squeezed(&turn.text));
    }
    *hasher.finalize().as_bytes()
}

fn client_key(draft: &Draft) -> String {
    let profile = &draft.profile.key;
    if let Some(client) = &draft.client {
        return format!("{profile}:{client}");
    }
    let opening = draft.turns.iter().find(|turn| turn.speaker != Speaker::System).map(|turn| text::spoken(&turn.text));
    format!("{profile}~{}", blake3::hash(opening.unwrap_or_default().as_bytes()).to_hex())
}

/// Unfilled placeholders of the usual template languages, and control tokens of chat templates.
static LEFTOVER: LazyLock<Regex> = LazyLock::new(|| {
    let forms = [
        r"\{\{[^{}\n]{1,60}\}\}",
        r"\{%[^%\n]{1,60}%\}",
        r"\$\{[A-Za-z_][\w.]{0,40}\}",
        r"\{[a-z]+(?:_[a-z0-9]+)*\}",
        r"<\|[a-z_]{2,30}\|>",
        r"<<[A-Z_ ]{2,30}>>",
        r"(?i)\[(?:insert|your|enter|add|placeholder)\b[^\]\n]{0,60}\]",
        r"\[/?INST\]",
    ];
    Regex::new(&forms.join("|")).expect("a constant pattern that tests use")
});

/// The filler text of typesetters.
static FILLER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)\blorem\s+ipsum\b|\bdolor\s+sit\s+amet\b").expect("a constant pattern that tests use")
});

struct Check {
    ordinal: u64,
    broken: Vec<Rejection>,
}

impl Check {
    fn require(&mut self, holds: bool, rule: Rule, score: f64, threshold: f64) {
        if !holds {
            self.broken.push(Rejection::new(rule, score, threshold, self.ordinal));
        }
    }

    fn origin(&mut self, draft: &Draft, policy: &Policy) {
        self.require(!draft.blocked, Rule::BlockedCategory, 1.0, 0.0);
        if let (Purpose::Negative(reason), false) = (draft.purpose, policy.keep_negatives) {
            let rule = match reason {
                NegativeReason::LabelledUnsafe => Rule::LabelledUnsafe,
                NegativeReason::LabelledLowQuality => Rule::LabelledLowQuality,
            };
            self.require(false, rule, 1.0, 0.0);
        }
    }

    fn conversation(&mut self, draft: &Draft) {
        let spoken = || draft.turns.iter().filter(|turn| text::has_words(&turn.text));
        if spoken().next().is_none() {
            return self.require(false, Rule::NoTurns, 0.0, 1.0);
        }
        let clinician = spoken().filter(|turn| turn.speaker == Speaker::Clinician).count();
        let context = spoken().count() - clinician;
        self.require(clinician > 0, Rule::NoClinicianTurn, clinician as f64, 1.0);
        self.require(context > 0, Rule::NoContextTurn, context as f64, 1.0);
    }

    fn text(&mut self, draft: &Draft, policy: &Policy) {
        let (mut chars, mut controls, mut words, mut unbroken, mut leftovers, mut filler) = (0, 0, 0, 0, 0, 0);
        for turn in &draft.turns {
            chars += turn.text.chars().count();
            controls += turn.text.chars().filter(|c| is_garbage(*c)).count();
            words += text::words(&turn.text).count();
            unbroken = unbroken.max(longest_run(&turn.text));
            leftovers += LEFTOVER.find_iter(&turn.text).count();
            filler += FILLER.find_iter(&turn.text).count();
        }
        let control_share = controls as f64 / chars.max(1) as f64;
        self.require(
            control_share <= policy.control_share_max,
            Rule::ControlCharacters,
            control_share,
            policy.control_share_max,
        );
        let unbroken_max = policy.unbroken_chars_max;
        self.require(unbroken <= unbroken_max, Rule::EncodedData, unbroken as f64, unbroken_max as f64);
        self.require(words <= policy.words_max, Rule::TooLong, words as f64, policy.words_max as f64);
        self.require(leftovers == 0, Rule::TemplateLeftover, f64::from(leftovers as u32), 0.0);
        self.require(filler == 0, Rule::FillerText, f64::from(filler as u32), 0.0);
    }

    fn quality(&mut self, assessed: &Assessed, policy: &Policy) {
        let Scores { distinct_bigrams, generic_share, letter_share, clinician_words, .. } = assessed.scores;
        let words_min = policy.clinician_words_min;
        self.require(clinician_words >= words_min, Rule::TooShort, f64::from(clinician_words), f64::from(words_min));
        let letters = f64::from(letter_share);
        self.require(letters >= policy.letter_share_min, Rule::FewLetters, letters, policy.letter_share_min);
        let distinct = f64::from(distinct_bigrams);
        let varied = clinician_words < policy.repetition_words_min || distinct >= policy.distinct_bigrams_min;
        self.require(varied, Rule::Repetition, distinct, policy.distinct_bigrams_min);
        let again = crate::quality::duplicate_share(&assessed.draft.turns);
        self.require(again <= policy.duplicate_share_max, Rule::DuplicateTurns, again, policy.duplicate_share_max);
        let generic = f64::from(generic_share);
        self.require(generic < policy.generic_share_max, Rule::GenericOnly, generic, policy.generic_share_max);
    }
}

fn is_garbage(c: char) -> bool {
    c == char::REPLACEMENT_CHARACTER || c.is_control() && !matches!(c, '\n' | '\t' | '\r')
}

fn longest_run(text: &str) -> usize {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    let (mut longest, mut run) = (0, 0);
    for byte in text.bytes() {
        run = if is_part(byte) { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}
