//! Identifiers in the turns of a record, as spans beside the text, after the Safe Harbor list (45 CFR 164.514(b)(2)). The
//! text is never changed. Recall counts before precision: a word too many hidden costs little, an identifier shown costs all.
//!
//! Each turn is normalised with a map back to its bytes, detectors of several kinds look at it, overlaps become one span, and
//! a second pass hides every surface of a name found anywhere in the record.

mod checks;
mod dates;
mod names;
mod normal;
mod numbers;
mod patterns;
mod places;
mod roster;
mod words;

pub use roster::{Roster, RosterError};

use empathd_proto::record::{PhiKind, PhiSpan, Turn};
use normal::Normal;

/// An identifier in normalised text: bytes `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) kind: PhiKind,
}

impl Found {
    pub(crate) fn new(start: usize, end: usize, kind: PhiKind) -> Self {
        Self { start, end, kind }
    }
}

/// All identifiers of a record, ordered by turn and start, not overlapping, on character boundaries of the turns' texts.
#[must_use]
pub fn spans(turns: &[Turn], roster: &Roster) -> Vec<PhiSpan> {
    let normals: Vec<Normal> = turns.iter().map(|turn| Normal::of(&turn.text)).collect();
    let mut found: Vec<Vec<Found>> = normals.iter().map(|normal| look(normal.text(), roster)).collect();
    let again = names::surfaces(normals.iter().map(Normal::text).zip(&found));
    if let Some(again) = again {
        for (normal, found) in normals.iter().zip(&mut found) {
            found.extend(again.find(normal.text()));
        }
    }
    let mut spans = Vec::new();
    for (index, (normal, found)) in normals.iter().zip(found).enumerate() {
        spans.extend(merged(found).into_iter().filter_map(|found| normal.span(index, found)));
    }
    spans
}

fn look(text: &str, roster: &Roster) -> Vec<Found> {
    let mut found = roster.find(text);
    patterns::find(text, &mut found);
    numbers::find(text, &mut found);
    dates::find(text, &mut found);
    places::find(text, &mut found);
    names::find(text, &mut found);
    found
}

/// Overlapping finds become one span over all of them; the longest one names the kind, any kind before "other".
fn merged(mut found: Vec<Found>) -> Vec<Found> {
    found.retain(|found| found.start < found.end);
    found.sort_by_key(|found| (found.start, std::cmp::Reverse(found.end), found.kind == PhiKind::OtherId));
    let mut out: Vec<(Found, usize)> = Vec::new();
    for next in found {
        let length = next.end - next.start;
        match out.last_mut() {
            Some((last, longest)) if next.start < last.end => {
                last.end = last.end.max(next.end);
                if length > *longest {
                    (last.kind, *longest) = (next.kind, length);
                }
            }
            _ => out.push((next, length)),
        }
    }
    out.into_iter().map(|(found, _)| found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::record::Speaker;

    fn turns(texts: &[&str]) -> Vec<Turn> {
        texts.iter().map(|text| Turn { speaker: Speaker::Client, text: (*text).into(), start_ms: None }).collect()
    }

    fn hidden(texts: &[&str], names: &[&str]) -> Vec<(String, &'static str)> {
        let turns = turns(texts);
        let roster = Roster::new(names.iter().map(|name| (*name).to_owned())).unwrap();
        let shown = |span: PhiSpan| {
            let text = &turns[span.turn as usize].text[span.start as usize..span.end as usize];
            (text.to_owned(), span.kind.as_str())
        };
        spans(&turns, &roster).into_iter().map(shown).collect()
    }

    #[test]
    fn one_text_with_many_kinds() {
        let text = "My name is Ilsabet Morrow, born 3 July 1987. Mail ilsabet@example.org or call 555-0134. \
                    MRN: 4471902. I live at 12 Quarry Street. My SSN is 219-09-9999.";
        let expected = [
            ("Ilsabet Morrow", "name"),
            ("3 July 1987", "date"),
            ("ilsabet@example.org", "email"),
            ("555-0134", "phone"),
            ("4471902", "mrn"),
            ("12 Quarry Street", "location"),
            ("219-09-9999", "ssn"),
        ];
        assert_eq!(hidden(&[text], &[]), expected.map(|(text, kind)| (text.to_owned(), kind)));
    }

    #[test]
    fn a_name_found_once_is_hidden_everywhere() {
        let found = hidden(&["Tamsin said no.", "Who is she?", "My sister is called Tamsin.", "tamsin's house"], &[]);
        assert_eq!(found, ["Tamsin", "Tamsin", "tamsin"].map(|text| (text.to_owned(), "name")));
    }

    #[test]
    fn spans_are_on_the_original_bytes() {
        let found =
            hidden(&["Caf\u{e9}\u{200b}: write to \u{ff41}nn\u{200b}a@example.org\u{2014}now, \u{0410}nna"], &["Anna"]);
        let expected = [("\u{ff41}nn\u{200b}a@example.org", "email"), ("\u{0410}nna", "name")];
        assert_eq!(found, expected.map(|(text, kind)| (text.to_owned(), kind)));
    }

    #[test]
    fn ordinary_talk_stays_as_it_is() {
        let talk = [
            "I'm Fine. I'm Okay, really. I don't know what May bring. Will it get better?",
            "In 2019 I lost 24 pounds, and the PHQ-9 was 7/10 at best. I was 24 years old.",
            "This is hard. Hope helps. On a scale from 1 to 10? Rich people have it 24/7.",
            "My mother, Who never listens, said: Call me when you care. Mark my words.",
        ];
        assert_eq!(hidden(&talk, &[]), []);
    }

    #[test]
    fn overlaps_become_one_span() {
        let found =
            vec![Found::new(4, 9, PhiKind::Name), Found::new(0, 8, PhiKind::Location), Found::new(9, 10, PhiKind::Age)];
        assert_eq!(merged(found), [Found::new(0, 9, PhiKind::Location), Found::new(9, 10, PhiKind::Age)]);
    }
}
