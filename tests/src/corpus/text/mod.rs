//! The sentences the corpus is made of, by theme. Written for this project; nothing here is quoted from a person or
//! another collection. How sentences become records is not known here.

pub(super) mod concepts;
pub(super) mod documents;
pub(super) mod edge_high;
pub(super) mod edge_moderate;
pub(super) mod edge_very_high;
pub(super) mod everyday;
pub(super) mod fairness;

use empathd_proto::record::{Difficulty, EdgeCategory};

/// What a client may say about one matter, and how a careful clinician may answer.
pub(super) struct Theme {
    /// A few words that name the matter.
    pub title: &'static str,
    /// What the client begins with.
    pub opens: &'static [&'static str],
    /// What the client adds when asked.
    pub more: &'static [&'static str],
    /// How the clinician shows having heard.
    pub hears: &'static [&'static str],
    /// What the clinician asks.
    pub asks: &'static [&'static str],
    /// What the clinician offers to do next.
    pub acts: &'static [&'static str],
}

/// A theme of the 25 edge categories.
pub(super) struct EdgeTheme {
    /// Which.
    pub category: EdgeCategory,
    /// How hard.
    pub difficulty: Difficulty,
    /// What the clinician must master.
    pub challenges: [&'static str; 3],
    /// What is said.
    pub theme: Theme,
}

/// All 25 edge themes, the hardest first.
pub(super) fn edge_themes() -> impl Iterator<Item = &'static EdgeTheme> {
    edge_very_high::THEMES.iter().chain(edge_high::THEMES).chain(edge_moderate::THEMES)
}
