//! Real dialogues as examples with domains, parted by the people in them: what is learnt, what chooses among weights, and
//! what is measured at the end. Read as the appliance reads its sources; which collections count is said here.

use anyhow::{Context, ensure};
use empathd::examples;
use empathd_ingest::{Policy, Roster, detect, read, validate};
use empathd_proto::engine::{Example, Part};
use empathd_proto::record::{Domain, Purpose, Record, Speaker};
use empathd_tests::harness::files;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

/// Profiles of collections of dialogues and explanations.
const PROFILES: &[&str] =
    &["annomi", "counsel_chat", "support_windows", "dialogue_note", "diasafety", "epitome", "captions", "concept"];
/// Extensions of source files.
const EXTENSIONS: &[&str] = &["csv", "tsv", "json", "jsonl", "vtt", "srt"];
/// Consultations of general practice: what is said there is history taking, which captions alone cannot tell.
const CONSULTATIONS: &str = "primock";
/// Turns at least this long say who was speaking with whom: records that share one stay together.
const TELLING_BYTES: usize = 48;
/// Of a hundred groups of people: those measured at the end, then those that choose among weights.
const TEST_PERCENT: u64 = 15;
const HELD_PERCENT: u64 = 10;
/// Most examples of a domain in each of the two.
const TEST_MAX: usize = 40;
const HELD_MAX: usize = 12;
/// A domain with fewer measured examples is left out.
const TEST_MIN: usize = 8;

/// Examples by their use.
pub(super) struct Data {
    /// Learnt and held out.
    pub(super) train: Vec<Example>,
    /// Measured at the end.
    pub(super) test: Vec<Example>,
    /// Of all of it.
    pub(super) digest: String,
}

/// A record that may be learnt from.
struct Item {
    record: Record,
    client: String,
    key: [u8; 32],
}

