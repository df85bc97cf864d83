//! Why a record is refused: a closed list of rules, and the refusal itself. It never holds a word of the text.

/// Declares the rules with their stable text form.
macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A rule a record can break. The score and threshold of a [`Rejection`] are in the unit named here.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule { $($(#[$doc])* $name,)* }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Rule] = &[$(Rule::$name,)*];

            /// The stable text form, as reports show it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Rule::$name => $text,)* }
            }
        }
    };
}

rules! {
    /// Bytes that are not UTF-8; the score is the position of the first one within the entry.
    InvalidUtf8 = "invalid_utf8",
    /// A line that is not JSON, or a row with another number of columns than the header (score: columns found).
    BrokenRow = "broken_row",
    /// A line, row or element longer than the bound, bytes.
    OversizedEntry = "oversized_entry",
    /// A text longer than the bound, bytes.
    OversizedField = "oversized_field",
    /// JSON nested deeper than the bound, levels.
    TooDeep = "too_deep",
    /// More turns than the bound, turns.
    TooManyTurns = "too_many_turns",
    /// A field that the profile needs is not there; the score is the number of those missing.
    MissingField = "missing_field",
    /// A prompt or response without a word; the score is its words.
    EmptyTurn = "empty_turn",
    /// Turns whose speaker is none that the profile knows, turns.
    UnknownSpeaker = "unknown_speaker",
    /// Not one turn with words, turns.
    NoTurns = "no_turns",
    /// Nobody to learn from, clinician turns.
    NoClinicianTurn = "no_clinician_turn",
    /// Nothing to answer to, turns of client or context.
    NoContextTurn = "no_context_turn",
    /// Fewer words of the clinician than the bound, words.
    TooShort = "too_short",
    /// More words than the bound, words.
    TooLong = "too_long",
    /// Control and replacement characters, share of all characters.
    ControlCharacters = "control_characters",
    /// An unbroken run of letters and digits such as encoded data, characters.
    EncodedData = "encoded_data",
    /// Too few letters among the visible characters, share.
    FewLetters = "few_letters",
    /// Too few distinct word pairs, share.
    Repetition = "repetition",
    /// Clinician turns said before in the same record, share.
    DuplicateTurns = "duplicate_turns",
    /// Nothing but stock phrases, share of the clinician's turns.
    GenericOnly = "generic_only",
    /// Unfilled placeholders or tokens of a chat template, occurrences.
    TemplateLeftover = "template_leftover",
    /// Filler text of typesetters, occurrences.
    FillerText = "filler_text",
    /// A category that is never learnt, by its name, occurrences.
    BlockedCategory = "blocked_category",
    /// Labelled unsafe, where the policy keeps no negatives.
    LabelledUnsafe = "labelled_unsafe",
    /// Labelled as low quality, where the policy keeps no negatives.
    LabelledLowQuality = "labelled_low_quality",
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One refusal: which rule, what was measured, what the bound was, and where in the source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rejection {
    /// The rule that was broken.
    pub rule: Rule,
    /// What was measured, in the unit of the rule.
    pub score: f64,
    /// The bound it crossed.
    pub threshold: f64,
    /// Position of the record in its source, from zero.
    pub ordinal: u64,
}

impl Rejection {
    /// A refusal of the record at `ordinal`.
    #[must_use]
    pub fn new(rule: Rule, score: f64, threshold: f64, ordinal: u64) -> Self {
        Self { rule, score, threshold, ordinal }
    }

    /// A refusal for a size or count beyond a bound.
    #[must_use]
    pub(crate) fn beyond(rule: Rule, found: usize, bound: usize, ordinal: u64) -> Self {
        Self::new(rule, found as f64, bound as f64, ordinal)
    }
}
