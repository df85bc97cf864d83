//! Sentences into conversations. It knows two speakers and no file format.

use super::identity::People;
use super::rng::Rng;
use super::text::Theme;
use super::text::everyday::{BRIDGES, CLOSINGS, NODS};
use std::collections::HashSet;

/// Who says a line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    Client,
    Clinician,
}

/// A conversation.
pub(super) type Talk = Vec<(Voice, String)>;

/// Everything that the making of a corpus needs and remembers.
pub(super) struct Desk {
    /// The choices.
    pub rng: Rng,
    /// The planted people.
    pub people: People,
    /// Conversations so far, so that none is made twice by accident.
    seen: HashSet<String>,
}

impl Desk {
    /// An empty desk.
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), people: People::new(), seen: HashSet::new() }
    }

    /// Calls `make` until it gives a conversation that was not made before.
    pub(super) fn new_talk(&mut self, mut make: impl FnMut(&mut Rng) -> Talk) -> Talk {
        loop {
            let talk = make(&mut self.rng);
            let whole: String = talk.iter().map(|(_, text)| text.as_str()).collect();
            if self.seen.insert(whole) {
                return talk;
            }
        }
    }

    /// Lets the client of every third conversation give something away.
    pub(super) fn maybe_slip(&mut self, talk: &mut Talk) {
        if !self.rng.one_in(3) {
            return;
        }
        let slip = self.people.slip(&mut self.rng);
        if let Some((_, text)) = talk.iter_mut().rfind(|(voice, _)| *voice == Voice::Client) {
            text.push(' ');
            text.push_str(&slip);
        }
    }
}

/// A conversation about `theme` with `rounds` exchanges, 1 to 3; the clinician has the last word.
pub(super) fn converse(theme: &Theme, rounds: usize, rng: &mut Rng) -> Talk {
    let (more, more_later) = rng.pick_two(theme.more);
    let (hears, hears_later) = rng.pick_two(theme.hears);
    let (asks, asks_later) = rng.pick_two(theme.asks);
    let (act, act_later) = rng.pick_two(theme.acts);
    let mut talk = vec![(Voice::Client, format!("{} {more}", rng.pick(theme.opens)))];
    if rounds <= 1 {
        talk.push((Voice::Clinician, format!("{hears} {asks} {act}")));
        return talk;
    }
    talk.push((Voice::Clinician, format!("{hears} {asks}")));
    talk.push((Voice::Client, format!("{} {more_later}", rng.pick(NODS))));
    if rounds == 2 {
        talk.push((Voice::Clinician, format!("{hears_later} {act}")));
        return talk;
    }
    talk.push((Voice::Clinician, format!("{} {asks_later}", rng.pick(BRIDGES))));
    talk.push((Voice::Client, (*rng.pick(NODS)).to_owned()));
    talk.push((Voice::Clinician, format!("{hears_later} {act} {act_later} {}", rng.pick(CLOSINGS))));
    talk
}