impl Data {
    /// Reads a folder.
    pub(super) fn read(folder: &Path, seq_len: u32) -> anyhow::Result<Self> {
        let mut items = Vec::new();
        for path in files::regular_files(folder)? {
            items.extend(records(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        // One order, whatever the names of the files.
        items.sort_by_key(|item| item.key);
        items.dedup_by_key(|item| item.key);
        let items = without_repeats(items);
        let groups = groups(&items);
        let mut parts: [Vec<Example>; 3] = Default::default();
        for (item, group) in items.iter().zip(groups) {
            let (at, part) = match group % 100 {
                test if test < TEST_PERCENT => (0, Part::HeldOut),
                held if held < TEST_PERCENT + HELD_PERCENT => (1, Part::HeldOut),
                _ => (2, Part::Learn),
            };
            parts[at].extend(examples::examples(&item.record, part, seq_len));
        }
        let [test, held, learn] = parts;
        let (test, held) = (at_most(test, TEST_MAX), at_most(held, HELD_MAX));
        let measured = count(&test);
        let is_enough = |one: &Example| measured.get(&one.domain).is_some_and(|count| *count >= TEST_MIN);
        let train: Vec<Example> = learn.into_iter().chain(held).filter(is_enough).collect();
        let test: Vec<Example> = test.into_iter().filter(is_enough).collect();
        ensure!(!test.is_empty() && !train.is_empty(), "no collection of dialogues under {}", folder.display());
        let digest = digest(train.iter().chain(&test));
        Ok(Self { train, test, digest })
    }

    /// Domains that are learnt.
    pub(super) fn domains(&self) -> Vec<Domain> {
        count(&self.train).into_keys().collect()
    }

    /// In words, how much there is.
    pub(super) fn summary(&self) -> String {
        let part = |part: Part| self.train.iter().filter(|one| one.part == part).cloned().collect::<Vec<_>>();
        let (learn, held, test) = (count(&part(Part::Learn)), count(&part(Part::HeldOut)), count(&self.test));
        let line = |(domain, learnt): (&Domain, &usize)| {
            let of = |counts: &BTreeMap<Domain, usize>| counts.get(domain).copied().unwrap_or(0);
            format!("{domain}: {learnt} learnt, {} held out, {} measured", of(&held), of(&test))
        };
        learn.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Records of a file that may be learnt from; none of a file of another kind.
fn records(path: &Path) -> anyhow::Result<Vec<Item>> {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    if !EXTENSIONS.contains(&extension.as_str()) {
        return Ok(Vec::new());
    }
    let bytes = fs::read(path)?;
    let Ok(profile) = detect(&bytes, Some(&extension)) else { return Ok(Vec::new()) };
    if !PROFILES.contains(&profile.key.as_str()) {
        return Ok(Vec::new());
    }
    let is_consultation = path.components().any(|part| part.as_os_str().to_string_lossy().contains(CONSULTATIONS));
    let policy = Policy::default();
    let mut items = Vec::new();
    for draft in read(&bytes, profile)?.drafts {
        let Ok(valid) = validate(draft.assess(&Roster::empty()), &policy) else { continue };
        if valid.record().purpose != Purpose::Target {
            continue;
        }
        let mut record = valid.record().clone();
        if is_consultation && profile.key == "captions" {
            record.domain = Domain::Assessment;
        }
        items.push(Item { client: valid.client_key().to_owned(), key: valid.content_key(), record });
    }
    Ok(items)
}

/// Long turns of a record, letters only, so that the same words in two forms are the same.
fn telling(record: &Record) -> impl Iterator<Item = (Speaker, String)> {
    record.turns.iter().filter_map(|turn| {
        let letters: String = turn.text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
        (letters.len() >= TELLING_BYTES).then_some((turn.speaker, letters))
    })
}

/// Leaves out records whose answers were all there before: the same conversation in another file.
fn without_repeats(items: Vec<Item>) -> Vec<Item> {
    let mut seen: HashSet<String> = HashSet::new();
    let is_new = |item: &Item| {
        let answers = telling(&item.record).filter(|(speaker, _)| *speaker == Speaker::Clinician);
        let answers: Vec<String> = answers.map(|(_, letters)| letters).collect();
        let is_repeat = !answers.is_empty() && answers.iter().all(|letters| seen.contains(letters));
        seen.extend(answers);
        !is_repeat
    };
    items.into_iter().filter(is_new).collect()
}

/// A number for each record, the same for records of one client and for those that share a telling turn.
fn groups(items: &[Item]) -> Vec<u64> {
    let mut root: Vec<usize> = (0..items.len()).collect();
    let mut first: HashMap<String, usize> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let names = telling(&item.record).map(|(_, letters)| letters);
        for name in names.chain([format!("client {}", item.client)]) {
            let other = *first.entry(name).or_insert(index);
            let (a, b) = (find(&mut root, index), find(&mut root, other));
            root[a.max(b)] = a.min(b);
        }
    }
    let number =
        |index| u64::from_le_bytes(items[find(&mut root, index)].key.first_chunk().copied().unwrap_or_default());
    (0..items.len()).map(number).collect()
}

fn find(root: &mut [usize], mut at: usize) -> usize {
    while root[at] != at {
        root[at] = root[root[at]];
        at = root[at];
    }
    at
}

/// The first examples of each domain; their order is that of digests.
fn at_most(examples: Vec<Example>, max: usize) -> Vec<Example> {
    let mut taken: BTreeMap<Domain, usize> = BTreeMap::new();
    let keep = |one: &Example| {
        let taken = taken.entry(one.domain).or_default();
        *taken += 1;
        *taken <= max
    };
    examples.into_iter().filter(keep).collect()
}

fn count(examples: &[Example]) -> BTreeMap<Domain, usize> {
    let mut counts = BTreeMap::new();
    examples.iter().for_each(|one| *counts.entry(one.domain).or_default() += 1);
    counts
}

fn digest<'a>(examples: impl Iterator<Item = &'a Example>) -> String {
    let mut hash = blake3::Hasher::new();
    for example in examples {
        hash.update(example.domain.as_str().as_bytes());
        hash.update(example.part.as_str().as_bytes());
        for message in &example.messages {
            hash.update(message.text.as_bytes()).update(&[0]);
        }
    }
    hash.finalize().to_hex().to_string()
}
