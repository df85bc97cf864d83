//! A record that was parsed and not yet believed: its turns and what its source says about it. Measuring it yields the
//! attributes beside it; only validation turns it into something else.

use crate::deid::{self, Roster};
use crate::profile::Profile;
use crate::quality;
use crate::rule::Rejection;
use empathd_proto::record::{Difficulty, Domain, EdgeCategory, PhiSpan, Purpose, Scores, Turn};

/// What a source held: drafts, and what was refused while reading. Both in the order of the source.
#[derive(Debug, Default)]
pub struct Drafts {
    /// Records that could be parsed.
    pub drafts: Vec<Draft>,
    /// Entries that could not.
    pub refused: Vec<Rejection>,
}

impl Drafts {
    /// Entries found, parsed or not.
    #[must_use]
    pub fn found(&self) -> usize {
        self.drafts.len() + self.refused.len()
    }
}

/// A parsed, untrusted record. Its `Debug` shows sizes, never text.
pub struct Draft {
    pub(crate) profile: &'static Profile,
    pub(crate) ordinal: u64,
    pub(crate) turns: Vec<Turn>,
    pub(crate) domain: Domain,
    pub(crate) category: Option<EdgeCategory>,
    pub(crate) difficulty: Option<Difficulty>,
    pub(crate) purpose: Purpose,
    /// Whether its source names content that is never learnt.
    pub(crate) blocked: bool,
    /// Who it is from, when the source says so.
    pub(crate) client: Option<String>,
}

impl std::fmt::Debug for Draft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Draft({} #{}, {} turns)", self.profile.key, self.ordinal, self.turns.len())
    }
}

impl Draft {
    /// Position in the source, from zero.
    #[must_use]
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// Finds identifiers and measures quality. Nothing is changed or dropped.
    #[must_use]
    pub fn assess(self, roster: &Roster) -> Assessed {
        let phi = deid::spans(&self.turns, roster);
        let scores = quality::scores(&self.turns);
        Assessed { draft: self, phi, scores }
    }
}

/// A draft with its measured attributes beside it.
#[derive(Debug)]
pub struct Assessed {
    pub(crate) draft: Draft,
    pub(crate) phi: Vec<PhiSpan>,
    pub(crate) scores: Scores,
}

impl Assessed {
    /// Identifiers found, ordered by turn and start, not overlapping.
    #[must_use]
    pub fn phi(&self) -> &[PhiSpan] {
        &self.phi
    }

    /// What the labels of its source allow it to be used for.
    #[must_use]
    pub fn purpose(&self) -> Purpose {
        self.draft.purpose
    }

    /// Measured quality.
    #[must_use]
    pub fn scores(&self) -> &Scores {
        &self.scores
    }
}
