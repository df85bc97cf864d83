//! From fields to drafts, as the profile says. It knows every shape a record can have and nothing of bytes.

use crate::draft::{Draft, Drafts};
use crate::limits::{FIELD_BYTES_MAX, TURNS_MAX};
use crate::profile::{Condition, Field, Profile, Shape, TextForm};
use crate::read::attributes::Attributes;
use crate::read::captions::clock_ms;
use crate::read::fields::{Cell, Fields, fill, pick, pick_text};
use crate::read::speech;
use crate::rule::{Rejection, Rule};
use crate::text;
use empathd_proto::record::{Purpose, Speaker, Turn};
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// One turn as its source has it.
pub(crate) struct Spoken {
    pub(crate) speaker: Speaker,
    pub(crate) text: String,
    pub(crate) start_ms: Option<u64>,
}

fn spoken(speaker: Speaker, text: String) -> Spoken {
    Spoken { speaker, text, start_ms: None }
}

/// A conversation whose rows are still being gathered.
struct Open {
    ordinal: u64,
    attributes: Attributes,
    turns: Vec<Spoken>,
    utterances: HashSet<String>,
    strangers: usize,
}

/// Makes drafts from the entries of one source.
pub(crate) struct Shaper {
    profile: &'static Profile,
    out: Drafts,
    open: Vec<Open>,
    open_by_group: HashMap<String, usize>,
}

impl Shaper {
    pub(crate) fn new(profile: &'static Profile) -> Self {
        Self { profile, out: Drafts::default(), open: Vec::new(), open_by_group: HashMap::new() }
    }

    pub(crate) fn refuse(&mut self, rejection: Rejection) {
        self.out.refused.push(rejection);
    }

    /// Takes a whole conversation that has no fields beside its turns.
    pub(crate) fn conversation(&mut self, ordinal: u64, turns: Result<Vec<Spoken>, Rejection>) {
        match turns {
            Ok(turns) => self.push(ordinal, turns, Attributes::of_profile(self.profile)),
            Err(rejection) => self.refuse(rejection),
        }
    }

    /// Takes one entry: a record, or a row of one.
    pub(crate) fn entry(&mut self, ordinal: u64, fields: &dyn Fields) -> Result<(), Rejection> {
        let profile = self.profile;
        let attributes = Attributes::of(profile, fields);
        let turns = match &profile.shape {
            Shape::Rows { group, speaker, text, time, utterance } => {
                let names = [group, speaker, text, time, utterance];
                return self.row(ordinal, fields, attributes, names);
            }
            Shape::Turns { list, speaker, text, exchange, context } => {
                let mut turns = context_turn(context.as_deref(), fields);
                turns.extend(listed(profile, fields, list, [speaker, text], exchange, ordinal)?);
                turns
            }
            Shape::Pair { prompt, response, client_answers, context } => {
                let mut turns = context_turn(context.as_deref(), fields);
                turns.extend(pair(fields, prompt, response, client_answers.as_ref(), ordinal)?);
                turns
            }
            Shape::Numbered { prefix, speakers } => numbered(fields, prefix, speakers, ordinal)?,
            Shape::Concept { title, body, questions, answer } => {
                concept(fields, [title, body], questions, answer, ordinal)?
            }
            Shape::Captions {} | Shape::Windows {} => return Err(Rejection::beyond(Rule::MissingField, 1, 0, ordinal)),
        };
        self.push(ordinal, turns, attributes);
        Ok(())
    }

    fn row(
        &mut self,
        ordinal: u64,
        fields: &dyn Fields,
        attributes: Attributes,
        [group, speaker, text, time, utterance]: [&Field; 5],
    ) -> Result<(), Rejection> {
        let missing = |names: &&&Field| pick_text(fields, names).is_none();
        let absent = [group, speaker].iter().filter(missing).count();
        let (Some(key), Some(name)) = (pick_text(fields, group), pick_text(fields, speaker)) else {
            return Err(Rejection::beyond(Rule::MissingField, absent, 0, ordinal));
        };
        let index = *self.open_by_group.entry(key).or_insert_with(|| {
            self.open.push(Open {
                ordinal,
                attributes: attributes.clone(),
                turns: vec![],
                utterances: HashSet::new(),
                strangers: 0,
            });
            self.open.len() - 1
        });
        let open = &mut self.open[index];
        // One row with a bad label is enough for the whole conversation.
        if open.attributes.purpose == Purpose::Target {
            open.attributes.purpose = attributes.purpose;
        }
        open.attributes.blocked |= attributes.blocked;
        let is_copy = pick_text(fields, utterance).is_some_and(|value| !open.utterances.insert(value));
        let (Some(said), false) = (pick_text(fields, text), is_copy) else { return Ok(()) };
        match self.profile.speaker(&name) {
            Some(speaker) if open.turns.len() <= TURNS_MAX => {
                let start_ms = pick_text(fields, time).and_then(|time| clock_ms(&time));
                open.turns.push(Spoken { speaker, text: said, start_ms });
            }
            Some(_) => {}
            None => open.strangers += 1,
        }
        Ok(())
    }

    fn push(&mut self, ordinal: u64, turns: Vec<Spoken>, attributes: Attributes) {
        if turns.len() > TURNS_MAX {
            return self.refuse(Rejection::beyond(Rule::TooManyTurns, turns.len(), TURNS_MAX, ordinal));
        }
        let form = self.profile.text;
        let turn = |turn: Spoken| {
            let text = if form == TextForm::Html { text::without_markup(&turn.text) } else { turn.text };
            Turn { speaker: turn.speaker, text: text::tidied(&text), start_ms: turn.start_ms }
        };
        let turns = turns.into_iter().map(turn).filter(|turn| !turn.text.is_empty()).collect();
        let Attributes { domain, category, difficulty, purpose, blocked, client } = attributes;
        let profile = self.profile;
        self.out.drafts.push(Draft { profile, ordinal, turns, domain, category, difficulty, purpose, blocked, client });
    }

    /// Closes what is open and hands everything over.
    pub(crate) fn finish(mut self) -> Drafts {
        for open in std::mem::take(&mut self.open) {
            if open.strangers > 0 {
                self.refuse(Rejection::beyond(Rule::UnknownSpeaker, open.strangers, 0, open.ordinal));
            } else {
                self.push(open.ordinal, open.turns, open.attributes);
            }
        }
        agree(&mut self.out.drafts);
        self.out
    }
}

/// The same words with and without a bad label are no target: one verdict against them is enough.
fn agree(drafts: &mut [Draft]) {
    let words = |draft: &Draft| {
        let mut hasher = blake3::Hasher::new();
        for turn in &draft.turns {
            hasher.update(text::spoken(&turn.text).as_bytes()).update(b"\n");
        }
        hasher.finalize()
    };
    let bad: HashMap<blake3::Hash, Purpose> = drafts
        .iter()
        .filter(|draft| draft.purpose != Purpose::Target)
        .map(|draft| (words(draft), draft.purpose))
        .collect();
    for draft in drafts.iter_mut().filter(|draft| draft.purpose == Purpose::Target) {
        if !bad.is_empty()
            && let Some(purpose) = bad.get(&words(draft))
        {
            draft.purpose = *purpose;
        }
    }
}

/// Refuses a text beyond the bound.
pub(crate) fn bounded(text: &str, ordinal: u64) -> Result<(), Rejection> {
    if text.len() <= FIELD_BYTES_MAX {
        return Ok(());
    }
    Err(Rejection::beyond(Rule::OversizedField, text.len(), FIELD_BYTES_MAX, ordinal))
}

/// Refuses a value that holds a text beyond the bound, known field or not.
pub(crate) fn bounded_json(value: &Value, ordinal: u64) -> Result<(), Rejection> {
    match value {
        Value::String(text) => bounded(text, ordinal),
        Value::Array(items) => items.iter().try_for_each(|item| bounded_json(item, ordinal)),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| {
            bounded(key, ordinal)?;
            bounded_json(value, ordinal)
        }),
        _ => Ok(()),
    }
}

/// The system turn that a template gives, when it gives one.
fn context_turn(template: Option<&str>, fields: &dyn Fields) -> Vec<Spoken> {
    let value = |name: &str| pick_text(fields, &vec![name.to_owned()]).map(|text| text.replace('_', " "));
    let filled = template.and_then(|template| fill(template, &value));
    filled.map(|text| spoken(Speaker::System, text)).into_iter().collect()
}

/// A field that must say something: missing and empty are different faults.
fn required(fields: &dyn Fields, names: &Field, ordinal: u64) -> Result<String, Rejection> {
    let Some(cell) = pick(fields, names) else {
        return Err(Rejection::beyond(Rule::MissingField, 1, 0, ordinal));
    };
    let text = cell.text().unwrap_or_default();
    if text::has_words(&text) { Ok(text) } else { Err(Rejection::beyond(Rule::EmptyTurn, 0, 1, ordinal)) }
}

fn pair(
    fields: &dyn Fields,
    prompt: &[Field],
    response: &Field,
    client_answers: Option<&Condition>,
    ordinal: u64,
) -> Result<[Spoken; 2], Rejection> {
    let parts: Vec<&Field> = prompt.iter().filter(|part| pick_text(fields, part).is_some()).collect();
    let first = match parts.as_slice() {
        [] => required(fields, &prompt[0], ordinal)?,
        parts => parts.iter().map(|part| required(fields, part, ordinal)).collect::<Result<Vec<_>, _>>()?.join("\n\n"),
    };
    let second = required(fields, response, ordinal)?;
    let is_turned = client_answers.is_some_and(|condition| holds(condition, fields));
    let speakers =
        if is_turned { [Speaker::Clinician, Speaker::Client] } else { [Speaker::Client, Speaker::Clinician] };
    Ok([spoken(speakers[0], first), spoken(speakers[1], second)])
}

fn holds(condition: &Condition, fields: &dyn Fields) -> bool {
    let value = pick_text(fields, &condition.field).unwrap_or_default().to_lowercase();
    condition.values.contains(&value)
}

fn numbered(fields: &dyn Fields, prefix: &str, speakers: &[Speaker], ordinal: u64) -> Result<Vec<Spoken>, Rejection> {
    let mut turns = Vec::new();
    for (number, speaker) in (1..=TURNS_MAX).zip(speakers.iter().cycle()) {
        let names = vec![format!("{prefix}{number}")];
        if pick(fields, &names).is_none() {
            break;
        }
        turns.push(spoken(*speaker, required(fields, &names, ordinal)?));
    }
    Ok(turns)
}

fn concept(
    fields: &dyn Fields,
    [title, body]: [&Field; 2],
    questions: &[String],
    answer: &str,
    ordinal: u64,
) -> Result<Vec<Spoken>, Rejection> {
    let (title, body) = (required(fields, title, ordinal)?, required(fields, body, ordinal)?);
    let value = |name: &str| match name {
        "title" => Some(title.trim().to_owned()),
        "body" => Some(body.trim().to_owned()),
        other => pick_text(fields, &vec![other.to_owned()]),
    };
    // The same concept is always asked about in the same words, and concepts differ.
    let choice = usize::from(blake3::hash(title.as_bytes()).as_bytes()[0]) % questions.len().max(1);
    let question = questions.get(choice).and_then(|question| fill(question, &value)).unwrap_or_else(|| title.clone());
    let answer = fill(answer, &value).unwrap_or_else(|| body.clone());
    Ok(vec![spoken(Speaker::Client, question), spoken(Speaker::Clinician, answer)])
}

/// After so many turns of unknown speakers the others need not be looked at.
const STRANGERS_MAX: usize = 16;

/// The turns of a list, or of a transcript in one text.
fn listed(
    profile: &Profile,
    fields: &dyn Fields,
    list: &Field,
    [speaker, text]: [&Field; 2],
    exchange: &[Field],
    ordinal: u64,
) -> Result<Vec<Spoken>, Rejection> {
    let missing = || Rejection::beyond(Rule::MissingField, 1, 0, ordinal);
    let cell = pick(fields, list).ok_or_else(missing)?;
    let Cell::Json(Value::Array(items)) = cell else {
        let (turns, homeless) = speech::transcript(&cell.text().ok_or_else(missing)?, profile);
        if turns.is_empty() && homeless > 0 {
            return Err(Rejection::beyond(Rule::UnknownSpeaker, homeless, 0, ordinal));
        }
        return Ok(turns.into_iter().map(|(speaker, text)| spoken(speaker, text)).collect());
    };
    if items.len() > TURNS_MAX {
        return Err(Rejection::beyond(Rule::TooManyTurns, items.len(), TURNS_MAX, ordinal));
    }
    let mut turns = Vec::with_capacity(items.len());
    let mut strangers = 0;
    for item in items {
        if let [clinician, client] = exchange
            && let (Some(first), Some(second)) = (pick_text(item, clinician), pick_text(item, client))
        {
            turns.extend([spoken(Speaker::Clinician, first), spoken(Speaker::Client, second)]);
            continue;
        }
        match element(profile, fields, item, speaker, text) {
            Some(turn) => turns.push(turn),
            None => strangers += 1,
        }
        if strangers >= STRANGERS_MAX {
            break;
        }
    }
    if strangers > 0 { Err(Rejection::beyond(Rule::UnknownSpeaker, strangers, 0, ordinal)) } else { Ok(turns) }
}

/// One element of a list: an object with a speaker, or a line with a prefix. `None` when its speaker is unknown.
fn element(profile: &Profile, record: &dyn Fields, item: &Value, speaker: &Field, text: &Field) -> Option<Spoken> {
    if let Value::String(line) = item {
        return speech::prefixed(line, profile).map(|(speaker, said)| spoken(speaker, said.to_owned()));
    }
    let names = speaker.iter().filter_map(|field| item.cell(field)?.text());
    let who = names.filter_map(|name| profile.speaker(&name).or_else(|| persona(profile, record, &name))).next()?;
    Some(spoken(who, pick_text(item, text).unwrap_or_default()))
}

/// The speaker that the record's description of a persona gives: `persona_1` may be "therapist" or an object with a role.
fn persona(profile: &Profile, record: &dyn Fields, name: &str) -> Option<Speaker> {
    let paths = [name.to_owned(), format!("{name}.role"), format!("{name}.type"), format!("{name}.name")];
    let nested = paths
        .iter()
        .chain([&format!("personas.{name}"), &format!("personas.{name}.role")])
        .cloned()
        .collect::<Vec<_>>();
    nested.iter().filter_map(|path| record.cell(path)?.text()).find_map(|text| profile.speaker(&text))
}
